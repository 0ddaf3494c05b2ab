"""`facetstream replay`: the log applied once more."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import click
from rich.progress import Progress

from stream import addresses, settings
from stream.addresses import Addresses
from stream.commands.digest import line
from stream.commands.dump import Moment
from stream.commands.produce import bars
from stream.digest import digest
from stream.dirty_queue import DirtyQueue
from stream.errors import UserError
from stream.identity import SHARDS
from stream.ownership import Ownership
from stream.pipeline import Pipeline
from stream.presence import alone
from stream.refresh import Refresher
from stream.replay import Reread, apply_events, apply_items, copy_epochs, copy_items, refresh_dirty
from stream.services import Producer, Services, Stores, connect, log, producer, reader, stores, stores_of
from stream.settings import Settings, masked
from stream.stats import Stats
from stream.topics import EVENT_TOPICS, ITEMS


@dataclass(frozen=True)
class Start:
    """Where in each partition a replay begins: at an offset, or at the first record sent at a time or later."""

    offset: int = 0
    since_ms: int | None = None  # since 1970


class StartType(click.ParamType):
    """`beginning`, an offset, or a time."""

    name = "start"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Start:
        if isinstance(value, Start):
            return value
        if value == "beginning":
            return Start()
        if value.isdecimal():
            return Start(offset=int(value))
        try:
            since_ms = Moment().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}; or beginning, or an offset", param, ctx)
        if since_ms > time.time() * 1000:
            self.fail(f"{value!r} is in the future (UTC): nothing would be read", param, ctx)
        return Start(since_ms=since_ms)


@click.command("replay")
@click.option(
    "--from",
    "start",
    type=StartType(),
    metavar="OFFSET|TIME|beginning",
    required=True,
    help="A time is one as in dump; an offset one in every partition of the event topics, and means all items.",
)
@click.option("--into", metavar="REDIS_URL", help="Fill this empty Redis, and compare.")
@click.option("--no-refresh", is_flag=True, help="Events alone, without Triton and Qdrant.")
def command(start: Start, into: str | None, no_refresh: bool) -> int:
    """Apply what the log holds now, from a point on, as a worker would; what is there already is skipped.

    After Redis was restored from a backup, or was lost and is provisioned anew: stop the workers, replay from before
    the backup, start them again. The items sent since then are encoded first, and at the end everybody whose profile is
    not of the newest history is refreshed, once; workers do that after --no-refresh, which leaves items out. May be
    broken off and repeated.

    With --into, the Redis in force is only read: items come from there, and nothing is refreshed. Both digests are
    printed; exits with 1 when they differ.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it raises what it logs
    logging.getLogger("stream.ingest").setLevel(logging.ERROR)  # dead letters, which are counted here
    wanted = settings.load()
    if into is not None:
        return asyncio.run(_fill(wanted, addresses.find(wanted, ("kafka", "redis")), start, into))
    needed = ("kafka", "redis") if no_refresh else addresses.PARTS
    asyncio.run(_complete(wanted, addresses.find(wanted, needed), start, not no_refresh))
    return 0


async def _complete(wanted: Settings, found: Addresses, start: Start, refresh: bool) -> None:
    """Replay onto the stores in force."""
    began = time.monotonic()
    async with connect(wanted, found) as services, producer(found.kafka, wanted) as kafka:
        opened = await stores(services, wanted)
        pipeline = _pipeline(wanted, services, opened, kafka)
        async with alone(services.registry):
            refresher = await _refresher(pipeline) if refresh else None
            with bars() as progress:
                if refresher is not None:
                    async with reader(found.kafka, wanted, [ITEMS], start.since_ms) as items:
                        await apply_items(items, pipeline.catalog, _bar(progress, "items", items.total))
                records, skipped = await _events(wanted, found, start, pipeline, progress)
                if refresher is not None:
                    dirty = await opened.histories.dirty_count()
                    await refresh_dirty(refresher, opened.histories, _bar(progress, "users", dirty))
    _summarise(records, pipeline.stats, began)
    if skipped:
        click.echo(f"the first {skipped:,} records of the log were not read: they are gone, or before --from", err=True)


