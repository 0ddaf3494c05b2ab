"""What Facetstream writes to Kafka, and its topics, on whichever broker is there."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError

from stream.adapters.kafka import KafkaLog, Producer, lag, missing_topics, provision_topics
from stream.adapters.kafka_admin import Lag
from stream.admission import BACKFILL
from stream.embedded import kafka as embedded
from stream.errors import Permanent, Transient, UserError
from stream.events import parse_event, parse_item
from stream.ports import DeadLetter, Log, Update
from stream.produce import paced
from stream.retry import persistently
from stream.settings import Settings, load
from stream.topics import ALL, DEAD, EVENT_TOPICS, ITEMS, UPDATED
from tests.conftest import ROOT, serve


@pytest.fixture
def settings() -> Settings:
    return load(consumer_group=f"group-{uuid4()}", kafka_url=None)


@pytest.fixture
async def url(kafka_url: str, settings: Settings) -> str:
    await provision_topics(kafka_url, settings)
    return kafka_url


@pytest.fixture
def memory_url(embedded_settings: Settings, tmp_path: Path) -> Iterator[str]:
    """An in-memory broker of the test's own."""
    alone = embedded_settings.model_copy(update={"kafka_home": None, "kafka_port": None, "data_folder": tmp_path})
    yield from serve("embedded", embedded.start, alone)


@contextlib.asynccontextmanager
async def tail(url: str, *topics: str) -> AsyncIterator["Tail"]:
    """What comes into topics from now on."""
    consumer = AIOKafkaConsumer(bootstrap_servers=url, auto_offset_reset="earliest")
    await consumer.start()
    try:
        await consumer._client._wait_on_metadata(topics[0])
        consumer.assign([TopicPartition(topic, number) for topic in topics for number in range(4)])
        await consumer.seek_to_end()
        for tp in consumer.assignment():
            await consumer.position(tp)
        yield Tail(consumer)
    finally:
        await consumer.stop()


class Tail:
    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def read(self, count: int) -> list[ConsumerRecord]:
        records: list[ConsumerRecord] = []
        while len(records) < count:
            fetched = await self._consumer.getmany(timeout_ms=200)
            records += [record for batch in fetched.values() for record in batch]
        return records


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110  Kafka has no event for it
        await asyncio.sleep(0.05)


async def test_provisioning_twice_changes_nothing(kafka_url: str, settings: Settings) -> None:
    await provision_topics(kafka_url, settings)
    assert await missing_topics(kafka_url, settings) == []
    assert await provision_topics(kafka_url, settings) == []


async def test_a_fresh_broker_gets_every_topic(memory_url: str, settings: Settings) -> None:
    assert await missing_topics(memory_url, settings) == list(ALL)
    assert await provision_topics(memory_url, settings) == list(ALL)
    assert await missing_topics(memory_url, settings) == []


async def test_partitions_that_the_broker_does_not_give_are_a_mistake(memory_url: str) -> None:
    with pytest.raises(UserError, match="FACETSTREAM_PARTITIONS=3"):
        await provision_topics(memory_url, load(partitions=3))


async def test_topics_of_a_real_broker(real_kafka_url: str, settings: Settings) -> None:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    await provision_topics(real_kafka_url, settings)
    admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka_url)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in ALL])
        described = await admin.describe_topics(list(ALL))
    finally:
        await admin.close()
    configs = {}
    for found in answer.to_object()["resources"]:
        configs[found["resource_name"]] = {e["config_names"]: e["config_value"] for e in found["config_entries"]}
    assert configs[ITEMS]["cleanup.policy"] == "compact"
    assert int(configs[DEAD]["max.message.bytes"]) > 2 << 20
    week_ms = str(settings.retention_hours * 3_600_000)
    assert {configs[topic]["retention.ms"] for topic in (*EVENT_TOPICS.values(), DEAD, UPDATED)} == {week_ms}
    assert {len(topic["partitions"]) for topic in described} == {settings.partitions}


async def test_a_replication_that_kafka_refuses_is_a_mistake(real_kafka_url: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka_url)
    await admin.start()
    try:
        await provision_topics(real_kafka_url, load())
        await admin.delete_topics([UPDATED])
        await until(lambda: _gone(admin))
    finally:
        await admin.close()
    with pytest.raises(UserError, match="FACETSTREAM_REPLICATION=7"):
        await provision_topics(real_kafka_url, load(replication=7))
    assert await provision_topics(real_kafka_url, load()) == [UPDATED]


async def _gone(admin: Any) -> bool:
    return UPDATED not in await admin.list_topics()


