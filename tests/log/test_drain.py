"""A worker process that is asked to stop: what it has in hand ends and is committed, or is left to the next one."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from cluster import Cluster
from fleet import Fleet

from stream.adapters.kafka import Producer, lag, provision_topics
from stream.adapters.redis import RedisHistories, RedisRegistry
from stream.adapters.redis_connection import connect
from stream.embedded.process import Server
from stream.history import decode
from stream.settings import Settings, load, variable
from stream.stores import Codebook
from tests.path.rig import event

PATIENCE = 60.0  # seconds
ASKED = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


class Held:
    """One worker after the other in one group, on one topic, with a folder to tell them what to do."""

    def __init__(self, cluster: Cluster, group: str, folder: Path) -> None:
        self.cluster, self.group, self._folder = cluster, group, folder
        self.fleet = Fleet([Path(__file__).with_name("held_worker.py"), folder, cluster.address, group])

    async def start(self) -> None:
        """A worker that has a batch in hand."""
        await self.send()
        self.fleet.start(self.cluster.topics[0])
        await self.sees("taken")

    async def send(self) -> None:
        await self.cluster.producer.send_and_wait(self.cluster.topics[0], b"v", partition=0)

    async def sees(self, name: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (self._folder / name).exists():  # noqa: ASYNC110  a file tells nobody
                await asyncio.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self.fleet.running[0].send_signal(number)

    def let_go(self) -> None:
        (self._folder / "go").touch()

    async def ended(self) -> int:
        """The exit code of the worker, which has said nothing of a mistake."""
        worker = self.fleet.running.pop(0)
        _, said = await asyncio.to_thread(worker.communicate, timeout=PATIENCE)
        assert "Traceback" not in said, said
        return worker.returncode

    @property
    def done(self) -> list[int]:
        """Offsets."""
        path = self._folder / "done"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def committed(self) -> int:
        return (await self.cluster.offsets(self.group))[TopicPartition(self.cluster.topics[0], 0)][0]

    async def members(self) -> int:
        return await members(self.cluster.address, self.group)


async def members(address: str, group: str) -> int:
    """How many a group has; one that just vanished is a member until its session ends."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([group])
    finally:
        await admin.close()
    (described,) = answer.to_object()["groups"]
    return len(described["members"])


@pytest.fixture
def held(cluster: Cluster, settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Held]:
    made = Held(cluster, settings().consumer_group, tmp_path)
    yield made
    made.fleet.close()


@ASKED
async def test_what_is_in_hand_ends_and_is_committed_and_the_group_is_left(held: Held, number: signal.Signals) -> None:
    await held.start()
    held.signal(number)
    await held.sees("stopping")
    await held.send()
    held.let_go()
    assert await held.ended() == 0
    assert held.done == [0]
    assert await held.committed() == 1
    assert await held.members() == 0


@ASKED
async def test_what_does_not_end_is_left_to_the_next_worker(held: Held, number: signal.Signals) -> None:
    await held.start()
    held.signal(number)
    assert await held.ended() == 0
    assert (held.done, await held.committed(), await held.members()) == ([], 0, 0)


@ASKED
async def test_a_second_signal_ends_the_process_at_once_and_nothing_is_lost(held: Held, number: signal.Signals) -> None:
    await held.start()
    held.signal(number)
    await held.sees("stopping")
    held.signal(number)
    assert await held.ended() == 1
    assert (held.done, await held.committed()) == ([], 0)
    held.let_go()
    held.fleet.start(held.cluster.topics[0])
    async with asyncio.timeout(PATIENCE):
        await held.cluster.drained(held.group)
    assert held.done == [0]


@pytest.fixture
async def histories(redis_db: str) -> AsyncIterator[RedisHistories]:
    """Of a Redis that is provisioned."""
    client = connect(redis_db, load())
    await RedisRegistry(client).put_codebook(Codebook(1, 4, b""))
    yield RedisHistories(client, code_bytes=4, codebook_version=1, length=1_024, window=64)
    await client.aclose()


@ASKED
async def test_facetstream_worker_has_committed_what_it_applied(
    broker: Server, redis_db: str, histories: RedisHistories, tmp_path: Path, number: signal.Signals
) -> None:
    """Without Triton and Qdrant, for which its refresh waits."""
    config, count = load(kafka_url=broker.address), 2_000
    told = {
        "kafka_url": broker.address,
        "redis_url": redis_db,
        "triton_url": "127.0.0.1:1",
        "qdrant_url": "http://127.0.0.1:1",
        "data_folder": str(tmp_path),
        "ingest_batch": "10",
    }
    await provision_topics(broker.address, config)
    async with Producer(broker.address, config) as kafka:
        for n in range(count):
            await kafka.send_event("feed", f"u{n % 50}", json.dumps(event(n, user=f"u{n % 50}")).encode())
        await kafka.flush()
    fleet = Fleet(["-m", "stream.cli", "worker"], {variable(name): value for name, value in told.items()})
    fleet.start()
    try:
        async with asyncio.timeout(PATIENCE):
            while not await histories.dirty_count():  # noqa: ASYNC110  nor does Redis
                await asyncio.sleep(0.01)
        fleet.end(number)
    finally:
        fleet.close()
    applied = [decode(data).events_applied for data in await histories.read([f"u{n}" for n in range(50)]) if data]
    assert sum(applied) + await lag(broker.address, config) == count
    assert await members(broker.address, config.consumer_group) == 0
