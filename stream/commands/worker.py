"""`facetstream worker`: consumes events and keeps profiles fresh, until SIGTERM or Ctrl-C."""

import asyncio
import logging

import click

from stream import addresses, settings
from stream.app import work


@click.command("worker")
def command() -> None:
    """Consume events and items, keep profiles fresh.

    Run as many as there are partitions; each takes its share. Stops cleanly on SIGTERM and Ctrl-C.
    """
    wanted = settings.load()
    logging.basicConfig(level=wanted.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(work(wanted, addresses.find(wanted)))
