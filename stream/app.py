"""A worker: Faust agents that ingest events and items, and a Faust task that refreshes profiles.

What it commits, and when, is decided by `stream.batches`; what it does, by `ingest`, `catalog` and `refresh`.
"""

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from stream.addresses import PARTS, Addresses
from stream.batches import BatchApp, application, consume, run, terminated
from stream.breaker import Breaker, guarded
from stream.dirty_queue import DirtyQueue
from stream.errors import Permanent, Transient, UserError
from stream.events import Scenario
from stream.health import Ask
from stream.identity import SHARDS, shard
from stream.ownership import Ownership
from stream.pipeline import Pipeline
from stream.presence import at_work
from stream.retry import persistently
from stream.services import Producer, Services, Stores, connect, log, producer, stores
from stream.settings import Settings, variable
from stream.stats import Stats
from stream.stores import Backlog
from stream.topics import EVENT_TOPICS, ITEMS
from stream.urgency import Urgency, head_starts
from stream.web import add_pages

FLUSH_SECONDS = 0.5  # between two additions to the shared counters
OWNERSHIP_SECONDS = 0.25  # how old the worker's view of its own partitions may be
UNBINDABLE = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
logger = logging.getLogger(__name__)


async def work(settings: Settings, addresses: Addresses) -> None:
    """Run a worker until SIGTERM or SIGINT. `UserError` while a replay is under way."""
    async with connect(settings, addresses) as services, AsyncExitStack() as stack:
        kafka = await persistently(lambda: stack.enter_async_context(producer(addresses.kafka, settings)))
        opened = await persistently(partial(stores, services, settings))
        if await stack.enter_async_context(at_work(services.registry)) and kafka.forgets:
            raise UserError(
                "the in-memory broker is for one worker, and one is at work: set KAFKA_HOME for a real Kafka"
            )
        services.models.keep_to(opened.codebook.version)
        app = application(settings, addresses.kafka)
        stats = Stats()
        _wire(app, settings, services, kafka, opened, stats)
        try:
            with _listening(settings):
                await run(app, terminated())
        finally:
            await _flush(services, stats)


@contextmanager
def _listening(settings: Settings) -> Iterator[None]:
    """A port that cannot be had is a user's mistake; the web server tells when it is started."""
    try:
        yield
    except socket.gaierror as error:
        if settings.web_port is None:
            raise
        raise UserError(
            f"{variable('web_host')}={settings.web_host!r}: {error.strerror}: name an address of this machine"
        ) from None
    except OSError as error:
        if settings.web_port is None or error.errno not in UNBINDABLE:
            raise
        raise UserError(
            f"{variable('web_port')}={settings.web_port}: cannot listen on {settings.web_host} "
            f"({os.strerror(error.errno).lower()}): name another port, or unset it for no pages"
        ) from None


def _wire(
    app: BatchApp,
    settings: Settings,
    services: Services,
    kafka: Producer,
    opened: Stores,
    stats: Stats,
) -> None:
    owned = _ownership(app)
    queue = DirtyQueue(
        min_interval=settings.refresh_min_interval,
        max_staleness=settings.refresh_max_staleness,
        backlog_rate=settings.refresh_backlog_rate,
        mine=lambda user_id: shard(user_id) in owned(),
        urgency=Urgency(head_starts(settings.refresh_priority)),
        stats=stats,
    )
    breakers = {part: Breaker() for part in PARTS}
    pipeline = _pipeline(settings, services, opened, kafka, queue, stats, breakers)
    for scenario in Scenario:
        consume(app, EVENT_TOPICS[scenario.name], partial(pipeline.ingest.handle, scenario=scenario))
    consume(app, ITEMS, pipeline.catalog.handle)

    @app.task  # type: ignore[untyped-decorator]
    async def refresh() -> None:
        card = await persistently(pipeline.services.models.card)
        refresher = pipeline.refresher(card, Ownership(pipeline.stores.histories, owned, app.confirmed))
        await persistently(lambda: pipeline.services.vectors.check(card))
        await refresher.run()

    @app.task  # type: ignore[untyped-decorator]
    async def count() -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            app.stalled(settings.stall_seconds)
            await _flush(services, stats)

    dependencies: dict[str, Ask] = {
        "kafka": kafka.check_ready,
        "redis": partial(services.registry.beat, "readyz", 0.0),  # a write, that leaves nothing: a replica takes none
        "triton": services.models.check_ready,
        "qdrant": services.vectors.check_ready,
    }
    backlog = partial(_backlog, opened, owned)
    add_pages(app, dependencies, services.counters, backlog, settings.stall_seconds, breakers)


def _pipeline(
    settings: Settings,
    services: Services,
    opened: Stores,
    kafka: Producer,
    queue: DirtyQueue,
    stats: Stats,
    breakers: Mapping[str, Breaker],
) -> Pipeline:
    """Behind breakers, which the pages are not: they say how a dependency is now."""
    redis = breakers["redis"]
    kept = replace(opened, histories=guarded(opened.histories, redis), items=guarded(opened.items, redis))
    asked = replace(
        services,
        registry=guarded(services.registry, redis),
        models=guarded(services.models, breakers["triton"]),
        vectors=guarded(services.vectors, breakers["qdrant"]),
    )
    return Pipeline(settings, asked, kept, guarded(log(kafka), breakers["kafka"]), queue, stats)


async def _backlog(opened: Stores, owned: Callable[[], frozenset[int]]) -> Backlog:
    return await opened.histories.backlog(sorted(owned()))


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


async def _flush(services: Services, stats: Stats) -> None:
    """Add this worker's counts to everybody's; on failure they are kept for the next time."""
    counts = stats.take()
    try:
        if counts:
            await services.counters.add(counts)
    except (Transient, Permanent) as error:
        stats.counts.update(counts)
        logger.warning("counters: %s", error)
