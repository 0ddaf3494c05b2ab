"""The composition root: the one place that knows which adapter stands behind which port."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from stream.adapters import qdrant, qdrant_probe, redis_connection, redis_probe, triton_probe
from stream.adapters.kafka import KafkaLog
from stream.adapters.kafka import Producer as Producer
from stream.adapters.kafka_probe import KafkaProbe
from stream.adapters.kafka_reader import KafkaReader
from stream.adapters.qdrant import QdrantVectors
from stream.adapters.redis import RedisCounters, RedisHistories, RedisItems, RedisRegistry
from stream.adapters.triton import TritonModels
from stream.addresses import Addresses
from stream.errors import UserError
from stream.findings import Check
from stream.settings import Settings
from stream.stores import Codebook


@dataclass(frozen=True)
class Services:
    """Redis, Triton and Qdrant. Nothing is sent before the first call."""

    redis: Redis
    registry: RedisRegistry
    counters: RedisCounters
    models: TritonModels
    vectors: QdrantVectors


@dataclass(frozen=True)
class Stores:
    """Histories and items, as the codebook in force lays them out."""

    codebook: Codebook
    histories: RedisHistories
    items: RedisItems


@asynccontextmanager
async def connect(settings: Settings, addresses: Addresses) -> AsyncIterator[Services]:
    """Closed on leaving."""
    client = redis_connection.connect(addresses.redis, settings)
    models = TritonModels(addresses.triton, settings.triton_timeout)
    vectors = qdrant.connect(addresses.qdrant, settings)
    try:
        yield Services(client, RedisRegistry(client), RedisCounters(client), models, vectors)
    finally:
        await vectors.close()
        await models.close()
        await client.aclose()


@asynccontextmanager
async def checks(settings: Settings, addresses: Addresses, services: Services) -> AsyncIterator[dict[str, list[Check]]]:
    """What `facetstream doctor` asks of each part; the first check says whether it answers at all."""
    about_qdrant = qdrant_probe.probe(addresses.qdrant, settings, services.vectors, services.models.card)
    async with KafkaProbe(addresses.kafka, settings) as kafka, about_qdrant as vectors:
        yield {
            "kafka": kafka.checks(),
            "redis": redis_probe.checks(services.redis, addresses.redis, settings.redis_replicas),
            "triton": triton_probe.checks(services.models, addresses.triton),
            "qdrant": vectors.checks(),
        }


def producer(bootstrap: str, settings: Settings) -> Producer:
    """To be entered with `async with`."""
    return Producer(bootstrap, settings)


def reader(
    bootstrap: str,
    settings: Settings,
    topics: Sequence[str],
    since_ms: int | None = None,
    until_ms: int | None = None,
    offset: int = 0,
) -> KafkaReader:
    """To be entered with `async with`."""
    return KafkaReader(bootstrap, settings, topics, since_ms, until_ms, offset)


def log(producer: Producer) -> KafkaLog:
    """A worker's dead letters and announcements."""
    return KafkaLog(producer)


async def stores(services: Services, settings: Settings) -> Stores:
    """The stores of the codebook that was provisioned. Raises `UserError` when none was."""
    codebook = await services.registry.codebook()
    if codebook is None:
        raise UserError("Redis holds no codebook: run `facetstream provision` first")
    return stores_of(codebook, services, settings)


def stores_of(codebook: Codebook, services: Services, settings: Settings) -> Stores:
    """The stores of a codebook, whatever was provisioned."""
    histories = RedisHistories(
        services.redis,
        code_bytes=codebook.code_bytes,
        codebook_version=codebook.version,
        length=settings.history_length,
        window=settings.event_id_window,
    )
    return Stores(codebook, histories, RedisItems(services.redis, codebook_version=codebook.version))
