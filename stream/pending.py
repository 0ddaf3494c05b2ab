"""Records whose codes were unknown when their event came: filled from the catalogue, or, for queries, by encoding them.

An item that is still unknown gets the user on its waiting list, and its codes are looked up once more after that: so
either this sees the codes, or the catalogue sees the user (`stream.catalog` writes codes first, then reads the list).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from stream import history
from stream.ports import Models
from stream.stores import Histories, Items, StoredItem

QUERY = "q:"
REMEMBERED = 100_000  # pairs of item and user that need not be put on a waiting list again; some 20 MB


class Pending:
    """Fills histories in."""

    def __init__(self, histories: Histories, items: Items, models: Models) -> None:
        self._histories = histories
        self._items = items
        self._models = models
        self._waiting: OrderedDict[tuple[int, str], None] = OrderedDict()  # pairs on waiting lists, newest last

    async def fill(self, packed: Mapping[str, bytes]) -> dict[str, bytes]:
        """The same users' histories with every code that can be known now."""
        wanted = {user: history.pending_items(data) for user, data in packed.items()}
        indexes = list(dict.fromkeys(i for items in wanted.values() for i in items))
        if not indexes:
            return dict(packed)
        codes = await self._codes(indexes)
        missing = [(i, user) for user, items in wanted.items() for i in items if i not in codes]
        fresh = [pair for pair in missing if pair not in self._waiting]
        if fresh:
            await self._items.wait(fresh)
            self._remember(fresh)
            codes |= await self._known(list(dict.fromkeys(i for i, _ in fresh)))
        found = {user: {i: codes[i] for i in items if i in codes} for user, items in wanted.items()}
        filled = await self._histories.fill({user: known for user, known in found.items() if known})
        return {user: filled.get(user) or data for user, data in packed.items()}

    def _remember(self, pairs: Sequence[tuple[int, str]]) -> None:
        self._waiting.update(dict.fromkeys(pairs))
        while len(self._waiting) > REMEMBERED:
            self._waiting.popitem(last=False)

    async def _codes(self, indexes: Sequence[int]) -> dict[int, bytes]:
        found = [item for item in await self._items.lookup(indexes) if item is not None]
        codes = {item.index: item.codes for item in found if item.codes is not None}
        queries = [item for item in found if item.codes is None and item.name.startswith(QUERY)]
        return codes | await self._encode(queries)

    async def _known(self, indexes: Sequence[int]) -> dict[int, bytes]:
        found = await self._items.lookup(indexes)
        return {item.index: item.codes for item in found if item is not None and item.codes is not None}

    async def _encode(self, queries: Sequence[StoredItem]) -> dict[int, bytes]:
        if not queries:
            return {}
        encoded = await self._models.encode([q.name.removeprefix(QUERY) for q in queries])
        codes = {q.index: c.tobytes() for q, c in zip(queries, encoded.codes, strict=True)}
        await self._items.put_codes(codes)
        return codes
