"""One contract for `Log`: the in-memory twin, and Kafka read back by a consumer of its own."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.adapters.kafka import KafkaLog, Producer, provision_topics
from stream.adapters.memory import MemoryLog
from stream.ports import DeadLetter, Log, Update
from stream.settings import load
from stream.topics import DEAD, UPDATED

LETTERS = [
    DeadLetter("ts: is null", "events.feed", 3, 7, b"u", b"\xff\x00"),
    DeadLetter("value: is null (a tombstone)", "events.search", 0, 8, None, None),
    DeadLetter("value: is empty", "items", 1, 9, b"", b""),
    DeadLetter("grüße", "events.feed", 2, 10, b"u", b"x" * 900_000),
]


@dataclass(frozen=True)
class Written:
    """A log, and what can be read of it."""

    log: Log
    letters: Callable[[int], Awaitable[list[DeadLetter]]]
    updates: Callable[[int], Awaitable[list[Update]]]


@pytest.fixture(params=["twin", "kafka"])
async def written(request: Any) -> AsyncIterator[Written]:
    if request.param == "twin":
        twin = MemoryLog()

        async def letters(_: int) -> list[DeadLetter]:
            return twin.letters

        async def updates(_: int) -> list[Update]:
            return twin.updates

        yield Written(twin, letters, updates)
        return
    url = request.getfixturevalue("kafka_url")
    settings = load(consumer_group=f"group-{uuid4()}", kafka_url=None)
    await provision_topics(url, settings)
    consumer = AIOKafkaConsumer(bootstrap_servers=url)
    await consumer.start()
    tps = {topic: [TopicPartition(topic, number) for number in range(4)] for topic in (DEAD, UPDATED)}
    consumer.assign([tp for group in tps.values() for tp in group])
    await consumer.seek_to_end()
    for tp in consumer.assignment():
        await consumer.position(tp)

    async def read(topic: str, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            for records in (await consumer.getmany(*tps[topic], timeout_ms=1_000)).values():
                found += records
        return found

    async def dead(count: int) -> list[DeadLetter]:
        return [_letter(record) for record in await read(DEAD, count)]

    async def announced(count: int) -> list[Update]:
        return [Update(**json.loads(record.value)) for record in await read(UPDATED, count)]

    async with Producer(url, settings) as producer:
        yield Written(KafkaLog(producer), dead, announced)
    await consumer.stop()


def _letter(record: Any) -> DeadLetter:
    headers = {name: value.decode() for name, value in record.headers}
    value = None if "null" in headers else record.value
    return DeadLetter(
        headers["reason"], headers["topic"], int(headers["partition"]), int(headers["offset"]), record.key, value
    )


async def test_dead_letters_are_there_on_return_with_all_that_is_known(written: Written) -> None:
    await written.log.dead_letter(LETTERS)
    found = await written.letters(len(LETTERS))
    assert sorted(map(asdict, found), key=lambda d: d["offset"]) == list(map(asdict, LETTERS))


async def test_announcements_of_one_user_keep_their_order(written: Written) -> None:
    updates = [Update(f"u{n % 3}", n, "2", 1, 1_750_000_000_000 + n) for n in range(30)]
    await written.log.announce(updates)
    found = await written.updates(len(updates))
    for user in ("u0", "u1", "u2"):
        assert [u for u in found if u.user_id == user] == [u for u in updates if u.user_id == user]


async def test_nothing_to_write_is_nothing(written: Written) -> None:
    await written.log.dead_letter([])
    await written.log.announce([])
