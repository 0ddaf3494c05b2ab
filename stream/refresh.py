"""From dirty users to searchable profiles.

One refresh of a batch of users, each step safe to repeat after a crash. Whose shard has another owner by now is passed
over; what comes of it when that happens later, stream.ownership says.

1. read the packed histories
2. fill codes that were pending and are known by now; encode queries met for the first time
3. ask the models for interests: codes travel, never embeddings; and what the models made of the long history before
4. upsert into Qdrant, each user only over a version that is not newer (law 3)
5. announce on profiles.updated
6. clear the dirty mark if the version has not moved since step 1 (law 4)

Announcing comes before clearing, so that a crash between the two repeats an announcement and never loses one.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stream import history
from stream.coarse import CoarseCache
from stream.dirty_queue import DirtyQueue
from stream.errors import Permanent, Transient
from stream.ownership import Ownership
from stream.pending import Pending
from stream.ports import Interests, Log, ModelCard, Models, Profile, Update, Vectors
from stream.ramp import Ramp
from stream.retry import LONGEST_DELAY, delays
from stream.stats import Stats
from stream.stores import Dirty, Histories, Refreshed
from stream.suspects import Suspects

IDLE = 0.5  # seconds after which an idle drain looks again, whatever it was told
PENALTY = 30.0  # seconds for which sweeps pass over a user whose refresh failed for good; a new event does not
SWEEP_PAGE = 256  # users of one virtual shard looked at by a sweep
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How fast a worker refreshes."""

    batch: int  # users per model call
    concurrency: int  # batches under way at once
    sweep_interval: float  # seconds


