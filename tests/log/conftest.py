import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from cluster import PARTITIONS, Cluster

from stream.embedded import kafka
from stream.embedded.process import Server
from stream.settings import Settings, load


@pytest.fixture
async def cluster(real_kafka_url: str) -> AsyncIterator[Cluster]:
    async with _topics(real_kafka_url, 3, PARTITIONS) as made:
        yield made


@pytest.fixture
async def lone_partition(real_kafka_url: str) -> AsyncIterator[Cluster]:
    """One topic of one partition: of two members, one has nothing."""
    async with _topics(real_kafka_url, 1, 1) as made:
        yield made


@asynccontextmanager
async def _topics(kafka_url: str, count: int, partitions: int) -> AsyncIterator[Cluster]:
    topics = tuple(f"test.{uuid.uuid4().hex[:8]}.{number}" for number in range(count))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url)
    await admin.start()
    await admin.create_topics([NewTopic(topic, partitions, 1) for topic in topics])
    async with AIOKafkaProducer(bootstrap_servers=kafka_url, linger_ms=5) as producer:
        yield Cluster(kafka_url, topics, partitions, producer)
    await admin.delete_topics(list(topics))
    await admin.close()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a worker in a group of its own."""
    defaults = {"data_folder": tmp_path, "consumer_group": f"group-{uuid.uuid4().hex[:8]}", "web_port": None}
    return lambda **overrides: load(**{**defaults, **overrides})


@pytest.fixture
def broker(embedded_settings: Settings, tmp_path: Path, kafka_home: Path) -> Iterator[Server]:
    """A Kafka of the test's own."""
    server = kafka.start(embedded_settings.model_copy(update={"data_folder": tmp_path, "kafka_home": kafka_home}))
    yield server
    server.stop()
