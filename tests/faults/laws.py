"""What must be true of a cell in the end, whatever was killed: the laws of the design, against the source of truth."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from stream import history
from stream.adapters.memory_stores import MemoryHistories
from stream.errors import Transient
from stream.events import Scenario
from stream.identity import shard
from stream.ledger import Batch, Record
from stream.services import connect, reader
from stream.topics import ALL, DEAD, EVENT_TOPICS, ITEMS, UPDATED
from tests.faults.system import System
from tests.faults.truth import Line, Truth
from tests.path.rig import Rig

WATCH_SECONDS = 0.5
SCENARIO_OF = {topic: Scenario[name] for name, topic in EVENT_TOPICS.items()}


@dataclass(frozen=True)
class Verdict:
    """A row of the matrix; `broken` names each law that is, and how."""

    events: int  # distinct good ones
    applied: int
    duplicated: int
    lost: int
    stale: int  # profiles that are not of the history's version
    letters: int  # dead letters expected
    found: int  # and found
    seconds: float = float("nan")  # from the first attempt to bring the process back
    broken: tuple[str, ...] = ()


class Watch:
    """Looks at versions again and again: what has been seen to fall, in Redis or in Qdrant (law 3)."""

    def __init__(self) -> None:
        self.fallen: list[str] = []
        self._seen: dict[str, Counter[str]] = {"Redis": Counter(), "Qdrant": Counter()}

    def see(self, where: str, versions: dict[str, int]) -> None:
        seen = self._seen[where]
        self.fallen += [f"{where}: {u} from {seen[u]} to {v}" for u, v in versions.items() if v < seen[u]]
        seen.update({u: v - seen[u] for u, v in versions.items()})


@asynccontextmanager
async def watching(system: System, users: Sequence[str]) -> AsyncIterator[Watch]:
    watch, over = Watch(), asyncio.Event()

    async def look() -> None:
        async with connect(system.settings, system.addresses) as services:
            while not over.is_set():
                with suppress(Transient):
                    watch.see("Redis", await _versions(system, users))
                with suppress(Transient):
                    watch.see("Qdrant", await services.vectors.versions(users))
                await asyncio.sleep(WATCH_SECONDS)

    task = asyncio.create_task(look())
    try:
        yield watch
    finally:
        over.set()  # httpx may swallow a cancellation
        await task


async def judge(system: System, truth: Truth, watch: Watch, since_ms: int, ordered: bool) -> Verdict:
    """Read all stores and the log from `since_ms`. `ordered`: no two workers were at it at once."""
    packed = dict(zip(truth.users, await system.opened.histories.read(truth.users), strict=True))
    profiles = await system.services.vectors.versions(truth.users)
    log = await _log(system, since_ms)
    actual = {user: _lines(data) for user, data in packed.items()}
    expected = {user: sorted(truth.histories[user]) for user in truth.users}
    versions = {user: history.version_of(data) if data else 0 for user, data in packed.items()}
    letters = [record.value or b"" for batch in log[DEAD] for record in batch.records]
    stale = [user for user in truth.users if profiles.get(user) != versions[user]]
    broken = [
        *(f"law 1 or 2: {u} is not what was sent" for u in truth.users if actual[u] != expected[u]),
        *(f"law 3: {fall}" for fall in watch.fallen),
        *(f"law 3 or 4: {u} has profile {profiles.get(u)} of history {versions[u]}" for u in stale),
        *_announced(log[UPDATED], versions, ordered),
        *(f"law 5: {u} replayed is not the same" for u in await _replayed_otherwise(system, log, packed)),
        *(f"law 6: {u} has other partitions than its own" for u, d in packed.items() if _astray(system, u, d)),
        *(f"law 9: {value!r} was refused" for value in set(letters) - truth.letters),
        *(f"law 9: no dead letter for {value!r}" for value in truth.letters - set(letters)),
    ]
    return Verdict(
        events=truth.events,
        applied=sum(history.decode(data).events_applied for data in packed.values() if data),
        duplicated=sum((_counted(actual) - _counted(expected)).values()),
        lost=sum((_counted(expected) - _counted(actual)).values()),
        stale=len(stale),
        letters=len(truth.letters),
        found=len(set(letters)),
        broken=tuple(broken),
    )


async def _versions(system: System, users: Sequence[str]) -> dict[str, int]:
    packed = zip(users, await system.opened.histories.read(users), strict=True)
    return {user: history.version_of(data) for user, data in packed if data is not None}


def _lines(data: bytes | None) -> list[Line]:
    """A history that cannot be decoded breaks law 7, and the cell with it."""
    return [(r.ts, r.scenario, r.action, r.item) for r in history.decode(data).records] if data else []


def _counted(histories: dict[str, list[Line]]) -> Counter[tuple[str, Line]]:
    return Counter((user, line) for user, lines in histories.items() for line in lines)


async def _log(system: System, since_ms: int) -> dict[str, list[Batch]]:
    """What each topic holds of the cell."""
    found: dict[str, list[Batch]] = defaultdict(list)
    async with reader(system.addresses.kafka, system.settings, ALL, since_ms) as log:
        async for batch in log.batches():
            found[batch.topic].append(batch)
    return found


def _announced(batches: Sequence[Batch], versions: dict[str, int], ordered: bool) -> list[str]:
    """A profile that is searchable has been announced, none that never was; not an older one after a newer, unless by
    a worker that was taken for dead: readers keep the highest."""
    broken: list[str] = []
    highest: Counter[str] = Counter()
    for record in (record for batch in batches for record in batch.records):
        user, version = _update(record)
        if ordered and version < highest[user]:
            broken.append(f"law 3: {user} was announced at {version} after {highest[user]}")
        highest[user] = max(highest[user], version)
    return broken + [
        f"law 4: {user} was announced at {highest[user]} and is at {version}"
        for user, version in versions.items()
        if version != highest[user]
    ]


def _update(record: Record) -> tuple[str, int]:
    update = json.loads(record.value or b"")
    return update["user_id"], update["version"]


async def _replayed_otherwise(
    system: System, log: dict[str, list[Batch]], packed: dict[str, bytes | None]
) -> list[str]:
    """The users whose bytes are others when the log is replayed onto empty stores, with the models that are served."""
    book = system.opened.codebook
    fresh = MemoryHistories(
        book.code_bytes, book.version, system.settings.history_length, system.settings.event_id_window
    )
    rig = await Rig(histories=fresh, models=system.services.models).provision()
    for topic, scenario in SCENARIO_OF.items():
        for batch in log[topic]:
            await rig.ingest.handle(batch, scenario)
    for batch in log[ITEMS]:
        await rig.catalog.handle(batch)
    while await rig.refresh():
        pass
    await rig.vectors.close()
    return [user for user, data in packed.items() if data != fresh.packed.get(user)]


def _astray(system: System, user: str, data: bytes | None) -> bool:
    partitions = {key & 0x3FFF for key in history.decode(data).marks} if data else set()
    return not partitions <= {shard(user) % system.settings.partitions}
