"""Histories and items in Redis. Each Lua call touches one hash slot: `{shard}` of the user, or the item's own key."""

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from redis import exceptions
from redis.asyncio import Redis

from stream.adapters.redis_connection import guarded, nodes, raised, run_script, translated
from stream.errors import Permanent
from stream.identity import SHARDS, item_index, shard
from stream.stores import Append, Applied, Backlog, Codebook, Dirty, Refreshed, StoredItem

_UNREADABLE = re.compile(r"\b(FORMAT|WRONGTYPE)\b")
COUNTERS = "fs:counters"
CODEBOOK = "fs:codebook"
WORKERS = "fs:workers"
EPOCHS = "fs:epochs"
HISTORY_KEYS = "fs:{????}:h:*"  # of `history_key`
ITEM_KEYS = "fs:item:*"  # of `stored_item_key`
EPOCH_RANGE = 256  # a mark keeps one byte of it
SCAN_PAGE = 256  # keys looked at in one step of a scan, and so the histories in memory
SALTS = 16  # two items rarely want one index; this many never do


def _unreadable(reply: Any) -> bool:
    """Whether a script met a history that is none, or is of a format to come."""
    return isinstance(reply, exceptions.ResponseError) and _UNREADABLE.search(str(reply)) is not None


def _pairs(codes: Mapping[int, bytes]) -> bytes:
    return b"".join(index.to_bytes(5, "big") + code for index, code in codes.items())


class RedisHistories:
    """`stream.stores.Histories` on Redis."""

    def __init__(self, redis: Redis, *, code_bytes: int, codebook_version: int, length: int, window: int) -> None:
        self._redis = redis
        self.code_bytes = code_bytes
        self._codebook = codebook_version
        self._length = length
        self._window = window

    async def append(self, appends: Sequence[Append]) -> list[Applied | Permanent]:
        replies = await run_script(self._redis, "append", [self._append_call(a) for a in appends])
        raised([reply for reply in replies if not _unreadable(reply)])
        return [translated(r) if isinstance(r, Exception) else Applied(*r) for r in replies]

    def _append_call(self, append: Append) -> tuple[list[str], list[Any]]:
        keys = [
            history_key(append.user_id),
            window_key(append.user_id, append.source.scenario),
            dirty_key(shard(append.user_id)),
        ]
        mark = append.source.key.to_bytes(2, "big") + bytes([append.source.epoch])
        settings = [self.code_bytes, self._codebook, self._length, self._window]
        return keys, [append.user_id, *settings, mark, append.produced_ms, append.entries]

    async def read(self, users: Sequence[str]) -> list[bytes | None]:
        return await _pipelined(self._redis, lambda p: [p.get(history_key(u)) for u in users])

    async def fill(self, codes: Mapping[str, Mapping[int, bytes]]) -> dict[str, bytes | None]:
        calls: list[tuple[list[str], list[Any]]] = [
            ([history_key(user)], [self.code_bytes, self._codebook, _pairs(known)]) for user, known in codes.items()
        ]
        return dict(zip(codes, raised(await run_script(self._redis, "fill", calls)), strict=True))

    async def mark(self, dirty: Sequence[Dirty]) -> None:
        await _pipelined(
            self._redis,
            lambda p: [p.zadd(dirty_key(shard(d.user_id)), {d.user_id: d.since_ms}, nx=True) for d in dirty],
        )

    async def settle(self, refreshed: Sequence[Refreshed]) -> list[bool]:
        calls: list[tuple[list[str], list[Any]]] = [
            (
                [history_key(r.user_id), dirty_key(shard(r.user_id)), owner_key(shard(r.user_id))],
                [r.user_id, r.version, r.read_ms, r.token],
            )
            for r in refreshed
        ]
        replies = await run_script(self._redis, "settle", calls)
        return [reply == 1 for reply in raised(replies)]

    async def own(self, shards: Sequence[int]) -> list[int]:
        now_ms = int(time.time() * 1000)
        return raised(await run_script(self._redis, "own", [([owner_key(s)], [now_ms]) for s in shards]))

    async def owners(self, shards: Sequence[int]) -> list[int]:
        found = await _pipelined(self._redis, lambda p: [p.get(owner_key(s)) for s in shards])
        return [int(token or 0) for token in found]

    async def dirty(self, shards: Sequence[int], limit: int) -> list[Dirty]:
        pages = await _pipelined(
            self._redis, lambda p: [p.zrange(dirty_key(s), 0, limit - 1, withscores=True) for s in shards]
        )
        return [Dirty(user.decode(), int(since)) for page in pages for user, since in page]

    async def dirty_count(self) -> int:
        """How many users are dirty, over all shards."""
        return (await self.backlog(range(SHARDS))).users

    async def backlog(self, shards: Sequence[int]) -> Backlog:
        counts = await _pipelined(self._redis, lambda p: [p.zcard(dirty_key(s)) for s in shards])
        oldest = await self.dirty([s for s, count in zip(shards, counts, strict=True) if count], 1)
        return Backlog(sum(counts), min((mark.since_ms for mark in oldest), default=None))

    async def scan(self) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
        async for keys in _scanned(self._redis, HISTORY_KEYS):
            users = [key.decode()[len(HISTORY_KEYS) - 1 :] for key in keys]
            yield [(user, data) for user, data in zip(users, await self.read(users), strict=True) if data is not None]


