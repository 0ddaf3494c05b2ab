"""What the stores hold of one user, in words; and what the user has seen."""

from collections.abc import Sequence
from dataclasses import dataclass

from stream import history
from stream.events import Action, Scenario
from stream.stores import Histories, Items

CATALOGUE = "i:"


@dataclass(frozen=True)
class Line:
    """One event of a history, in words."""

    ts: int  # ms since 1970
    scenario: str
    action: str
    name: str  # item id, or the query in quotes
    coded: bool


@dataclass(frozen=True)
class Known:
    """A user's history, newest event last."""

    version: int
    codebook_version: int
    packed_bytes: int
    lines: Sequence[Line]


async def known(histories: Histories, items: Items, user_id: str) -> Known | None:
    """None when the user has no history."""
    (packed,) = await histories.read([user_id])
    if packed is None:
        return None
    decoded = history.decode(packed)
    names = await _names(items, [r.item for r in decoded.records])
    lines = [
        Line(r.ts, Scenario(r.scenario).name, Action(r.action).name, names[r.item], r.codes is not None)
        for r in decoded.records
    ]
    return Known(decoded.version, decoded.codebook_version, len(packed), lines)


async def seen(histories: Histories, items: Items, user_id: str) -> list[str]:
    """Ids of the items in the user's history."""
    (packed,) = await histories.read([user_id])
    if packed is None:
        return []
    indexes = list(dict.fromkeys(r.item for r in history.decode(packed).records))
    found = await items.lookup(indexes)
    return [i.name.removeprefix(CATALOGUE) for i in found if i is not None and i.name.startswith(CATALOGUE)]


async def _names(items: Items, indexes: Sequence[int]) -> dict[int, str]:
    distinct = list(dict.fromkeys(indexes))
    found = await items.lookup(distinct)
    return {index: _shown(item.name if item else "i:?") for index, item in zip(distinct, found, strict=True)}


def _shown(name: str) -> str:
    return name.removeprefix(CATALOGUE) if name.startswith(CATALOGUE) else f'"{name[2:]}"'
