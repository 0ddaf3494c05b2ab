"""From a batch of raw records to durable histories.

The order is the guarantee (law 1). The batch is acknowledged by the caller, after `handle` has returned:

1. decode and validate; what is no event becomes a dead letter
2. look up items and their codes; an item unknown is kept, its codes pending
3. one Redis script per user: history, version, dirty mark
4. dead letters written, and acknowledged by Kafka
"""

import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stream.dirty_queue import DirtyQueue
from stream.errors import Permanent
from stream.events import Action, Event, Scenario, SearchEvent, parse_event
from stream.history import Record, Source
from stream.identity import event_hash, item_key, query_key
from stream.ledger import Batch
from stream.ledger import Record as LogRecord
from stream.ports import DeadLetter, Log
from stream.retry import persistently
from stream.stats import Stats
from stream.stores import Append, Dirty, Entry, Histories, Items, StoredItem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """A valid event and the record it came in."""

    record: LogRecord
    event: Event

    @property
    def name(self) -> str:
        """Of the item in the history: the query when one was typed, else what was acted on."""
        if isinstance(self.event, SearchEvent) and self.event.action == "search":
            return query_key(self.event.query or "")
        return item_key(self.event.item_id or "")


def validate(batch: Batch, parse: Callable[[bytes], Event], limit: int) -> tuple[list[Arrival], list[DeadLetter]]:
    """Split a batch into events and dead letters; `limit` in bytes of a record's value."""
    arrivals: list[Arrival] = []
    letters: list[DeadLetter] = []
    for record in batch.records:
        try:
            arrivals.append(Arrival(record, parse(payload(record, limit))))
        except Permanent as error:
            letters.append(dead_letter(batch, record, str(error)))
    return arrivals, letters


def payload(record: LogRecord, limit: int) -> bytes:
    """The bytes to parse. Raises `Permanent` where there are none, or too many."""
    if record.value is None:
        raise Permanent("value: is null (a tombstone)")
    if not record.value:
        raise Permanent("value: is empty")
    if len(record.value) > limit:
        raise Permanent(f"value: has {len(record.value)} bytes, the limit is {limit}")
    return record.value


def dead_letter(batch: Batch, record: LogRecord, reason: str) -> DeadLetter:
    return DeadLetter(reason, batch.topic, batch.partition, record.offset, record.key, record.value)


class ItemCache:
    """Coded items by name, the least recently used given up first. Items without codes are asked for each time."""

    def __init__(self, items: Items, size: int) -> None:
        self._items = items
        self._size = size
        self._known: OrderedDict[str, StoredItem] = OrderedDict()

    async def get(self, names: Sequence[str]) -> dict[str, StoredItem]:
        missing = [name for name in dict.fromkeys(names) if name not in self._known]
        found = dict(zip(missing, await self._items.claim(missing), strict=True)) if missing else {}
        for name in names:
            if name in self._known:
                self._known.move_to_end(name)
                found[name] = self._known[name]
        for name, item in found.items():
            if item.codes is not None:
                self._known[name] = item
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return found

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._known.pop(name, None)


class Ingest:
    """Applies batches of one scenario's topic."""

    def __init__(
        self,
        *,
        histories: Histories,
        items: ItemCache,
        log: Log,
        queue: DirtyQueue,
        stats: Stats,
        max_event_bytes: int,
        epochs: Mapping[str, int],
    ) -> None:
        self._histories = histories
        self._items = items
        self._log = log
        self._queue = queue
        self._stats = stats
        self._limit = max_event_bytes
        self._epochs = epochs  # by topic: how often it was made anew

    async def handle(self, batch: Batch, scenario: Scenario) -> None:
        """Apply a batch; on return everything in it is durable. Waits for as long as a store is away."""
        arrivals, letters = validate(batch, lambda raw: parse_event(scenario.name, raw), self._limit)
        source = Source(scenario, batch.partition, self._epochs.get(batch.topic, 1))
        await persistently(lambda: self._apply(arrivals, source))
        if letters:
            await persistently(lambda: self._log.dead_letter(letters))
            self._stats.add("dead_letters", len(letters))

    async def _apply(self, arrivals: Sequence[Arrival], source: Source) -> None:
        if not arrivals:
            return
        items = await self._items.get([a.name for a in arrivals])
        appends = group(arrivals, source, items)
        applied = await self._histories.append(appends)
        self._queue.put(
            Dirty(a.user_id, a.produced_ms) for a, done in zip(appends, applied, strict=True) if done.events
        )
        self._stats.add("events_applied", sum(a.events for a in applied))
        self._stats.add("duplicates_skipped", sum(a.duplicates for a in applied))
        self._stats.add("redelivered_skipped", sum(a.redelivered for a in applied))


def group(arrivals: Sequence[Arrival], source: Source, items: Mapping[str, StoredItem]) -> list[Append]:
    """One append per user, its events in the order of their offsets."""
    by_user: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_user[arrival.event.user_id].append(arrival)
    now_ms = int(time.time() * 1000)
    return [
        Append(
            user_id=user,
            source=source,
            produced_ms=min(now_ms, *(a.record.timestamp for a in theirs if a.record.timestamp > 0), now_ms),
            entries=tuple(_entry(a, source.scenario, items) for a in theirs),
        )
        for user, theirs in by_user.items()
    ]


def _entry(arrival: Arrival, scenario: int, items: Mapping[str, StoredItem]) -> Entry:
    event = arrival.event
    item = items[arrival.name]
    record = Record(event.ts, scenario, Action[event.action], item.index, item.codes)
    return Entry(arrival.record.offset, event_hash(event.event_id), record)
