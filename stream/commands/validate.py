"""`facetstream validate`: what is wrong with a file, line by line."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click

from stream.errors import UserError
from stream.files import EventLine, Fault, ItemLine, read_events, read_items

SHOWN = 100  # bad lines; the rest is only counted

Lines = Iterator[EventLine | Fault] | Iterator[ItemLine | Fault]


@click.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--items", is_flag=True, help="The file holds catalogue items, not events.")
def command(file: Path, items: bool) -> int:
    """Check a JSONL or Parquet FILE; report line, field and reason. Exit code 1 if anything is wrong.

    Events, unless --items is given. A JSONL event names its topic in the field `scenario`.
    """
    read, other, hint = (
        (read_items, read_events, "these look like events: leave out --items")
        if items
        else (read_events, read_items, "these look like items: add --items")
    )
    try:
        good, bad = _check(file, read(file))
    except UserError as error:
        raise (UserError(f"{error}; {hint}") if _fit(other(file)) else error) from None
    if bad and not good and _fit(other(file)):
        click.echo(hint)
    return 1 if bad else 0


def _check(file: Path, lines: Lines) -> tuple[int, int]:
    """Report the bad lines; how many are good and bad."""
    good = bad = 0
    for line in lines:
        if not isinstance(line, Fault):
            good += 1
            continue
        bad += 1
        if bad <= SHOWN:
            click.echo(f"{file}:{line.number}: {line.reason}")
    if bad > SHOWN:
        click.echo(f"... and {bad - SHOWN:,} more")
    click.echo(f"{good:,} good, {bad:,} bad")
    return good, bad


def _fit(lines: Lines) -> bool:
    """Whether any of the first lines is good."""
    try:
        return any(not isinstance(line, Fault) for line in islice(lines, SHOWN))
    except UserError:
        return False
