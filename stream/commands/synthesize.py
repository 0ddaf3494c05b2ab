"""`facetstream synthesize`: the synthetic population as files, with its truth beside it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from stream.errors import UserError
from stream.files import Columns, write_parquet
from stream.synthetic import Act, Interest, Population, synthesize

EVENTS: Columns = {
    "user_id": "string",
    "item_id": "string",
    "ts": "int64",
    "scenario": "string",
    "action": "string",
    "query": "string",
    "dwell_ms": "int64",
    "position": "int64",
    "channel": "string",
    "event_id": "string",
}
ITEMS: Columns = {"item_id": "string", "title": "string", "text": "string", "category": "string"}
TRUTH: Columns = {
    "user_id": "string",
    "subtopic": "string",
    "strength": "float64",
    "born_ms": "int64",
    "died_ms": "int64",
    "feed_lag_ms": "int64",
    "discovery_lag_ms": "int64",
}
TRUTH_EVENTS: Columns = {"event_id": "string", "subtopic": "string", "cause": "string"}
TRUTH_ITEMS: Columns = {"item_id": "string", "subtopic": "string"}


@click.command("synthesize")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write into.")
@click.option("--users", default=500, show_default=True, type=click.IntRange(1))
@click.option("--events", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--items", default=2_000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=7, show_default=True)
def command(out: Path, users: int, events: int, items: int, seed: int) -> None:
    """Write a synthetic population: events.parquet, items.parquet, and what is true of them.

    truth.parquet holds the planted interests, truth_events.parquet why each event happened, truth_items.parquet what
    each item is about. The same seed writes the same files.
    """
    if (out / "events.parquet").exists():
        raise UserError(f"{out} holds a dataset already: name another folder, or delete it first")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}") from None
    population = synthesize(users, events, items, seed, run=f"s{seed}-")
    _write(population, out)
    click.echo(f"{events:,} events of {users:,} users on {items:,} items in {out}")


def _write(population: Population, out: Path) -> None:
    acts, catalogue = population.acts, population.catalogue
    interests = [interest for planted in population.interests.values() for interest in planted]
    tables: dict[str, tuple[Columns, Iterable[dict[str, Any]]]] = {
        "truth": (TRUTH, map(_interest_row, interests)),
        "truth_events": (TRUTH_EVENTS, map(_cause_row, acts)),
        "truth_items": (TRUTH_ITEMS, ({"item_id": i, "subtopic": name} for i, name in catalogue.subtopics.items())),
        "items": (ITEMS, (item.model_dump(include=set(ITEMS)) for item in catalogue.items)),
        "events": (EVENTS, (act.record | {"scenario": act.scenario} for act in acts)),
    }
    for name, (columns, rows) in tables.items():
        write_parquet(out / f"{name}.parquet", columns, rows)


def _interest_row(interest: Interest) -> dict[str, Any]:
    lags = {f"{name}_lag_ms": lag for name, lag in interest.lag_ms.items()}
    return {name: value for name, value in (vars(interest) | lags).items() if name in TRUTH}


def _cause_row(act: Act) -> dict[str, Any]:
    return {"event_id": act.record["event_id"], "subtopic": act.subtopic, "cause": act.cause}
