"""The cells of the matrix: which process is killed or frozen, at which point of the worker; and the story of one."""

import asyncio
import random
import time
from dataclasses import dataclass, replace

from stream.topics import ITEMS
from tests.faults.ends import PATIENCE, Stuck
from tests.faults.laws import Verdict, judge, watching
from tests.faults.steps import SIDES, STEPS
from tests.faults.system import System
from tests.faults.truth import Truth

PROCESSES = ("worker", "kafka", "redis", "triton", "qdrant")
KINDS = ("kill", "freeze")
DOWN_SECONDS = 1.0  # that a killed server is away at least: two commits of the worker
FROZEN_SECONDS = {"kafka": 4.0, "redis": 2.0, "triton": 3.0, "qdrant": 3.0}  # longer than time-outs, Kafka's: session
FAULTS = 4  # of a cell at random times
SPREAD_SECONDS = 2.0  # within which each comes after a burst, and goes


@dataclass(frozen=True)
class Cell:
    """`point` is `before` or `after` and a step; empty: at random times."""

    process: str
    kind: str
    point: str = ""

    def __str__(self) -> str:
        return f"{self.process} {self.kind} {self.point or 'at random'}"

    @property
    def zombie(self) -> bool:
        """A worker that is taken for dead, and goes on where it was when another has long taken over."""
        return (self.process, self.kind) == ("worker", "freeze") and bool(self.point)


MATRIX = [
    Cell(process, kind, point)
    for process in PROCESSES
    for kind in KINDS
    for point in (*(f"{side} {step}" for step in STEPS for side in SIDES), "")
]


async def run(system: System, cell: Cell) -> Verdict:
    """Hurt the system, let it recover, and judge it. Leaves a system with one worker."""
    since_ms = int(time.time() * 1000)
    truth = Truth(f"{cell}-{since_ms}".replace(" ", "-"))
    broken: list[str] = []
    seconds = float("nan")
    async with watching(system, truth.users) as watch:
        try:
            await system.send(truth.burst())
            await system.settled(truth.users)
            begin = await (_at_point(system, cell, truth) if cell.point else _at_random(system, cell, truth))
            await system.settled(truth.users)
            seconds = time.monotonic() - begin
            if cell.zombie:
                await _revived(system, truth)
        except Stuck as error:
            broken = [f"law 4 or 8: {error}"]
    verdict = await judge(system, truth, watch, since_ms, ordered=not cell.zombie)
    if broken:
        await system.renew()
    return replace(verdict, seconds=seconds, broken=(*broken, *verdict.broken))


async def _at_point(system: System, cell: Cell, truth: Truth) -> float:
    """Strike when the worker stands there; when the process was brought back, on a monotonic clock."""
    system.gate.arm(cell.point, STEPS[cell.point.partition(" ")[2]].nth)
    try:
        await system.send(truth.burst())
        async with asyncio.timeout(PATIENCE):
            await system.gate.reached()
        await _hurt(system, cell)
    except TimeoutError:
        raise Stuck(f"no worker came to the point {cell.point}") from None
    finally:
        system.gate.release()
    await _endured(system, cell, truth)
    begin = time.monotonic()
    await _mend(system, cell)
    await system.send(truth.burst())
    return begin


async def _at_random(system: System, cell: Cell, truth: Truth) -> float:
    chance = random.Random(str(cell))
    for _ in range(FAULTS):
        await system.send(truth.burst())
        await asyncio.sleep(chance.uniform(0, SPREAD_SECONDS))
        await _hurt(system, cell)
        await asyncio.sleep(chance.uniform(0, SPREAD_SECONDS))
        begin = time.monotonic()
        await _mend(system, cell)
    return begin


async def _hurt(system: System, cell: Cell) -> None:
    if cell.kind == "kill":
        await system.kill(cell.process)
    else:
        system.freeze(cell.process)


async def _mend(system: System, cell: Cell) -> None:
    if cell.kind == "kill":
        await system.start(cell.process)
    else:
        system.thaw(cell.process)


async def _endured(system: System, cell: Cell, truth: Truth) -> None:
    """Law 8: what goes on, and what does not, while the process is away."""
    away = time.monotonic()
    if cell.process != "kafka":
        burst = truth.burst()
        await system.send(burst)
    if cell.zombie:
        await system.start("worker")
        await system.settled(truth.users)
    elif cell.process in ("triton", "qdrant"):
        await system.until(lambda: system.applied(truth.users), truth.events)
    if cell.process != "worker":
        seconds = DOWN_SECONDS if cell.kind == "kill" else FROZEN_SECONDS[cell.process]
        await asyncio.sleep(away + seconds - time.monotonic())
    if cell.process == "redis":
        events = sum(message.topic != ITEMS for message in burst)  # a batch of bad items alone needs no Redis
        if (left := await system.unacknowledged()) < events:
            raise Stuck(f"without Redis, {events - left} events were acknowledged")


async def _revived(system: System, truth: Truth) -> None:
    """The worker that was taken for dead works on, alone again."""
    await system.retire()
    await system.send(truth.burst())
    await system.settled(truth.users)
