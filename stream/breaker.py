"""A circuit breaker per dependency: one that is away is asked by one task at a time, however many have work for it.

Closed, every call goes through. After `FAILURES` transient failures in a row it is open: calls wait for their turn, in
the order they came, and whoever's turn it is asks as a probe, once a delay of `stream.retry` has passed. What a probe
hears is its own answer. When one is answered, those that wait go on one after the other, not all at once. Nothing is
given up: who has failed asks again, as `persistently` does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast

from stream.errors import Permanent, Transient
from stream.pulse import Pulse, current
from stream.retry import delays

FAILURES = 3  # in a row; a single one may be a connection that was closed while idle
PACE_SECONDS = 0.02  # between two tasks that go on after an outage

T = TypeVar("T")


class Breaker:
    """Of one dependency. It needs no event loop until a call waits."""

    def __init__(self) -> None:
        self.why = ""  # the dependency does not serve, as it said last; empty while closed
        self._since = self._due = 0.0  # when it opened, and when a probe may go, by the event loop's clock
        self._failures, self._delays = 0, delays()
        self._turn = asyncio.Lock()  # fair, and given back by a task that is cancelled
        self._waiting: dict[object, Pulse] = {}

    async def call(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of `ask`, made when it may be; raises what that raises."""
        if self.why or self._waiting:
            with self._in_line():
                async with self._turn:
                    if self.why:
                        await asyncio.sleep(self._due - _now())
                        return await self._ask(ask, probe=True)
                    await asyncio.sleep(PACE_SECONDS)
        return await self._ask(ask, probe=False)

    def plain(self) -> dict[str, object]:
        """For JSON."""
        if not self.why:
            return {"open": False, "waiting": len(self._waiting)}
        return {"open": True, "why": self.why, "seconds": round(_now() - self._since, 1), "waiting": len(self._waiting)}

    @contextmanager
    def _in_line(self) -> Iterator[None]:
        ticket = object()
        self._waiting[ticket] = current()
        if self.why:
            self._waiting[ticket].wait(self.why, max(0.0, self._due - _now()))
        try:
            yield
        finally:
            del self._waiting[ticket]

    async def _ask(self, ask: Callable[[], Awaitable[T]], probe: bool) -> T:
        try:
            answer = await ask()
        except Transient as error:
            if probe or not self.why:  # a call from before it opened says nothing new
                self._failed(str(error) or type(error).__name__)
            raise
        except Permanent:
            self._answered(probe)
            raise
        self._answered(probe)
        return answer

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures < FAILURES:
            return
        delay, now = next(self._delays), _now()
        self._since = self._since if self.why else now
        self.why, self._due = why, now + delay
        for pulse in self._waiting.values():
            pulse.wait(why, delay)

    def _answered(self, probe: bool) -> None:
        if probe or not self.why:
            self.why, self._failures, self._delays = "", 0, delays()


def guarded(port: T, breaker: Breaker) -> T:
    """The same port, with every call of its coroutine methods made through the breaker."""
    return cast(T, _Guarded(port, breaker))


class _Guarded:
    def __init__(self, port: Any, breaker: Breaker) -> None:
        self._port, self._breaker = port, breaker

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if not iscoroutinefunction(method):
            return method
        return lambda *args, **kwargs: self._breaker.call(lambda: method(*args, **kwargs))


def _now() -> float:
    return asyncio.get_running_loop().time()