async def test_events_and_items_arrive_with_their_keys_in_order(url: str, settings: Settings) -> None:
    async with tail(url, *EVENT_TOPICS.values(), ITEMS) as arriving, Producer(url, settings) as producer:
        for number in range(300):
            for scenario in EVENT_TOPICS:
                await producer.send_event(scenario, f"ü{number % 7}", b"%d" % number)
        await producer.send_item("ï1", b"item")
        await producer.flush()
        records = await arriving.read(901)
    by_key: dict[tuple[str, str], list[int]] = {}
    for record in records:
        if record.topic == ITEMS:
            assert (record.key.decode(), record.value) == ("ï1", b"item")
        else:
            by_key.setdefault((record.topic, record.key.decode()), []).append(int(record.value))
    assert len(by_key) == 3 * 7
    assert all(numbers == sorted(numbers) and len(numbers) in (42, 43) for numbers in by_key.values())


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"u", b"bad"), (None, b"\xff\x00"), (b"u", b""), (b"u", None), (None, None), (b"", b"x" * 1_000_000)],
)
async def test_a_dead_letter_holds_the_original(
    url: str, settings: Settings, key: bytes | None, value: bytes | None
) -> None:
    async with tail(url, DEAD) as arriving, Producer(url, settings) as producer:
        log: Log = KafkaLog(producer)
        await log.dead_letter([DeadLetter("ts: bad \ud800", "events.feed", 3, 12_345, key, value)])
        (record,) = await arriving.read(1)
    assert (record.key, record.value) == (key, value or b"")
    headers = dict(record.headers)
    assert headers.pop("null", None) == (b"1" if value is None else None)
    assert headers == {"reason": b"ts: bad ?", "topic": b"events.feed", "partition": b"3", "offset": b"12345"}


async def test_a_long_reason_is_cut(url: str, settings: Settings) -> None:
    async with tail(url, DEAD) as arriving, Producer(url, settings) as producer:
        await KafkaLog(producer).dead_letter([DeadLetter("r" * 100_000, "items", 0, 0, None, b"")])
        (record,) = await arriving.read(1)
    assert len(dict(record.headers)["reason"]) == 2_000


async def test_announcements(url: str, settings: Settings) -> None:
    async with tail(url, UPDATED) as arriving, Producer(url, settings) as producer:
        await KafkaLog(producer).announce([Update(f"u{n}", n, "1", 2, 1_700_000_000_000) for n in range(50)])
        records = await arriving.read(50)
    assert {record.key: json.loads(record.value) for record in records}[b"u7"] == {
        "user_id": "u7",
        "version": 7,
        "model_version": "1",
        "codebook_version": 2,
        "event_ts": 1_700_000_000_000,
    }


async def test_an_original_larger_than_kafka_takes_is_cut_and_says_so(url: str, settings: Settings) -> None:
    async with tail(url, DEAD) as arriving, Producer(url, settings) as producer:
        await KafkaLog(producer).dead_letter([DeadLetter("r", "items", 0, 0, None, b"x" * (5 << 20))])
        (record,) = await arriving.read(1)
    assert record.value == b"x" * 2_500_000
    assert dict(record.headers)["bytes"] == b"%d" % (5 << 20)


async def test_a_key_larger_than_kafka_takes_is_cut_too(url: str, settings: Settings) -> None:
    async with tail(url, DEAD) as arriving, Producer(url, settings) as producer:
        await KafkaLog(producer).dead_letter([DeadLetter("r", "items", 0, 0, b"k" * (5 << 20), b"x" * (5 << 20))])
        (record,) = await arriving.read(1)
    assert (record.key, record.value) == (b"k" * 65_536, b"x" * 2_500_000)
    assert dict(record.headers)["key-bytes"] == b"%d" % (5 << 20)


async def test_a_producer_knows_whether_a_broker_answers(memory_url: str, settings: Settings) -> None:
    async with Producer(memory_url, settings) as producer:
        await producer.check_ready()


async def test_what_is_too_large_is_permanent(url: str, settings: Settings) -> None:
    async with Producer(url, settings) as producer:
        with pytest.raises(Permanent):
            await producer.send(DEAD, None, b"x" * (5 << 20))
        await producer.flush()


async def test_a_failure_belongs_to_the_one_who_sent(url: str, settings: Settings) -> None:
    async with Producer(url, settings) as producer:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(MessageSizeTooLargeError())
        with pytest.raises(Permanent):
            await producer.deliver([await producer.send(DEAD, None, b"a"), failed])
        await KafkaLog(producer).announce([Update("u", 1, "1", 1, 1)])


async def test_no_broker_is_transient(settings: Settings) -> None:
    for call in (missing_topics, provision_topics, lag):
        with pytest.raises(Transient, match=r"Kafka at 127\.0\.0\.1:1"):
            await call("127.0.0.1:1", settings)
    with pytest.raises(Transient):
        async with Producer("127.0.0.1:1", settings):
            pass


async def test_lag_is_what_the_group_has_not_acknowledged(url: str, settings: Settings) -> None:
    before = await persistently(lambda: lag(url, settings))  # a fresh broker has no coordinator yet
    async with Producer(url, settings) as producer, Lag(url, settings) as meter:
        for number in range(100):
            await producer.send_event("feed", f"u{number}", b"x")
        await producer.flush()
        assert sum((await meter.read()).values()) == before + 100
        await _acknowledge_all(url, settings)
        assert sum((await meter.read()).values()) == 0
    assert await lag(url, settings) == 0


async def _acknowledge_all(url: str, settings: Settings) -> None:
    consumer = _member(url, settings, *EVENT_TOPICS.values(), ITEMS)
    await consumer.start()
    try:
        await until(lambda: _assigned(consumer))
        await consumer.seek_to_end()
        for tp in consumer.assignment():
            await consumer.position(tp)
        await consumer.commit()
    finally:
        await consumer.stop()


