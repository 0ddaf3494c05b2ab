"""From the log to searchable profiles: the parts that a worker and a replay run alike, over the same services."""

from dataclasses import dataclass
from functools import cached_property

from stream.admission import Admission
from stream.catalog import Catalog
from stream.coarse import CoarseCache
from stream.dirty_queue import DirtyQueue
from stream.errors import Permanent
from stream.ingest import Ingest, ItemCache
from stream.ownership import Ownership
from stream.pending import Pending
from stream.ports import Log, ModelCard
from stream.refresh import Pace, Refresher
from stream.services import Services, Stores
from stream.settings import Settings
from stream.stats import Stats


@dataclass(frozen=True)
class Pipeline:
    """Made when they are asked for."""

    settings: Settings
    services: Services
    stores: Stores
    log: Log
    queue: DirtyQueue
    stats: Stats

    @cached_property
    def cache(self) -> ItemCache:
        return ItemCache(self.stores.items, self.settings.item_cache)

    @cached_property
    def ingest(self) -> Ingest:
        return Ingest(
            histories=self.stores.histories,
            items=self.cache,
            log=self.log,
            queue=self.queue,
            stats=self.stats,
            admission=Admission(self.settings.max_event_bytes, self.settings.lateness_hours),
            registry=self.services.registry,
        )

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog(
            items=self.stores.items,
            cache=self.cache,
            histories=self.stores.histories,
            models=self.services.models,
            vectors=self.services.vectors,
            log=self.log,
            queue=self.queue,
            stats=self.stats,
            max_bytes=self.settings.max_event_bytes,
        )

    def refresher(self, card: ModelCard, ownership: Ownership) -> Refresher:
        """Of the virtual shards of `ownership`. Raises `Permanent` when the models are of another codebook."""
        if card.codebook_version != self.stores.codebook.version:
            raise Permanent(
                f"Triton serves codebook {card.codebook_version}, the histories in Redis are of "
                f"{self.stores.codebook.version}: serve the old one, or provision an empty Redis and Qdrant and "
                "replay the log"
            )
        settings = self.settings
        return Refresher(
            histories=self.stores.histories,
            pending=Pending(self.stores.histories, self.stores.items, self.services.models),
            models=self.services.models,
            vectors=self.services.vectors,
            log=self.log,
            card=card,
            queue=self.queue,
            stats=self.stats,
            pace=Pace(settings.refresh_batch, settings.refresh_concurrency, settings.sweep_interval),
            ownership=ownership,
            coarse=CoarseCache(settings.coarse_events, 3600 * settings.coarse_hours),
        )
