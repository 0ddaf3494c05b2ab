"""Files of events and items, JSONL or Parquet, read in bounded memory and checked like the records of a topic.

JSONL: one record a line; an event also names its `scenario`. Parquet: the columns of the models and `scenario`.

A Parquet file without `event_id` gets ids made of row number and content, so a file sent again gives the same ids: the
second time counts nothing, as far back as the window of event ids remembers (`FACETSTREAM_EVENT_ID_WINDOW`).
"""

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from models.contract import SCENARIOS
from stream.errors import Permanent, UserError
from stream.events import EVENT_MODELS, Event, Item, parse_event, parse_item, reason

BATCH_ROWS = 4_096
LINE_BYTES = 1_000_000  # a longer line is reported, not read
PARQUET_MAGIC = b"PAR1"
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
EVENT_COLUMNS = ("scenario", *dict.fromkeys(field.name for kind in EVENT_MODELS.values() for field in fields(kind)))
ITEM_COLUMNS = tuple(Item.model_fields)

Columns = dict[str, Literal["string", "int64", "float64"]]


@dataclass(frozen=True, slots=True)
class EventLine:
    """A good event of line (or row) `number`, from 1."""

    number: int
    scenario: str
    event: Event


@dataclass(frozen=True, slots=True)
class ItemLine:
    """A good item."""

    number: int
    item: Item


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that breaks a limit; `reason` is `field: what is wrong`."""

    number: int
    reason: str


class _Address(BaseModel):
    scenario: Literal[SCENARIOS]  # type: ignore[valid-type]


_ADDRESS = TypeAdapter(_Address)


def read_events(path: Path) -> Iterator[EventLine | Fault]:
    """Every line, in the file's order. `UserError` if the file as a whole cannot be read."""
    for number, raw in _records(path, EVENT_COLUMNS, required=("user_id", "ts", "scenario", "action")):
        try:
            scenario = _scenario(raw)
            yield EventLine(number, scenario, parse_event(scenario, raw))
        except Permanent as error:
            yield Fault(number, str(error))


def read_items(path: Path) -> Iterator[ItemLine | Fault]:
    """Every line, in the file's order. `UserError` if the file as a whole cannot be read."""
    for number, raw in _records(path, ITEM_COLUMNS, required=("item_id",)):
        try:
            _bounded(raw)
            yield ItemLine(number, parse_item(raw))
        except Permanent as error:
            yield Fault(number, str(error))


def read_rows(path: Path, columns: Sequence[str], size: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of a Parquet file, `size` at a time, these columns alone. `UserError` where there are none such."""
    with _parquet(path, columns) as file:
        for batch in file.iter_batches(size, columns=list(columns)):
            yield batch.to_pylist()


def rows_in(path: Path) -> int:
    """How many rows a Parquet file has."""
    with _parquet(path, ()) as file:
        count: int = file.metadata.num_rows
    return count


def write_parquet(path: Path, columns: Columns, rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows` (missing keys are nulls) aside, then put the file in its place."""
    with table(path, columns) as write:
        remaining = iter(rows)
        while batch := list(islice(remaining, 16 * BATCH_ROWS)):
            write(batch)


@contextmanager
def table(path: Path, columns: Columns) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """What appends rows (missing keys are nulls) to a Parquet file written aside, which is put in its place at the
    end, unless something went wrong."""
    parquet, arrow = _pyarrow()
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in columns.items()])
    aside = path.with_name(path.name + ".part")
    try:
        with parquet.ParquetWriter(aside, schema) as writer:
            yield lambda rows: writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
        aside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)


def _bounded(raw: bytes) -> None:
    if len(raw) >= LINE_BYTES:
        raise Permanent(f"longer than {LINE_BYTES:,} bytes")


def _scenario(raw: bytes) -> str:
    _bounded(raw)
    try:
        scenario: str = _ADDRESS.validate_json(raw).scenario
    except ValidationError as error:
        raise Permanent(reason(error)) from None
    return scenario


def _records(path: Path, columns: tuple[str, ...], required: tuple[str, ...]) -> Iterator[tuple[int, bytes]]:
    """Number and JSON of every record."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() in JSONL_SUFFIXES:
                yield from _lines(file)
            elif file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC:
                yield from _rows(path, columns, required)
            else:
                raise UserError(f"{path} is neither Parquet nor named {', '.join(JSONL_SUFFIXES)}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(iter(partial(file.readline, LINE_BYTES), b""), start=1):
        rest = line
        while len(rest) == LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(LINE_BYTES)
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if line.strip():
            yield number, line


def _rows(path: Path, columns: tuple[str, ...], required: tuple[str, ...]) -> Iterator[tuple[int, bytes]]:
    with _parquet(path, required) as file:
        present = file.schema_arrow.names
        named = "event_id" in present or "item_id" in required
        batches = file.iter_batches(BATCH_ROWS, columns=[name for name in columns if name in present])
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            record = {name: value for name, value in row.items() if value is not None}
            yield number, _json(record if named else record | {"event_id": _event_id(number, record)})


@contextmanager
def _parquet(path: Path, required: Sequence[str]) -> Iterator[Any]:
    parquet, arrow = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            if missing := [name for name in required if name not in file.schema_arrow.names]:
                raise UserError(f"{path} has no column {', '.join(missing)}")
            yield file
    except arrow.ArrowException as error:
        raise UserError(f"cannot read {path} as Parquet: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, default=_plain, ensure_ascii=False).encode(errors="surrogatepass")


def _plain(value: Any) -> str:
    """Bytes are text; what in them is no UTF-8 stays none, to be refused."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _event_id(number: int, record: dict[str, Any]) -> str:
    return blake2b(b"%d" % number + _json(record), digest_size=12).hexdigest()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files need pyarrow: pip install 'facetstream[models]'") from None
    return pyarrow.parquet, pyarrow
