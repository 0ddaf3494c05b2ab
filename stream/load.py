"""The catalogue of a checkpoint into Redis and Qdrant, without asking a model: as the catalogue path would have, but at
the pace of the stores. Safe to break off and to repeat.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from stream.catalog import Shelf
from stream.errors import UserError
from stream.events import Item, parse_item
from stream.files import Fault, read_items
from stream.ports import CatalogueEntry, ModelCard
from stream.services import Services, Stores
from stream.trained import Coded, catalogue, refuse_other_codebook


class Details:
    """What a file says of items, by id, on disk: `with Details(path) as details`. Without a file, nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.bad = 0  # lines left out

    def __enter__(self) -> Self:
        self._store = store = sqlite3.connect("", isolation_level=None)  # a temporary file, unless it is small
        store.execute("CREATE TABLE items (item_id TEXT PRIMARY KEY, item TEXT) WITHOUT ROWID")
        store.execute("PRAGMA journal_mode = OFF")
        store.execute("BEGIN")
        for line in () if self._path is None else read_items(self._path):
            if isinstance(line, Fault):
                self.bad += 1
            else:
                row = (line.item.item_id, line.item.model_dump_json(exclude_none=True))
                store.execute("INSERT OR REPLACE INTO items VALUES (?, ?)", row)
        if self.bad and not store.execute("SELECT count(*) FROM items").fetchone()[0]:
            store.close()
            raise UserError(f"{self._path} has no item: see facetstream validate {self._path} --items")
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def of(self, item_id: str) -> Item:
        """The item, or one of which nothing but the id is known."""
        found = self._store.execute("SELECT item FROM items WHERE item_id = ?", (item_id,)).fetchone()
        return parse_item(found[0].encode()) if found else Item.model_construct(item_id=item_id)


async def load(
    services: Services, stores: Stores, checkpoint: Path, details: Details, advance: Callable[[int], object]
) -> int:
    """Load all items, and say how many. `UserError` when the checkpoint is of another codebook, or of other models,
    than those that are stored and served."""
    refuse_other_codebook(checkpoint, stores.codebook)
    card = await services.models.card()
    _refuse_other_models(card, stores)
    await services.vectors.check(card)
    shelf = Shelf(items=stores.items, histories=stores.histories, vectors=services.vectors)
    count = 0
    for batch in catalogue(checkpoint, card):
        await shelf.put(_entries(batch, details), [coded.codes for coded in batch])
        count += len(batch)
        advance(len(batch))
    return count


def _entries(batch: Sequence[Coded], details: Details) -> list[CatalogueEntry]:
    return [CatalogueEntry(details.of(coded.item_id), coded.embedding, coded.fidelity) for coded in batch]


def _refuse_other_models(card: ModelCard, stores: Stores) -> None:
    if card.codebook_version != stores.codebook.version:
        raise UserError(
            f"Triton serves codebook {card.codebook_version}, Redis holds histories of codebook "
            f"{stores.codebook.version}: serve the version that belongs to them"
        )
