"""`facetstream import`: raw files of public datasets as a dataset folder."""

from pathlib import Path

import click

from models.commands import Command
from models.contract import SCENARIOS

PATH = click.Path(path_type=Path)


@click.command("import", cls=Command)
@click.option(
    "--from",
    "source",
    type=click.Choice(["movielens-1m", "movielens-100k", "amazon", "red-mmu"]),
    required=True,
    help="What PATH holds.",
)
@click.argument("path", type=PATH)
@click.option("--out", type=PATH, required=True, help="New folder for events.parquet and items.parquet.")
@click.option("--items", "metadata", type=PATH, help="Amazon: the metadata file.")
@click.option("--scenario", type=click.Choice(SCENARIOS), default="feed", show_default=True, help="Of every rating.")
@click.option("--only-seen", is_flag=True, help="Leave out items without events.")
def command(source: str, path: Path, out: Path, metadata: Path | None, scenario: str, only_seen: bool) -> None:
    """Convert the raw files in PATH into a dataset folder for training.

    A folder of MovieLens (ratings.dat and movies.dat, or u.data and u.item) or RED-MMU (Parquet files of
    note_embeddings and multiscene_lastn), or a file of Amazon reviews (JSON lines, also .gz).

    A rating becomes an event with action `rate`, whatever the stars; RED-MMU's home feed is scenario feed, its ads are
    discovery. Events keep the order of the file.
    """
    from models import sources

    written = sources.convert(source, path, out, scenario=scenario, metadata=metadata, only_seen=only_seen)
    click.echo(f"{written} in {out}")
    if written.note:
        click.echo(written.note, err=True)
