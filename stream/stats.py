"""Counters of a worker, added up over all workers in the store; freshness as a histogram of logarithmic buckets."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

GROWTH = 1.05  # one bucket's bound over the one before: quantiles are right within 5 %
FRESHNESS = "freshness:"


@dataclass
class Stats:
    """What happened since the last flush: events_applied, dead_letters, refreshes, inferences, inferences_saved, …"""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, amount: int = 1) -> None:
        if amount:
            self.counts[name] += amount

    def fresh(self, milliseconds: float) -> None:
        """One refresh made events searchable; the oldest of them was produced that long ago."""
        self.counts[f"{FRESHNESS}{bucket(milliseconds)}"] += 1

    def take(self) -> Counter[str]:
        """The counts, starting again from zero."""
        taken, self.counts = self.counts, Counter()
        return taken


class CounterStore(Protocol):
    """Where the counts of all workers add up."""

    async def add(self, counts: Mapping[str, int]) -> None: ...
    async def read(self) -> Counter[str]: ...


def bucket(milliseconds: float) -> int:
    return 0 if milliseconds < 1 else math.ceil(math.log(milliseconds, GROWTH))


def quantiles(counts: Mapping[str, int], points: tuple[float, ...] = (0.5, 0.95, 0.99)) -> list[float | None]:
    """Freshness in ms at each point (upper bounds of their buckets); None before the first refresh."""
    found = {int(k.removeprefix(FRESHNESS)): n for k, n in counts.items() if k.startswith(FRESHNESS) and n > 0}
    total = sum(found.values())
    return [_quantile(found, total, point) if total else None for point in points]


def _quantile(found: Mapping[int, int], total: int, point: float) -> float:
    seen = 0
    for number in sorted(found):
        seen += found[number]
        if seen >= point * total:
            break
    return round(GROWTH**number, 1)
