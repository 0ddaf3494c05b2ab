"""The in-memory twin of the Redis stores: the pure model that the Lua scripts are tested against."""

import time
from bisect import insort_right
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stream.errors import Permanent
from stream.history import FORMAT, History, Record, decode, encode, unpack_entries
from stream.identity import item_index, shard
from stream.stores import Append, Applied, Backlog, Codebook, Dirty, Refreshed, StoredItem


@dataclass
class MemoryHistories:
    """`stream.stores.Histories` in dictionaries."""

    code_bytes: int
    codebook_version: int
    length: int = 1_024
    window: int = 64
    packed: dict[str, bytes] = field(default_factory=dict)
    windows: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)  # user -> dirty since, ms
    tokens: dict[int, int] = field(default_factory=dict)  # shard -> its owner's

    async def append(self, appends: Sequence[Append]) -> list[Applied | Permanent]:
        return [self._append(a) if self._readable(a.user_id) else Permanent("FORMAT history") for a in appends]

    def _readable(self, user_id: str) -> bool:
        return self.packed.get(user_id, bytes([FORMAT]))[:1] == bytes([FORMAT])

    def _append(self, append: Append) -> Applied:
        history = self._history(append.user_id)
        source = append.source
        epoch, mark = history.marks.get(source.key, (source.epoch, -1))
        mark = mark if epoch == source.epoch else -1
        window = list(self.windows.get((append.user_id, source.scenario), ()))
        records, version = list(history.records), history.version
        events = duplicates = redelivered = 0
        for entry in unpack_entries(append.entries, self.code_bytes):
            if entry.offset <= mark:
                redelivered += 1
                continue
            mark = entry.offset
            if entry.event in window:
                duplicates += 1
                continue
            window = [*window, entry.event][-self.window :] if self.window else []
            events += 1
            insort_right(records, entry.record, key=lambda r: r.order)
            version += known(entry.record)
        if events + duplicates:
            dropped, records = _trim(records, self.length)
            version += sum(2 - known(r) for r in dropped)
            marks = {**history.marks, source.key: (source.epoch, mark)}
            self.packed[append.user_id] = encode(replace(history, version=version, marks=marks, records=tuple(records)))
        if events:
            self.windows[append.user_id, source.scenario] = window
            self.marks.setdefault(append.user_id, append.produced_ms)
        return Applied(version, events, duplicates, redelivered)

    def _history(self, user_id: str) -> History:
        if user_id not in self.packed:
            return History(self.code_bytes, self.codebook_version)
        history = decode(self.packed[user_id])
        if (history.code_bytes, history.codebook_version) != (self.code_bytes, self.codebook_version):
            raise Permanent(f"CODEBOOK history was written with codebook {history.codebook_version}")
        return history

    async def read(self, users: Sequence[str]) -> list[bytes | None]:
        return [self.packed.get(user) for user in users]

    async def fill(self, codes: Mapping[str, Mapping[int, bytes]]) -> dict[str, bytes | None]:
        return {user: self._fill(user, known) for user, known in codes.items()}

    def _fill(self, user_id: str, codes: Mapping[int, bytes]) -> bytes | None:
        if user_id not in self.packed:
            return None
        history = self._history(user_id)
        records = tuple(r._replace(codes=codes.get(r.item)) if r.codes is None else r for r in history.records)
        filled = sum(map(known, records)) - sum(map(known, history.records))
        self.packed[user_id] = encode(replace(history, records=records, version=history.version + filled))
        return self.packed[user_id]

    async def mark(self, dirty: Sequence[Dirty]) -> None:
        for mark in dirty:
            self.marks.setdefault(mark.user_id, mark.since_ms)

    async def settle(self, refreshed: Sequence[Refreshed]) -> list[bool]:
        return [self._settle(r) for r in refreshed]

    def _settle(self, refreshed: Refreshed) -> bool:
        if self.tokens.get(shard(refreshed.user_id), 0) > refreshed.token:
            return False
        data = self.packed.get(refreshed.user_id)
        if data is None or decode(data).version <= refreshed.version:
            self.marks.pop(refreshed.user_id, None)
            return True
        if refreshed.user_id in self.marks:
            self.marks[refreshed.user_id] = max(self.marks[refreshed.user_id], refreshed.read_ms)
        return False

    async def own(self, shards: Sequence[int]) -> list[int]:
        now_ms = int(time.time() * 1000)
        self.tokens |= {number: max(now_ms, self.tokens.get(number, 0) + 1) for number in shards}
        return await self.owners(shards)

    async def owners(self, shards: Sequence[int]) -> list[int]:
        return [self.tokens.get(number, 0) for number in shards]

    async def dirty(self, shards: Sequence[int], limit: int) -> list[Dirty]:
        pages: dict[int, list[Dirty]] = defaultdict(list)
        for user, since in sorted(self.marks.items(), key=lambda kv: (kv[1], kv[0].encode())):
            pages[shard(user)].append(Dirty(user, since))
        return [mark for number in shards for mark in pages[number][:limit]]

    async def dirty_count(self) -> int:
        return len(self.marks)

    async def scan(self) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
        for page in list(self.packed.items()):
            yield [page]

    async def backlog(self, shards: Sequence[int]) -> Backlog:
        marks = await self.dirty(shards, len(self.marks))
        return Backlog(len(marks), min((mark.since_ms for mark in marks), default=None))


