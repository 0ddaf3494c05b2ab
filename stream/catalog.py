"""From catalogue items to codes in the store and vectors in Qdrant.

1. validate; what is no item becomes a dead letter; of one item's records in a batch the last counts
2. encode the texts; items with which the models fail again and again, and not with others, become dead letters
3. upsert into Qdrant's `items`
4. store the codes; then fill the histories that wait for them and mark their users dirty (the order matters)
   (3 and 4 are the `Shelf`'s: a bulk load puts items there too)
5. dead letters written

The batch is acknowledged by the caller, after `handle` has returned.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from stream.admission import payload
from stream.dirty_queue import DirtyQueue
from stream.errors import Permanent, Transient
from stream.events import Item, parse_item
from stream.identity import item_key
from stream.ingest import ItemCache, dead_letter
from stream.ledger import Batch, Record
from stream.ports import CatalogueEntry, DeadLetter, Encoded, Log, Models, Vectors
from stream.retry import persistently
from stream.stats import Stats
from stream.stores import Dirty, Histories, Items

CHUNK = 256  # items encoded and stored at once
BUDGET = 10.0  # seconds of failures after which the items may be to blame, and not the models
STRIKES = 3  # failures in a row, the models answering after each: after one alone an outage may just have ended
Parsed = tuple[Record, Item]
logger = logging.getLogger(__name__)


class Shelf:
    """Where encoded items go, and from where histories that wait for them are completed. Safe to repeat."""

    def __init__(self, *, items: Items, histories: Histories, vectors: Vectors) -> None:
        self._items = items
        self._histories = histories
        self._vectors = vectors

    async def put(self, entries: Sequence[CatalogueEntry], codes: Sequence[bytes]) -> list[Dirty]:
        """Make items searchable and their codes known; the users who waited for them and have been marked dirty."""
        await self._vectors.put_items(entries)
        claimed = await self._items.claim([item_key(entry.item.item_id) for entry in entries])
        known = {stored.index: code for stored, code in zip(claimed, codes, strict=True)}
        await self._items.put_codes(known)
        return await self._wake(known)

    async def _wake(self, codes: Mapping[int, bytes]) -> list[Dirty]:
        """Fill first, then mark: a refresh under way, that has read the history before, finds that its version has
        moved and leaves the mark."""
        waiting = await self._items.waiting(list(codes))
        fills: dict[str, dict[int, bytes]] = defaultdict(dict)
        for index, user in waiting:
            fills[user][index] = codes[index]
        await self._fill(fills)
        now_ms = int(time.time() * 1000)
        marks = [Dirty(user, now_ms) for user in fills]
        if marks:
            await self._histories.mark(marks)
            await self._items.release(waiting)
        return marks

    async def _fill(self, fills: Mapping[str, Mapping[int, bytes]]) -> None:
        """A history that cannot be filled is its own refresh's trouble, not the catalogue's."""
        try:
            await self._histories.fill(fills)
        except Permanent as error:
            logger.error("%d histories that wait for items: %s", len(fills), error)


class Catalog:
    """Applies batches of the topic `items`."""

    def __init__(
        self,
        *,
        items: Items,
        cache: ItemCache,
        histories: Histories,
        models: Models,
        vectors: Vectors,
        log: Log,
        queue: DirtyQueue,
        stats: Stats,
        max_bytes: int,
        budget: float = BUDGET,
    ) -> None:
        self._shelf = Shelf(items=items, histories=histories, vectors=vectors)
        self._cache = cache
        self._models = models
        self._log = log
        self._queue = queue
        self._stats = stats
        self._limit = max_bytes
        self._budget = budget

    async def handle(self, batch: Batch) -> None:
        """Apply a batch; on return everything in it is durable. Waits for as long as a service is away."""
        newest, letters = self._validate(batch)
        records = list(newest.values())
        for start in range(0, len(records), CHUNK):
            letters += await self._store_or_split(batch, records[start : start + CHUNK])
        if letters:
            await persistently(lambda: self._log.dead_letter(letters))
            self._stats.add("dead_letters", len(letters))

    def _validate(self, batch: Batch) -> tuple[dict[str, Parsed], list[DeadLetter]]:
        newest: dict[str, Parsed] = {}
        letters: list[DeadLetter] = []
        for record in batch.records:
            try:
                item = parse_item(payload(record, self._limit))
            except Permanent as error:
                letters.append(dead_letter(batch, record, str(error)))
            else:
                newest[item.item_id] = (record, item)
        return newest, letters

    async def _store_or_split(self, batch: Batch, records: Sequence[Parsed]) -> list[DeadLetter]:
        """Store the items; when they are refused for good, find by halves which, and give those up."""
        try:
            await persistently(lambda: self._store([item for _, item in records]))
        except Permanent as error:
            if len(records) == 1:
                return [dead_letter(batch, records[0][0], str(error))]
            middle = len(records) // 2
            left = await self._store_or_split(batch, records[:middle])
            return left + await self._store_or_split(batch, records[middle:])
        return []

    async def _store(self, items: Sequence[Item]) -> None:
        encoded = await self._encode(items)
        marks = await self._shelf.put(_entries(items, encoded), [row.tobytes() for row in encoded.codes])
        self._cache.forget([item_key(item.item_id) for item in items])
        self._queue.put(marks)
        self._stats.add("items_applied", len(items))

    async def _encode(self, items: Sequence[Item]) -> Encoded:
        """Waits while the models are away. `Permanent` when they go on failing with these, and answer for others."""
        texts, ids = [item.content for item in items], [item.item_id for item in items]
        patience, strikes = time.monotonic() + self._budget, 0

        async def attempt() -> Encoded:
            nonlocal strikes
            try:
                return await self._models.encode(texts, ids)
            except Transient as error:
                if time.monotonic() >= patience:
                    strikes = strikes + 1 if await self._answering() else 0
                if strikes < STRIKES:
                    raise
                raise Permanent(f"for {self._budget:g} s, and not with another text: {error}") from error

        return await persistently(attempt)

    async def _answering(self) -> bool:
        try:
            await self._models.encode(["?"], [""])
        except Transient:
            return False
        return True


def _entries(items: Sequence[Item], encoded: Encoded) -> list[CatalogueEntry]:
    return [
        CatalogueEntry(item, embedding, float(fidelity))
        for item, embedding, fidelity in zip(items, encoded.embeddings, encoded.fidelity, strict=True)
    ]
