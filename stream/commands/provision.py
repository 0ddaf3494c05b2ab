"""`facetstream provision`: makes what a worker expects to find."""

import asyncio

import click

from stream import addresses, settings
from stream.provision import provision
from stream.services import connect


@click.command("provision")
def command() -> None:
    """Create topics and collections, load the codebook. Running it twice changes nothing."""
    asyncio.run(_provision())


async def _provision() -> None:
    wanted = settings.load()
    found = addresses.find(wanted)
    async with connect(wanted, found) as services:
        for what in await provision(wanted, found, services):
            click.echo(f"made {what}")
    click.echo("everything is there")