async def _assigned(consumer: AIOKafkaConsumer) -> bool:
    return bool(consumer.assignment())


async def _behind(meter: Lag, records: int) -> bool:
    return sum((await meter.read()).values()) >= records


def _member(url: str, settings: Settings, *topics: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        *topics,
        bootstrap_servers=url,
        group_id=settings.consumer_group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )


async def test_producing_into_memory_waits_for_its_reader(memory_url: str, settings: Settings) -> None:
    count, value = 3_000, b"x" * 5_000  # 15 MB into one partition that keeps 5

    async def send() -> None:
        async with Producer(memory_url, settings) as producer:
            for number in range(count):
                await producer.send_event("feed", "u", b"%d " % number + value)
            await producer.flush()

    await provision_topics(memory_url, settings)
    sending = asyncio.create_task(send())
    async with Lag(memory_url, settings) as meter:  # the reader comes late: the sender has filled half the room
        await until(lambda: _behind(meter, 500))
    consumer = _member(memory_url, settings, EVENT_TOPICS["feed"])
    await consumer.start()
    try:
        read: list[int] = []
        while len(read) < count:
            fetched = await consumer.getmany(timeout_ms=100)
            read += [int(record.value.split()[0]) for batch in fetched.values() for record in batch]
            await consumer.commit()
        await sending
    finally:
        sending.cancel()
        await consumer.stop()
    assert read == list(range(count))


def producing(url: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stream.cli", "produce", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={"FACETSTREAM_KAFKA_URL": url, "PATH": "", "PYTHONPATH": str(ROOT)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )


def produce(url: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    process = producing(url, *arguments, cwd=cwd)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def event(number: int, **fields: Any) -> str:
    at = {"ts": 1_700_000_000_000 - number, "event_id": f"e{number}", "scenario": "feed", "position": None}
    return json.dumps({"user_id": "u", "item_id": "i", "action": "view"} | at | fields)


async def test_produce_sends_files(url: str, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n".join([*map(event, range(50)), event(50, ts=1)]))
    (tmp_path / "i.jsonl").write_text('{"item_id": "i", "title": "t"}\n{"item_id": "bad"}\n')
    async with tail(url, EVENT_TOPICS["feed"], ITEMS) as arriving:
        done = await asyncio.to_thread(produce, url, "--events", "e.jsonl", "--items", "i.jsonl", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        records = await arriving.read(51)
    assert "1 items and 50 events sent" in done.stdout
    assert "1 bad lines left out: see facetstream validate i.jsonl --items" in done.stderr
    assert b"null" not in b"".join(record.value for record in records)
    (item,) = [parse_item(record.value) for record in records if record.topic == ITEMS]
    assert item.title == "t"
    events = [parse_event("feed", record.value) for record in records if record.topic == EVENT_TOPICS["feed"]]
    assert [event.event_id for event in events] == [f"e{number}" for number in reversed(range(50))]
    headers = {tuple(record.headers) for record in records if record.topic == EVENT_TOPICS["feed"]}
    assert headers == {(BACKFILL,)}  # a recorded past is never late


async def test_produce_sends_items_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "i.jsonl").write_text('{"item_id": "i", "title": "t"}\n')
    async with tail(url, ITEMS) as arriving:
        done = await asyncio.to_thread(produce, url, "--items", "i.jsonl", cwd=tmp_path)
        (record,) = await arriving.read(1)
    assert (done.returncode, record.key) == (0, b"i")


@pytest.mark.parametrize("what", ["--events", "--items"])
def test_produce_fails_when_every_line_is_bad(url: str, tmp_path: Path, what: str) -> None:
    (tmp_path / "x.jsonl").write_text("bad\n" * 3)
    done = produce(url, what, "x.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert "3 bad lines left out: see facetstream validate x.jsonl" in done.stderr


async def test_produce_says_how_far_it_came_when_it_is_broken_off(url: str, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n".join(map(event, range(2_000))))
    async with tail(url, EVENT_TOPICS["feed"]) as arriving:
        process = producing(url, "--events", "e.jsonl", "--rate", "20", cwd=tmp_path)
        await arriving.read(5)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.to_thread(process.communicate)
    assert process.returncode == 130
    found = re.search(r"broken off: (\d+) records sent, (\d+) acknowledged\n", err)
    assert found is not None, err
    assert 5 <= int(found[2]) == int(found[1]) < 2_000


def test_produce_needs_the_topics(memory_url: str, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("")
    done = produce(memory_url, "--events", "e.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("has no topic events.discovery: run facetstream provision first")


def test_produce_without_a_broker_is_one_sentence(tmp_path: Path) -> None:
    done = produce("127.0.0.1:1", "--events", "e.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("facetstream: Kafka at 127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1


async def test_pacing_keeps_order_and_rate() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert [n async for n in paced(range(21), 100)] == list(range(21))
    assert loop.time() - start >= 0.19
    assert [n async for n in paced(range(3), None)] == [0, 1, 2]
