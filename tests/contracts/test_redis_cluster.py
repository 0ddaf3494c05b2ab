"""What a Redis Cluster adds: primaries that change under load, slots that move, replicas that are waited for."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from stream.adapters.memory_stores import MemoryHistories
from stream.adapters.redis import RedisHistories, dirty_key, history_key, window_key
from stream.adapters.redis_connection import connect
from stream.errors import Transient
from stream.events import OLDEST_MS
from stream.history import Source, pack_record
from stream.identity import event_hash, shard
from stream.retry import persistently
from stream.settings import load
from stream.stores import Append, Applied
from tests.redis_nodes import HOST, Nodes

SIZES = {"code_bytes": 3, "codebook_version": 7, "length": 64, "window": 4}
USERS = [f"u{n}" for n in range(100)]
BATCHES = 20  # before and after a fault, beside those during it


@asynccontextmanager
async def opened(nodes: Nodes, replicas: int = 1) -> AsyncIterator[RedisHistories]:
    client = connect(nodes.url, load(redis_replicas=replicas, redis_timeout=1.0))
    try:
        yield RedisHistories(client, **SIZES)
    finally:
        await client.aclose()


def append(user: str, offset: int) -> Append:
    record = pack_record(OLDEST_MS + offset, 1, 1, offset, b"abc", 3)
    return Append(user, Source(1, 0), 1_000, offset.to_bytes(5) + event_hash(f"{user}-{offset}") + record)


async def loaded(nodes: Nodes, fault: Callable[[], None]) -> None:
    """Strikes while events come in, one batch after the other, and compares with the twin what has become of them."""
    twin, offset = MemoryHistories(**SIZES), 0

    async def batch(store: RedisHistories) -> None:
        nonlocal offset
        appends = [append(user, offset) for user in USERS]
        offset += 1
        await persistently(lambda: store.append(appends))
        await twin.append(appends)

    async with opened(nodes) as store:
        for _ in range(BATCHES):
            await batch(store)
        striking = asyncio.create_task(asyncio.to_thread(fault))
        while not striking.done():
            await batch(store)
        await striking
        for _ in range(BATCHES):
            await batch(store)
        assert dict(zip(USERS, await store.read(USERS), strict=True)) == twin.packed
        assert await store.dirty_count() == len(USERS)


async def test_a_replica_that_takes_over_costs_nothing(redis_cluster: Nodes) -> None:
    _, replica = redis_cluster.of(history_key("u0"))

    def take_over() -> None:
        redis_cluster.ask(replica, "CLUSTER FAILOVER", "TAKEOVER")
        redis_cluster.settled(replica)

    await loaded(redis_cluster, take_over)
    redis_cluster.owned(history_key("u0"), replica)


async def test_who_is_no_primary_any_more_sends_nobody_away(redis_cluster: Nodes) -> None:
    async with opened(redis_cluster) as store:
        await store.append([append("u0", 0)])
        _, replica = redis_cluster.of(history_key("u0"))
        redis_cluster.ask(replica, "CLUSTER FAILOVER", "TAKEOVER")
        redis_cluster.settled(replica)
        assert await persistently(lambda: store.append([append("u0", 1)])) == [Applied(4, 1, 0, 0)]


async def test_a_primary_that_dies_costs_nothing(redis_cluster: Nodes) -> None:
    primary, replica = redis_cluster.of(history_key("u0"))

    def die() -> None:
        redis_cluster.kill(primary)
        redis_cluster.promoted(replica)
        redis_cluster.start(primary)
        redis_cluster.settled(replica)

    await loaded(redis_cluster, die)
    redis_cluster.owned(history_key("u0"), replica)


async def test_what_no_replica_has_is_not_done_however_often_it_is_tried(redis_cluster: Nodes) -> None:
    _, replica = redis_cluster.of(history_key("u0"))
    async with opened(redis_cluster) as store:
        await store.append([append("u0", 0)])
        redis_cluster.signal(replica, signal.SIGSTOP)
        try:
            for _ in range(2):  # the second time the script has nothing left to write
                with pytest.raises(Transient, match="NOREPLICAS 0 of 1"):
                    await store.append([append("u0", 1)])
            assert await store.read(["u0"]) != [None]  # reading waits for nobody
        finally:
            redis_cluster.signal(replica, signal.SIGCONT)
        (applied,) = await persistently(lambda: store.append([append("u0", 1)]))
        assert applied == Applied(4, 0, 0, 1)


async def test_a_slot_on_its_way_is_followed(redis_cluster: Nodes) -> None:
    source, _ = redis_cluster.of(history_key("u0"))
    target, _ = redis_cluster.of(history_key("u1"))
    assert source != target
    keys = [history_key("u0"), window_key("u0", 1), dirty_key(shard("u0"))]
    slot = redis_cluster.ask(source, "CLUSTER KEYSLOT", keys[0])
    names = {port: redis_cluster.ask(port, "CLUSTER MYID").decode() for port in (source, target)}

    def move(*moved: str) -> None:
        redis_cluster.ask(source, "MIGRATE", HOST, target, "", 0, 5_000, "KEYS", *moved)

    async with opened(redis_cluster) as store:
        await store.append([append(user, 0) for user in USERS])
        redis_cluster.ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", names[source])
        redis_cluster.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", names[target])
        move(keys[0])
        assert None not in await store.read(USERS)
        with pytest.raises(Transient, match="rehashing"):
            await store.append([append(user, 1) for user in USERS])
        move(*keys[1:])
        assert await store.append([append("u0", 1)]) == [Applied(4, 1, 0, 0)]
        for port in (target, source):
            redis_cluster.ask(port, "CLUSTER SETSLOT", slot, "NODE", names[target])
        applied = await store.append([append(user, 2) for user in USERS])
        assert [a.version for a in applied if isinstance(a, Applied)] == [6] * len(USERS)
        redis_cluster.owned(keys[0], target)
