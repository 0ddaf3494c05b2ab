"""The demonstration: a population streams through the whole path, then a search burst changes one user's feed.

What it reports is read back from the stores and compared with what was sent; counters feed the display, and say when
to look.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from stream import history
from stream.addresses import Addresses
from stream.errors import Transient
from stream.ports import Hit
from stream.profile import seen
from stream.retrieval import Retrieval
from stream.services import Producer, Services, Stores, producer
from stream.settings import Settings
from stream.stats import quantiles
from stream.synthetic import Act, Population, search_burst

PATIENCE = 60.0  # seconds without any progress after which the demo gives up
POLL = 0.25  # seconds between two looks at the counters
BURST_EVENTS = 12
TOP = 10

Watch = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """What the live view shows."""

    phase: str
    produced: int
    counts: Counter[str]  # since the demo began
    dirty: int
    seconds: float  # since the events began

    @property
    def dealt_with(self) -> int:
        """Events that are in a history, were there before, or are dead letters."""
        return self.counts["events_applied"] + self.counts["duplicates_skipped"] + self.counts["dead_letters"]


@dataclass(frozen=True)
class Story:
    """One user's feed before and after a burst of searches."""

    user_id: str
    subtopic: str
    queries: Sequence[str]
    before: Sequence[Hit]
    after: Sequence[Hit]
    seconds: float  # from the last event of the burst to the profile that holds it

    topical: frozenset[str] = frozenset()  # items of the catalogue that are about the subtopic

    @property
    def changed(self) -> bool:
        """Whether the searches brought items of their subtopic into the feed."""
        return bool(self.fresh & self.topical)

    @property
    def fresh(self) -> frozenset[str]:
        """Item ids that are in the list after and were not before."""
        return frozenset(h.item_id for h in self.after) - {h.item_id for h in self.before}


@dataclass(frozen=True)
class Audit:
    """What the stores hold of the demo's users and items, against what was sent."""

    events_expected: int
    events_found: int
    users: int
    stale_users: int  # whose point in Qdrant is not of the history's version
    qdrant_users: int
    qdrant_items: int
    records: int
    history_bytes: int
    fidelity: float  # mean cosine between an item's embedding and its decoded codes

    @property
    def complete(self) -> bool:
        return self.events_found == self.events_expected and self.stale_users == 0


