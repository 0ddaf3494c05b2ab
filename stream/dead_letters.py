"""Dead letters read back, chosen, replayed and dropped, in bounded memory.

Kafka cannot delete one record, so what became of a letter is said behind it on the topic itself. The order is the
guarantee: an original goes back to its own topic, Kafka acknowledges it, then the letter is settled. Whatever fails in
between leaves the letter open; replayed again, its event is there twice, which counts once (law 2).
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Self

from stream.dead_topic import Letter, decode
from stream.errors import Permanent, UserError
from stream.events import parse_event, parse_item
from stream.ports import Outcome, Place, Reader, Returns, Settlement
from stream.reasons import kind, without_value
from stream.scratch import scratch
from stream.topics import EVENT_TOPICS, ITEMS, SCENARIO_OF

OPEN = "open"
RUN = 50  # letters under way at once, of up to 2.5 MB
LETTERS = "letters (partition, offset, sent_ms, reason, state, letter, PRIMARY KEY (partition, offset))"
ORIGINS = (*EVENT_TOPICS.values(), ITEMS)  # the topics whose records may be refused

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Wanted:
    """Which letters; all of them when nothing is said."""

    names: frozenset[Place] = frozenset()
    reason: str | None = None  # any part of it but the value; with a colon at the end, what it begins with
    topic: str | None = None
    since_ms: int | None = None  # when the letter was written
    until_ms: int | None = None  # exclusive
    limit: int | None = None  # the oldest of those

    def takes(self, letter: Letter) -> bool:
        """Whether the letter is one of these, but for the limit."""
        return (
            (not self.names or letter.place in self.names)
            and (self.reason is None or _speaks_of(letter.original.reason, self.reason))
            and (self.topic is None or letter.original.topic == self.topic)
            and (self.since_ms is None or letter.sent_ms >= self.since_ms)
            and (self.until_ms is None or letter.sent_ms < self.until_ms)
        )


class DeadLetters:
    """What the dead-letter topic holds at one moment, in a temporary file: `with DeadLetters(wanted) as letters`.

    Of the wanted ones all is kept, the values only if `originals` says so; the others are counted.
    """

    def __init__(self, wanted: Wanted, originals: bool = False) -> None:
        self._wanted, self._originals = wanted, originals

    def __enter__(self) -> Self:
        self._store = scratch(LETTERS)
        for function in (kind, without_value):
            self._store.create_function(function.__name__, 1, function, deterministic=True)
        self._store.execute("CREATE INDEX age ON letters (sent_ms, partition, offset)")
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    async def read(self, reader: Reader) -> None:
        """Take in the whole topic. Raises `UserError` when a letter that is wanted by name is not there."""
        async for batch in reader.batches():
            for record in batch.records:
                match decode(batch.partition, record):
                    case Letter() as letter:
                        self._add(letter)
                    case settlement:
                        self._settle(settlement)
        if missing := sorted(name for name in self._wanted.names if self._state(name) is None):
            raise UserError(f"there is no dead letter {missing[0]}: see facetstream dead list --all")

    def check_open(self) -> None:
        """Raise `UserError` when a letter that is wanted by name is settled."""
        for name in sorted(self._wanted.names):
            if (state := self._state(name)) != OPEN:
                raise UserError(f"dead letter {name} was {state} before: only an open one can be replayed or dropped")

    def counts(self) -> Counter[str]:
        """All letters by state."""
        return Counter(dict(self._store.execute("SELECT state, count(*) FROM letters GROUP BY state")))

    def reasons(self, settled: bool) -> Iterator[tuple[str, int]]:
        """The kinds of reasons of the wanted letters, open ones or all, the most frequent first."""
        return self._store.execute(
            "SELECT CASE min(reason) WHEN max(reason) THEN min(reason) ELSE CASE min(without_value(reason)) "
            "WHEN max(without_value(reason)) THEN without_value(reason) ELSE kind(reason) END END, count(*) "
            f"FROM letters WHERE {_WANTED} GROUP BY kind(reason) ORDER BY 2 DESC, 1",
            (settled,),
        )

    def count(self, settled: bool) -> int:
        """How many letters are wanted, open ones or all, but for the limit."""
        found: tuple[int] = self._store.execute(f"SELECT count(*) FROM letters WHERE {_WANTED}", (settled,)).fetchone()
        return found[0]

    def chosen(self, settled: bool = False) -> Iterator[tuple[Letter, str]]:
        """The wanted letters with their state, open ones or all, the oldest first."""
        limit = -1 if self._wanted.limit is None else self._wanted.limit
        for state, letter in self._store.execute(
            f"SELECT state, letter FROM letters WHERE {_WANTED} ORDER BY sent_ms, partition, offset LIMIT ?",
            (settled, limit),
        ):
            yield pickle.loads(letter), state

    def _add(self, letter: Letter) -> None:
        original = letter.original
        kept = letter if self._originals else replace(letter, original=replace(original, value=None))
        data = pickle.dumps(kept) if self._wanted.takes(letter) else None
        row = (*letter.place, letter.sent_ms, original.reason, OPEN, data)
        self._store.execute("INSERT OR IGNORE INTO letters VALUES (?, ?, ?, ?, ?, ?)", row)

    def _settle(self, settlement: Settlement) -> None:
        self._store.execute(
            "UPDATE letters SET state = ? WHERE partition = ? AND offset = ? AND state = ?",
            (settlement.outcome, *settlement.place, OPEN),
        )

    def _state(self, name: Place) -> str | None:
        found = self._store.execute("SELECT state FROM letters WHERE partition = ? AND offset = ?", name).fetchone()
        return found and str(found[0])


_WANTED = f"letter IS NOT NULL AND (state = '{OPEN}' OR ?)"


@dataclass
class Settled:
    """What became of the letters that were to be settled."""

    count: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by why; they stay open


async def replay(
    letters: Iterable[Letter], log: Returns, advance: Advance = lambda _: None, value: bytes | None = None
) -> Settled:
    """Put originals back onto their own topics, with `value` for theirs if it is given, and settle their letters."""
    done = Settled()
    for run in _runs(letters if value is None else (letter.mended(value) for letter in letters)):
        obstacles = [_obstacle(letter) or (_fault(letter) if value is not None else None) for letter in run]
        sound = [letter for letter, obstacle in zip(run, obstacles, strict=True) if obstacle is None]
        refusals = await log.send_back([letter.original for letter in sound])
        arrived = [letter.place for letter, refusal in zip(sound, refusals, strict=True) if refusal is None]
        await log.settle([Settlement(place, Outcome.REPLAYED) for place in arrived])
        done.count += len(arrived)
        done.refused.update(str(why) for why in (*obstacles, *refusals) if why is not None)
        advance(len(run))
    return done


async def drop(letters: Iterable[Letter], log: Returns, advance: Advance = lambda _: None) -> Settled:
    """Settle letters and send nothing back."""
    done = Settled()
    for run in _runs(letters):
        await log.settle([Settlement(letter.place, Outcome.DROPPED) for letter in run])
        done.count += len(run)
        advance(len(run))
    return done


def _runs(letters: Iterable[Letter]) -> Iterator[list[Letter]]:
    letters = iter(letters)
    while run := list(islice(letters, RUN)):
        yield run


def _obstacle(letter: Letter) -> str | None:
    """Why the letter cannot be replayed."""
    if letter.malformed:
        return letter.original.reason
    if letter.original.topic not in ORIGINS:
        return "its topic is none of events or items"
    if letter.was_cut("key-bytes"):
        return "its key was cut"
    if letter.was_cut("bytes"):
        return "its value was cut: replay it by name, with the whole value in --value FILE"
    return None


def _fault(letter: Letter) -> str | None:
    """What is still wrong with a value that a person gave."""
    topic, given = letter.original.topic, letter.original.value or b""
    try:
        parse_item(given) if topic == ITEMS else parse_event(SCENARIO_OF[topic], given)
    except Permanent as error:
        return f"the value given would be refused again: {error}"
    return None


def _speaks_of(reason: str, text: str) -> bool:
    return reason.startswith(text) if text.endswith(":") else text in without_value(reason)
