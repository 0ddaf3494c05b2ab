"""One contract for `Reader`: the in-memory twin, and Kafka (a real one, and the in-memory broker)."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from stream.adapters import kafka_reader
from stream.adapters.kafka import Producer, provision_topics
from stream.adapters.kafka_reader import KafkaReader
from stream.adapters.memory import MemoryReader
from stream.embedded import kafka as embedded
from stream.errors import Transient, UserError
from stream.ledger import Batch, Record
from stream.ports import Reader
from stream.settings import Settings, load
from stream.topics import ALL, EVENT_TOPICS, ITEMS
from tests.conftest import serve

TOPICS = list(EVENT_TOPICS.values())
SENT = [(f"events.{name}", f"u{n % 5}".encode(), b"%d" % n) for n in range(200) for name in ("feed", "search")]
Found = dict[tuple[str, bytes | None], list[bytes | None]]


@pytest.fixture
def settings() -> Settings:
    return load(consumer_group=f"group-{uuid4()}", kafka_url=None)


@pytest.fixture(params=["real", "in-memory"])
async def url(request: Any, embedded_settings: Settings, settings: Settings, tmp_path: Any) -> AsyncIterator[str]:
    """An empty in-memory broker, or a real one that others have written to."""
    if request.param == "real":
        url = request.getfixturevalue("real_kafka_url")
        await provision_topics(url, settings)
        yield url
        return
    alone = embedded_settings.model_copy(update={"kafka_home": None, "kafka_port": None, "data_folder": tmp_path})
    for url in serve("embedded", embedded.start, alone):
        await provision_topics(url, settings)
        yield url


async def send(url: str, settings: Settings, sent: list[tuple[str, bytes, bytes]]) -> int:
    """Send; when that began, ms since 1970."""
    await asyncio.sleep(0.01)  # after everything sent before
    began = int(time.time() * 1000)
    async with Producer(url, settings) as producer:
        for topic, key, value in sent:
            await producer.send(topic, key, value)
        await producer.flush()
    return began


async def read(reader: Reader) -> Found:
    """Values by topic and key, in their order."""
    found: Found = {}
    async for batch in reader.batches():
        assert [r.offset for r in batch.records] == sorted({r.offset for r in batch.records})
        for record in batch.records:
            found.setdefault((batch.topic, record.key), []).append(record.value)
    return found


def expected(sent: list[tuple[str, bytes, bytes]]) -> Found:
    found: Found = {}
    for topic, key, value in sent:
        found.setdefault((topic, key), []).append(value)
    return found


async def test_the_twin_gives_what_it_was_given() -> None:
    records = [Record(n, key, value, 0) for n, (_, key, value) in enumerate(SENT[::2])]
    reader: Reader = MemoryReader(
        [Batch("events.feed", 0, tuple(records[:10])), Batch("events.feed", 0, tuple(records[10:]))]
    )
    assert reader.total == len(records)
    assert await read(reader) == expected(SENT[::2])


async def test_everything_sent_since_is_read_once_in_order(url: str, settings: Settings) -> None:
    since = await send(url, settings, SENT)
    async with KafkaReader(url, settings, TOPICS, since) as reader:
        assert reader.total >= len(SENT)
        await send(url, settings, [("events.feed", b"late", b"after the end was fixed")])
        assert await read(reader) == expected(SENT)
        assert await read(reader) == {}


async def test_what_was_sent_before_and_after_is_left_out(url: str, settings: Settings) -> None:
    await send(url, settings, [("events.feed", b"u", b"before")])
    since = await send(url, settings, SENT[:50])
    until = await send(url, settings, [("events.feed", b"u", b"until")])
    async with KafkaReader(url, settings, TOPICS, since, until) as reader:
        assert await read(reader) == expected(SENT[:50])


async def test_all_that_is_there(url: str, settings: Settings) -> None:
    key = uuid4().hex.encode()
    await send(url, settings, [(ITEMS, key, b"old"), (ITEMS, key, b"new")])
    async with KafkaReader(url, settings, [ITEMS]) as reader:
        assert (await read(reader))[ITEMS, key] == [b"old", b"new"]


async def test_from_an_offset(real_kafka_url: str, settings: Settings) -> None:
    await provision_topics(real_kafka_url, settings)
    await send(real_kafka_url, settings, SENT)
    async with KafkaReader(real_kafka_url, settings, TOPICS) as whole:
        before = [(b.topic, b.partition, r) async for b in whole.batches() for r in b.records]
    assert (whole.skipped, whole.total) == (0, len(before))
    async with KafkaReader(real_kafka_url, settings, TOPICS, offset=3) as reader:
        after = [(b.topic, b.partition, r) async for b in reader.batches() for r in b.records]
    assert sorted(after) == sorted(row for row in before if row[2].offset >= 3)
    assert (reader.skipped, reader.total) == (len(before) - len(after), len(after))
    async with KafkaReader(real_kafka_url, settings, TOPICS, offset=10**9) as reader:
        assert (await read(reader), reader.skipped) == ({}, len(before))


async def test_what_says_it_is_older_is_read_when_it_stands_behind(url: str, settings: Settings) -> None:
    """A replay must not step over a record: the offset marks would hide it for ever."""
    key, now_ms = uuid4().hex.encode(), int(time.time() * 1000)
    async with AIOKafkaProducer(bootstrap_servers=url) as kafka:
        for number, timestamp in enumerate((now_ms - 20_000, now_ms + 1, now_ms - 10_000)):
            await kafka.send_and_wait("events.feed", b"%d" % number, key, timestamp_ms=timestamp)
    async with KafkaReader(url, settings, ["events.feed"], now_ms) as reader:
        assert (await read(reader))["events.feed", key] == [b"1", b"2"]


async def test_nothing_is_nothing(url: str, settings: Settings) -> None:
    async with KafkaReader(url, settings, TOPICS, since_ms=int(time.time() * 1000) + 10_000) as reader:
        assert await read(reader) == {}


async def test_a_topic_that_is_missing_is_a_mistake(real_kafka_url: str, settings: Settings) -> None:
    with pytest.raises(UserError, match="has no topic nonsense: run facetstream provision first"):
        async with KafkaReader(real_kafka_url, settings, ["nonsense"]):
            pass
    assert "nonsense" not in ALL


async def test_a_broker_that_goes_away_is_transient(
    embedded_settings: Settings, settings: Settings, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_reader, "PATIENCE", 1.0)
    alone = embedded_settings.model_copy(update={"kafka_home": None, "kafka_port": None, "data_folder": tmp_path})
    server = embedded.start(alone)
    try:
        await provision_topics(server.address, settings)
        await send(server.address, settings, SENT)
        async with KafkaReader(server.address, settings, TOPICS) as reader:
            server.stop()
            with pytest.raises(Transient, match="nothing came of events"):
                await read(reader)
    finally:
        server.stop()
