"""`facetstream produce`: files into Kafka."""

import asyncio
import logging
import time
from math import isfinite
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from stream.addresses import find
from stream.errors import UserError
from stream.produce import EventFile, send_events, send_items
from stream.provision import missing_topics
from stream.services import producer
from stream.settings import Settings, load
from stream.topics import EVENT_TOPICS, ITEMS

FILE = click.Path(path_type=Path)


@click.command("produce")
@click.option("--events", "event_path", type=FILE, help="JSONL or Parquet.")
@click.option("--items", "item_path", type=FILE, help="JSONL or Parquet, sent before the events.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Events a second.  [default: as fast as it goes]")
def command(event_path: Path | None, item_path: Path | None, rate: float | None) -> int:
    """Send files of events and items to Kafka, events in the order of their time.

    Lines that `facetstream validate` would report are left out; exits with 1 when that are all lines of a file. A
    Parquet file without event_id gets ids made of its content, so that sending it again counts nothing, as far back as
    the window of event ids remembers.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it raises what it logs
    if event_path is None and item_path is None:
        raise UserError("nothing to send: give --events, --items or both")
    if rate is not None and not isfinite(rate):
        raise UserError(f"--rate {rate}: give a number of events a second, or leave it out for as fast as it goes")
    settings = load()
    bootstrap = settings.kafka_url or find(settings, ("kafka",)).kafka
    asyncio.run(_check_topics(settings, bootstrap))
    start = time.monotonic()
    with bars() as progress, EventFile(event_path) as events:
        good, bad = asyncio.run(_send(settings, bootstrap, events, item_path, rate, progress))
    click.echo(f"{good:,} items and {events.good:,} events sent in {time.monotonic() - start:.1f} s")
    _report(events.bad, f"{event_path}")
    _report(bad, f"{item_path} --items")
    return 1 if (bad and not good) or (events.bad and not events.good) else 0


async def _check_topics(settings: Settings, bootstrap: str) -> None:
    if missing := set(await missing_topics(bootstrap, settings)) & {*EVENT_TOPICS.values(), ITEMS}:
        raise UserError(f"Kafka at {bootstrap} has no topic {sorted(missing)[0]}: run facetstream provision first")


async def _send(
    settings: Settings,
    bootstrap: str,
    events: EventFile,
    item_path: Path | None,
    rate: float | None,
    progress: Progress,
) -> tuple[int, int]:
    """How many items were good and bad. Whatever ends it early, it says how far it came."""
    kafka, good, bad = producer(bootstrap, settings), 0, 0
    try:
        async with kafka:
            if item_path is not None:
                task = progress.add_task("items", total=None)
                good, bad = await send_items(kafka, item_path, lambda n: progress.advance(task, n))
                progress.update(task, total=good)
            bar = progress.add_task("events", total=events.good)
            await send_events(kafka, events, rate, lambda n: progress.advance(bar, n))
    except BaseException:
        if kafka.sent:
            click.echo(f"broken off: {kafka.sent:,} records sent, {kafka.acknowledged:,} acknowledged", err=True)
        raise
    return good, bad


def _report(bad: int, arguments: str) -> None:
    if bad:
        click.echo(f"{bad:,} bad lines left out: see facetstream validate {arguments}", err=True)


def bars() -> Progress:
    """Bars on stderr."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
