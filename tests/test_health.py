"""What is found of dependencies, and the pulse of a handler that waits, gets on, or hangs."""

import asyncio

import pytest

from stream import health, pulse, retry
from stream.errors import Permanent, Transient
from stream.health import Readiness
from stream.pulse import Pulse


async def serves() -> None:
    pass


async def refuses() -> None:
    raise Permanent("no\nsuch key")


async def hangs() -> None:
    await asyncio.Event().wait()


async def test_every_dependency_is_asked_at_once_and_one_that_is_frozen_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "ANSWER_SECONDS", 0.05)
    found = await Readiness({"redis": hangs, "triton": hangs, "kafka": serves, "qdrant": refuses}).look()
    assert {part: standing.why for part, standing in found.items()} == {
        "redis": "gives no answer within 0.05 s",
        "triton": "gives no answer within 0.05 s",
        "kafka": "",
        "qdrant": "no such key",
    }
    assert [part for part, standing in found.items() if standing.ready] == ["kafka"]


async def test_a_standing_is_dated_from_when_it_was_first_found() -> None:
    reasons = ["away", "still away", "", ""]

    async def ask() -> None:
        if reason := reasons.pop(0):
            raise Transient(reason)

    readiness = Readiness({"redis": ask})
    first, second, third, fourth = [(await readiness.look())["redis"] for _ in range(4)]
    assert (first.since, second.why) == (second.since, "still away")
    assert third.since > second.since
    assert fourth.since == third.since
    assert second.plain().keys() == {"ready", "why", "seconds"}
    assert fourth.plain().keys() == {"ready", "seconds"}


async def test_persistence_tells_the_pulse_of_its_task_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    mine = Pulse()
    heard: list[tuple[str, float]] = []

    async def call() -> str:
        heard.append((mine.waiting, mine.since))
        if len(heard) < 4:
            raise Transient(f"away, {len(heard)}")
        return "done"

    async def handler() -> str:
        pulse.watch(mine)
        return await retry.persistently(call)

    before = mine.moved
    assert await asyncio.create_task(handler()) == "done"
    assert [waiting for waiting, _ in heard] == ["", "away, 1", "away, 2", "away, 3"]
    assert len({since for waiting, since in heard if waiting}) == 1
    assert mine.waiting == ""
    assert mine.moved > before
    assert pulse.current() is not mine  # this task has another
