"""Files into Kafka: good lines only, events in the order of their time, at a given pace, in bounded memory."""

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import islice
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple, TypeVar

from pydantic_core import to_json

from stream.events import Event, Item
from stream.files import Fault, read_events, read_items
from stream.services import Producer

RUN = 100_000  # events sorted in memory at once; longer files are merged from such runs on disk
STEP = 50  # records between two reports of progress
EARLY_SECONDS = 0.005  # too little to sleep for

T = TypeVar("T")
Advance = Callable[[int], object]


class Outgoing(NamedTuple):
    """An event ready to be sent."""

    ts: int
    scenario: str
    user_id: str
    value: bytes


def message(record: Event | Item) -> bytes:
    """A record as Kafka carries it: JSON without nulls."""
    return to_json(record, exclude_none=True)


class EventFile:
    """The good events of a file in the order of time, ties in the file's: `with EventFile(path) as events`. None has
    none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.good = self.bad = 0

    def __enter__(self) -> "EventFile":
        self._runs: list[Iterable[Outgoing]] = []
        with ExitStack() as stack:
            events = self._events()
            while run := sorted(islice(events, RUN), key=attrgetter("ts")):
                self.good += len(run)
                self._runs.append(_spill(run, stack.enter_context(TemporaryFile())) if len(run) == RUN else run)
            self._files = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[Outgoing]:
        return merge(*self._runs, key=attrgetter("ts"))

    def _events(self) -> Iterator[Outgoing]:
        for line in read_events(self._path) if self._path else ():
            if isinstance(line, Fault):
                self.bad += 1
            else:
                yield Outgoing(line.event.ts, line.scenario, line.event.user_id, message(line.event))


async def send_events(
    producer: Producer, events: Iterable[Outgoing], rate: float | None, advance: Advance = lambda _: None
) -> None:
    """Send in order, at most `rate` events a second, and return when Kafka has them all."""
    count = 0
    async for event in paced(events, rate):
        await producer.send_event(event.scenario, event.user_id, event.value)
        count += 1
        if count % STEP == 0:
            advance(STEP)
    await producer.flush()
    advance(count % STEP)


async def send_items(producer: Producer, path: Path, advance: Advance = lambda _: None) -> tuple[int, int]:
    """Send the good items of a file; how many were good and bad, when Kafka has them all."""
    good = bad = 0
    for line in read_items(path):
        if isinstance(line, Fault):
            bad += 1
            continue
        await producer.send_item(line.item.item_id, message(line.item))
        good += 1
        if good % STEP == 0:
            advance(STEP)
    await producer.flush()
    advance(good % STEP)
    return good, bad


async def paced(things: Iterable[T], rate: float | None) -> AsyncIterator[T]:
    """Each thing when its turn has come; `rate` in things per second, None for at once."""
    start = time.monotonic()
    for number, thing in enumerate(things):
        if rate is not None and (early := start + number / rate - time.monotonic()) > EARLY_SECONDS:
            await asyncio.sleep(early)
        yield thing


def _spill(run: list[Outgoing], file: IO[bytes]) -> Iterator[Outgoing]:
    for event in run:
        pickle.dump(tuple(event), file, pickle.HIGHEST_PROTOCOL)
    file.seek(0)
    return (Outgoing(*pickle.load(file)) for _ in range(len(run)))
