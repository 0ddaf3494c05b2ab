"""Batches from a real broker to a handler, and what is committed when handlers return, fail, or are stopped."""

import asyncio
import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from cluster import PARTITIONS, Cluster

from stream import consumer
from stream.batches import Batch, application, consume, run
from stream.embedded import kafka
from stream.embedded.process import Server
from stream.settings import Settings

MakeSettings = Callable[..., Settings]
PATIENCE = 30.0  # seconds
HOWEVER = pytest.mark.parametrize("delivery", ["batch", "stock"])


class Journal:
    """A handler that remembers what it was given, and can be waited for."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.news = asyncio.Event()

    async def __call__(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.news.set()

    @property
    def offsets(self) -> dict[tuple[str, int], list[int]]:
        """By partition, in the order of delivery."""
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for batch in self.batches:
            found[batch.topic, batch.partition] += [record.offset for record in batch.records]
        return dict(found)

    async def has(self, count: int) -> None:
        """Return when `count` records have come."""
        try:
            async with asyncio.timeout(PATIENCE):
                while sum(len(batch.records) for batch in self.batches) < count:
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            came = {partition: len(offsets) for partition, offsets in self.offsets.items()}
            raise AssertionError(f"of {count} records these came: {came}") from None


@HOWEVER
async def test_every_record_comes_in_order_and_all_is_committed_at_the_end(
    delivery: str, cluster: Cluster, settings: MakeSettings
) -> None:
    count, journal, config = 6_000, Journal(), settings(ingest_batch=100, delivery=delivery)
    await cluster.fill(count)
    app = application(config, cluster.address)
    for topic in cluster.topics:
        consume(app, topic, journal)
    await run(app, journal.has(count))
    offsets = await cluster.offsets(config.consumer_group)
    assert journal.offsets == {tuple(tp): list(range(end)) for tp, (_, end) in offsets.items() if end}
    assert all(committed == end for committed, end in offsets.values())
    assert max(len(batch.records) for batch in journal.batches) <= 100


@pytest.mark.parametrize("again", [True, False], ids=["resumed", "cleared"])
async def test_what_faust_loses_on_its_way_to_an_agent_comes_again_in_order(
    again: bool, cluster: Cluster, settings: MakeSettings
) -> None:
    """It empties the queues of agents when partitions are revoked, and whenever it resumes the flow."""
    topic, config, count = cluster.topics[0], settings(ingest_batch=10), 20 if again else 100
    for i in range(count):
        await cluster.producer.send(topic, b"%d" % i, partition=0)
    await cluster.producer.flush()
    journal, taken, go = Journal(), asyncio.Event(), asyncio.Event()

    async def slow(batch: Batch) -> None:
        taken.set()
        await go.wait()
        await journal(batch)

    app = application(config, cluster.address)
    consume(app, topic, slow)

    async def story() -> None:
        await taken.wait()
        await asyncio.sleep(0.5)  # the next batch is waiting in the queue
        if again:
            app.flow_control.resume()
            app.consumer.resume_flow()
        else:
            app.flow_control.clear()
        go.set()
        async with asyncio.timeout(PATIENCE):
            await cluster.drained(config.consumer_group)

    await run(app, story())
    assert list(dict.fromkeys(journal.offsets[topic, 0])) == list(range(count))


@HOWEVER
async def test_records_come_as_they_were_sent(delivery: str, cluster: Cluster, settings: MakeSettings) -> None:
    topic, journal = cluster.topics[0], Journal()
    sent = [(b"k", b"v"), (None, b"v"), (b"k", None), (b"k", b""), (b"", b"\xff\x00"), (b"k", b"x" * 1_000_000)]
    for key, value in sent:
        await cluster.producer.send_and_wait(topic, value, key, partition=1, timestamp_ms=7, headers=[("h", b"1")])
    app = application(settings(delivery=delivery), cluster.address)
    consume(app, topic, journal)
    await run(app, journal.has(len(sent)))
    records = [record for batch in journal.batches for record in batch.records]
    assert [(record.key, record.value) for record in records] == sent
    assert {(record.timestamp, tuple(record.headers)) for record in records} == {(7, (("h", b"1"),))}
    assert {(batch.topic, batch.partition) for batch in journal.batches} == {(topic, 1)}


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
async def test_producers_choose_how_they_compress(codec: str, cluster: Cluster, settings: MakeSettings) -> None:
    topic, journal = cluster.topics[0], Journal()
    async with AIOKafkaProducer(bootstrap_servers=cluster.address, compression_type=codec) as producer:
        await producer.send_and_wait(topic, b"value" * 100, b"key")
    app = application(settings(), cluster.address)
    consume(app, topic, journal)
    await run(app, journal.has(1))
    assert journal.batches[0].records[0].value == b"value" * 100


@HOWEVER
async def test_a_failing_handler_ends_the_app_and_its_batch_comes_again(
    delivery: str, cluster: Cluster, settings: MakeSettings
) -> None:
    topic, config, count = cluster.topics[0], settings(ingest_batch=50, delivery=delivery), 500
    for i in range(count):
        await cluster.producer.send(topic, b"%d" % i, partition=0)
    await cluster.producer.flush()
    before, after = Journal(), Journal()

    async def fails_at_200(batch: Batch) -> None:
        if batch.end > 200:
            raise ValueError("a defect")
        await before(batch)

    app = application(config, cluster.address)
    consume(app, topic, fails_at_200)
    with pytest.raises(ValueError, match="a defect"):
        await run(app, asyncio.sleep(PATIENCE))
    handled = before.offsets[topic, 0]
    committed = (await cluster.offsets(config.consumer_group))[cluster.partitions[0]][0]
    assert committed == len(handled)

    app = application(config, cluster.address)
    consume(app, topic, after)
    await run(app, after.has(count - committed))
    assert handled + after.offsets[topic, 0] == list(range(count))


@HOWEVER
async def test_the_lag_counts_what_waits_anywhere(delivery: str, cluster: Cluster, settings: MakeSettings) -> None:
    topic, config, count = cluster.topics[0], settings(delivery=delivery, ingest_batch=10), 50
    for i in range(count):
        await cluster.producer.send(topic, b"%d" % i, partition=0)
    await cluster.producer.flush()
    go = asyncio.Event()

    async def held(_: Batch) -> None:
        await go.wait()

    app = application(config, cluster.address)
    consume(app, topic, held)

    async def until_lag(wanted: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while sum(app.lag().values()) != wanted:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.1)

    async def story() -> None:
        await until_lag(count)
        await asyncio.sleep(1.0)
        await until_lag(count)
        go.set()
        await until_lag(0)

    await run(app, story())


@HOWEVER
async def test_a_handler_that_is_cancelled_ends_the_app(
    delivery: str, cluster: Cluster, settings: MakeSettings
) -> None:
    """Faust would go on behind what it had in hand."""
    topic, config = cluster.topics[0], settings(delivery=delivery)
    await cluster.producer.send_and_wait(topic, b"v", partition=0)

    async def cancelled(_: Batch) -> None:
        raise asyncio.CancelledError

    app = application(config, cluster.address)
    consume(app, topic, cancelled)
    with pytest.raises(RuntimeError, match="the handler was cancelled"):
        await run(app, asyncio.sleep(PATIENCE))
    assert all(committed == 0 for committed, _ in (await cluster.offsets(config.consumer_group)).values())


async def test_a_batch_under_way_when_the_app_stops_is_not_committed(
    cluster: Cluster, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "DRAIN_SECONDS", 0.2)
    topic, config, journal, taken = cluster.topics[0], settings(), Journal(), asyncio.Event()
    await cluster.producer.send_and_wait(topic, b"v", partition=0)

    async def stuck(batch: Batch) -> None:
        taken.set()
        await asyncio.Event().wait()

    app = application(config, cluster.address)
    consume(app, topic, stuck)
    await run(app, taken.wait())
    assert all(committed == 0 for committed, _ in (await cluster.offsets(config.consumer_group)).values())

    app = application(config, cluster.address)
    consume(app, topic, journal)
    await run(app, journal.has(1))
    assert journal.offsets == {(topic, 0): [0]}


async def test_a_batch_under_way_may_end_before_the_app_stops(cluster: Cluster, settings: MakeSettings) -> None:
    topic, config, taken = cluster.topics[0], settings(), asyncio.Event()
    await cluster.producer.send_and_wait(topic, b"v", partition=0)

    async def slow(batch: Batch) -> None:
        taken.set()
        await asyncio.sleep(0.3)

    app = application(config, cluster.address)
    consume(app, topic, slow)
    await run(app, taken.wait())
    assert (await cluster.offsets(config.consumer_group))[cluster.partitions[0]] == (1, 1)


async def test_a_handler_that_waits_holds_up_neither_memory_nor_other_topics(
    cluster: Cluster, settings: MakeSettings
) -> None:
    """As when Triton is away: items wait, events go on."""
    stalled, flowing = cluster.topics[:2]
    journal, released, count = Journal(), Journal(), 6_000
    taken, go = asyncio.Event(), asyncio.Event()

    async def stall(batch: Batch) -> None:
        taken.set()
        await go.wait()
        await released(batch)

    await cluster.fill(count)
    app = application(settings(ingest_batch=10), cluster.address)
    consume(app, stalled, stall)
    consume(app, flowing, journal)

    async def story() -> None:
        await taken.wait()
        await journal.has(count // 3)
        gc.collect()
        held = [each for each in gc.get_objects() if type(each) is Batch and each.topic == stalled]
        assert len(held) <= consumer.BATCHES_UNDER_WAY * PARTITIONS
        go.set()
        await released.has(count // 3)

    await run(app, story())


async def test_an_error_of_the_main_task_is_raised_after_stopping(cluster: Cluster, settings: MakeSettings) -> None:
    async def fails() -> None:
        raise LookupError("in the story")

    app = application(settings(), cluster.address)
    consume(app, cluster.topics[0], Journal())
    with pytest.raises(LookupError, match="in the story"):
        await run(app, fails())
    assert app.should_stop


async def test_nothing_is_written_outside_the_data_folder(
    cluster: Cluster, settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    app = application(settings(data_folder=tmp_path / "data"), cluster.address)
    consume(app, cluster.topics[0], Journal())
    await run(app, asyncio.sleep(0))
    assert not list(elsewhere.iterdir())


@pytest.fixture
def memory_broker(embedded_settings: Settings, tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("confluent_kafka")
    server = kafka.start(embedded_settings.model_copy(update={"data_folder": tmp_path, "kafka_home": None}))
    yield server
    server.stop()


async def test_the_in_memory_broker(memory_broker: Server, settings: MakeSettings) -> None:
    journal, count = Journal(), 400
    app = application(settings(ingest_batch=50), memory_broker.address)
    consume(app, "events.feed", journal)

    async def story() -> None:
        for i in range(count):
            await producer.send("events.feed", b"%d" % i, key=b"%d" % i)
        await producer.flush()
        await journal.has(count)

    async with AIOKafkaProducer(bootstrap_servers=memory_broker.address) as producer:
        await producer.partitions_for("events.feed")  # makes the topic
        await run(app, story())
    assert len(journal.offsets) == 4
    assert all(offsets == list(range(len(offsets))) for offsets in journal.offsets.values())


async def test_kafka_away_at_the_start_is_waited_for(settings: MakeSettings, caplog: pytest.LogCaptureFixture) -> None:
    app = application(settings(), "127.0.0.1:1")
    consume(app, "events.feed", Journal())
    await run(app, asyncio.sleep(0.3))
    assert "Kafka at 127.0.0.1:1 does not answer; trying again" in caplog.text
