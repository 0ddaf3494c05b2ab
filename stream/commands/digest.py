"""`facetstream digest`: one number for all histories."""

import asyncio
import json
from dataclasses import asdict, replace

import click

from stream import addresses, settings
from stream.digest import Digest, digest
from stream.services import connect, stores


@click.command("digest")
@click.option("--redis", metavar="URL", help="Instead of the Redis in force.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(redis: str | None, as_json: bool) -> None:
    """Print how many users and events the histories hold, and one hash of all of them.

    The hash is a function of the histories alone: two stores with the same histories have the same. It may be taken
    while workers are at work, but says nothing of one moment then.
    """
    found, dirty = asyncio.run(_digest(redis))
    if as_json:
        click.echo(json.dumps(asdict(found) | {"dirty": dirty}))
        return
    click.echo(line(found))
    click.echo(f"{dirty:,} users are dirty")


def line(found: Digest) -> str:
    """A digest as people read it."""
    unreadable = f", {found.unreadable:,} histories that cannot be read" if found.unreadable else ""
    return f"{found.hash} ({found.users:,} users, {found.events:,} events{unreadable})"


async def _digest(redis: str | None) -> tuple[Digest, int]:
    wanted = settings.load()
    found = addresses.find(wanted, ("redis",)) if redis is None else replace(addresses.find(wanted, ()), redis=redis)
    async with connect(wanted, found) as services:
        opened = await stores(services, wanted)
        return await digest(opened.histories), await opened.histories.dirty_count()