def known(record: Record) -> int:
    """What a record adds to the profile version."""
    return 1 if record.codes is None else 2


def _trim(records: list[Record], length: int) -> tuple[list[Record], list[Record]]:
    excess = max(0, len(records) - length)
    return records[:excess], records[excess:]


@dataclass
class MemoryItems:
    """`stream.stores.Items` in dictionaries."""

    names: dict[int, str] = field(default_factory=dict)
    codes: dict[int, bytes] = field(default_factory=dict)
    waiters: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    async def claim(self, names: Sequence[str]) -> list[StoredItem]:
        return [self._claim(name) for name in names]

    def _claim(self, name: str) -> StoredItem:
        index = item_index(name, salt := 0)
        while self.names.setdefault(index, name) != name:
            index = item_index(name, salt := salt + 1)
        return StoredItem(index, name, self.codes.get(index))

    async def scan(self) -> AsyncIterator[Sequence[StoredItem]]:
        for index, name in list(self.names.items()):
            yield [StoredItem(index, name, self.codes.get(index))]

    async def put(self, items: Sequence[StoredItem]) -> None:
        self.names.update((item.index, item.name) for item in items)
        self.codes.update((item.index, item.codes) for item in items if item.codes is not None)

    async def lookup(self, indexes: Sequence[int]) -> list[StoredItem | None]:
        return [
            StoredItem(index, self.names[index], self.codes.get(index)) if index in self.names else None
            for index in indexes
        ]

    async def put_codes(self, codes: Mapping[int, bytes]) -> None:
        self.codes.update(codes)

    async def wait(self, waiting: Sequence[tuple[int, str]]) -> None:
        for index, user in waiting:
            self.waiters[index].add(user)

    async def waiting(self, indexes: Sequence[int]) -> list[tuple[int, str]]:
        return [(i, user) for i in indexes for user in sorted(self.waiters[i])]

    async def release(self, waiting: Sequence[tuple[int, str]]) -> None:
        for index, user in waiting:
            self.waiters[index].discard(user)


@dataclass
class MemoryRegistry:
    """`stream.stores.Registry` in variables."""

    book: Codebook | None = None
    created: Counter[str] = field(default_factory=Counter)
    alive: dict[str, float] = field(default_factory=dict)  # worker -> by when it will be heard of again

    async def codebook(self) -> Codebook | None:
        return self.book

    async def put_codebook(self, codebook: Codebook) -> bool:
        known, self.book = self.book, self.book or codebook
        return known is None

    async def epochs(self) -> dict[str, int]:
        return {topic: count % 256 for topic, count in self.created.items()}

    async def count_creation(self, topics: Sequence[str]) -> None:
        self.created.update(topics)

    async def beat(self, worker: str, seconds: float) -> None:
        self.alive[worker] = time.time() + seconds

    async def workers(self) -> frozenset[str]:
        return frozenset(worker for worker, until in self.alive.items() if until > time.time())


@dataclass
class MemoryCounters:
    """`stream.stats.CounterStore` in a counter."""

    counts: Counter[str] = field(default_factory=Counter)

    async def add(self, counts: Mapping[str, int]) -> None:
        self.counts.update(counts)

    async def read(self) -> Counter[str]:
        return self.counts.copy()
