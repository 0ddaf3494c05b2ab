"""Kafka's topics as they should be, and how far a consumer group is behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import InvalidReplicationFactorError, TopicAlreadyExistsError, for_code

from stream.adapters.kafka_connection import connection, translated
from stream.errors import Transient, UserError
from stream.settings import Settings, variable
from stream.topics import ALL, DEAD, EVENT_TOPICS, ITEMS

HOUR_MS = 3_600_000
DEAD_BYTES = 3 << 20  # an original of up to 1 MiB, its headers, and room to grow
LOOK_SECONDS = 0.1
VISIBLE_LOOKS = 100  # until every broker has heard of a new topic


async def missing_topics(bootstrap: str, settings: Settings) -> list[str]:
    """The topics that `provision_topics` would create."""
    present = await partitions(bootstrap, settings)
    return [topic for topic in ALL if topic not in present]


async def partitions(bootstrap: str, settings: Settings) -> dict[str, int]:
    """How many partitions each topic has."""
    with translated(bootstrap):
        async with admin_client(bootstrap, settings) as admin:
            return await _partitions(admin)


async def provision_topics(bootstrap: str, settings: Settings) -> list[str]:
    """Create the topics that are missing and return their names; those that exist are left as they are.

    `UserError` when the three event topics do not, or would not, have equally many partitions.
    """
    missing = await missing_topics(bootstrap, settings)
    with translated(bootstrap):
        async with admin_client(bootstrap, settings) as admin:
            check_partitions(dict.fromkeys(missing, settings.partitions) | await _partitions(admin))
            await _create(admin, missing, settings)
            made = await _visible(admin)
    if other := [f"{topic} has {made[topic]}" for topic in missing if made[topic] != settings.partitions]:
        raise UserError(f"{variable('partitions')}={settings.partitions}, but {other[0]}: this broker chose the number")
    check_partitions(made)
    return missing


class Lag:
    """How far the consumer group of the settings is behind, read without being a member of it."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings

    async def __aenter__(self) -> Self:
        with translated(self._bootstrap):
            async with AsyncExitStack() as stack:
                self._admin = await stack.enter_async_context(admin_client(self._bootstrap, self._settings))
                self._consumer = AIOKafkaConsumer(**connection(self._bootstrap, self._settings))
                stack.push_async_callback(self._consumer.stop)
                await self._consumer.start()
                self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    async def read(self) -> dict[TopicPartition, int]:
        """Records not acknowledged, by partition of the topics of events and items that exist."""
        with translated(self._bootstrap):
            present = await _partitions(self._admin)
            topics = [topic for topic in (*EVENT_TOPICS.values(), ITEMS) if topic in present]
            tps = [TopicPartition(topic, number) for topic in topics for number in range(present[topic])]
            if not tps:
                return {}
            group = self._settings.consumer_group
            done = await self._admin.list_consumer_group_offsets(group, partitions=tps)
            if not done:  # aiokafka overlooks the error that says so
                raise Transient(f"Kafka at {self._bootstrap}: the offsets of group {group} are being loaded")
            ends = await self._consumer.end_offsets(tps)
        return {tp: max(0, ends[tp] - max(0, done[tp].offset)) for tp in tps}


async def lag(bootstrap: str, settings: Settings) -> int:
    """Records of events and items that the consumer group of the settings has not acknowledged."""
    async with Lag(bootstrap, settings) as meter:
        return sum((await meter.read()).values())


@asynccontextmanager
async def admin_client(bootstrap: str, settings: Settings) -> AsyncIterator[Any]:
    """Connected; closed on leaving."""
    admin = AIOKafkaAdminClient(**connection(bootstrap, settings))
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _partitions(admin: Any, topics: list[str] | None = None) -> dict[str, int]:
    """Partitions of the topics that are there; to the in-memory broker, naming a topic is making it."""
    described = await admin.describe_topics(topics)
    return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}


async def _create(admin: Any, topics: list[str], settings: Settings) -> None:
    if not topics:
        return
    if not await controlled(admin):
        await _partitions(admin, topics)
        return
    answer = await admin.create_topics([_new_topic(topic, settings) for topic in topics])
    for topic, code, message in answer.topic_errors:
        error = for_code(code)
        if issubclass(error, InvalidReplicationFactorError):
            raise UserError(f"{variable('replication')}={settings.replication} is refused by Kafka: {message}")
        if code and not issubclass(error, TopicAlreadyExistsError):  # somebody else was quicker
            raise error(f"{topic}: {message}")


async def controlled(admin: Any) -> bool:
    """Whether a broker is the controller; the in-memory one is not, and makes topics when they are asked for."""
    cluster = await admin.describe_cluster()
    return cluster["controller_id"] in {broker["node_id"] for broker in cluster["brokers"]}


def _new_topic(topic: str, settings: Settings) -> NewTopic:
    config = {"retention.ms": str(settings.retention_hours * HOUR_MS)}
    if topic == ITEMS:
        config = {"cleanup.policy": "compact"}
    elif topic == DEAD:
        config["max.message.bytes"] = str(DEAD_BYTES)
    config["min.insync.replicas"] = str(settings.replication // 2 + 1)  # any two majorities share a broker
    return NewTopic(topic, settings.partitions, settings.replication, topic_configs=config)


async def _visible(admin: Any) -> dict[str, int]:
    """Partitions by topic, as soon as all topics can be used."""
    for _ in range(VISIBLE_LOOKS):
        present = await _partitions(admin)
        if present.keys() >= set(ALL):
            return present
        await asyncio.sleep(LOOK_SECONDS)
    raise Transient(f"Kafka does not show all topics after {VISIBLE_LOOKS * LOOK_SECONDS:.0f} s")


def check_partitions(partitions: dict[str, int]) -> None:
    """`UserError` when the event topics have not equally many."""
    events = {topic: partitions[topic] for topic in EVENT_TOPICS.values()}
    if len(set(events.values())) > 1:
        found = ", ".join(f"{topic} {count}" for topic, count in events.items())
        raise UserError(f"the event topics need equally many partitions: {found} (see {variable('partitions')})")
