"""Parquet tables, read a batch at a time and checked as they are read; what is wrong is `BadInput`, naming the row."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from models.errors import BadInput

BATCH_ROWS = 65_536
STRING, TIME, VECTOR = "string", "int64 (milliseconds) or timestamp", "list of float"  # what a column may be
INTEGER, STRUCTS = "integer", "list of struct"
EARLIEST_MS, LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100: what lies outside is in another unit


@dataclass(frozen=True)
class Batch:
    """Some rows of a table. Rows are named from 1, as the whole file counts them; a column may be absent."""

    path: Path
    start: int  # rows of the file before these
    rows: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def __contains__(self, column: str) -> bool:
        return column in self.rows.schema.names

    def ids(self, column: str, numbers: dict[str, int], where: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
        """The number of every row's string, new ones added to `numbers`; -1 where it is null, empty or not `where`."""
        index, names = self._distinct(column, where)
        table = [numbers.setdefault(name, len(numbers)) if name else -1 for name in names]
        return np.array([*table, -1], dtype=np.int32)[index]

    def codes(self, column: str, known: tuple[str, ...]) -> NDArray[np.uint8]:
        """The position of every row's string in `known`."""
        index, names = self._distinct(column)
        for number, name in enumerate(names):
            if name not in known:
                raise self.bad(column, index == number, f"{name!r} is unknown; known are {', '.join(known)}")
        return np.array([known.index(name) for name in names], dtype=np.uint8)[index]

    def times(self, column: str) -> NDArray[np.int64]:
        """Milliseconds since 1970 UTC; a timestamp without a zone is taken as UTC."""
        values = self.rows.column(column)
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("ms", tz=values.type.tz), safe=False)
        times: NDArray[np.int64] = values.cast(pa.int64()).to_numpy()
        outside = (times < EARLIEST_MS) | (times >= LATEST_MS)
        if outside.any():
            value = int(times[outside][0])
            seconds = EARLIEST_MS <= value * 1000 < LATEST_MS
            hint = f"seconds? multiply by 1000, {column} is in ms" if seconds else f"{column} is in ms since 1970"
            raise self.bad(column, outside, f"{value} is not between 1990 and 2100 ({hint})")
        return times

    def texts(self, column: str) -> list[str]:
        """Every row's string, "" where it is null or the column absent."""
        if column not in self:
            return [""] * len(self)
        return [text or "" for text in self._python(column, self.rows.column(column))]

    def vectors(self, column: str, width: int) -> NDArray[np.float32]:
        """float32 [rows, width], zeros where the vector is null or empty; with `width` 0 the first one sets it."""
        lists = self.rows.column(column)
        if pa.types.is_null(lists.type):
            return np.zeros((len(self), width), dtype=np.float32)
        lengths = compute.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)
        there = lengths > 0
        width = width or int(lengths[there.argmax()] if len(there) else 0)
        if (wrong := there & (lengths != width)).any():
            raise self.bad(column, wrong, f"has {lengths[wrong][0]} numbers, the ones before it {width}")
        vectors = np.zeros((len(self), width), dtype=np.float32)
        numbers = compute.list_flatten(lists).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        vectors[there] = numbers.reshape(-1, width) if there.any() else 0
        if (wrong := ~np.isfinite(vectors).all(axis=1)).any():
            raise self.bad(column, wrong, "holds a number that is not finite")
        return vectors

    def bad(self, column: str, rows: NDArray[np.bool_], what: str) -> BadInput:
        """The mistake of the first of `rows`."""
        return BadInput(f"{self.path}, row {self.start + int(np.flatnonzero(rows)[0]) + 1:,}: {column} {what}")

    def _distinct(self, column: str, where: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int64], list[str]]:
        """Every row's index into the distinct strings, -1 where it is null or not `where`; and those strings."""
        if column not in self:
            return np.full(len(self), -1), []
        strings = self.rows.column(column).cast(pa.large_string())
        if where is not None:
            strings = compute.if_else(pa.array(where), strings, None)
        found = strings.dictionary_encode()
        return found.indices.fill_null(-1).to_numpy().astype(np.int64), self._python(column, found.dictionary)

    def _python(self, column: str, strings: pa.Array) -> list[str]:
        try:
            texts: list[str] = strings.to_pylist()
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.path}: {column} holds bytes that are no UTF-8, {error.object!r}") from None
        return texts


def batches(
    path: Path, kinds: Mapping[str, str], required: tuple[str, ...], full: tuple[str, ...], size: int | None = None
) -> Iterator[Batch]:
    """The rows of the Parquet file `path`, at most `size` (BATCH_ROWS) in memory at a time.

    Only columns named in `kinds` are read, and each must be of its kind. The `required` ones must be there; those that
    are `full` hold no null and no empty string.
    """
    with _opened(path) as file:
        _check(path, file.schema_arrow, kinds, required)
        start = 0
        present = [name for name in kinds if name in file.schema_arrow.names]
        for rows in file.iter_batches(size or BATCH_ROWS, columns=present):
            batch = Batch(path, start, rows)
            _check_full(batch, kinds, full)
            yield batch
            start += len(batch)


def schema(path: Path) -> pa.Schema:
    """The columns of the Parquet file `path`."""
    with _opened(path) as file:
        return file.schema_arrow


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise BadInput(f"{path} cannot be read as Parquet: {error}") from None


def _check(path: Path, schema: pa.Schema, kinds: Mapping[str, str], required: tuple[str, ...]) -> None:
    if absent := [name for name in required if name not in schema.names]:
        raise BadInput(f"{path} has no column {', '.join(absent)}; it has {', '.join(schema.names)}")
    for name, kind in kinds.items():
        if name in schema.names and not _is(schema.field(name).type, kind):
            raise BadInput(f"{path}: {name} is of type {schema.field(name).type} and must be {kind}; write it as that")


def _is(found: pa.DataType, kind: str) -> bool:
    types = pa.types
    if types.is_null(found):  # a column that was never filled
        return True
    if kind == TIME:
        return bool(types.is_integer(found) or types.is_timestamp(found))
    if kind == INTEGER:
        return bool(types.is_integer(found))
    if kind in (VECTOR, STRUCTS):
        if not (types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)):
            return False
        inner = found.value_type
        return bool(types.is_floating(inner) if kind == VECTOR else types.is_struct(inner) or types.is_null(inner))
    found = found.value_type if types.is_dictionary(found) else found
    return bool(types.is_string(found) or types.is_large_string(found))


def _check_full(batch: Batch, kinds: Mapping[str, str], full: tuple[str, ...]) -> None:
    for name in full:
        column = batch.rows.column(name)
        empty = column.is_null().to_numpy(zero_copy_only=False)
        if empty.any():
            raise batch.bad(name, empty, "is null; every row needs one")
        if kinds[name] == STRING and (empty := _blank(column)).any():
            raise batch.bad(name, empty, "is empty; every row needs one")


def _blank(column: pa.Array) -> NDArray[np.bool_]:
    blank: NDArray[np.bool_] = compute.equal(column.cast(pa.large_string()), "").to_numpy(zero_copy_only=False)
    return blank
