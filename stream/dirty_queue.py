"""The users a worker knows to be dirty: each at most once, none more often than the minimum interval.

In order: first who has waited for longer than the maximum (`stream.overdue`), as far as the backlog's rate allows; then
by date, less the head start of `stream.urgency`. With no rate, a new event may wait for the whole backlog of an outage;
with one, the backlog waits, and new events have what the models can do beyond that rate; also those of overdue users,
whose one refresh then serves the old events, too.

A hint, not the truth: the dirty sets in the store are. What does not fit, or is lost with the worker, a sweep finds.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from stream.overdue import Allowance, Overdue
from stream.stats import Stats
from stream.stores import Dirty
from stream.urgency import Urgency

CAPACITY = 100_000  # users; some 50 MB
SLACK = 1_000  # void entries of the heaps that are not worth a clean-up


class _Place(NamedTuple):
    since_ms: int
    order_ms: float  # the date less the head start; of an overdue user those of news, infinite when there are none
    overdue: bool = False

    @property
    def ages_ms(self) -> float:
        return self.order_ms if self.overdue else self.since_ms


@dataclass
class DirtyQueue:
    """Times are ms since 1970 where they date an event, seconds of any steady clock where they pace."""

    min_interval: float = 0.0  # seconds between two refreshes of one user
    max_staleness: float = inf  # seconds after which a user is overdue
    backlog_rate: float | None = None  # overdue users a second; None for no limit
    mine: Callable[[str], bool] = lambda _: True  # whether this worker is to refresh that user
    capacity: int = CAPACITY
    urgency: Urgency = field(default_factory=Urgency)
    stats: Stats = field(default_factory=Stats)
    _waiting: dict[str, _Place] = field(default_factory=dict)
    _ready: list[tuple[float, str]] = field(default_factory=list)  # heap by order; void where `_waiting` belies it
    _ages: list[tuple[float, str]] = field(
        default_factory=list
    )  # heap by when they or their news began to age; likewise
    _overdue: Overdue = field(default_factory=Overdue)  # likewise
    _later: list[tuple[float, str]] = field(default_factory=list)  # heap by due time, of users that must wait
    _delayed: set[str] = field(default_factory=set)  # the same users
    _running: set[str] = field(default_factory=set)
    _last: OrderedDict[str, float] = field(default_factory=OrderedDict)  # when each was last taken
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._allowance = Allowance(self.backlog_rate)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._waiting or user_id in self._running

    def put(self, marks: Iterable[Dirty]) -> None:
        """Users that became dirty; one already waiting keeps its older date."""
        for mark in marks:
            self._add(mark, None)

    def tell(self, mark: Dirty, scenario: int, events: int) -> None:
        """The same of one user, by that many new events of a scenario; the largest head start since the date counts.

        All events but the first of those that wait for one refresh are `inferences_saved`."""
        waits = mark.user_id in self._waiting
        if self._add(mark, scenario):
            self.stats.add("inferences_saved", events if waits else events - 1)

    def fill(self, marks: Iterable[Dirty]) -> None:
        """What a sweep has found, oldest first, as far as half the queue: the rest is for news."""
        for mark in sorted(marks, key=lambda mark: mark.since_ms):
            if len(self._waiting) < max(1, self.capacity // 2):
                self._add(mark, None)

    def back(self, marks: Iterable[Dirty]) -> None:
        """Users whose refresh has failed: no interval has to pass."""
        for mark in marks:
            self._last.pop(mark.user_id, None)
            self._add(mark, None)

    def take(self, count: int, now: float, now_ms: float) -> list[Dirty]:
        """Up to `count` users whose turn it is; they are running until `done`."""
        while self._later and self._later[0][0] <= now:
            self._push(heapq.heappop(self._later)[1])
        self._age(now_ms)
        taken: list[Dirty] = []
        while len(taken) < count and (user := self._next(now)) is not None:
            due = self._last.get(user, -inf) + self.min_interval
            if due > now:
                self._delay(user, due)
            else:
                taken.append(self._start(user, now))
        return taken

    def done(self, users: Iterable[str]) -> None:
        """Those users are no longer being refreshed; one that became dirty meanwhile is ready again."""
        for user in users:
            self._running.discard(user)
            self._push(user)

    def prune(self) -> None:
        """Forget the users that are no longer this worker's."""
        self._waiting = {user: place for user, place in self._waiting.items() if self.mine(user)}
        self._delayed &= self._waiting.keys()

    async def arrival(self, now: float, idle: float) -> None:
        """Return when a user's turn may have come, after `idle` seconds at the latest."""
        self._arrived.clear()
        timeout = 0.0 if self._ready else idle
        if self._overdue:
            timeout = min(timeout, self._allowance.wait(now))
        if self._later:
            timeout = min(timeout, max(0.0, self._later[0][0] - now))
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._arrived.wait()

    def _add(self, mark: Dirty, scenario: int | None) -> bool:
        """Whether the user waits now."""
        user, since = mark
        known = self._waiting.get(user)
        if not self.mine(user) or (known is None and not self._room()):
            return False
        order = since - 1000 * self.urgency.seconds(user, scenario)
        place = _Place(since, order)
        if known:
            place = _Place(min(since, known.since_ms), min(order, known.order_ms), known.overdue)
        if place != known:
            self._waiting[user] = place
            self._push(user)
        return True

    def _room(self) -> bool:
        """For one more; where many are overdue, the younger half of them makes room: sweeps find them when it is their
        turn, but not who comes now."""
        if len(self._waiting) >= self.capacity and len(self._overdue) > self.capacity // 4:
            dates = sorted(place.since_ms for place in self._waiting.values() if place.overdue)
            limit = dates[len(dates) // 2] if dates else 0
            self._keep({u: p for u, p in self._waiting.items() if not p.overdue or p.since_ms < limit})
        return len(self._waiting) < self.capacity

    def _push(self, user: str) -> None:
        place = self._waiting.get(user)
        if place is None or user in self._running:
            return
        if place.overdue:
            self._overdue.push(place.since_ms, user)
        if place.order_ms < inf:
            heapq.heappush(self._ready, (place.order_ms, user))
            heapq.heappush(self._ages, (place.ages_ms, user))
        self._arrived.set()
        entries = max(len(self._ready), len(self._ages), len(self._overdue), len(self._later))
        if entries > 2 * len(self._waiting) + SLACK:
            self._keep(self._waiting)

    def _keep(self, waiting: dict[str, _Place]) -> None:
        """Only these wait; no entry is void afterwards."""
        self._waiting, self._ready, self._ages, self._later, self._overdue = waiting, [], [], [], Overdue()
        self._delayed &= waiting.keys()
        for user in waiting:
            self._push(user)

    def _age(self, now_ms: float) -> None:
        """Who has waited for too long becomes overdue, and news of who is are news no longer."""
        while self._ages and self._ages[0][0] <= now_ms - 1000 * self.max_staleness:
            since, user = heapq.heappop(self._ages)
            place = self._waiting.get(user)
            if place and place.ages_ms == since:
                self._waiting[user] = _Place(place.since_ms, inf, overdue=True)
                if not place.overdue:
                    self._push(user)

    def _next(self, now: float) -> str | None:
        """Whose turn it is, and who is no longer in the heap that told so."""
        while self._overdue and self._allowance.wait(now) == 0.0:
            since, user = self._overdue.pop()
            place = self._waiting.get(user)
            if place and place.overdue and place.since_ms == since and user not in self._running:
                return user
        while self._ready:
            order, user = heapq.heappop(self._ready)
            place = self._waiting.get(user)
            if place and place.order_ms == order and user not in self._running:
                return user
        return None

    def _delay(self, user: str, due: float) -> None:
        heapq.heappush(self._later, (due, user))
        if user not in self._delayed:
            self._delayed.add(user)
            self.stats.add("refreshes_delayed")

    def _start(self, user: str, now: float) -> Dirty:
        place = self._waiting.pop(user)
        if place.order_ms == inf:
            self._allowance.spend()
        self._delayed.discard(user)
        self._running.add(user)
        self._remember(user, now)
        return Dirty(user, place.since_ms)

    def _remember(self, user: str, now: float) -> None:
        self._last[user] = now
        self._last.move_to_end(user)
        while len(self._last) > self.capacity or next(iter(self._last.values()), inf) + self.min_interval <= now:
            self._last.popitem(last=False)
