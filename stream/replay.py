"""The log applied once more: to stores that lack some of it, or to empty ones, all of it.

Law 5: what comes out are the same histories, byte for byte. Offset marks skip what a store has already.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from stream.catalog import Catalog
from stream.events import Scenario
from stream.ingest import Ingest
from stream.ports import DeadLetter, Log, Reader, Update
from stream.refresh import Refresher
from stream.stores import Histories, Items, Registry
from stream.topics import SCENARIO_OF

LOOK_SECONDS = 0.5  # between two looks at how many are still dirty

Advance = Callable[[int], object]


class Reread:
    """The log while it is replayed: its dead letters were written the first time, its announcements are news."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """Nothing: whoever hands them in counts them."""

    async def announce(self, updates: Sequence[Update]) -> None:
        await self._log.announce(updates)


async def apply_items(reader: Reader, catalog: Catalog, advance: Advance) -> None:
    """Every item of `reader`: encoded and stored, as when it came."""
    async for batch in reader.batches():
        await catalog.handle(batch)
        advance(len(batch.records))


async def apply_events(reader: Reader, ingest: Ingest, advance: Advance) -> None:
    """Every event of `reader`, as when it came."""
    async for batch in reader.batches():
        await ingest.handle(batch, Scenario[SCENARIO_OF[batch.topic]])
        advance(len(batch.records))


async def refresh_dirty(refresher: Refresher, histories: Histories, advance: Advance) -> None:
    """Refresh until nobody is dirty but those whose refresh is refused."""
    left = await histories.dirty_count()
    running = asyncio.create_task(refresher.run())
    try:
        while left > refresher.refused:
            await asyncio.wait({running}, timeout=LOOK_SECONDS)
            if running.done():
                running.result()
            before, left = left, await histories.dirty_count()
            advance(before - left)
    finally:
        running.cancel()
        await asyncio.wait({running})


async def copy_items(source: Items, target: Items, advance: Advance) -> None:
    """Indexes are given to items first come, first served; histories are the same only where these are."""
    async for page in source.scan():
        await target.put(page)
        advance(len(page))


async def copy_epochs(source: Registry, target: Registry) -> None:
    """To a registry that has counted nothing yet."""
    await target.count_creation(list(Counter(await source.epochs()).elements()))
