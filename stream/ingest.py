"""From a batch of raw records to durable histories.

The order is the guarantee (law 1). `handle` does what lies between fetching and acknowledging:

0. fetch: one partition's records become a batch, noted in the ledger (`stream.consumer`)
1. decode and validate; what is no event becomes a dead letter
2. look up items and their codes; an item unknown is kept, its codes pending
3. one Redis script per user: history, version, dirty mark
4. dead letters written, and acknowledged by Kafka
5. acknowledge the batch (`stream.batches.consume`)
6. commit what is acknowledged and everything before it is, too (`stream.consumer`)
"""

import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence

from models.contract import ACTIONS
from stream.admission import Admission
from stream.dirty_queue import DirtyQueue
from stream.errors import Permanent
from stream.events import Event, Scenario, SearchEvent
from stream.history import Source, pack_record
from stream.identity import event_hash, item_key, query_key
from stream.ledger import Batch
from stream.ledger import Record as LogRecord
from stream.ports import DeadLetter, Log
from stream.retry import persistently
from stream.stats import Stats
from stream.stores import Append, Applied, Dirty, Histories, Items, Registry, StoredItem

log = logging.getLogger(__name__)
ACTION_CODES = {name: code for code, name in enumerate(ACTIONS)}
Arrival = tuple[LogRecord, Event, str]  # a valid event, the record it came in, and the name of its item
CACHE_SECONDS = 60.0  # that codes may be those of an item's old text


def name_of(event: Event) -> str:
    """Of the item in the history: the query when one was typed, else what was acted on."""
    if isinstance(event, SearchEvent) and event.action == "search":
        return query_key(event.query or "")
    return item_key(event.item_id or "")


def validate(batch: Batch, scenario: str, admission: Admission) -> tuple[list[Arrival], list[DeadLetter]]:
    """Split a batch into events and dead letters."""
    arrivals: list[Arrival] = []
    letters: list[DeadLetter] = []
    for record in batch.records:
        try:
            event = admission.event(scenario, record)
            arrivals.append((record, event, name_of(event)))
        except Permanent as error:
            letters.append(dead_letter(batch, record, str(error)))
    return arrivals, letters


def dead_letter(batch: Batch, record: LogRecord, reason: str) -> DeadLetter:
    return DeadLetter(reason, batch.topic, batch.partition, record.offset, record.key, record.value)


class ItemCache:
    """Coded items by name, each for a while, as its text may change; of too many, those known longest are given up.
    Items without codes are asked for each time."""

    def __init__(self, items: Items, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._items = items
        self._size = size
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, StoredItem]] = OrderedDict()  # in the order of when it was learnt

    async def get(self, names: Sequence[str]) -> dict[str, StoredItem]:
        """Every name's item."""
        now, known, wanted = self._clock(), self._known, dict.fromkeys(names)
        while known and now - next(iter(known.values()))[0] > CACHE_SECONDS:
            known.popitem(last=False)
        found = {name: known[name][1] for name in wanted if name in known}
        if missing := [name for name in wanted if name not in found]:
            claimed = await self._items.claim(missing)
            found |= {item.name: item for item in claimed}
            self._learn(claimed, now)
        return found

    def _learn(self, items: Sequence[StoredItem], now: float) -> None:
        """Not what others have overtaken, who asked later: it would not be in its place."""
        known = self._known
        if known and next(reversed(known.values()))[0] > now:
            return
        for item in items:
            if item.codes is not None:
                known.pop(item.name, None)
                known[item.name] = (now, item)
        while len(known) > self._size:
            known.popitem(last=False)

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
        admission: Admission,
        registry: Registry,
    ) -> None:
        self._histories = histories
        self._items = items
        self._log = log
        self._queue = queue
        self._stats = stats
        self._admission = admission
        self._registry = registry
        self._epochs: Mapping[str, int] = {}  # by topic: how often it was created
        self._ends: dict[tuple[str, int], int] = {}  # by partition: the offset after the last batch

    async def handle(self, batch: Batch, scenario: Scenario) -> None:
        """Apply a batch; on return everything in it is durable. Waits for as long as a store is away."""
        arrivals, letters = validate(batch, scenario.name, self._admission)
        epoch = await persistently(lambda: self._epoch(batch))
        refused = await persistently(lambda: self._apply(arrivals, Source(scenario, batch.partition, epoch)))
        if refused:
            letters += [
                dead_letter(batch, record, refused[event.user_id])
                for record, event, _ in arrivals
                if event.user_id in refused
            ]
        if letters:
            await persistently(lambda: self._log.dead_letter(letters))
            self._stats.add("dead_letters", len(letters))
            log.warning("%s: %d dead letters, the first: %s", batch.topic, len(letters), letters[0].reason)

    async def _epoch(self, batch: Batch) -> int:
        """The incarnation of the batch's topic; looked up anew when offsets go back, as they do in a new one."""
        place = (batch.topic, batch.partition)
        if batch.first < self._ends.get(place, batch.end):
            self._epochs = await self._registry.epochs()
        self._ends[place] = batch.end
        return self._epochs.get(batch.topic, 1)

    async def _apply(self, arrivals: Sequence[Arrival], source: Source) -> dict[str, str]:
        """Apply; the users whose history cannot be read, and why."""
        if not arrivals:
            return {}
        items = await self._items.get([name for _, _, name in arrivals])
        appends = group(arrivals, source, items, self._histories.code_bytes)
        done = list(zip(appends, await self._histories.append(appends), strict=True))
        applied = [(append, a) for append, a in done if isinstance(a, Applied)]
        for append, a in applied:
            if a.events:
                self._queue.tell(Dirty(append.user_id, append.produced_ms), source.scenario, a.events)
        self._stats.add("events_applied", sum(a.events for _, a in applied))
        self._stats.add("duplicates_skipped", sum(a.duplicates for _, a in applied))
        self._stats.add("redelivered_skipped", sum(a.redelivered for _, a in applied))
        return {append.user_id: str(a) for append, a in done if isinstance(a, Permanent)}


def group(
    arrivals: Sequence[Arrival], source: Source, items: Mapping[str, StoredItem], code_bytes: int
) -> list[Append]:
    """One append per user, its events in the order of their offsets."""
    by_user: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_user[arrival[1].user_id].append(arrival)
    now_ms = int(time.time() * 1000)
    return [
        Append(
            user_id=user,
            source=source,
            produced_ms=min([now_ms, *[record.timestamp for record, _, _ in theirs if record.timestamp > 0]]),
            entries=_entries(theirs, source.scenario, items, code_bytes),
        )
        for user, theirs in by_user.items()
    ]


def _entries(arrivals: Sequence[Arrival], scenario: int, items: Mapping[str, StoredItem], code_bytes: int) -> bytes:
    """As stream/history.py has them."""
    return b"".join(
        [
            record.offset.to_bytes(5)
            + event_hash(event.event_id)
            + pack_record(
                event.ts, scenario, ACTION_CODES[event.action], (item := items[name]).index, item.codes, code_bytes
            )
            for record, event, name in arrivals
        ]
    )
