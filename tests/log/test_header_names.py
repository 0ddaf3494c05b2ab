"""A record whose header name is no UTF-8, which no client in Python would send, is read like any other."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c
from cluster import Cluster

from stream.adapters.kafka_reader import KafkaReader
from stream.batches import Batch, application, consume, run
from stream.ledger import Record
from stream.settings import Settings

NAME = "no UTF-8"
CRC = slice(17, 21)  # of a record batch; it covers what comes after


@pytest.fixture
async def topic(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """A topic with three records, the second of which has such a name; the last two come in one batch."""
    build = BatchBuilder._build

    def spoilt(self: BatchBuilder) -> bytearray:
        data = bytearray(build(self)).replace(NAME.encode(), b"\xff" * len(NAME))
        data[CRC] = calc_crc32c(bytes(data[CRC.stop :])).to_bytes(4, "big")
        self._buffer = data
        return data

    monkeypatch.setattr(BatchBuilder, "_build", spoilt)
    topic = cluster.topics[0]
    async with AIOKafkaProducer(bootstrap_servers=cluster.address, linger_ms=100) as producer:
        await producer.send_and_wait(topic, b"0", partition=0, headers=[("fine", b"1")])
        await asyncio.gather(
            await producer.send(topic, b"1", partition=0, headers=[(NAME, b"1")]),
            await producer.send(topic, b"2", partition=0, headers=[("fine", None)]),
        )
    return topic


def check(records: list[Record]) -> None:
    assert [(r.offset, r.value) for r in records] == [(0, b"0"), (1, b"1"), (2, b"2")]
    names = [name for record in records for name, _ in record.headers]
    assert names == ["fine", "\\xff" * len(NAME), "fine"]


async def test_the_reader(cluster: Cluster, settings: Callable[..., Settings], topic: str) -> None:
    async with KafkaReader(cluster.address, settings(), [topic]) as reader:
        check([record async for batch in reader.batches() for record in batch.records])


async def test_the_worker(cluster: Cluster, settings: Callable[..., Settings], topic: str) -> None:
    found: list[Record] = []
    done = asyncio.Event()

    async def handle(batch: Batch) -> None:
        found.extend(batch.records)
        if len(found) >= 3:
            done.set()

    app = application(settings(), cluster.address)
    consume(app, topic, handle)
    await run(app, asyncio.wait_for(done.wait(), 60))
    check(found)
