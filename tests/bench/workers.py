"""Events a second of one worker, and of two.

`python -m tests.bench.workers FOLDER PARTITIONS` is one of them: it ingests as `facetstream worker` does and refreshes
nobody. It is ready when it has so many partitions, begins when FOLDER has a file `go`, and writes what it has done.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

from stream import addresses, settings
from stream.batches import Batch, BatchApp, application, consume, run, terminated
from stream.produce import Outgoing
from stream.services import connect, producer, stores
from stream.settings import Settings
from stream.synthetic import synthesize
from stream.topics import EVENT_TOPICS
from tests.bench.load import STOP_SECONDS, read_all, traffic
from tests.bench.report import Section, compared, interleaved
from tests.bench.system import ROOT, SCENARIOS, System, ingest, know, names_of

EVENTS, USERS = 60_000, 500
ONE, TWO = "1 worker", "2 workers"
POLL, PATIENCE = 0.02, 120.0  # seconds
ABOUT = f"""\
{EVENTS:,} events of {USERS} users are in Kafka before the workers, each a process that ingests and refreshes nobody,
are let go together; until the last event is in a history. Kafka and Redis are on the same cores: two workers on two
cores cannot be twice as fast."""


def measure(system: System) -> Section:
    if not system.settings.kafka_home:
        raise RuntimeError("two workers need a real Kafka (KAFKA_HOME): the in-memory broker has no groups")
    population = synthesize(USERS, EVENTS).acts
    lanes = {ONE: partial(_rate, system, names_of(population), 1), TWO: partial(_rate, system, names_of(population), 2)}
    return Section("Workers", ABOUT, compared(interleaved(lanes), "events/s", {ONE: ONE}))


def _rate(system: System, names: list[str], workers: int) -> float:
    system.empty()
    system.use(lambda _, opened: know(opened, names))
    system = system.of_another_group()
    asyncio.run(read_all(system))
    events = list(islice(traffic(USERS, EVENTS), EVENTS))
    share = len(EVENT_TOPICS) * system.settings.partitions // workers
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        for _ in range(workers):
            stack.enter_context(_process(system, folder, share))
        _wait_until(lambda: len(list(folder.glob("ready-*"))) == workers)
        asyncio.run(_send(system, events))
        began = time.monotonic()
        (folder / "go").touch()
        _wait_until(lambda: sum(count for _, count in _done(folder)) >= EVENTS)
        return EVENTS / (max(at for at, _ in _done(folder)) - began)


@contextmanager
def _process(system: System, folder: Path, partitions: int) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.bench.workers", str(folder), str(partitions)]
    with subprocess.Popen(command, cwd=ROOT, env=system.environment()) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


async def _send(system: System, events: list[Outgoing]) -> None:
    async with producer(system.addresses.kafka, system.settings) as kafka:
        for event in events:
            await kafka.send_event(event.scenario, event.user_id, event.value)
        await kafka.flush()


def _done(folder: Path) -> list[tuple[float, int]]:
    """Of each batch, when it was durable, and how many events it had."""
    lines = [line.split() for path in folder.glob("done-*") for line in path.read_text().splitlines()]
    return [(float(at), int(count)) for at, count in lines]


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the workers are not ready, or not done, after {PATIENCE:.0f} s")
        time.sleep(POLL)


async def _work(wanted: Settings, folder: Path, partitions: int, done: TextIO) -> None:
    found = addresses.find(wanted)
    async with connect(wanted, found) as services:
        handler = await ingest(services, await stores(services, wanted), wanted)
        app = application(wanted, found.kafka)

        async def handle(batch: Batch) -> None:
            while not (folder / "go").exists():  # noqa: ASYNC110
                await asyncio.sleep(POLL)
            await handler.handle(batch, SCENARIOS[batch.topic])
            done.write(f"{time.monotonic()} {len(batch.records)}\n")

        for topic in SCENARIOS:
            consume(app, topic, handle)
        await run(app, _stay(app, folder, partitions, done))


async def _stay(app: BatchApp, folder: Path, partitions: int, done: TextIO) -> None:
    while len(app.lag()) != partitions:  # noqa: ASYNC110
        await asyncio.sleep(POLL)
    (folder / Path(done.name).name.replace("done-", "ready-")).touch()
    await terminated()


def main() -> None:
    folder, partitions = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.NamedTemporaryFile("w", prefix="done-", dir=folder, buffering=1, delete=False) as done:
        asyncio.run(_work(settings.load(), folder, partitions, done))


if __name__ == "__main__":
    main()
