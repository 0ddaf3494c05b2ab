"""Users who have waited for longer than they should: the backlog of an outage, or of too much load.

Groups of virtual shards take turns, so that no partition waits for another's backlog; in a group the oldest is first.
"""

import heapq
from dataclasses import dataclass, field

from stream.identity import shard

GROUPS = 64  # up to as many partitions, where their number is a power of two, have groups of their own
BURST_SECONDS = 0.1  # what an allowance that nobody used adds up to


@dataclass
class Overdue:
    """A queue of dates (ms since 1970) and users; more than once, if pushed more than once."""

    _groups: dict[int, list[tuple[int, str]]] = field(default_factory=dict)  # heaps, that of the next turn first
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def push(self, since_ms: int, user_id: str) -> None:
        heapq.heappush(self._groups.setdefault(shard(user_id) % GROUPS, []), (since_ms, user_id))
        self._count += 1

    def pop(self) -> tuple[int, str]:
        """The oldest of the group whose turn it is. There must be one."""
        group = next(iter(self._groups))
        heap = self._groups.pop(group)
        first = heapq.heappop(heap)
        if heap:
            self._groups[group] = heap
        self._count -= 1
        return first


@dataclass
class Allowance:
    """How many users may be taken: `rate` a second, evenly; any number when there is none."""

    rate: float | None = None
    _left: float = 1.0
    _at: float | None = None  # when that was so

    def wait(self, now: float) -> float:
        """Seconds until one more may be taken; `now` in seconds of a steady clock."""
        if self.rate is None:
            return 0.0
        elapsed = 0.0 if self._at is None else now - self._at
        self._left = min(max(1.0, self.rate * BURST_SECONDS), self._left + elapsed * self.rate)
        self._at = now
        return 0.0 if self._left > 1.0 - 1e-6 else (1.0 - self._left) / self.rate

    def spend(self) -> None:
        """One is taken."""
        self._left -= 1.0
