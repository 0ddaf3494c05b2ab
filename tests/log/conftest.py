"""Topics with records in them, and what a consumer group has committed."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stream.settings import Settings, load

PARTITIONS = 4


@dataclass(frozen=True)
class Cluster:
    """A real broker, new topics in it, and a producer."""

    address: str
    topics: tuple[str, ...]
    producer: AIOKafkaProducer

    @property
    def partitions(self) -> list[TopicPartition]:
        return [TopicPartition(topic, partition) for topic in self.topics for partition in range(PARTITIONS)]

    async def fill(self, count: int) -> None:
        """`count` records, evenly over the topics, of 97 users."""
        for i in range(count):
            await self.producer.send(self.topics[i % len(self.topics)], b"%d" % i, key=b"user-%d" % (i % 97))
        await self.producer.flush()

    async def offsets(self, group: str) -> dict[TopicPartition, tuple[int, int]]:
        """The committed and the end offset of every partition."""
        async with AIOKafkaConsumer(bootstrap_servers=self.address, group_id=group) as consumer:
            ends = await consumer.end_offsets(self.partitions)
            return {tp: (await consumer.committed(tp) or 0, end) for tp, end in ends.items()}


@pytest.fixture
async def cluster(real_kafka_url: str) -> AsyncIterator[Cluster]:
    topics = tuple(f"test.{uuid.uuid4().hex[:8]}.{number}" for number in range(3))
    admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka_url)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics])
    async with AIOKafkaProducer(bootstrap_servers=real_kafka_url, linger_ms=5) as producer:
        yield Cluster(real_kafka_url, topics, producer)
    await admin.delete_topics(list(topics))
    await admin.close()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a worker in a group of its own."""
    defaults = {"data_folder": tmp_path, "consumer_group": f"group-{uuid.uuid4().hex[:8]}", "web_port": None}
    return lambda **overrides: load(**{**defaults, **overrides})


Handle = Callable[..., Awaitable[None]]
