"""`facetstream dump`: the log as a dataset folder, to train on."""

import asyncio
import logging
import re
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from stream.addresses import find
from stream.admission import Admission
from stream.commands.produce import bars
from stream.dump import Dumped, dump_events, dump_items, folder_of
from stream.errors import UserError
from stream.services import reader
from stream.settings import Settings, load
from stream.topics import EVENT_TOPICS, ITEMS

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
SHOWN = 10  # reasons


class Moment(click.ParamType):
    """Milliseconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if ago := re.fullmatch(r"(\d+)([smhd])", value):
            return int((time.time() - int(ago[1]) * SECONDS[ago[2]]) * 1000)
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: write 2026-01-31, 2026-01-31T12:00 (UTC), or 1h, 7d for ago", param, ctx)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


@click.command("dump")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--since", type=Moment(), help="Only events sent since: a time, or 1h, 7d for ago.")
@click.option("--until", type=Moment(), help="Only events sent before.")
def command(out: Path, since: int | None, until: int | None) -> None:
    """Write what the log holds now as a dataset: events.parquet, and items.parquet with the newest of every item.

    --since and --until go by when an event was sent to Kafka, which is later than its ts. What the worker would refuse
    is left out; an event that was sent twice is in it once.
    """
    if since is not None and until is not None and since >= until:
        raise UserError("--since must be before --until: no event is of that time")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it raises what it logs
    settings = load()
    bootstrap = settings.kafka_url or find(settings, ("kafka",)).kafka
    dumped = asyncio.run(_dump(settings, bootstrap, out, since, until))
    click.echo(f"{dumped.events:,} events and {dumped.items:,} items in {out}")
    _report(dumped)


async def _dump(settings: Settings, bootstrap: str, out: Path, since: int | None, until: int | None) -> Dumped:
    dumped, admission = Dumped(), Admission(settings.max_event_bytes, settings.lateness_hours)
    parts = (
        ("items", dump_items, reader(bootstrap, settings, [ITEMS])),
        ("events", dump_events, reader(bootstrap, settings, list(EVENT_TOPICS.values()), since, until)),
    )
    with bars() as progress, folder_of(out) as folder:
        for name, dump, opening in parts:
            async with opening as records:
                task = progress.add_task(name, total=records.total)
                await dump(records, folder, admission, partial(progress.advance, task), dumped)
        if not dumped.events:
            raise UserError(f"Kafka at {bootstrap} holds no valid event of that time: nothing is written")
    return dumped


def _report(dumped: Dumped) -> None:
    if dumped.duplicates:
        click.echo(f"{dumped.duplicates:,} events were sent twice", err=True)
    if left := dumped.left_out.total():
        click.echo(f"{left:,} records left out:", err=True)
        for reason, count in dumped.left_out.most_common(SHOWN):
            click.echo(f"  {count:,} × {reason}", err=True)
