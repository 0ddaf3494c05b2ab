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
from stream.dead_topic import decode
from stream.errors import Permanent
from stream.ledger import Record
from stream.ports import DeadLetter, Log, Outcome, Place, Settlement, Update
from stream.settings import load
from stream.topics import DEAD, EVENT_TOPICS, ITEMS, UPDATED

LETTERS = [
    DeadLetter("ts: is null", "events.feed", 3, 7, b"u", b"\xff\x00"),
    DeadLetter("value: is null (a tombstone)", "events.search", 0, 8, None, None),
    DeadLetter("value: is empty", "items", 1, 9, b"", b""),
    DeadLetter("grüße", "events.feed", 2, 10, b"u", b"x" * 900_000),
]


ORIGINS = ["events.feed", "events.search", "items"]


@dataclass(frozen=True)
class Written:
    """A log, and what can be read of it."""

    log: Log
    letters: Callable[[int], Awaitable[list[DeadLetter]]]
    updates: Callable[[int], Awaitable[list[Update]]]
    settlements: Callable[[int], Awaitable[list[Any]]]
    sent_back: Callable[[int], Awaitable[list[tuple[str, bytes | None, bytes | None]]]]


@pytest.fixture(params=["twin", "kafka"])
async def written(request: Any) -> AsyncIterator[Written]:
    if request.param == "twin":
        twin = MemoryLog()

        async def letters(_: int) -> list[DeadLetter]:
            return twin.letters

        async def updates(_: int) -> list[Update]:
            return twin.updates

        async def settlements(_: int) -> list[Any]:
            return [decode(0, record) for record in twin.dead]

        async def sent_back(_: int) -> list[tuple[str, bytes | None, bytes | None]]:
            return [(o.topic, o.key, o.value) for o in twin.sent_back]

        yield Written(twin, letters, updates, settlements, sent_back)
        return
    url = request.getfixturevalue("kafka_url")
    settings = load(consumer_group=f"group-{uuid4()}", kafka_url=None)
    await provision_topics(url, settings)
    consumer = AIOKafkaConsumer(bootstrap_servers=url)
    await consumer.start()
    tps = {
        topic: [TopicPartition(topic, number) for number in range(4)]
        for topic in (DEAD, UPDATED, *EVENT_TOPICS.values(), ITEMS)
    }
    consumer.assign([tp for group in tps.values() for tp in group])
    await consumer.seek_to_end()
    for tp in consumer.assignment():
        await consumer.position(tp)

    async def read(count: int, *topics: str) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            wanted = [tp for topic in topics for tp in tps[topic]]
            for records in (await consumer.getmany(*wanted, timeout_ms=1_000)).values():
                found += records
        return found

    async def dead(count: int) -> list[DeadLetter]:
        return [_letter(record) for record in await read(count, DEAD)]

    async def announced(count: int) -> list[Update]:
        return [Update(**json.loads(record.value)) for record in await read(count, UPDATED)]

    async def settled(count: int) -> list[Any]:
        return [
            decode(r.partition, Record(r.offset, r.key, r.value, r.timestamp, r.headers))
            for r in await read(count, DEAD)
        ]

    async def returned(count: int) -> list[tuple[str, bytes | None, bytes | None]]:
        return [(r.topic, r.key, r.value) for r in await read(count, *EVENT_TOPICS.values(), ITEMS)]

    async with Producer(url, settings) as producer:
        yield Written(KafkaLog(producer), dead, announced, settled, returned)
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


async def test_originals_go_back_to_their_own_topics_as_they_were(written: Written) -> None:
    values = [b"\xff\x00", b"", None, b"x" * 900_000]
    originals = [DeadLetter("", topic, 3, n, b"u", value) for n, value in enumerate(values) for topic in ORIGINS]
    assert await written.log.send_back(originals) == [None] * len(originals)
    found = await written.sent_back(len(originals))
    for topic in ORIGINS:
        assert [value for t, key, value in found if (t, key) == (topic, b"u")] == values


async def test_settlements_are_on_the_partition_of_their_letters(written: Written) -> None:
    await written.log.dead_letter(LETTERS[:3])
    letters = await written.settlements(3)
    settlements = [Settlement(letter.place, outcome) for letter, outcome in zip(letters, Outcome, strict=False)]
    await written.log.settle(settlements)
    found = await written.settlements(len(settlements))
    assert sorted((f for f in found if isinstance(f, Settlement)), key=str) == sorted(settlements, key=str)


async def test_nothing_to_write_is_nothing(written: Written) -> None:
    await written.log.dead_letter([])
    await written.log.announce([])
    assert list(await written.log.send_back([])) == []
    await written.log.settle([])


async def test_what_kafka_refuses_is_told_of_each(kafka_url: str) -> None:
    settings = load(kafka_url=None)
    await provision_topics(kafka_url, settings)
    large = DeadLetter("", ITEMS, 0, 0, b"k", b"x" * (5 << 20))
    async with Producer(kafka_url, settings) as producer:
        keyless = DeadLetter("", ITEMS, 0, 1, None, None)
        refusals = await KafkaLog(producer).send_back([large, LETTERS[0], keyless])
        assert [type(refusal) for refusal in refusals] == [Permanent, type(None), Permanent]
        await KafkaLog(producer).settle([Settlement(Place(0, 0), Outcome.DROPPED)])
