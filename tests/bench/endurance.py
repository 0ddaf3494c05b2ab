"""Resident memory of a worker over a million events."""

import asyncio

from stream.embedded.process import resident_bytes
from tests.bench.load import Line, line, worker
from tests.bench.report import Section, compared, tell
from tests.bench.system import System

EVENTS, PARTS = 1_000_000, 10
USERS, POPULATION = 500, 50_000  # whose events come again and again
LENGTH = 128  # of a history: all are full before the first part ends
SAMPLE_SECONDS = 1.0
MB = 1 << 20
ABOUT = f"""\
Resident memory of one `facetstream worker`, looked at every second while it ingests {EVENTS:,} events of {USERS} users
as fast as it can, and refreshes them; histories end at {LENGTH} events, so that all are full in the first part. A part
is {EVENTS // PARTS:,} events. Ratios are to the second, as the first warms up; asked is at most 1.05 in the last.
What Python has in use (sys.getallocatedblocks) does not grow: a step up is free memory that is kept."""


def measure(system: System) -> Section:
    system.empty()
    system = system.of_another_group()
    with worker(system, history_length=LENGTH) as process:
        found = asyncio.run(_sizes(system, process.pid))
    return Section("Worker memory", ABOUT, compared(found, "MB", {"part 2": "part 2"}))


async def _sizes(system: System, worker_id: int) -> dict[str, list[float]]:
    """Of each part, in MB."""
    found: dict[str, list[float]] = {}
    async with line(system, USERS, POPULATION) as under_load:
        for number in range(1, PARTS + 1):
            sizes = found[f"part {number}"] = []
            async with asyncio.TaskGroup() as group:
                done = group.create_task(_ingested(under_load))
                while not done.done():
                    sizes.append(resident_bytes(worker_id) / MB)
                    await asyncio.sleep(SAMPLE_SECONDS)
            tell(f"part {number}: {sizes[-1]:,.1f} MB")
    return found


async def _ingested(under_load: Line) -> None:
    await under_load.send(EVENTS // PARTS)
    await under_load.read()
