"""The users a worker knows to be dirty: oldest first, each at most once, none more often than the minimum interval.

A hint, not the truth: the dirty sets in the store are. What does not fit, or is lost with the worker, a sweep finds.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from stream.stores import Dirty

CAPACITY = 100_000  # users; some 20 MB


@dataclass
class DirtyQueue:
    """Times are ms since 1970 where they date an event, seconds of any steady clock where they pace."""

    min_interval: float = 0.0  # seconds between two refreshes of one user
    capacity: int = CAPACITY
    _since: dict[str, int] = field(default_factory=dict)  # waiting users
    _ready: list[tuple[int, str]] = field(default_factory=list)  # heap by since; entries of users gone are skipped
    _later: list[tuple[float, str]] = field(default_factory=list)  # heap by due time, of users that must wait
    _running: set[str] = field(default_factory=set)
    _last: OrderedDict[str, float] = field(default_factory=OrderedDict)  # when each was last taken

    def __len__(self) -> int:
        return len(self._since)

    @property
    def running(self) -> int:
        return len(self._running)

    def put(self, marks: Iterable[Dirty]) -> None:
        """Users that became dirty; one already waiting keeps its older date."""
        for mark in marks:
            if mark.user_id in self._since or len(self._since) >= self.capacity:
                continue
            self._since[mark.user_id] = mark.since_ms
            if mark.user_id not in self._running:
                heapq.heappush(self._ready, (mark.since_ms, mark.user_id))

    def take(self, count: int, now: float) -> list[Dirty]:
        """Up to `count` users whose turn it is, oldest first; they are running until `done`."""
        while self._later and self._later[0][0] <= now:
            self._push(heapq.heappop(self._later)[1])
        taken: list[Dirty] = []
        while self._ready and len(taken) < count:
            since, user = heapq.heappop(self._ready)
            if self._since.get(user) != since or user in self._running:
                continue
            due = self._last.get(user, float("-inf")) + self.min_interval
            if due > now:
                heapq.heappush(self._later, (due, user))
                continue
            del self._since[user]
            self._running.add(user)
            self._remember(user, now)
            taken.append(Dirty(user, since))
        return taken

    def done(self, users: Iterable[str]) -> None:
        """Those users are no longer being refreshed; one that became dirty meanwhile is ready again."""
        for user in users:
            self._running.discard(user)
            self._push(user)

    def drop(self, keep: Iterable[str]) -> None:
        """Forget all waiting users but these."""
        self._since = {user: self._since[user] for user in keep if user in self._since}

    def wait(self, now: float) -> float | None:
        """Seconds until someone's turn may come; 0 when it has, None when nobody waits."""
        if self._ready:
            return 0.0
        return max(0.0, self._later[0][0] - now) if self._later else None

    def waiting(self) -> list[str]:
        return list(self._since)

    def _push(self, user: str) -> None:
        if user in self._since and user not in self._running:
            heapq.heappush(self._ready, (self._since[user], user))

    def _remember(self, user: str, now: float) -> None:
        self._last[user] = now
        self._last.move_to_end(user)
        while self._last and (next(iter(self._last.values())) + self.min_interval <= now):
            self._last.popitem(last=False)
