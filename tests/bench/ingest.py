"""Events a second of one process: three ways to get them from Kafka, two things to do with them."""

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from statistics import median

import faust
from aiokafka import AIOKafkaConsumer

from stream.batches import Batch, Record, application, consume, run
from stream.commands.worker import YOUNG
from stream.services import Services, Stores, producer
from stream.synthetic import synthesize
from stream.topics import EVENT_TOPICS
from tests.bench import peers
from tests.bench.report import Section, compared, interleaved
from tests.bench.system import SCENARIOS, System, ingest, know, names_of, raw

EVENTS, USERS = 60_000, 500  # about 1.5 MB a partition: the in-memory broker keeps 5 MB
FEW = 3_000  # of the same, for what is slow
PLAIN, STOCK = "bare aiokafka, json.loads", "stock agent, histories in Redis"
BASELINES = {"bare": PLAIN, "stock": STOCK}
PEERS = {peer: f"{name}, histories in Redis" for peer, name in peers.NAMES.items()}
ABOUT = f"""\
{EVENTS:,} events of {USERS} users lie in Kafka before the clock starts; stock agents read {FEW:,} of them. The time is
from the first record in hand to the last one durable; starting and joining the group are not in it, and the items are
known beforehand. "Histories in Redis" is `stream.ingest`: validation, de-duplication, one script per user and batch.
Ratios are to a bare aiokafka loop that only does `json.loads`, to a stock Faust agent (`async for`) that hands the same
handler one event at a time, and to the better of the two peers; asked of the product are 0.30, 5 and 1.

The peers, each in a process of its own, validate with the same code and run the same script once per user and batch,
batches having as many records at most, in one pipeline a batch, over Redis's blocking client. They have it easier: an
item is looked up in a dict for good, no dirty user is queued, nothing is counted, a Redis that fails is not waited for.
Delivery is at least once in all lanes, but not the same. The product commits to Kafka twice a second what is written;
Quix Streams every five seconds, its default, and writes a batch only then; Bytewax has no consumer group, and every ten
seconds, its default, notes in a recovery store what it has read. librdkafka reads ahead in threads of its own, aiokafka
in the product's second thread or, bare, in the one event loop."""

Handler = Callable[[Batch], Awaitable[None]]
Delivery = Callable[[System, "Meter"], Awaitable[None]]


def measure(system: System) -> Section:
    names = _produce(system)
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])  # as a worker has it; here every lane
    lanes = {
        PLAIN: (_bare, _parse, EVENTS),
        "batch agent, json.loads": (_batches, _parse, EVENTS),
        "stock agent, json.loads": (_stock, _parse, FEW),
        "bare aiokafka, histories in Redis": (_bare, None, EVENTS),
        "batch agent, histories in Redis (the product)": (_batches, None, EVENTS),
        STOCK: (_stock, None, FEW),
    }
    absent = {peer: peers.missing(peer, bool(system.settings.kafka_home)) for peer in PEERS}
    found = interleaved(
        {name: partial(_lane, system, names, *lane) for name, lane in lanes.items()}
        | {name: partial(_peer, system, names, peer) for peer, name in PEERS.items() if not absent[peer]}
    )
    measured = [name for name in PEERS.values() if found.get(name)]
    best = {"peer": max(measured, key=lambda name: median(found[name]))} if measured else {}
    notes = "".join(f" {why}." for why in absent.values() if why)
    return Section("Ingest", ABOUT + notes, compared(found, "events/s", BASELINES | best))


class Meter:
    """Counts what a handler has done, between its first call and its `goal`th event."""

    def __init__(self, handle: Handler, goal: int) -> None:
        self._handle, self._left, self._goal = handle, goal, goal
        self._began = self._ended = 0.0
        self.done = asyncio.Event()

    async def __call__(self, batch: Batch) -> None:
        self._began = self._began or time.perf_counter()
        await self._handle(batch)
        self._left -= len(batch.records)
        if self._left <= 0 and not self.done.is_set():
            self._ended = time.perf_counter()
            self.done.set()

    @property
    def rate(self) -> float:
        return (self._goal - self._left) / (self._ended - self._began)


def _lane(system: System, names: Sequence[str], deliver: Delivery, handle: Handler | None, goal: int) -> float:
    """Events a second; without a handler, into histories."""
    system.empty()

    async def body(services: Services, opened: Stores) -> float:
        await know(opened, names)
        meter = Meter(handle or await _into_histories(system, services, opened), goal)
        await deliver(system.of_another_group(), meter)
        return meter.rate

    return system.use(body)


def _peer(system: System, names: Sequence[str], peer: str) -> float:
    system.empty()
    system.use(lambda _, opened: know(opened, names))
    return peers.rate(peer, system, EVENTS)


async def _bare(system: System, meter: Meter) -> None:
    bootstrap, group = system.addresses.kafka, system.settings.consumer_group
    async with AIOKafkaConsumer(
        *SCENARIOS, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest"
    ) as kafka:
        while not meter.done.is_set():
            for tp, found in (await kafka.getmany(timeout_ms=100, max_records=system.settings.ingest_batch)).items():
                await meter(Batch(tp.topic, tp.partition, tuple(found)))


async def _batches(system: System, meter: Meter) -> None:
    app = application(system.settings, system.addresses.kafka)
    for topic in SCENARIOS:
        consume(app, topic, meter)
    await run(app, meter.done.wait())


async def _stock(system: System, meter: Meter) -> None:
    """As Faust's own documentation has it, one event after the other."""
    app = faust.App(
        system.settings.consumer_group,
        broker=f"kafka://{system.addresses.kafka}",
        consumer_auto_offset_reset="earliest",
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        datadir=system.settings.data_folder / "stock",
    )

    async def agent(stream: faust.Stream[bytes]) -> None:
        async for event in stream.events():
            m = event.message
            await meter(Batch(m.topic, m.partition, (Record(m.offset, m.key, event.value, int(m.timestamp * 1000)),)))

    for topic in SCENARIOS:
        app.agent(app.topic(topic, value_type=bytes, value_serializer="raw"), name=topic)(agent)
    async with app:
        await meter.done.wait()


async def _parse(batch: Batch) -> None:
    for record in batch.records:
        json.loads(record.value or b"")


async def _into_histories(system: System, services: Services, opened: Stores) -> Handler:
    handler = await ingest(services, opened, system.settings)
    return lambda batch: handler.handle(batch, SCENARIOS[batch.topic])


def _produce(system: System) -> list[str]:
    """The names of the items that the events are about; the events themselves are in Kafka alone."""
    acts = synthesize(USERS, EVENTS).acts

    async def send() -> None:
        async with producer(system.addresses.kafka, system.settings) as kafka:
            for act in acts:
                await kafka.send(EVENT_TOPICS[act.scenario], act.record["user_id"].encode(), raw(act))
            await kafka.flush()

    asyncio.run(send())
    return names_of(acts)
