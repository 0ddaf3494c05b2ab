"""A fault of one machine among several, under load; and the story of one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from stream.retry import persistently
from tests.cluster.machines import BROKERS, Machines, Mend
from tests.faults.ends import Stuck
from tests.faults.laws import Verdict, judge, watching
from tests.faults.truth import Truth

BURST_SECONDS = 0.5  # between two bursts of 150 events
CALM_SECONDS = 4.0  # under load, before a fault and after it
AWAY_SECONDS = {"kafka": 12.0, "worker": 20.0, "redis": 2.0}  # longer than Kafka waits: 9 and 10 s
BEHIND_SECONDS = 6.0  # how long a replica hears nothing, before its primary dies


@dataclass(frozen=True)
class Cell:
    """`replicas` of Redis are waited for by the workers."""

    service: str
    fault: str
    replicas: int = 1

    def __str__(self) -> str:
        return f"{self.service} {self.fault}, waiting for {self.replicas}"


MATRIX = [
    *(Cell(broker, "kill") for broker in BROKERS),
    Cell("kafka-1", "stop"),
    Cell("worker", "cut"),
    Cell("redis", "kill"),
    Cell("redis", "kill behind"),
    Cell("redis", "kill", replicas=0),
    Cell("redis", "kill behind", replicas=0),
]
SHORT = [Cell("kafka-1", "kill"), Cell("worker", "cut"), Cell("redis", "kill behind")]


async def run(machines: Machines, cell: Cell) -> Verdict:
    """Hurt the system under load, let it recover, and judge it."""
    since_ms = int(time.time() * 1000)
    truth = Truth(f"{cell}-{since_ms}".translate(str.maketrans(" ,", "--")))
    broken: list[str] = []
    seconds = float("nan")
    restarts = await machines.restarts()
    async with watching(machines, truth.users) as watch:
        try:
            async with _load(machines, truth):
                await asyncio.sleep(CALM_SECONDS)
                mend = await _hurt(machines, cell)
                await asyncio.sleep(AWAY_SECONDS[cell.service.partition("-")[0]])
                begin = time.monotonic()
                await mend()
                await asyncio.sleep(CALM_SECONDS)
            await machines.settled(truth.users)
            seconds = time.monotonic() - begin
            await machines.until(machines.paired, True)
        except Stuck as error:
            broken = [f"law 4 or 8: {error}"]
    if cell.service == "redis":  # what only the old primary had was read, and never acknowledged
        watch.fallen = [fall for fall in watch.fallen if not fall.startswith("Redis")]
    # Such a version may have been announced, too; and without its coordinator a worker may be taken for dead.
    verdict = await judge(machines, truth, watch, since_ms, ordered=False)
    if ended := await machines.restarts() - restarts:
        broken.append(f"law 8: workers ended by themselves, {ended} times")
    return replace(verdict, seconds=seconds, broken=(*broken, *verdict.broken))


@asynccontextmanager
async def _load(machines: Machines, truth: Truth) -> AsyncIterator[None]:
    """Bursts, one after the other; Kafka has all of them on leaving."""
    over = asyncio.Event()

    async def bursts() -> None:
        while not over.is_set():
            await persistently(partial(machines.send, truth.burst()))
            await asyncio.sleep(BURST_SECONDS)

    task = asyncio.create_task(bursts())
    try:
        yield
    finally:
        over.set()
        await task


async def _hurt(machines: Machines, cell: Cell) -> Mend:
    """What makes good again what was done."""
    if cell.service == "redis":
        return await _fail_over(machines, behind=cell.fault == "kill behind")
    machine = await machines.reader() if cell.service == "worker" else (await machines.machines(cell.service))[0]
    faults = {"cut": machines.cut, "kill": machines.kill, "stop": machines.stop}
    return await faults[cell.fault](machine)


async def _fail_over(machines: Machines, behind: bool) -> Mend:
    """A primary dies, and its replica takes over; one that has not heard of anything for a while, if it is `behind`."""
    primary, replica = await machines.pair()
    if behind:
        rejoin = await machines.cut(replica)
        await asyncio.sleep(BEHIND_SECONDS)
    mend = await machines.kill(primary)
    if behind:
        await rejoin()
    await machines.until(partial(machines.promoted, replica), True)
    return mend
