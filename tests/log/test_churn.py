"""Workers that join, leave in order, and are killed, under load: no record may be missing."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from fleet import Fleet

from stream.settings import Settings

WORKER = Path(__file__).with_name("worker.py")
STEP_SECONDS = 1.5  # between two events in the group, about what a worker needs to start
TICK_SECONDS = 0.1
PER_TICK = 150  # records sent
PATIENCE = 60.0  # seconds


class Workers(Fleet):
    """Processes of one group, each with a journal of what it handled."""

    def __init__(self, cluster: Cluster, group: str, folder: Path) -> None:
        super().__init__([WORKER])
        self.group = group
        self._arguments = [cluster.address, group, str(folder), *cluster.topics]
        self._folder = folder

    def start(self) -> None:
        journal = self._folder / f"worker-{len(list(self._folder.glob('worker-*')))}"
        journal.touch()
        super().start(str(journal), *self._arguments)

    def handled(self) -> Counter[tuple[str, int, int]]:
        """How often each record was, by topic, partition and offset."""
        lines = [line.split() for path in self._folder.glob("worker-*") for line in path.read_text().splitlines()]
        return Counter((line[0], int(line[1]), int(line[2])) for line in lines if len(line) == 3)


@pytest.fixture
def workers(cluster: Cluster, settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Workers]:
    started = Workers(cluster, settings().consumer_group, tmp_path)
    yield started
    started.close()


async def test_no_record_is_missing_however_workers_come_and_go(cluster: Cluster, workers: Workers) -> None:
    over = asyncio.Event()

    async def load() -> None:
        while not over.is_set():
            await cluster.fill(PER_TICK)
            await asyncio.sleep(TICK_SECONDS)

    sending = asyncio.create_task(load())
    workers.start()
    for step in (workers.start, workers.terminate, workers.start, workers.kill, workers.start, workers.terminate):
        await asyncio.sleep(STEP_SECONDS)
        await asyncio.to_thread(step)
    over.set()
    await sending
    async with asyncio.timeout(PATIENCE):
        await cluster.drained(workers.group)
    workers.terminate()
    handled = workers.handled()
    sent = {(*tp, offset) for tp, (_, end) in (await cluster.offsets(workers.group)).items() for offset in range(end)}
    again = handled.total() - len(handled)
    print(f"{len(sent)} records, {again} handled again")
    assert set(handled) == sent
