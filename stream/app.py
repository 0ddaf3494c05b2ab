"""A worker: Faust agents that ingest events and items, and a Faust task that refreshes profiles.

What it commits, and when, is decided by `stream.batches`; what it does, by `ingest`, `catalog` and `refresh`.
"""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from stream.addresses import Addresses
from stream.batches import BatchApp, application, consume, run, terminated
from stream.catalog import Catalog
from stream.dirty_queue import DirtyQueue
from stream.errors import Permanent, Transient, UserError
from stream.events import Scenario
from stream.health import Ask
from stream.identity import SHARDS, shard
from stream.ingest import Ingest, ItemCache
from stream.pending import Pending
from stream.ports import ModelCard
from stream.refresh import Pace, Refresher
from stream.retry import persistently
from stream.services import Producer, Services, Stores, connect, log, producer, stores
from stream.settings import Settings
from stream.stats import Stats
from stream.stores import Backlog
from stream.topics import EVENT_TOPICS, ITEMS
from stream.web import add_pages

FLUSH_SECONDS = 0.5  # between two additions to the shared counters
OWNERSHIP_SECONDS = 0.25  # how old the worker's view of its own partitions may be
BEAT_SECONDS = 5.0  # a worker that is silent for longer is taken for dead
logger = logging.getLogger(__name__)


async def work(settings: Settings, addresses: Addresses) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    async with connect(settings, addresses) as services, AsyncExitStack() as stack:
        kafka = await persistently(lambda: stack.enter_async_context(producer(addresses.kafka, settings)))
        opened = await persistently(partial(stores, services, settings))
        if kafka.forgets and await services.registry.workers():
            raise UserError(
                "the in-memory broker is for one worker, and one is at work: set KAFKA_HOME for a real Kafka"
            )
        services.models.keep_to(opened.codebook.version)
        app = application(settings, addresses.kafka)
        stats = Stats()
        _wire(app, settings, services, kafka, opened, stats)
        try:
            await run(app, terminated())
        finally:
            await _flush(services, stats)


def _wire(
    app: BatchApp,
    settings: Settings,
    services: Services,
    kafka: Producer,
    opened: Stores,
    stats: Stats,
) -> None:
    owned, written, name = _ownership(app), log(kafka), uuid.uuid4().hex
    queue = DirtyQueue(settings.refresh_min_interval, mine=lambda user_id: shard(user_id) in owned())
    cache = ItemCache(opened.items, settings.item_cache)
    ingest = Ingest(
        histories=opened.histories,
        items=cache,
        log=written,
        queue=queue,
        stats=stats,
        max_event_bytes=settings.max_event_bytes,
        registry=services.registry,
    )
    catalog = Catalog(
        items=opened.items,
        cache=cache,
        histories=opened.histories,
        models=services.models,
        vectors=services.vectors,
        log=written,
        queue=queue,
        stats=stats,
        max_bytes=settings.max_event_bytes,
    )
    for scenario in Scenario:
        consume(app, EVENT_TOPICS[scenario.name], partial(ingest.handle, scenario=scenario))
    consume(app, ITEMS, catalog.handle)

    @app.task  # type: ignore[untyped-decorator]
    async def refresh() -> None:
        card = await persistently(services.models.card)
        _refuse_other_codebook(card, opened)
        await persistently(lambda: services.vectors.check(card))
        pace = Pace(settings.refresh_batch, settings.refresh_concurrency, settings.sweep_interval)
        await Refresher(
            histories=opened.histories,
            pending=Pending(opened.histories, opened.items, services.models),
            models=services.models,
            vectors=services.vectors,
            log=written,
            card=card,
            queue=queue,
            stats=stats,
            pace=pace,
            owned=lambda: sorted(owned()),
        ).run()

    @app.task  # type: ignore[untyped-decorator]
    async def count() -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            app.stalled(settings.stall_seconds)
            await _flush(services, stats, name)

    dependencies: dict[str, Ask] = {
        "kafka": kafka.check_ready,
        "redis": partial(services.registry.beat, name, BEAT_SECONDS),  # a write: a replica takes none
        "triton": services.models.check_ready,
        "qdrant": services.vectors.check_ready,
    }
    backlog = partial(_backlog, opened, owned)
    add_pages(app, dependencies, services.counters, backlog, settings.stall_seconds)


async def _backlog(opened: Stores, owned: Callable[[], frozenset[int]]) -> Backlog:
    return await opened.histories.backlog(sorted(owned()))


def _refuse_other_codebook(card: ModelCard, opened: Stores) -> None:
    if card.codebook_version != opened.codebook.version:
        raise Permanent(
            f"Triton serves codebook {card.codebook_version}, the histories in Redis are of "
            f"{opened.codebook.version}: serve the old one, or provision an empty Redis and Qdrant and replay the log"
        )


def _ownership(app: BatchApp) -> Callable[[], frozenset[int]]:
    """The virtual shards of this worker, by the partitions it has; looked up a few times a second at most."""
    known, looked = frozenset[int](), float("-inf")

    def owned() -> frozenset[int]:
        nonlocal known, looked
        if time.monotonic() - looked > OWNERSHIP_SECONDS:
            mine, count = _partitions(app)
            known = frozenset(s for s in range(SHARDS) if count and s % count in mine)
            looked = time.monotonic()
        return known

    return owned


def _partitions(app: BatchApp) -> tuple[frozenset[int], int]:
    """The partitions of the event topics that are this worker's, and how many there are."""
    topics: Sequence[str] = list(EVENT_TOPICS.values())
    consumer: Any = app.consumer
    mine = frozenset(tp.partition for tp in app.lag() if tp.topic in topics)
    return mine, consumer.topic_partitions(topics[0]) or 0


async def _flush(services: Services, stats: Stats, worker: str | None = None) -> None:
    """Add this worker's counts to everybody's, and a sign of life; on failure they are kept for the next time."""
    counts = stats.take()
    try:
        if counts:
            await services.counters.add(counts)
            counts = Counter()
        if worker is not None:
            await services.registry.beat(worker, BEAT_SECONDS)
    except (Transient, Permanent) as error:
        stats.counts.update(counts)
        logger.warning("counters: %s", error)
