"""Partitions change hands under load: what is under way is finished or abandoned, and every history is exact."""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from cluster import PARTITIONS, Cluster
from fleet import Fleet

from stream import consumer
from stream.adapters import redis_connection
from stream.adapters.kafka import lag, provision_topics
from stream.adapters.kafka_reader import KafkaReader
from stream.adapters.memory_stores import MemoryHistories
from stream.adapters.redis import RedisHistories, RedisItems, RedisRegistry
from stream.batches import Batch, BatchApp, application, consume, run
from stream.digest import digest
from stream.embedded.process import Server
from stream.events import Scenario
from stream.history import Record, decode
from stream.identity import item_index, item_key
from stream.ingest import ACTION_CODES
from stream.replay import apply_events, copy_items
from stream.settings import Settings, load, variable
from stream.stores import Codebook
from stream.topics import EVENT_TOPICS
from tests.path.rig import Rig

MakeSettings = Callable[..., Settings]
PATIENCE = 60.0  # seconds


class Member:
    """A worker of all topics in this process; what it was given, and what it has done."""

    def __init__(self, config: Settings, cluster: Cluster, until: Callable[["Member"], Any]) -> None:
        self.taken: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []
        self.app: BatchApp = application(config, cluster.address)
        self._until = until
        for topic in cluster.topics:
            consume(self.app, topic, self._handle)

    async def _handle(self, batch: Batch) -> None:
        self.taken.append((batch.topic, batch.partition))
        await self._until(self)
        self.done.append((batch.topic, batch.partition))

    @property
    def revoked(self) -> bool:
        return not self.app.consumer.flow_active


async def at_once(_: Member) -> None:
    pass


async def revoked(member: Member) -> None:
    """When the member is asked for its partitions, and a little later."""
    await until(lambda: member.revoked)
    await asyncio.sleep(0.3)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not reached():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)


async def one_record_each(cluster: Cluster) -> set[tuple[str, int]]:
    """In a partition of every topic, no two the same: of two members, each gets some of them."""
    places = {(topic, partition) for partition, topic in enumerate(cluster.topics)}
    for topic, partition in places:
        await cluster.producer.send_and_wait(topic, b"v", partition=partition)
    return places


async def test_what_is_under_way_when_a_partition_is_revoked_is_finished_and_committed(
    cluster: Cluster, settings: MakeSettings
) -> None:
    config, places = settings(), await one_record_each(cluster)
    first, second = Member(config, cluster, revoked), Member(config, cluster, at_once)

    async def story() -> None:
        await until(lambda: len(first.taken) == len(places))
        await run(second.app, until(lambda: bool(second.app.lag())))

    await run(first.app, story())
    assert Counter(first.done + second.done) == Counter(places)
    offsets = await cluster.offsets(config.consumer_group)
    assert all(committed == end for committed, end in offsets.values())


async def test_what_is_not_finished_in_time_is_abandoned_without_a_commit(
    cluster: Cluster, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "DRAIN_SECONDS", 0.2)
    config, places, go = settings(), await one_record_each(cluster), asyncio.Event()
    first = Member(config, cluster, lambda _: go.wait())
    second = Member(config, cluster, at_once)

    async def others() -> None:
        await until(lambda: bool(second.done))
        committed = {tuple(tp) for tp, (offset, _) in (await cluster.offsets(config.consumer_group)).items() if offset}
        assert committed <= set(second.done)
        go.set()
        async with asyncio.timeout(PATIENCE):
            await cluster.drained(config.consumer_group)

    async def story() -> None:
        await until(lambda: len(first.taken) == len(places))
        await run(second.app, others())

    await run(first.app, story())
    assert set(second.done) < places
    assert Counter(first.done + second.done) == Counter([*places, *places])  # late, which counts for nothing; and anew