class RedisItems:
    """`stream.stores.Items` on Redis. Codes carry the version of their codebook; those of another are missing."""

    def __init__(self, redis: Redis, *, codebook_version: int) -> None:
        self._redis = redis
        self._tag = codebook_version.to_bytes(2, "big")

    async def claim(self, names: Sequence[str]) -> list[StoredItem]:
        found: dict[str, StoredItem] = {}
        for salt in range(SALTS):
            wanted = [name for name in dict.fromkeys(names) if name not in found]
            if not wanted:
                break
            indexes = [item_index(name, salt) for name in wanted]
            calls: list[tuple[list[str], list[Any]]] = [
                ([stored_item_key(i)], [name]) for i, name in zip(indexes, wanted, strict=True)
            ]
            replies = raised(await run_script(self._redis, "claim", calls))
            for index, name, (holder, codes) in zip(indexes, wanted, replies, strict=True):
                if holder.decode() == name:
                    found[name] = StoredItem(index, name, self._known(codes))
        return [found[name] for name in names]

    async def scan(self) -> AsyncIterator[Sequence[StoredItem]]:
        async for keys in _scanned(self._redis, ITEM_KEYS):
            indexes = [int(key[len(ITEM_KEYS) - 1 :], 16) for key in keys]
            yield [item for item in await self.lookup(indexes) if item is not None]

    async def put(self, items: Sequence[StoredItem]) -> None:
        def fields(item: StoredItem) -> dict[str, Any]:
            return {"name": item.name} | ({} if item.codes is None else {"codes": self._tag + item.codes})

        await _pipelined(self._redis, lambda p: [p.hset(stored_item_key(i.index), mapping=fields(i)) for i in items])

    async def lookup(self, indexes: Sequence[int]) -> list[StoredItem | None]:
        rows = await _pipelined(
            self._redis, lambda p: [p.hmget(stored_item_key(i), ["name", "codes"]) for i in indexes]
        )
        return [
            StoredItem(index, name.decode(), self._known(codes)) if name is not None else None
            for index, (name, codes) in zip(indexes, rows, strict=True)
        ]

    async def put_codes(self, codes: Mapping[int, bytes]) -> None:
        await _pipelined(
            self._redis, lambda p: [p.hset(stored_item_key(i), "codes", self._tag + c) for i, c in codes.items()]
        )

    async def wait(self, waiting: Sequence[tuple[int, str]]) -> None:
        await _pipelined(self._redis, lambda p: [p.sadd(waiting_key(i), user) for i, user in waiting])

    async def waiting(self, indexes: Sequence[int]) -> list[tuple[int, str]]:
        pages = await _pipelined(self._redis, lambda p: [p.smembers(waiting_key(i)) for i in indexes])
        return [(i, user.decode()) for i, users in zip(indexes, pages, strict=True) for user in sorted(users)]

    async def release(self, waiting: Sequence[tuple[int, str]]) -> None:
        await _pipelined(self._redis, lambda p: [p.srem(waiting_key(i), user) for i, user in waiting])

    def _known(self, codes: bytes | None) -> bytes | None:
        return codes[2:] if codes is not None and codes[:2] == self._tag else None