class Refresher:
    """Drains the dirty users of one worker until cancelled."""

    def __init__(
        self,
        *,
        histories: Histories,
        pending: Pending,
        models: Models,
        vectors: Vectors,
        log: Log,
        card: ModelCard,
        queue: DirtyQueue,
        stats: Stats,
        pace: Pace,
        ownership: Ownership,
        coarse: CoarseCache,
    ) -> None:
        self._histories = histories
        self._pending = pending
        self._models = models
        self._vectors = vectors
        self._log = log
        self._card = card
        self._queue = queue
        self._stats = stats
        self._pace = pace
        self._ownership = ownership
        self._coarse = coarse
        self._ramp = Ramp(pace.concurrency)
        self._suspects = Suspects()
        self._penalised: dict[str, float] = {}

    @property
    def refused(self) -> int:
        """Users whose refresh failed for good a short while ago, and who stay dirty."""
        return len(self._penalised)

    async def run(self) -> None:
        """Sweep and drain side by side."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep())
            for number in range(self._pace.concurrency):
                group.create_task(self._drain(number))

    async def _sweep(self) -> None:
        """Find dirty users that nobody told us of: of a worker that died, of a rebalance, of the catalogue."""
        while True:
            try:
                marks = await self._histories.dirty(self._ownership.shards(), SWEEP_PAGE)
                settled_ms = time.time() * 1000 - self._pace.sweep_interval * 1000  # younger marks have been told of
                self._penalised = {user: until for user, until in self._penalised.items() if until > time.monotonic()}
                self._queue.prune()
                self._suspects.keep({mark.user_id for mark in marks})
                self._queue.fill(m for m in marks if m.since_ms < settled_ms and self._due(m.user_id))
            except (Transient, Permanent) as error:
                log.warning("sweep: %s", error)
            await asyncio.sleep(self._pace.sweep_interval)

    async def _drain(self, number: int) -> None:
        waits = delays()
        while True:
            await self._ramp.turn(number)
            marks = self._take()
            if not marks:
                await self._queue.arrival(time.monotonic(), IDLE)
                continue
            try:
                await self._refresh_or_split(marks)
                self._ramp.succeeded()
                self._suspects.succeeded(marks)
                waits = delays()
            except Transient as error:
                delay = min(next(waits), LONGEST_DELAY)
                log.warning("refresh of %d users: %s; trying again in %.1f s", len(marks), error, delay)
                self._ramp.failed()
                self._queue.back(self._suspects.failed(marks, time.monotonic()))
                await asyncio.sleep(delay)
            finally:
                self._queue.done(m.user_id for m in marks)

    def _take(self) -> Sequence[Dirty]:
        """Whose turn it is, and who may be asked for at once."""
        marks = self._queue.take(self._pace.batch, time.monotonic(), time.time() * 1000)
        chosen = self._suspects.together(marks)
        rest = marks[len(chosen) :]
        self._queue.back(rest)
        self._queue.done(mark.user_id for mark in rest)
        return chosen

    async def _refresh_or_split(self, marks: Sequence[Dirty]) -> None:
        """Refresh a batch; when it is refused for good, find out by halves whose fault it is."""
        try:
            await self.refresh(marks)
        except Permanent as error:
            if len(marks) == 1:
                self._punish(marks[0].user_id, error)
                return
            middle = len(marks) // 2
            await self._refresh_or_split(marks[:middle])
            await self._refresh_or_split(marks[middle:])

    async def refresh(self, marks: Sequence[Dirty]) -> None:
        """Bring the profiles of these users up to date and clear their marks."""
        tokens = await self._ownership.tokens([m.user_id for m in marks])
        marks = [m for m in marks if m.user_id in tokens]
        read_ms = int(time.time() * 1000)
        packed = await self._histories.read([m.user_id for m in marks])
        present = {m.user_id: data for m, data in zip(marks, packed, strict=True) if data is not None}
        gone = [Refreshed(m.user_id, 0, read_ms, tokens[m.user_id]) for m in marks if m.user_id not in present]
        if present:
            present = await self._pending.fill(present)
            profiles = await self._profiles(present, tokens)
            await self._vectors.put_profiles(profiles)
            for profile in profiles:
                self._queue.urgency.refreshed(profile.user_id, profile.vectors)
            self._measure([m for m in marks if m.user_id in present])
            await self._log.announce([_update(p) for p in profiles])
        done = [Refreshed(user, history.version_of(data), read_ms, tokens[user]) for user, data in present.items()]
        cleared = await self._histories.settle([*done, *gone])
        moved = [r.user_id for r, clean in zip([*done, *gone], cleared, strict=True) if not clean]
        self._queue.put(Dirty(user, read_ms) for user in moved)

    async def _profiles(self, present: Mapping[str, bytes], tokens: Mapping[str, int]) -> list[Profile]:
        answer = await self._interests(present)
        self._stats.add("inferences", len(present))
        return [
            Profile(
                user_id=user,
                version=history.version_of(data),
                model_version=answer.model_version,
                codebook_version=self._card.codebook_version,
                event_ts=history.newest_ts(data),
                token=tokens[user],
                vectors=vectors,
                weights=weights,
            )
            for (user, data), vectors, weights in zip(present.items(), answer.vectors, answer.weights, strict=True)
        ]

    async def _interests(self, present: Mapping[str, bytes]) -> Interests:
        known = self._coarse.known(present)
        answer = await self._models.interests(history.tensors(list(present.values()), known))
        if known is not None and answer.model_version != self._coarse.model_version:  # what it was given is not its own
            known = None
            answer = await self._models.interests(history.tensors(list(present.values())))
        reused = self._coarse.hear(present, known, answer)
        self._stats.add("coarse_reused", reused)
        self._stats.add("coarse_computed", len(present) - reused)
        return answer

    def _measure(self, marks: Sequence[Dirty]) -> None:
        now_ms = time.time() * 1000
        self._stats.add("refreshes", len(marks))
        for mark in marks:
            self._stats.fresh(now_ms - mark.since_ms)

    def _punish(self, user_id: str, error: Permanent) -> None:
        log.error("user %r cannot be refreshed and stays dirty: %s", user_id, error)
        self._stats.add("refreshes_refused")
        self._penalised[user_id] = time.monotonic() + PENALTY

    def _due(self, user_id: str) -> bool:
        aside = user_id in self._penalised or self._suspects.aside(user_id, time.monotonic())
        return not aside and user_id not in self._queue


def _update(profile: Profile) -> Update:
    return Update(profile.user_id, profile.version, profile.model_version, profile.codebook_version, profile.event_ts)
