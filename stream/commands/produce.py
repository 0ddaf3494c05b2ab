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
@click.option("--events", "event_path", type=FILE, required=True, help="JSONL or Parquet.")
@click.option("--items", "item_path", type=FILE, help="JSONL or Parquet, sent before the events.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Events a second.  [default: as fast as it goes]")
def command(event_path: Path, item_path: Path | None, rate: float | None) -> None:
    """Send files of events and items to Kafka, events in the order of their time.

    Lines that `facetstream validate` would report are left out. A Parquet file without event_id gets ids made of its
    content, so that sending it again counts nothing, as far back as the window of event ids remembers.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it raises what it logs
    if rate is not None and not isfinite(rate):
        raise UserError(f"--rate {rate}: give a number of events a second, or leave it out for as fast as it goes")
    settings = load()
    bootstrap = settings.kafka_url or find(settings).kafka
    asyncio.run(_produce(settings, bootstrap, event_path, item_path, rate))


async def _produce(
    settings: Settings, bootstrap: str, event_path: Path, item_path: Path | None, rate: float | None
) -> None:
    if missing := set(await missing_topics(bootstrap, settings)) & {*EVENT_TOPICS.values(), ITEMS}:
        raise UserError(f"Kafka at {bootstrap} has no topic {sorted(missing)[0]}: run facetstream provision first")
    start, good, bad = time.monotonic(), 0, 0
    with bars() as progress:
        reading = progress.add_task("reading events", total=None)
        with EventFile(event_path) as events:
            progress.remove_task(reading)
            async with producer(bootstrap, settings) as kafka:
                if item_path is not None:
                    task = progress.add_task("items", total=None)
                    good, bad = await send_items(kafka, item_path, lambda n: progress.advance(task, n))
                    progress.update(task, total=good)
                bar = progress.add_task("events", total=events.good)
                await send_events(kafka, events, rate, lambda n: progress.advance(bar, n))
    click.echo(f"{good:,} items and {events.good:,} events sent in {time.monotonic() - start:.1f} s")
    _report(events.bad, f"{event_path}")
    _report(bad, f"{item_path} --items")


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