class RedisRegistry:
    """`stream.stores.Registry` on Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def codebook(self) -> Codebook | None:
        found = await guarded(cast(Awaitable[Any], self._redis.hgetall(CODEBOOK)))
        if not found:
            return None
        return Codebook(int(found[b"version"]), int(found[b"code_bytes"]), found[b"file"])

    async def put_codebook(self, codebook: Codebook) -> bool:
        # One command: the hash is there whole or not at all.
        known = await self.codebook()
        if known is None:
            await _pipelined(self._redis, lambda p: [p.hset(CODEBOOK, mapping=cast(Any, asdict(codebook)))])
        return known is None

    async def epochs(self) -> dict[str, int]:
        found = await guarded(cast(Awaitable[Any], self._redis.hgetall(EPOCHS)))
        return {topic.decode(): int(n) % EPOCH_RANGE for topic, n in found.items()}

    async def count_creation(self, topics: Sequence[str]) -> None:
        await _pipelined(self._redis, lambda p: [p.hincrby(EPOCHS, topic, 1) for topic in topics])

    async def beat(self, worker: str, seconds: float) -> None:
        now = time.time()
        await _pipelined(
            self._redis, lambda p: [p.zadd(WORKERS, {worker: now + seconds}), p.zremrangebyscore(WORKERS, 0, now)]
        )

    async def workers(self) -> frozenset[str]:
        found = await guarded(cast(Awaitable[Any], self._redis.zrangebyscore(WORKERS, time.time(), "+inf")))
        return frozenset(worker.decode() for worker in found)


class RedisCounters:
    """`stream.stats.CounterStore` on Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, counts: Mapping[str, int]) -> None:
        await _pipelined(self._redis, lambda p: [p.hincrby(COUNTERS, name, n) for name, n in counts.items()])

    async def read(self) -> Counter[str]:
        found = await guarded(cast(Awaitable[Any], self._redis.hgetall(COUNTERS)))
        return Counter({name.decode(): int(n) for name, n in found.items()})


async def _pipelined(redis: Redis, commands: Callable[[Any], object]) -> list[Any]:
    pipeline = redis.pipeline(transaction=False)
    commands(pipeline)
    return await guarded(pipeline.execute())


async def _scanned(redis: Redis, pattern: str) -> AsyncIterator[list[bytes]]:
    """The keys of a pattern in pages. Redis may show one twice, while it makes its table smaller."""
    for node in await nodes(redis):
        cursor = None
        while cursor != 0:
            cursor, keys = await guarded(cast(Awaitable[Any], node.scan(cursor or 0, match=pattern, count=SCAN_PAGE)))
            if keys:
                yield keys


def history_key(user_id: str) -> str:
    return f"fs:{{{shard(user_id):04}}}:h:{user_id}"


def window_key(user_id: str, scenario: int) -> str:
    return f"fs:{{{shard(user_id):04}}}:i{scenario}:{user_id}"


def dirty_key(number: int) -> str:
    assert 0 <= number < SHARDS
    return f"fs:{{{number:04}}}:d"


def owner_key(number: int) -> str:
    return f"fs:{{{number:04}}}:o"


def stored_item_key(index: int) -> str:
    return f"fs:item:{index:010x}"


def waiting_key(index: int) -> str:
    return f"fs:wait:{index:010x}"
