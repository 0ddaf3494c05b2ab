"""Raw files of public datasets as a dataset folder (`models.dataset`): streamed, written aside, then renamed.

Every rating becomes an event, in the order of the file, and every line of the metadata an item. Readings of ours: the
action is `rate` whatever the stars, in one scenario; the category of a film is its first genre (the others are its
text), that of an Amazon item the second level of its first path.
"""

import ast
import gzip
import html
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as parquet
from rich.console import Console
from rich.progress import Progress

from models import red_mmu
from models.errors import BadInput
from models.tables import BATCH_ROWS, EARLIEST_MS, LATEST_MS

EVENTS = ("user_id", "item_id", "ts", "scenario", "action")
ITEMS = ("item_id", "title", "category", "text")
GENRES = (  # the flags of u.item, in its order
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
Row = tuple[str | int, ...]


class Source(NamedTuple):
    """A raw dataset as batches of the rows of events.parquet and items.parquet."""

    events: Iterator[pa.RecordBatch]
    items: Iterator[pa.RecordBatch]
    note: str = ""  # what whoever uses it should know


@dataclass(frozen=True)
class Written:
    """What a conversion wrote, and the items it left out."""

    events: int
    items: int
    repeated: int  # rows of an item after its first
    unseen: int  # items without events, when those are not wanted
    note: str

    def __str__(self) -> str:
        left = "".join(
            f", {count:,} {what} left out"
            for count, what in ((self.repeated, "repeated items"), (self.unseen, "items without events"))
            if count
        )
        return f"{self.events:,} events and {self.items:,} items{left}"


def convert(
    source: str, path: Path, out: Path, *, scenario: str = "feed", metadata: Path | None = None, only_seen: bool = False
) -> Written:
    """Write the raw dataset at `path`, of a kind in `SOURCES`, as the new folder `out`.

    `only_seen` leaves out items without events. Raises `BadInput`, naming file and line, and then leaves nothing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there already; name a new folder, or delete it first")
    if metadata is not None and source != "amazon":
        raise BadInput(f"a file of items is for amazon; {source} has its items beside its events")
    with Progress(console=Console(stderr=True)) as progress, _aside(out) as folder:
        found = SOURCES[source](path, metadata, scenario, progress)
        shelf = _Shelf(only_seen)
        events = _write(folder / "events.parquet", shelf.see(found.events))
        if not events:
            raise BadInput(f"{path} holds no events")
        items = _write(folder / "items.parquet", shelf.keep(found.items))
    return Written(events, items, shelf.repeated, shelf.unseen, found.note)


def movielens_1m(path: Path, metadata: Path | None, scenario: str, progress: Progress) -> Source:  # noqa: ARG001
    """ratings.dat (`user::item::stars::seconds`) and movies.dat (`item::title::genre|genre`), latin-1."""
    ratings, movies = _within(path, "ratings.dat", "movies.dat")
    films = (_film(row[0], row[1], row[2].split("|")) for _, row in _split(movies, "::", 3, progress))
    return Source(_ratings(ratings, "::", scenario, progress), _pack(ITEMS, films))


def movielens_100k(path: Path, metadata: Path | None, scenario: str, progress: Progress) -> Source:  # noqa: ARG001
    """u.data (`user item stars seconds`, tabs) and u.item (`item|title|...|a flag per genre`), latin-1."""
    ratings, movies = _within(path, "u.data", "u.item")
    films = (
        _film(row[0], row[1], [name for name, flag in zip(GENRES, row[5:], strict=True) if flag == "1"])
        for _, row in _split(movies, "|", 5 + len(GENRES), progress)
    )
    return Source(_ratings(ratings, "\t", scenario, progress), _pack(ITEMS, films))


def amazon(path: Path, metadata: Path | None, scenario: str, progress: Progress) -> Source:
    """Reviews and metadata, an object a line (JSON; of 2014 also Python), with the names of 2014, 2018 or 2023."""
    items = _pack(ITEMS, _products(metadata, progress)) if metadata else iter(())
    return Source(_pack(EVENTS, _reviews(path, scenario, progress)), items)


def red_mmu_parquet(path: Path, metadata: Path | None, scenario: str, progress: Progress) -> Source:  # noqa: ARG001
    """The files named multiscene_lastn and note_embeddings, or in folders of that name (`models.red_mmu`)."""
    users, notes = (
        [file for file in sorted(path.rglob("*.parquet")) if name in str(file.relative_to(path))]
        for name in ("multiscene_lastn", "note_embeddings")
    )
    if not users:
        raise BadInput(f"{path} has no Parquet files of multiscene_lastn: name RED-MMU's folder")
    note = "" if red_mmu.timed(users[0]) else red_mmu.UNTIMED
    events = red_mmu.read_users(progress.track(users, description="multiscene_lastn"))
    return Source(events, red_mmu.read_notes(progress.track(notes, description="note_embeddings")), note)


SOURCES: dict[str, Callable[[Path, Path | None, str, Progress], Source]] = {
    "movielens-1m": movielens_1m,
    "movielens-100k": movielens_100k,
    "amazon": amazon,
    "red-mmu": red_mmu_parquet,
}


def _ratings(path: Path, separator: str, scenario: str, progress: Progress) -> Iterator[pa.RecordBatch]:
    return _pack(
        EVENTS,
        (
            (user, item, _milliseconds(seconds, path, number), scenario, "rate")
            for number, (user, item, _, seconds) in _split(path, separator, 4, progress)
        ),
    )


def _film(item: str, title: str, genres: list[str]) -> Row:
    return item, title, genres[0] if genres else "", ", ".join(genres[1:])


def _reviews(path: Path, scenario: str, progress: Progress) -> Iterator[Row]:
    for number, review in _objects(path, progress):
        user = _first(review, path, number, "reviewerID", "user_id")
        item = _first(review, path, number, "parent_asin", "asin")
        time = _first(review, path, number, "unixReviewTime", "timestamp")
        yield str(user), str(item), _milliseconds(time, path, number), scenario, "rate"


def _products(path: Path, progress: Progress) -> Iterator[Row]:
    for number, product in _objects(path, progress):
        item = _first(product, path, number, "parent_asin", "asin")
        levels = product.get("categories") or product.get("category") or []
        levels = levels[0] if levels and isinstance(levels[0], list) else levels
        category = levels[min(1, len(levels) - 1)] if levels else product.get("main_category")
        yield str(item), html.unescape(product.get("title") or ""), html.unescape(category or ""), ""


def _first(record: dict[str, Any], path: Path, number: int, *names: str) -> Any:
    """The first of those fields that is there."""
    for name in names:
        if record.get(name) not in (None, ""):
            return record[name]
    raise BadInput(f"{path}, line {number:,}: there is no {' and no '.join(names)}")


def _milliseconds(time: Any, path: Path, number: int) -> int:
    """`time` in seconds or milliseconds since 1970, as milliseconds."""
    try:
        value = int(time)
    except (TypeError, ValueError):
        raise BadInput(f"{path}, line {number:,}: {time!r} is no time in seconds or milliseconds since 1970") from None
    value = value * 1_000 if value < LATEST_MS // 1_000 else value
    if not EARLIEST_MS <= value < LATEST_MS:
        raise BadInput(f"{path}, line {number:,}: the time {time} is not between 1990 and 2100")
    return value


def _within(path: Path, *names: str) -> list[Path]:
    for name in names:
        if not (path / name).is_file():
            raise BadInput(f"{path} has no {name}; name the folder that holds {' and '.join(names)}")
    return [path / name for name in names]


def _split(path: Path, separator: str, fields: int, progress: Progress) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of every line."""
    for number, line in _lines(path, progress):
        row = line.decode("latin-1").split(separator)
        if len(row) != fields:
            raise BadInput(f"{path}, line {number:,}: has {len(row)} fields parted by {separator!r}, not {fields}")
        yield number, row


def _objects(path: Path, progress: Progress) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line."""
    for number, line in _lines(path, progress):
        try:
            record = json.loads(line)
        except ValueError:
            try:
                record = ast.literal_eval(line.decode())
            except (ValueError, SyntaxError):
                record = None
        if not isinstance(record, dict):
            raise BadInput(f"{path}, line {number:,}: is neither a JSON object nor a Python one")
        yield number, record


def _lines(path: Path, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank, without its end."""
    try:
        with progress.open(path, "rb", description=path.name) as raw:
            buffered = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)
            file: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=buffered)) if path.suffix == ".gz" else buffered
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _pack(columns: tuple[str, ...], rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH_ROWS)):
        yield pa.record_batch(dict(zip(columns, map(pa.array, zip(*batch, strict=True)), strict=True)))


@dataclass
class _Shelf:
    """Lets the first row of every item through; with `only_seen`, of those that have events."""

    only_seen: bool
    repeated: int = 0
    unseen: int = 0
    seen: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)

    def see(self, events: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in events:
            if self.only_seen:
                self.seen.update(batch.column("item_id").to_pylist())
            yield batch

    def keep(self, items: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in items:
            yield batch.filter(pa.array([self._keeps(item) for item in batch.column("item_id").to_pylist()]))

    def _keeps(self, item: str) -> bool:
        repeated, unseen = item in self.kept, self.only_seen and item not in self.seen
        self.repeated += repeated
        self.unseen += unseen and not repeated
        self.kept.add(item)
        return not repeated and not unseen


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when all went well, and goes when not."""
    aside = out.with_name(f"{out.name}.writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
        aside.mkdir(parents=True)
        yield aside
        aside.replace(out)
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, batches: Iterator[pa.RecordBatch]) -> int:
    """The rows written; without any batch there will be no file."""
    rows, writer = 0, None
    try:
        for batch in batches:
            writer = writer or parquet.ParquetWriter(path, batch.schema)
            writer.write_batch(batch)
            rows += batch.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows
