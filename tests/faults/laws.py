"""What must be true of a cell in the end, whatever was killed: the laws of the design, against the source of truth.

1, 2  every history is exactly what was sent, in order, each event once
3     no version was seen to fall, in Redis or Qdrant; none was announced after a newer one
4     every profile is of its history's version, and was announced
5     the log replayed onto empty stores gives the same bytes
6     each user's marks are of the user's own partition
7     every history decodes: else reading it raises
8     see `cells`: what must go on during a fault, and what must not
9     the dead letters are what was no event, byte for byte, and nothing else
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
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
from tests.faults.ends import Ends
from tests.faults.truth import Line, Truth
from tests.path.rig import Rig

WATCH_SECONDS = 0.5
PARTITION_BITS = (1 << 14) - 1  # of a mark's key
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
async def watching(system: Ends, users: Sequence[str]) -> AsyncIterator[Watch]:
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


@dataclass(frozen=True)
class Found:
    """What there is of a cell in the end."""

    packed: dict[str, bytes | None]  # by user
    profiles: dict[str, int]  # versions in Qdrant, by user
    log: dict[str, list[Batch]]  # by topic

    @property
    def histories(self) -> dict[str, list[Line]]:
        return {user: _lines(data) for user, data in self.packed.items()}

    @property
    def versions(self) -> dict[str, int]:
        """Of the histories."""
        return {user: history.version_of(data) if data else 0 for user, data in self.packed.items()}

    @property
    def stale(self) -> list[str]:
        return [user for user, version in self.versions.items() if self.profiles.get(user) != version]

    @property
    def letters(self) -> set[bytes]:
        return {record.value or b"" for batch in self.log[DEAD] for record in batch.records}


async def judge(system: Ends, truth: Truth, watch: Watch, since_ms: int, ordered: bool) -> Verdict:
    """Read all stores and the log from `since_ms`. `ordered`: no two workers were at it at once."""
    found = Found(
        packed=dict(zip(truth.users, await system.opened.histories.read(truth.users), strict=True)),
        profiles=await system.services.vectors.versions(truth.users),
        log=await _log(system, since_ms),
    )
    letters = {value for value in found.letters if truth.owns(value)}
    histories, replayed = found.histories, await _replayed(system, found.log)
    actual, expected = _counted(histories), _counted(truth.histories)
    return Verdict(
        events=truth.events,
        applied=sum(history.decode(data).events_applied for data in found.packed.values() if data),
        duplicated=(actual - expected).total(),
        lost=(expected - actual).total(),
        stale=len(found.stale),
        letters=len(truth.letters),
        found=len(letters),
        broken=(
            *(f"law 1 or 2: {u} is not what was sent" for u in truth.users if histories[u] != truth.sorted(u)),
            *(f"law 3: {fall}" for fall in watch.fallen),
            *(f"law 3 or 4: {user} has an old profile" for user in found.stale),
            *_announced(found, ordered),
            *(
                f"law 5: {u}: {_difference(d, replayed.get(u))}"
                for u, d in found.packed.items()
                if d != replayed.get(u)
            ),
            *(f"law 6: {user} is in other partitions, too" for user in _astray(system, found)),
            *(f"law 9: {value!r} was refused" for value in letters - truth.letters),
            *(f"law 9: no dead letter for {value!r}" for value in truth.letters - letters),
        ),
    )


async def _versions(system: Ends, users: Sequence[str]) -> dict[str, int]:
    packed = zip(users, await system.opened.histories.read(users), strict=True)
    return {user: history.version_of(data) for user, data in packed if data is not None}


def _lines(data: bytes | None) -> list[Line]:
    """A history that cannot be decoded breaks law 7, and the cell with it."""
    return [(r.ts, r.scenario, r.action, r.item) for r in history.decode(data).records] if data else []


def _counted(histories: Mapping[str, list[Line]]) -> Counter[tuple[str, Line]]:
    return Counter((user, line) for user, lines in histories.items() for line in lines)


async def _log(system: Ends, since_ms: int) -> dict[str, list[Batch]]:
    """What each topic holds of the cell."""
    found: dict[str, list[Batch]] = defaultdict(list)
    async with reader(system.addresses.kafka, system.settings, ALL, since_ms) as log:
        async for batch in log.batches():
            found[batch.topic].append(batch)
    return found


def _announced(found: Found, ordered: bool) -> list[str]:
    """A profile that is searchable has been announced, none that never was; not an older one after a newer, unless by
    a worker that was taken for dead: readers keep the highest."""
    broken: list[str] = []
    highest: Counter[str] = Counter()
    for user, version in (_update(record) for batch in found.log[UPDATED] for record in batch.records):
        if ordered and version < highest[user]:
            broken.append(f"law 3: {user} was announced at {version} after {highest[user]}")
        highest[user] = max(highest[user], version)
    wrong = [user for user, version in found.versions.items() if version != highest[user]]
    return broken + [f"law 4: {user} was announced at {highest[user]}, which is not the latest" for user in wrong]


def _update(record: Record) -> tuple[str, int]:
    update = json.loads(record.value or b"")
    return update["user_id"], update["version"]


async def _replayed(system: Ends, log: dict[str, list[Batch]]) -> dict[str, bytes]:
    """The histories when the log is replayed onto empty stores, with the models that are served."""
    book, settings = system.opened.codebook, system.settings
    fresh = MemoryHistories(book.code_bytes, book.version, settings.history_length, settings.event_id_window)
    rig = await Rig(histories=fresh, models=system.services.models).provision()
    for topic, scenario in SCENARIO_OF.items():
        for batch in log[topic]:
            await rig.ingest.handle(batch, scenario)
    for batch in log[ITEMS]:
        await rig.catalog.handle(batch)
    while await rig.refresh():
        pass
    await rig.vectors.close()
    return fresh.packed


def _difference(data: bytes | None, replayed: bytes | None) -> str:
    """The first record that is another, else all there is."""
    one, other = (history.decode(each) if each else None for each in (data, replayed))
    for mine, theirs in zip(one.records if one else (), other.records if other else (), strict=False):
        if mine != theirs:
            return f"{mine} replayed is {theirs}"
    return f"{one} replayed is {other}"


def _astray(system: Ends, found: Found) -> list[str]:
    """Users whose events came by another partition than their own."""
    decoded = {user: history.decode(data) for user, data in found.packed.items() if data}
    own = {user: shard(user) % system.settings.partitions for user in decoded}
    return [user for user, h in decoded.items() if {key & PARTITION_BITS for key in h.marks} != {own[user]}]
