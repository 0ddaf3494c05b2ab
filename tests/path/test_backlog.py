"""Triton is away while many users become dirty, and comes back: over the twins."""

import asyncio
import time
from collections.abc import Callable

import pytest

from stream import refresh
from stream.adapters.memory import MemoryModels
from stream.errors import Transient
from stream.events import Scenario
from stream.identity import SHARDS
from stream.ledger import Batch, Record
from stream.ports import HistoryTensors, Interests
from stream.refresh import Pace
from tests.path.rig import Rig, batch, event

RATE = 30.0  # overdue users a second
OLD = [f"old{n}" for n in range(150)]
PATIENCE = 60.0  # seconds


class Away(MemoryModels):
    """Fails until it is back; then notes how many calls were under way when each began, and had succeeded before."""

    def __init__(self) -> None:
        super().__init__()
        self.back, self.refused, self.under_way, self.succeeded = False, 0, 0, 0
        self.seen: list[tuple[int, int]] = []

    async def interests(self, histories: HistoryTensors) -> Interests:
        if not self.back:
            self.refused += 1
            raise Transient("Triton is away")
        self.under_way += 1
        self.seen.append((self.under_way, self.succeeded))
        await asyncio.sleep(0.01)
        self.under_way -= 1
        self.succeeded += 1
        return await super().interests(histories)


def past(users: list[str], seconds: float) -> Batch:
    """An event of each, produced that long ago."""
    made = batch("events.feed", [event(n, user=user) for n, user in enumerate(users)])
    records = tuple(Record(r.offset, r.key, r.value, r.timestamp - int(1000 * seconds)) for r in made.records)
    return Batch(made.topic, made.partition, records)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  a poll
            await asyncio.sleep(0.005)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Away:
    monkeypatch.setattr(refresh, "LONGEST_DELAY", 0.02)
    return Away()


async def outage(rig: Rig, models: Away) -> asyncio.Task[None]:
    """Under way, with many users dirty for a minute."""
    await rig.provision()
    await rig.ingest.handle(past(OLD, 60.0), Scenario.feed)
    running = asyncio.create_task(rig.refresher.run())
    await until(lambda: models.refused > 5 and rig.refresher._ramp.allowed == 1)
    return running


async def end(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_backlog_drains_at_its_rate_news_pass_it_and_everybody_is_refreshed(models: Away) -> None:
    rig = Rig(models=models, pace=Pace(8, 2, 0.05), queue={"max_staleness": 20.0, "backlog_rate": RATE})
    running = await outage(rig, models)
    served = rig.log.updates
    began, models.back = time.monotonic(), True
    for n in range(5):
        asked, before, offset = time.monotonic(), len(served), len(OLD) + n
        await until(lambda seen=before: len(served) > seen)  # the backlog goes on
        await rig.feed(event(offset, user=f"new{n}"), first=offset)
        await until(lambda user=f"new{n}": user in {update.user_id for update in served})
        between = len(served) - before
        assert between <= RATE * (time.monotonic() - asked) + 2 * 8 + RATE / 10 + 1  # and batches under way
        assert await rig.histories.dirty_count() > 0
    offset = len(OLD) + 5
    await rig.feed(event(offset, user=OLD[-1]), first=offset)  # at the end of the backlog, until now
    await until(lambda: OLD[-1] in {update.user_id for update in served})
    assert await rig.histories.dirty_count() > 0

    await until(lambda: not rig.histories.marks)
    assert len(OLD) <= RATE * (time.monotonic() - began) + RATE / 10 + 3  # those two that are first, and one with news
    await end(running)
    for user in [*OLD, *(f"new{n}" for n in range(5))]:
        profile = await rig.vectors.profile(user)
        assert profile is not None
        assert profile.version == (await rig.history(user)).version
    assert await rig.histories.dirty(range(SHARDS), 1) == []


async def test_concurrency_comes_back_step_by_step(models: Away) -> None:
    rig = Rig(models=models, pace=Pace(4, 4, 0.05))
    running = await outage(rig, models)
    models.back = True
    await until(lambda: not rig.histories.marks)
    await end(running)
    assert all(under_way <= 1 + succeeded for under_way, succeeded in models.seen)
    assert max(under_way for under_way, _ in models.seen) == 4