@pytest.mark.parametrize("delivery", ["batch", "stock"])
async def test_a_worker_that_had_nothing_takes_over_in_order(
    delivery: str, lone_partition: Cluster, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust does not suspend it, reads while it goes back to what is committed, and then empties the agents' queues."""
    seek = consumer._Thread.seek_to_committed

    async def slowly(thread: consumer._Thread) -> Any:
        found = await seek(thread)
        await asyncio.sleep(1.2)
        return found

    monkeypatch.setattr(consumer._Thread, "seek_to_committed", slowly)
    config, (topic,), count = settings(ingest_batch=10, delivery=delivery), lone_partition.topics, 100
    go, left, first, second = asyncio.Event(), asyncio.Event(), list[int](), list[int]()

    def member(handled: list[int], until: Callable[[], Any]) -> BatchApp:
        async def handle(batch: Batch) -> None:
            await until()
            handled.extend(record.offset for record in batch.records)

        app = application(config, lone_partition.address)
        consume(app, topic, handle)
        return app

    leaver, heir = member(first, go.wait), member(second, lambda: asyncio.sleep(0.7 if delivery == "batch" else 0.05))

    async def story() -> None:
        await until(lambda: leaver.consumer.assignment() and heir.consumer.can_resume_flow.is_set())
        for i in range(count):
            await lone_partition.producer.send(topic, b"%d" % i)
        await lone_partition.producer.flush()
        left.set()
        async with asyncio.timeout(PATIENCE):
            await lone_partition.drained(config.consumer_group)

    leaving = asyncio.create_task(run(leaver, left.wait()))
    await until(lambda: bool(leaver.lag()))
    await run(heir, story())
    await leaving
    assert list(dict.fromkeys(second)) == list(range(len(first), count))


USERS = 200
ITEMS = 100  # the codes of every second one are known
LENGTH = 64  # of a history: less than what some users get
CODES = b"code"
STEP_SECONDS = 2.0  # between two changes in the group
TICK_SECONDS = 0.1
PER_TICK = 40  # events
REPEATED = 0.05  # of all events, sent twice
RECENT = 20  # of a user's events in a scenario, one of which is repeated


@dataclass
class Producer:
    """Sends events of all users to all topics, and knows what must come of them."""

    kafka: AIOKafkaProducer
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    sent: dict[tuple[str, Scenario], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    began_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set():
            for _ in range(PER_TICK):
                await self._send(f"u{self.rng.randrange(USERS)}", self.rng.choice(list(Scenario)))
            await asyncio.sleep(TICK_SECONDS)
        await self.kafka.flush()

    async def _send(self, user: str, scenario: Scenario) -> None:
        events = self.sent[user, scenario]
        if events and self.rng.random() < REPEATED:
            made = self.rng.choice(events[-RECENT:])
        else:
            made = self._event(user, len(events))
            events.append(made)
        await self.kafka.send(EVENT_TOPICS[scenario.name], json.dumps(made).encode(), user.encode())

    def _event(self, user: str, number: int) -> dict[str, Any]:
        """Of some second of the last ten minutes: late ones and ties are many."""
        return {
            "event_id": f"e{number}",
            "user_id": user,
            "item_id": f"i{self.rng.randrange(ITEMS)}",
            "action": self.rng.choice(["view", "click"]),
            "ts": self.began_ms - 1_000 * self.rng.randrange(600),
        }

    def history(self, user: str) -> tuple[int, list[Record]]:
        """How many events of a user count, and the records that are kept."""
        events = [(scenario, made) for scenario in Scenario for made in self.sent[user, scenario]]
        records = sorted((_record(scenario, made) for scenario, made in events), key=lambda record: record.order)
        return len(events), records[-LENGTH:]


def _record(scenario: Scenario, made: dict[str, Any]) -> Record:
    item = made["item_id"]
    codes = None if int(item[1:]) % 2 else CODES
    return Record(made["ts"], scenario, ACTION_CODES[made["action"]], item_index(item_key(item)), codes)


@dataclass(frozen=True)
class Stores:
    histories: RedisHistories
    items: RedisItems


@pytest.fixture
async def stores(redis_db: str) -> AsyncIterator[Stores]:
    """Provisioned, and with codes of some items."""
    client = redis_connection.connect(redis_db, load())
    await RedisRegistry(client).put_codebook(Codebook(1, len(CODES), b""))
    items = RedisItems(client, codebook_version=1)
    known = await items.claim([item_key(f"i{n}") for n in range(0, ITEMS, 2)])
    await items.put_codes({item.index: CODES for item in known})
    histories = RedisHistories(client, code_bytes=len(CODES), codebook_version=1, length=LENGTH, window=64)
    yield Stores(histories, items)
    await client.aclose()


@pytest.fixture
def fleet(broker: Server, redis_db: str, tmp_path: Path) -> Iterator[Fleet]:
    """Workers that ingest. A connection that a stop in the midst of a rebalance leaves open ends with the process."""
    told = {
        "kafka_url": broker.address,
        "redis_url": redis_db,
        "data_folder": str(tmp_path),
        "history_length": str(LENGTH),
        "ingest_batch": "20",
    }
    command = ["-W", "ignore::ResourceWarning", Path(__file__).with_name("ingest_worker.py")]
    workers = Fleet(command, {variable(name): value for name, value in told.items()})
    yield workers
    workers.close()


async def test_every_member_knows_how_many_partitions_a_topic_has(cluster: Cluster, settings: MakeSettings) -> None:
    """Or all but the group's leader would refresh nobody."""
    members = [Member(settings(), cluster, at_once) for _ in range(2)]

    async def look(member: Member) -> int | None:
        await until(lambda: all(len(m.app.lag()) == PARTITIONS * len(cluster.topics) // 2 for m in members))
        return member.app.consumer.topic_partitions(cluster.topics[0])

    assert await asyncio.gather(*(run(m.app, look(m)) for m in members)) == [PARTITIONS, PARTITIONS]


async def test_every_history_is_exact_however_workers_come_and_go(broker: Server, stores: Stores, fleet: Fleet) -> None:
    config, over = load(kafka_url=broker.address), asyncio.Event()
    await provision_topics(broker.address, config)
    async with AIOKafkaProducer(bootstrap_servers=broker.address, linger_ms=5) as kafka:
        producer = Producer(kafka)
        sending = asyncio.create_task(producer.run(over))
        for _ in range(3):
            fleet.start()
        changes = cycle([fleet.start, fleet.terminate, fleet.start, fleet.kill])
        for _ in range(20):
            await asyncio.sleep(STEP_SECONDS)
            await asyncio.to_thread(next(changes))
        over.set()
        await sending
    async with asyncio.timeout(2 * PATIENCE):
        while await lag(broker.address, config):  # noqa: ASYNC110  nor does Kafka
            await asyncio.sleep(0.5)
    for _ in range(3):
        await asyncio.to_thread(fleet.terminate)

    users = [f"u{n}" for n in range(USERS)]
    for user, data in zip(users, await stores.histories.read(users), strict=True):
        found = decode(data or b"")
        assert (found.events_applied, list(found.records)) == producer.history(user)
    twin = Rig(histories=MemoryHistories(len(CODES), 1, LENGTH))
    await copy_items(stores.items, twin.items, lambda _: None)
    async with KafkaReader(broker.address, config, list(EVENT_TOPICS.values())) as reader:
        await apply_events(reader, twin.ingest, lambda _: None)
    assert twin.stats.counts["duplicates_skipped"] > 0
    assert await digest(stores.histories) == await digest(twin.histories)
