"""A dataset folder (events.parquet, items.parquet) as arrays, and windows of it as training examples.

events.parquet: `user_id`, `item_id` (null where the event is a query), `ts` (int64 ms, or a timestamp), `scenario`,
`action`; optional `query`. items.parquet is optional: `item_id`, and at least one of `text`, `title` and `image` (a
list of floats); optional `category`. Other columns are ignored. Ids are strings.

Both files are read in batches. An event takes 18 bytes while they are (user and text int32, time int64, scenario and
action uint8), some 100 while they are sorted and 34 afterwards (int64, as tensors are indexed); ids and texts are held
once each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ACTIONS, SCENARIOS
from models.errors import BadInput
from models.events import Histories
from models.tables import STRING, TIME, VECTOR, batches

UNWANTED = ("skip", "hide", "dislike")  # actions that make no target
EVENTS = {"user_id": STRING, "item_id": STRING, "ts": TIME, "scenario": STRING, "action": STRING, "query": STRING}
ITEMS = {"item_id": STRING, "title": STRING, "category": STRING, "text": STRING, "image": VECTOR}
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Behaviour:
    """All events, by user (sorted by id), then by time, ties as in the file; and the texts they are about.

    The texts are first those of the items (as in items.parquet, then those that only events name, as they come), then
    the distinct queries. Nothing is filtered and nothing merged: an item without a text or without events is an item.
    """

    user_ids: list[str]
    item_ids: list[str]
    texts: list[str]  # "" where an item has none
    items: int  # how many of the texts are items
    categories: list[str]  # [items], "" where unknown
    images: Floats | None  # [items, I], zeros where an item has none
    first: Ints  # [users + 1]: user u has the events first[u] .. first[u + 1] - 1, at least one
    text: Ints  # [events], index into `texts`; below `items` it is an item, else a query
    time: Ints  # [events], ms since 1970
    scenario: Ints  # [events], index into SCENARIOS
    action: Ints  # [events], index into ACTIONS

    @property
    def users(self) -> int:
        return len(self.first) - 1

    @cached_property
    def liked(self) -> NDArray[np.bool_]:
        """Which events speak for what they are about: all but UNWANTED actions."""
        return ~np.isin(self.action, [ACTIONS.index(name) for name in UNWANTED])

    @cached_property
    def wanted(self) -> NDArray[np.bool_]:
        """Which events may be targets: an item, not a query, and liked."""
        return self.liked & (self.text < self.items)

    def owner(self, events: Ints) -> Ints:
        """The users of `events` (indices)."""
        return np.searchsorted(self.first, events, side="right") - 1

    def summary(self) -> "Summary":
        per_scenario = np.bincount(self.scenario, minlength=len(SCENARIOS)).tolist()
        return Summary(
            users=self.users,
            items=self.items,
            queries=len(self.texts) - self.items,
            events=len(self.text),
            per_scenario=dict(zip(SCENARIOS, per_scenario, strict=True)),
            duplicates=_duplicates(self),
            without_text=sum(not text.strip() for text in self.texts[: self.items]),
            with_one_event=int((np.diff(self.first) == 1).sum()),
        )


@dataclass(frozen=True)
class Summary:
    """What a dataset holds, as a command prints it."""

    users: int
    items: int
    queries: int  # distinct
    events: int
    per_scenario: dict[str, int]  # events
    duplicates: int  # events equal to an earlier one in user, item or query, time, scenario and action; all are kept
    without_text: int  # items
    with_one_event: int  # users

    def __str__(self) -> str:
        scenarios = ", ".join(f"{name} {count:,}" for name, count in self.per_scenario.items() if count)
        return (
            f"{self.users:,} users ({self.with_one_event:,} with one event), {self.items:,} items "
            f"({self.without_text:,} without text), {self.queries:,} queries, {self.events:,} events ({scenarios}; "
            f"{self.duplicates:,} duplicates)"
        )


def read(folder: Path) -> Behaviour:
    """The dataset in `folder`. Raises `BadInput`, one sentence naming file, row and column, when it is not one."""
    path = folder / "events.parquet"
    if not path.exists():
        what = f"{folder} has no events.parquet" if folder.exists() else f"there is no folder {folder}"
        raise BadInput(f"{what}; `facetstream synthesize --out DIR` makes a dataset, `facetstream import` converts one")
    items = _read_items(folder / "items.parquet")
    users: dict[str, int] = {}
    queries: dict[str, int] = {}
    columns = [np.concatenate(parts) for parts in zip(*_read_events(path, users, items.ids, queries), strict=True)]
    if not columns or not len(columns[0]):
        raise BadInput(f"{path} has no events; a dataset needs at least one")
    user, text, time, scenario, action = columns
    user_ids = sorted(users)
    rank = np.empty(len(users), dtype=np.int32)
    rank[[users[name] for name in user_ids]] = np.arange(len(users))
    user = rank[user]
    order = np.lexsort((time, user))  # stable
    text = np.where(text < 0, len(items.ids) - 1 - text, text)
    bare = len(items.ids) - len(items.texts)  # items that only events name
    images = items.images if items.images is None else np.pad(items.images, ((0, bare), (0, 0)))
    return Behaviour(
        user_ids=user_ids,
        item_ids=list(items.ids),
        texts=[*items.texts, *[""] * bare, *queries],
        items=len(items.ids),
        categories=[*items.categories, *[""] * bare],
        images=images,
        first=np.searchsorted(user[order], np.arange(len(users) + 1)),
        text=text[order].astype(np.int64),
        time=time[order],
        scenario=scenario[order].astype(np.int64),
        action=action[order].astype(np.int64),
    )


def content(title: str | None, category: str | None, text: str | None) -> str:
    """What the item tower reads of an item: as `stream.events.Item.content`."""
    return " ".join(part for part in (title or "", category or "", text or "") if part.strip())


def history(data: Behaviour, codes: Tensor, cuts: Ints, users: Ints, length: int) -> tuple[Tensor, Histories]:
    """The `length` events of each user before event `cuts`, padded in front, and their text indices [B, length];
    `codes` are those of the texts."""
    index = cuts[:, None] + np.arange(-length, 0)
    valid = index >= data.first[users][:, None]
    index = np.where(valid, index, 0)
    rows = torch.from_numpy(data.text[index])
    return rows, Histories(
        codes=codes[rows],
        time=torch.from_numpy(np.where(valid, data.time[index], 0)),
        scenario=torch.from_numpy(data.scenario[index]),
        action=torch.from_numpy(data.action[index]),
        valid=torch.from_numpy(valid),
    )


class _Items(NamedTuple):
    ids: dict[str, int]
    texts: list[str]
    categories: list[str]
    images: Floats | None


class _Events(NamedTuple):
    """A batch of events; a text below 0 is a query: -1 is the first."""

    user: NDArray[np.int32]
    text: NDArray[np.int32]
    time: NDArray[np.int64]
    scenario: NDArray[np.uint8]
    action: NDArray[np.uint8]


def _read_items(path: Path) -> _Items:
    items = _Items({}, [], [], None)
    if not path.exists():
        return items
    images: list[Floats] = []
    for batch in batches(path, ITEMS, required=("item_id",), full=("item_id",)):
        if not any(name in batch for name in ("title", "text", "image")):
            raise BadInput(f"{path} has none of the columns text, title and image; leave the file out to go without")
        numbers = batch.ids("item_id", items.ids)
        if (again := numbers != np.arange(batch.start, batch.start + len(batch))).any():
            name = list(items.ids)[int(numbers[again][0])]
            raise batch.bad("item_id", again, f"{name!r} is there twice; keep one row per item")
        categories = batch.texts("category")
        items.texts.extend(map(content, batch.texts("title"), categories, batch.texts("text")))
        items.categories.extend(categories)
        if "image" in batch:
            images.append(batch.vectors("image", images[-1].shape[1] if images else 0))
    width = images[-1].shape[1] if images else 0
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in images]  # parts before the first image
    return items._replace(images=np.concatenate(padded) if width else None)


def _read_events(
    path: Path, users: dict[str, int], items: dict[str, int], queries: dict[str, int]
) -> Iterator[_Events]:
    full = ("user_id", "ts", "scenario", "action")
    for batch in batches(path, EVENTS, required=(*full, "item_id"), full=full):
        item = batch.ids("item_id", items)
        is_query = item < 0
        query = batch.ids("query", queries, where=is_query)
        if (nothing := is_query & (query < 0)).any():
            raise batch.bad("item_id", nothing, "is null and so is query; an event needs one of them")
        yield _Events(
            user=batch.ids("user_id", users),
            text=np.where(is_query, -1 - query, item),
            time=batch.times("ts"),
            scenario=batch.codes("scenario", SCENARIOS),
            action=batch.codes("action", ACTIONS),
        )


def _duplicates(data: Behaviour) -> int:
    same = np.stack([data.owner(np.arange(len(data.text))), data.text, data.time, data.scenario, data.action])
    same = same[:, np.lexsort(same)]
    return int((same[:, 1:] == same[:, :-1]).all(axis=0).sum())
