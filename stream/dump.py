"""The log as a dataset folder for training: events.parquet and items.parquet, in bounded memory.

What ingest and the catalogue would refuse is left out and counted; an event sent twice is in it once; of an item's
records the newest counts.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from stream.admission import Admission, payload
from stream.errors import Permanent, UserError
from stream.events import Event, Item, parse_item
from stream.files import BATCH_ROWS, Columns, table
from stream.ledger import Batch, Record
from stream.ports import Reader
from stream.reasons import without_value
from stream.scratch import first, scratch
from stream.topics import SCENARIO_OF

EVENTS: Columns = {
    "user_id": "string",
    "item_id": "string",
    "ts": "int64",
    "scenario": "string",
    "action": "string",
    "query": "string",
    "dwell_ms": "int64",
}
ITEMS: Columns = {"item_id": "string", "title": "string", "category": "string", "text": "string"}
REASONS = 1_000  # told apart; the rest are counted as one

Advance = Callable[[int], object]


@dataclass
class Dumped:
    """What became of the records."""

    events: int = 0
    items: int = 0
    duplicates: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by topic and reason

    def leave_out(self, topic: str, reason: str) -> None:
        told = f"{topic}: {without_value(reason)}"
        self.left_out[told if told in self.left_out or len(self.left_out) < REASONS else f"{topic}: other"] += 1


@contextmanager
def folder_of(out: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `out` at the end, unless something went wrong."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a folder that is new or empty")
    aside = out.with_name(out.name + ".writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
        aside.mkdir(parents=True)
        yield aside
        aside.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


async def dump_events(reader: Reader, folder: Path, admission: Admission, advance: Advance, dumped: Dumped) -> None:
    """All events of `reader` into events.parquet."""
    with closing(scratch("seen (id INTEGER PRIMARY KEY)")) as seen, table(folder / "events.parquet", EVENTS) as write:
        async for batch in reader.batches():
            scenario = SCENARIO_OF[batch.topic]
            rows = []
            for event in _valid(batch, partial(admission.event, scenario), dumped):
                if first(seen, _identity(scenario, event)):
                    rows.append(_row(scenario, event))
                else:
                    dumped.duplicates += 1
            if rows:
                write(rows)
            dumped.events += len(rows)
            advance(len(batch.records))


async def dump_items(reader: Reader, folder: Path, admission: Admission, advance: Advance, dumped: Dumped) -> None:
    """The newest record of every item of `reader` into items.parquet."""
    columns = ", ".join(ITEMS).replace("item_id", "item_id PRIMARY KEY")
    with closing(scratch(f"items ({columns})")) as newest:
        async for batch in reader.batches():
            items = _valid(batch, partial(_item, admission.max_bytes), dumped)
            rows = (item.model_dump(include=set(ITEMS)) for item in items)
            newest.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", ([row[name] for name in ITEMS] for row in rows)
            )
            advance(len(batch.records))
        found = newest.execute("SELECT * FROM items ORDER BY item_id")
        with table(folder / "items.parquet", ITEMS) as write:
            while page := found.fetchmany(BATCH_ROWS):
                write([dict(zip(ITEMS, row, strict=True)) for row in page])
                dumped.items += len(page)


def _valid(batch: Batch, parse: Callable[[Record], Any], dumped: Dumped) -> Iterator[Any]:
    for record in batch.records:
        try:
            yield parse(record)
        except Permanent as error:
            dumped.leave_out(batch.topic, str(error))


def _item(limit: int, record: Record) -> Item:
    return parse_item(payload(record, limit))


def _row(scenario: str, event: Event) -> dict[str, Any]:
    """A query that was typed is about no item, as in a history."""
    row = {name: getattr(event, name, None) for name in EVENTS} | {"scenario": scenario}
    return row | {"item_id": None} if event.action == "search" else row


def _identity(scenario: str, event: Event) -> int:
    """64 bits that stand for an event id of a user in a scenario, which is what the stream counts once."""
    name = "\0".join((scenario, event.user_id, event.event_id)).encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big", signed=True)
