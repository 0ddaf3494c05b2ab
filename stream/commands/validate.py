"""`facetstream validate`: what is wrong with a file, line by line."""

from pathlib import Path

import click

from stream.files import Fault, read_events, read_items

SHOWN = 100  # bad lines; the rest is only counted


@click.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--items", is_flag=True, help="The file holds catalogue items, not events.")
def command(file: Path, items: bool) -> int:
    """Check a JSONL or Parquet FILE; report line, field and reason. Exit code 1 if anything is wrong.

    A JSONL event names its topic in the field `scenario`.
    """
    good = bad = 0
    for line in read_items(file) if items else read_events(file):
        if not isinstance(line, Fault):
            good += 1
            continue
        bad += 1
        if bad <= SHOWN:
            click.echo(f"{file}:{line.number}: {line.reason}")
    if bad > SHOWN:
        click.echo(f"... and {bad - SHOWN:,} more")
    click.echo(f"{good:,} good, {bad:,} bad")
    return 1 if bad else 0
