"""The whole path in one process, over the in-memory twins: what ingest, refresh and catalogue tests share."""

import json
import time
from collections.abc import Sequence
from typing import Any

from stream.adapters.memory import MemoryLog, MemoryModels, MemoryVectors
from stream.adapters.memory_stores import MemoryHistories, MemoryItems, MemoryRegistry
from stream.admission import Admission
from stream.catalog import Catalog
from stream.coarse import CoarseCache
from stream.dirty_queue import DirtyQueue
from stream.events import Scenario
from stream.history import History, decode
from stream.identity import SHARDS
from stream.ingest import Ingest, ItemCache
from stream.ledger import Batch, Record
from stream.ownership import Ownership
from stream.pending import Pending
from stream.ports import ModelCard
from stream.refresh import Pace, Refresher
from stream.stats import Stats

NOW_MS = 1_750_000_000_000
CARD = ModelCard(dim=64, interests=4, code_bytes=4, codebook_version=1, model_version="1")


class Rig:
    """Every part, each open to be replaced by one that fails."""

    def __init__(self, **parts: Any) -> None:
        self.histories = parts.get("histories") or MemoryHistories(4, 1)
        self.items = parts.get("items") or MemoryItems()
        self.models = parts.get("models") or MemoryModels()
        self.vectors = parts.get("vectors") or MemoryVectors()
        self.log = parts.get("log") or MemoryLog()
        self.registry = parts.get("registry") or MemoryRegistry()
        self.stats = Stats()
        self.queue = DirtyQueue(stats=self.stats, **parts.get("queue", {}))
        self.cache = ItemCache(self.items, 100)
        self.ingest = Ingest(
            histories=self.histories,
            items=self.cache,
            log=self.log,
            queue=self.queue,
            stats=self.stats,
            admission=Admission(65_536, parts.get("lateness_hours", 0)),
            registry=self.registry,
        )
        self.catalog = Catalog(
            items=self.items,
            cache=self.cache,
            histories=self.histories,
            models=self.models,
            vectors=self.vectors,
            log=self.log,
            queue=self.queue,
            stats=self.stats,
            max_bytes=65_536,
            budget=parts.get("catalogue_budget", 10.0),
        )
        self.refresher = Refresher(
            histories=self.histories,
            pending=Pending(self.histories, self.items, self.models),
            models=self.models,
            vectors=self.vectors,
            log=self.log,
            card=CARD,
            queue=self.queue,
            stats=self.stats,
            pace=parts.get("pace") or Pace(batch=8, concurrency=1, sweep_interval=0.05),
            ownership=Ownership(self.histories, lambda: frozenset(range(SHARDS))),
            coarse=parts.get("coarse") or CoarseCache(),
        )

    async def provision(self) -> "Rig":
        await self.vectors.provision(CARD)
        return self

    async def feed(self, *values: dict[str, Any] | bytes | None, scenario: str = "feed", first: int = 0) -> None:
        await self.ingest.handle(batch(f"events.{scenario}", values, first), Scenario[scenario])

    async def catalogue(self, *values: dict[str, Any] | bytes | None) -> None:
        await self.catalog.handle(batch("items", values))

    async def refresh(self) -> int:
        """Refresh whoever is queued; how many."""
        marks = self.queue.take(100, time.monotonic(), time.time() * 1000)
        await self.refresher.refresh(marks)
        self.queue.done(m.user_id for m in marks)
        return len(marks)

    async def history(self, user: str = "u") -> History:
        (data,) = await self.histories.read([user])
        assert data is not None
        return decode(data)


def batch(topic: str, values: Sequence[dict[str, Any] | bytes | None], first: int = 0) -> Batch:
    raw = [json.dumps(v).encode() if isinstance(v, dict) else v for v in values]
    now_ms = int(time.time() * 1000)
    return Batch(topic, 0, tuple(Record(first + n, b"key", value, now_ms) for n, value in enumerate(raw)))


def event(number: int, item: str | None = "i1", user: str = "u", **more: Any) -> dict[str, Any]:
    made = {"event_id": f"e{number}", "user_id": user, "action": "click", "ts": NOW_MS + number, **more}
    return made if item is None else {"item_id": item} | made


def item(item_id: str, title: str = "") -> dict[str, Any]:
    return {"item_id": item_id, "title": title or f"title of {item_id}"}