class Demo:
    """One run over services that are up; a worker must be consuming."""

    def __init__(
        self,
        settings: Settings,
        addresses: Addresses,
        services: Services,
        stores: Stores,
        population: Population,
        watch: Watch,
    ) -> None:
        self._settings = settings
        self._addresses = addresses
        self._services = services
        self._stores = stores
        self._population = population
        self._watch = watch
        self._base: Counter[str] = Counter()
        self._applied: Counter[str] = Counter()  # by user, before the demo
        self._sent: Counter[str] = Counter()  # by user, during it
        self._began = time.monotonic()

    async def run(self, rate: float) -> Story:
        """The whole of it, `rate` events a second."""
        await self.prepare()
        await self.stream_catalogue()
        await self.stream_events(rate)
        return await self.tell()

    async def prepare(self) -> None:
        """Note where the counters and the histories stand: the stores may hold an earlier run."""
        self._base = await self._services.counters.read()
        self._applied = await self._events_applied()

    async def stream_catalogue(self) -> None:
        """Send the items; return when all are encoded and searchable."""
        items = self._population.catalogue.items
        async with self._producer() as kafka:
            for item in items:
                await kafka.send_item(item.item_id, item.model_dump_json(exclude_none=True).encode())
            await kafka.flush()
            await self._until("catalogue", self._catalogued)

    async def stream_events(self, rate: float) -> None:
        """Send the events at `rate` a second (0: as fast as they are taken); return when every profile is fresh."""
        self._began = time.monotonic()
        sending = asyncio.create_task(self._send_all(rate))
        watching = asyncio.create_task(self._show("streaming"))
        try:
            ended, _ = await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also where the demo is cancelled: neither may outlive it, and find its servers gone
            for task in (sending, watching):
                task.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
        ended.pop().result()
        await self._until("draining", self._quiet)

    async def _send_all(self, rate: float) -> None:
        async with self._producer() as kafka:
            for number, act in enumerate(self._population.acts):
                if rate:
                    await _sleep_until(self._began + number / rate)
                await self._send(kafka, act)
            await kafka.flush()

    async def tell(self) -> Story:
        """A burst of searches by one user, and what it does to the feed."""
        user = self._protagonist()
        subtopic = self._population.foreign_subtopic(user)
        before = await self.recommend(user)
        at_ms = int(time.time() * 1000)
        burst = search_burst(self._population.catalogue, user, subtopic, at_ms, BURST_EVENTS)
        async with self._producer() as kafka:
            for act in burst:
                await self._send(kafka, act)
            await kafka.flush()
            began = time.monotonic()
            await self._until("search burst", self._quiet)
        after = await self.recommend(user)
        queries = [act.record["query"] for act in burst if act.record["action"] == "search"]
        topical = frozenset(self._population.catalogue.shelves[subtopic])
        return Story(user, subtopic, list(dict.fromkeys(queries)), before, after, time.monotonic() - began, topical)

    async def recommend(self, user_id: str) -> list[Hit]:
        exclude = await seen(self._stores.histories, self._stores.items, user_id)
        return await Retrieval(self._services.vectors).recommend(user_id, "feed", TOP, "rrf", exclude)

    async def audit(self) -> Audit:
        """Read everything back."""
        users = list(self._sent)
        packed = dict(zip(users, await self._stores.histories.read(users), strict=True))
        versions = await self._services.vectors.versions(users)
        held = {user: history.decode(data) for user, data in packed.items() if data is not None}
        now = Counter({user: h.events_applied for user, h in held.items()})
        stats = await self._services.vectors.stats()
        return Audit(
            events_expected=self._sent.total(),
            events_found=sum(min(now[u] - self._applied[u], self._sent[u]) for u in users),
            users=len(held),
            stale_users=sum(versions.get(user) != h.version for user, h in held.items()),
            qdrant_users=stats.users,
            qdrant_items=stats.items,
            records=sum(len(h.records) for h in held.values()),
            history_bytes=sum(len(data) for data in packed.values() if data is not None),
            fidelity=stats.fidelity,
        )

    async def progress(self, phase: str) -> Progress:
        counts = await self._services.counters.read()
        counts.subtract(self._base)
        dirty = await self._stores.histories.dirty_count()
        return Progress(phase, self._sent.total(), counts, dirty, time.monotonic() - self._began)

    def _protagonist(self) -> str:
        """The user with the median number of events."""
        ranked = sorted(self._sent, key=lambda user: (self._sent[user], user))
        return ranked[len(ranked) // 2]

    async def _send(self, kafka: Producer, act: Act) -> None:
        user = act.record["user_id"]
        await kafka.send_event(act.scenario, user, json.dumps(act.record).encode())
        self._sent[user] += 1

    async def _quiet(self, progress: Progress) -> bool:
        """Nobody is dirty, and all events are counted; or, where a count was lost with a worker, found."""
        counted = progress.dealt_with >= progress.produced
        return progress.dirty == 0 and (counted or (await self.audit()).complete)

    async def _catalogued(self, progress: Progress) -> bool:
        return progress.counts["items_applied"] >= len(self._population.catalogue.items)

    async def _until(self, phase: str, done: Callable[[Progress], Awaitable[bool]]) -> None:
        """Watch until `done`, or until nothing has moved for `PATIENCE` seconds."""
        last, moved = Counter[str](), time.monotonic()
        while not await done(progress := await self.progress(phase)):
            self._watch(progress)
            if progress.counts != last:
                last, moved = progress.counts, time.monotonic()
            if time.monotonic() - moved > PATIENCE:
                raise Transient(f"nothing has moved for {PATIENCE:.0f} s during: {phase}; is a worker running?")
            await asyncio.sleep(POLL)
        self._watch(progress)

    async def _show(self, phase: str) -> None:
        while True:
            self._watch(await self.progress(phase))
            await asyncio.sleep(POLL)

    async def _events_applied(self) -> Counter[str]:
        users = list({act.record["user_id"] for act in self._population.acts})
        packed = await self._stores.histories.read(users)
        return Counter(
            {u: history.decode(data).events_applied for u, data in zip(users, packed, strict=True) if data is not None}
        )

    def _producer(self) -> Producer:
        return producer(self._addresses.kafka, self._settings)


async def _sleep_until(moment: float) -> None:
    delay = moment - time.monotonic()
    if delay > 0:
        await asyncio.sleep(delay)


def report(progress: Progress, audit: Audit, story: Story, seconds: float) -> dict[str, object]:
    """The verdict as one JSON object."""
    p50, p95, p99 = quantiles(progress.counts)
    return {
        "events_produced": progress.produced,
        "events_applied": audit.events_found,
        "duplicates_skipped": progress.counts["duplicates_skipped"],
        "dead_letters": progress.counts["dead_letters"],
        "users": audit.users,
        "stale_users": audit.stale_users,
        "refreshes": progress.counts["refreshes"],
        "qdrant_users": audit.qdrant_users,
        "qdrant_items": audit.qdrant_items,
        "bytes_per_event": round(audit.history_bytes / max(1, audit.records), 2),
        "codebook_cosine": round(audit.fidelity, 4),
        "freshness_ms": {"p50": p50, "p95": p95, "p99": p99},
        "feed_before": [h.item_id for h in story.before],
        "feed_after": [h.item_id for h in story.after],
        "recommendations_changed": story.changed,
        "burst_to_profile_seconds": round(story.seconds, 3),
        "seconds": round(seconds, 1),
    }