async def _refresher(pipeline: Pipeline) -> Refresher:
    """Of all users, when the models and Qdrant are there and fit the histories."""
    services = pipeline.services
    services.models.keep_to(pipeline.stores.codebook.version)
    card = await services.models.card()
    await services.vectors.check(card)
    ownership = Ownership(pipeline.stores.histories, lambda: frozenset(range(SHARDS)))
    return pipeline.refresher(card, ownership)


async def _fill(wanted: Settings, found: Addresses, start: Start, into: str) -> int:
    """Replay into an empty Redis."""
    began, elsewhere = time.monotonic(), replace(found, redis=into)
    async with (
        connect(wanted, found) as source,
        connect(wanted, elsewhere) as target,
        producer(found.kafka, wanted) as kafka,
    ):
        kept = await stores(source, wanted)
        made = stores_of(kept.codebook, target, wanted)
        async for _ in made.histories.scan():
            raise UserError(f"--into {masked(into)}: it holds histories already, name an empty Redis")
        if not await target.registry.put_codebook(kept.codebook):
            raise UserError(f"--into {masked(into)}: it is provisioned already, name an empty Redis")
        pipeline = _pipeline(wanted, target, made, kafka)
        async with alone(target.registry):
            with bars() as progress:
                await copy_epochs(source.registry, target.registry)
                await copy_items(kept.items, made.items, _bar(progress, "items", None))
                records, skipped = await _events(wanted, found, start, pipeline, progress)
        _summarise(records, pipeline.stats, began)
        ours, theirs = await digest(kept.histories), await digest(made.histories)
        dirty = await kept.histories.dirty_count()
    click.echo(f"in force  {line(ours)}\nreplayed  {line(theirs)}")
    click.echo("equal" if ours == theirs else _different(skipped, dirty, ours.users - theirs.users))
    return 0 if ours == theirs else 1


def _different(skipped: int, dirty: int, unknown: int) -> str:
    reasons = [f"the first {skipped:,} records of the log are gone, or before --from"] * bool(skipped)
    reasons += [f"{dirty:,} users wait for a worker to refresh them, perhaps with new codes"] * bool(dirty)
    reasons += [f"of {unknown:,} users in force the log holds no event"] * (unknown > 0 and not skipped)
    return "DIFFERENT" + (": " + "; ".join(reasons) if reasons else "")


async def _events(
    wanted: Settings, found: Addresses, start: Start, pipeline: Pipeline, progress: Progress
) -> tuple[int, int]:
    """Apply the events; how many records were read, and how many come before them."""
    topics = list(EVENT_TOPICS.values())
    async with reader(found.kafka, wanted, topics, start.since_ms, offset=start.offset) as events:
        await apply_events(events, pipeline.ingest, _bar(progress, "events", events.total))
        return events.total, events.skipped


def _pipeline(wanted: Settings, services: Services, opened: Stores, kafka: Producer) -> Pipeline:
    return Pipeline(wanted, services, opened, Reread(log(kafka)), DirtyQueue(), Stats())


def _bar(progress: Progress, name: str, total: int | None) -> Any:
    return partial(progress.advance, progress.add_task(name, total=total))


def _summarise(records: int, stats: Stats, began: float) -> None:
    counts = stats.counts
    click.echo(
        f"{records:,} records read: {counts['events_applied']:,} events applied, {counts['duplicates_skipped']:,} "
        f"duplicates, {counts['redelivered_skipped']:,} there already, {counts['dead_letters']:,} refused; "
        f"{counts['items_applied']:,} items, {counts['refreshes']:,} users refreshed; "
        f"{time.monotonic() - began:.1f} s"
    )
