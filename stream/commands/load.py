"""`facetstream load`: the catalogue of a checkpoint into the stores."""

import asyncio
from pathlib import Path

import click

from stream import addresses, settings
from stream.commands.produce import FILE, bars
from stream.load import Details, load
from stream.services import connect, stores
from stream.trained import catalogue_size


@click.command("load")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="What facetstream train has written."
)
@click.option("--items", type=FILE, help="JSONL or Parquet: titles, categories, ...")
def command(checkpoint: Path, items: Path | None) -> None:
    """Load a checkpoint's catalogue into Redis and Qdrant: codes and embeddings, without asking a model.

    The checkpoint must be of the codebook that is in force. Points get title, category and attributes from --items; an
    item that is not in it is known by its id alone. May be broken off and repeated.
    """
    asyncio.run(_load(checkpoint, items))


async def _load(checkpoint: Path, items: Path | None) -> None:
    wanted = settings.load()
    total = catalogue_size(checkpoint)
    with Details(items) as details, bars() as progress:
        async with connect(wanted, addresses.find(wanted, ("redis", "triton", "qdrant"))) as services:
            task = progress.add_task("items", total=total)
            opened = await stores(services, wanted)
            count = await load(services, opened, checkpoint, details, lambda n: progress.advance(task, n))
    click.echo(f"{count:,} items are searchable, and their codes known")
    if details.bad:
        click.echo(f"{details.bad:,} bad lines left out: see facetstream validate {items} --items", err=True)
