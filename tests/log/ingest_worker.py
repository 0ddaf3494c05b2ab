"""A worker that ingests and does not refresh, and so starts fast: told by the environment, as a whole one is."""

import asyncio
import logging

from stream import batches
from stream.adapters import redis_connection
from stream.adapters.kafka import KafkaLog, Producer
from stream.adapters.redis import RedisHistories, RedisItems, RedisRegistry
from stream.admission import Admission
from stream.batches import application, consume, run, terminated
from stream.dirty_queue import DirtyQueue
from stream.events import Scenario
from stream.ingest import Ingest, ItemCache
from stream.settings import Settings, load
from stream.stats import Stats
from stream.topics import EVENT_TOPICS

CODE_BYTES = 4
batches.SESSION_SECONDS = 6.0  # the least that a broker allows by default


async def work(settings: Settings) -> None:
    address, client = settings.kafka_url or "", redis_connection.connect(settings.redis_url or "", settings)
    histories = RedisHistories(
        client,
        code_bytes=CODE_BYTES,
        codebook_version=1,
        length=settings.history_length,
        window=settings.event_id_window,
    )
    app = application(settings, address)
    async with client, Producer(address, settings) as kafka:
        ingest = Ingest(
            histories=histories,
            items=ItemCache(RedisItems(client, codebook_version=1), settings.item_cache),
            log=KafkaLog(kafka),
            queue=DirtyQueue(),
            stats=Stats(),
            admission=Admission(settings.max_event_bytes, settings.lateness_hours),
            registry=RedisRegistry(client),
        )
        for scenario in Scenario:
            consume(app, EVENT_TOPICS[scenario.name], lambda batch, s=scenario: ingest.handle(batch, s))
        await run(app, terminated())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(work(load()))
