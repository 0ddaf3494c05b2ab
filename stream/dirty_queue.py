"""The users a worker knows to be dirty: oldest first, each at most once, none more often than the minimum interval.

A hint, not the truth: the dirty sets in the store are. What does not fit, or is lost with the worker, a sweep finds.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from stream.stores import Dirty

CAPACITY = 100_000  # users; some 20 MB


@dataclass
class DirtyQueue:
    """Times are ms since 1970 where they date an event, seconds of any steady clock where they pace."""

    min_interval: float = 0.0  # seconds between two refreshes of one user
    mine: Callable[[str], bool] = lambda _: True  # whether this worker is to refresh that user
    capacity: int = CAPACITY
    _since: dict[str, int] = field(default_factory=dict)  # waiting users
    _ready: list[tuple[int, str]] = field(default_factory=list)  # heap by since; an entry that `_since` belies is void
    _later: list[tuple[float, str]] = field(default_factory=list)  # heap by due time, of users that must wait
    _running: set[str] = field(default_factory=set)
    _last: OrderedDict[str, float] = field(default_factory=OrderedDict)  # when each was last taken
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._since or user_id in self._running

    def put(self, marks: Iterable[Dirty]) -> None:
        """Users that became dirty; one already waiting keeps its older date."""
        for mark in marks:
            since = self._since.get(mark.user_id)
            room = since is not None or len(self._since) < self.capacity
            if room and self.mine(mark.user_id) and (since is None or mark.since_ms < since):
                self._since[mark.user_id] = mark.since_ms
                self._push(mark.user_id)

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

    def prune(self) -> None:
        """Forget the users that are no longer this worker's."""
        self._since = {user: since for user, since in self._since.items() if self.mine(user)}

    async def arrival(self, now: float, idle: float) -> None:
        """Return when a user's turn may have come, after `idle` seconds at the latest."""
        self._arrived.clear()
        timeout = 0.0 if self._ready else idle
        if self._later:
            timeout = min(timeout, max(0.0, self._later[0][0] - now))
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._arrived.wait()

    def _push(self, user: str) -> None:
        if user in self._since and user not in self._running:
            heapq.heappush(self._ready, (self._since[user], user))
            self._arrived.set()

    def _remember(self, user: str, now: float) -> None:
        self._last[user] = now
        self._last.move_to_end(user)
        while self._last and next(iter(self._last.values())) + self.min_interval <= now:
            self._last.popitem(last=False)
