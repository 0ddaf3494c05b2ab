"""The circuit breaker under a simulated clock: how often a dead dependency is asked, and that nobody waits for ever."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.breaker import FAILURES, PACE_SECONDS, Breaker, guarded
from stream.errors import Permanent, Transient
from stream.pulse import Pulse, watch
from stream.retry import LONGEST_DELAY, persistently

PROBES = 2 * 60 / LONGEST_DELAY + 8  # a minute, at most: delays of half the longest, and the short ones before them


class Simulated(asyncio.SelectorEventLoop):
    """A loop whose clock goes on to the next timer at once."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def simulate(story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Simulated) as runner:
        runner.run(story)


class Dependency:
    """Away until `back`; takes `latency` seconds to say so, and to answer."""

    def __init__(self, back: float, latency: float = 0.0) -> None:
        self._back, self._latency = back, latency
        self.asked: list[float] = []
        self.answered: list[float] = []

    async def ask(self) -> str:
        loop = asyncio.get_running_loop()
        self.asked.append(loop.time())
        await asyncio.sleep(self._latency)
        if self.asked and loop.time() < self._back:
            raise Transient("away")
        self.answered.append(loop.time())
        return "here"


def through(breaker: Breaker, dependency: Dependency) -> Callable[[], Awaitable[str]]:
    return lambda: persistently(lambda: breaker.call(dependency.ask))


tasks = st.integers(1, 150)
latencies = st.sampled_from([0.0, 0.01, 1.0])


@settings(max_examples=30, deadline=None)
@given(count=tasks, latency=latencies)
def test_a_dead_dependency_is_asked_as_often_whatever_the_number_of_tasks(count: int, latency: float) -> None:
    async def story() -> None:
        dependency = Dependency(float("inf"), latency)
        running = [asyncio.create_task(through(breaker, dependency)()) for _ in range(count)]
        await asyncio.sleep(60 + latency)
        later = [at for at in dependency.asked if at > latency]  # not by those who asked before anybody knew
        assert 60 / (2 * LONGEST_DELAY + latency) < len(later) <= FAILURES + PROBES
        assert breaker.plain()["open"] is True
        for task in running:
            task.cancel()
        await asyncio.wait(running)

    breaker = Breaker()
    simulate(story())


@settings(max_examples=50, deadline=None)
@given(count=tasks, latency=latencies, back=st.floats(0, 100))
def test_everybody_goes_on_in_turn_soon_after_it_is_back(count: int, latency: float, back: float) -> None:
    async def story() -> None:
        breaker, dependency = Breaker(), Dependency(back, latency)
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(through(breaker, dependency)())
        assert len(dependency.answered) == count
        assert dependency.answered[0] <= back + LONGEST_DELAY + 2 * latency
        assert breaker.plain() == {"open": False, "waiting": 0}
        if back > LONGEST_DELAY:  # all had to wait
            first, *later = (at for at in dependency.asked if at >= back)
            assert all(b - a >= PACE_SECONDS / 2 for a, b in zip([first, *later], later, strict=False))

    simulate(story())


@settings(max_examples=50, deadline=None)
@given(
    back=st.floats(0, 60),
    latency=latencies,
    cancelled=st.lists(st.one_of(st.none(), st.floats(0, 70)), min_size=1, max_size=30),
)
def test_whoever_is_cancelled_and_whenever_the_others_go_on(
    back: float, latency: float, cancelled: list[float | None]
) -> None:
    async def story() -> None:
        breaker, dependency, loop = Breaker(), Dependency(back, latency), asyncio.get_running_loop()
        running = [asyncio.create_task(through(breaker, dependency)()) for _ in cancelled]
        for task, at in zip(running, cancelled, strict=True):
            if at is not None:
                loop.call_later(at, task.cancel)
        async with asyncio.timeout(10_000):
            answers = await asyncio.gather(*running, return_exceptions=True)
            assert await through(breaker, dependency)() == "here"
        assert all(answer == "here" for answer, at in zip(answers, cancelled, strict=True) if at is None)
        assert breaker.plain() == {"open": False, "waiting": 0}

    simulate(story())


def test_who_waits_is_alive_and_tells_for_what() -> None:
    async def story() -> None:
        breaker, dependency, pulses = Breaker(), Dependency(float("inf")), [Pulse() for _ in range(20)]

        async def handler(pulse: Pulse) -> None:
            watch(pulse)
            await through(breaker, dependency)()

        running = [asyncio.create_task(handler(pulse)) for pulse in pulses]
        await asyncio.sleep(1_000)
        for pulse in pulses:
            pulse.moved = 0.0
        await asyncio.sleep(2 * LONGEST_DELAY)
        assert all(pulse.waiting == "away" and pulse.moved for pulse in pulses)
        assert breaker.plain()["why"] == "away"
        for task in running:
            task.cancel()
        await asyncio.wait(running)

    simulate(story())


async def test_a_refusal_is_an_answer() -> None:
    class Port:
        size = 7

        def __init__(self) -> None:
            self.errors = [Transient("away")] * (FAILURES - 1) + [Permanent("no")] + [Transient("away")] * FAILURES

        async def get(self, key: str) -> str:
            if self.errors:
                raise self.errors.pop(0)
            return key

    breaker = Breaker()
    port = guarded(Port(), breaker)
    for error in (*[Transient] * (FAILURES - 1), Permanent, *[Transient] * (FAILURES - 1)):
        with pytest.raises(error):
            await port.get("k")
    assert breaker.plain()["open"] is False
    with pytest.raises(Transient):
        await port.get("k")
    assert breaker.plain()["open"] is True
    assert (await port.get("k"), port.size) == ("k", 7)
    assert breaker.plain()["open"] is False
