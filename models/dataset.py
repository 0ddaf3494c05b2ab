"""A dataset folder (events.parquet, items.parquet) as arrays, and windows of it as training examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ACTIONS, SCENARIOS
from models.events import Histories

UNWANTED = ("skip", "hide", "dislike")  # actions that make no target
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Behaviour:
    """All events, by user and then by time, and the texts they are about: first the items, then distinct queries."""

    texts: list[str]
    items: int  # how many of the texts are items
    categories: list[str]  # of the items
    first: Ints  # [users + 1]: user u has the events first[u] .. first[u + 1] - 1
    text: Ints  # [events], index into `texts`
    time: Ints  # [events], ms since 1970
    scenario: Ints  # [events]
    action: Ints  # [events]

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Which events may be targets."""
        return ~np.isin(self.action, [ACTIONS.index(name) for name in UNWANTED])

    @property
    def users(self) -> int:
        return len(self.first) - 1


@dataclass(frozen=True)
class Examples:
    """Histories before a cut and what followed it. The first `rows` are text indices of the histories' events."""

    rows: Tensor  # int64 [B, L]
    histories: Histories
    targets: Tensor  # int64 [B, A], text indices
    target_scenario: Tensor  # int64 [B, A]
    present: Tensor  # bool [B, A]


def read(folder: Path) -> Behaviour:
    """The dataset in `folder`. Raises `ValueError` with one sentence when it is not one."""
    items = _table(folder / "items.parquet", ("item_id", "title", "category", "text"))
    events = _table(folder / "events.parquet", ("user_id", "item_id", "ts", "scenario", "action", "query"))
    texts = [content(*row) for row in zip(items["title"], items["category"], items["text"], strict=True)]
    place = {item_id: number for number, item_id in enumerate(items["item_id"])}
    queries: dict[str, int] = {}
    text = np.empty(len(events["ts"]), dtype=np.int64)
    for row, (item_id, query) in enumerate(zip(events["item_id"], events["query"], strict=True)):
        text[row] = place.get(item_id, -1) if item_id else queries.setdefault(query or "", len(texts) + len(queries))
    user_ids, user = np.unique(np.array(events["user_id"]), return_inverse=True)
    time = np.array(events["ts"], dtype=np.int64)
    order = np.lexsort((time, user))
    order = order[text[order] >= 0]
    return Behaviour(
        texts=[*texts, *queries],
        items=len(texts),
        categories=[category or "" for category in items["category"]],
        first=np.searchsorted(user[order], np.arange(len(user_ids) + 1)),
        text=text[order],
        time=time[order],
        scenario=_codes(events["scenario"], SCENARIOS)[order],
        action=_codes(events["action"], ACTIONS)[order],
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


def examples(
    data: Behaviour, codes: Tensor, cuts: Ints, users: Ints, length: int, window: int, ahead: int = 48
) -> Examples:
    """What came before and after event `cuts` of each user: targets are the next `window` wanted events (RED-Rec's W)
    of every scenario, as far as they are among the next `ahead` events."""
    rows, histories = history(data, codes, cuts, users, length)
    index = cuts[:, None] + np.arange(ahead)
    inside = index < data.first[users + 1][:, None]
    index = np.where(inside, index, 0)
    scenario = data.scenario[index]
    present = np.zeros_like(inside)
    for code in range(len(SCENARIOS)):
        mine = inside & (scenario == code) & data.wanted[index]
        present |= mine & (mine.cumsum(axis=1) <= window)
    tensors = (data.text[index], scenario, present)
    return Examples(rows, histories, *(torch.from_numpy(array) for array in tensors))


def _table(path: Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    if not path.exists():
        raise ValueError(f"there is no {path}; `facetstream synthesize --out {path.parent}` makes one")
    absent = set(columns) - set(parquet.read_schema(path).names)
    if absent:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(absent))}")
    found: dict[str, list[Any]] = parquet.read_table(path, columns=list(columns)).to_pydict()
    return found


def _codes(names: list[str], known: tuple[str, ...]) -> Ints:
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"unknown {sorted(unknown)[0]!r}; known are {', '.join(known)}")
    code = {name: number for number, name in enumerate(known)}
    return np.array([code[name] for name in names], dtype=np.int64)
