"""One contract for the store of histories: the in-memory twin, and the Lua scripts on a real
Redis, byte for byte, and on a cluster."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.adapters import redis as redis_adapter
from stream.adapters import redis_connection
from stream.adapters.memory_stores import MemoryHistories
from stream.adapters.redis import RedisHistories
from stream.embedded.process import port_for, spawn
from stream.embedded.redis import executable
from stream.errors import Permanent, Transient
from stream.events import OLDEST_MS
from stream.history import History, Record, Source, decode, pack_record, pending_items
from stream.identity import event_hash, shard
from stream.retry import persistently
from stream.settings import load
from stream.stores import Append, Applied, Backlog, Dirty, Histories, Refreshed
from tests.conftest import client_of

CODE_BYTES = 3
CODEBOOK = 7
LENGTH = 8
WINDOW = 4


@pytest.fixture
async def make(request: Any) -> AsyncIterator[Callable[..., Histories]]:
    """Builds a store; each test gets an empty one."""
    sizes = {"code_bytes": CODE_BYTES, "codebook_version": CODEBOOK, "length": LENGTH, "window": WINDOW}
    if request.param == "twin":
        store = MemoryHistories(**sizes)
        yield lambda **changed: replace(store, **changed)
        return
    client = client_of(request.param, request)
    yield lambda **changed: RedisHistories(client, **(sizes | changed))
    await client.aclose()


each = pytest.mark.parametrize("make", ["twin", "redis", "cluster"], indirect=True)


def record(ts: int, item: int = 1, *, scenario: int = 1, codes: bytes | None = b"abc") -> Record:
    return Record(ts=OLDEST_MS + ts, scenario=scenario, action=1, item=item, codes=codes)


def entry(offset: int, record: Record, event: str | None = None) -> bytes:
    return offset.to_bytes(5) + event_hash(event or f"e{offset}") + pack_record(*record, CODE_BYTES)


def append(*entries: bytes, user: str = "u", scenario: int = 1, partition: int = 0, epoch: int = 1) -> Append:
    return Append(user, Source(scenario, partition, epoch), 1_000, b"".join(entries))


async def read(store: Histories, user: str = "u") -> History:
    (data,) = await store.read([user])
    assert data is not None
    return decode(data)


@each
async def test_an_event_is_appended_counted_and_marked_dirty_at_once(make: Any) -> None:
    store = make()
    assert await store.append([append(entry(5, record(10)))]) == [Applied(2, 1, 0, 0)]
    history = await read(store)
    assert history.records == (record(10),)
    assert history.marks == {Source(1, 0).key: (1, 5)}
    assert await store.dirty([shard("u")], 10) == [Dirty("u", 1_000)]


@each
async def test_the_backlog_of_some_shards_is_counted_and_dated(make: Any) -> None:
    store = make()
    assert await store.backlog([shard("u"), shard("v")]) == Backlog(0, None)
    await store.mark([Dirty("u", 2_000), Dirty("v", 1_000), Dirty("w", 500)])
    assert await store.backlog([shard("u"), shard("v")]) == Backlog(2, 1_000)


@each
async def test_a_redelivered_offset_and_a_repeated_event_id_count_once(make: Any) -> None:
    store = make()
    await store.append([append(entry(5, record(10)), entry(6, record(11)))])
    assert await store.append([append(entry(6, record(11)))]) == [Applied(4, 0, 0, 1)]
    assert await store.append([append(entry(7, record(12), event="e5"))]) == [Applied(4, 0, 1, 0)]
    assert [r.ts - OLDEST_MS for r in (await read(store)).records] == [10, 11]


@each
async def test_an_event_id_older_than_the_window_is_forgotten(make: Any) -> None:
    store = make()
    await store.append([append(*(entry(i, record(i)) for i in range(WINDOW + 1)))])
    again = append(entry(50, record(1), event="e1"), entry(51, record(0), event="e0"))
    assert await store.append([again]) == [Applied(12, 1, 1, 0)]


@each
async def test_late_events_are_read_in_event_time_and_the_oldest_are_trimmed(make: Any) -> None:
    store = make()
    times = [50, 10, 40, 20, 60, 30, 90, 80, 70, 5]
    await store.append([append(*(entry(i, record(t)) for i, t in enumerate(times)))])
    history = await read(store)
    assert [r.ts - OLDEST_MS for r in history.records] == sorted(times)[-LENGTH:]
    assert history.events_applied == len(times)


@each
async def test_ties_keep_the_order_of_arrival(make: Any) -> None:
    store = make()
    await store.append([append(*(entry(i, record(10, item)) for i, item in enumerate([3, 1, 2])))])
    assert [r.item for r in (await read(store)).records] == [3, 1, 2]


@each
async def test_a_new_incarnation_of_the_topic_starts_its_offsets_again(make: Any) -> None:
    store = make()
    await store.append([append(entry(100, record(1)))])
    assert (await store.append([append(entry(0, record(2)), epoch=2)]))[0].events == 1
    assert (await read(store)).marks == {Source(1, 0).key: (2, 0)}


@each
async def test_codes_that_come_later_are_filled_and_move_the_version(make: Any) -> None:
    store = make()
    (applied,) = await store.append([append(entry(1, record(1, 11, codes=None)), entry(2, record(2, 12, codes=None)))])
    assert applied.version == 2
    filled = (await store.fill({"u": {11: b"xyz"}}))["u"]
    assert filled is not None
    assert pending_items(filled) == [12]
    history = await read(store)
    assert (history.version, history.records[0].codes, history.events_applied) == (3, b"xyz", 2)
    assert await store.fill({"nobody": {11: b"xyz"}}) == {"nobody": None}


@each
async def test_the_mark_is_cleared_only_when_the_version_has_not_moved(make: Any) -> None:
    store = make()
    await store.append([append(entry(1, record(1)))])
    await store.append([append(entry(2, record(2)))])
    assert await store.settle([Refreshed("u", 2, 5_000, 0)]) == [False]
    assert await store.dirty([shard("u")], 10) == [Dirty("u", 5_000)]
    assert await store.settle([Refreshed("u", 4, 6_000, 0)]) == [True]
    assert await store.dirty([shard("u")], 10) == []


@each
async def test_a_shard_that_has_got_another_owner_is_settled_by_nobody_else(make: Any) -> None:
    store, here = make(), shard("u")
    assert await store.owners([here, here + 1]) == [0, 0]
    (early,) = await store.own([here])
    await store.append([append(entry(1, record(1)))])
    (late,) = await store.own([here])
    assert 1_700_000_000_000 < early < late
    assert await store.owners([here, here + 1]) == [late, 0]
    for version in (1, 2):
        assert await store.settle([Refreshed("u", version, 5_000, early)]) == [False]
        assert await store.dirty([here], 10) == [Dirty("u", 1_000)]
    assert await store.settle([Refreshed("u", 2, 5_000, late)]) == [True]


@each
async def test_all_histories_are_scanned_and_dirty_users_counted(make: Any) -> None:
    store, users = make(), [f"{{ü}}:h:{n}" for n in range(1_000)]
    assert [page async for page in store.scan()] == []
    await store.append([append(entry(n, record(n)), user=user) for n, user in enumerate(users)])
    found = dict([pair async for page in store.scan() for pair in page])
    assert found == dict(zip(users, await store.read(users), strict=True))
    assert await store.dirty_count() == len(users)
    await store.settle([Refreshed(users[0], 2, 5_000, 0)])
    assert await store.dirty_count() == len(users) - 1


@each
async def test_an_older_mark_stays(make: Any) -> None:
    store = make()
    await store.mark([Dirty("u", 500)])
    await store.mark([Dirty("u", 100), Dirty("u", 900)])
    assert await store.dirty([shard("u")], 10) == [Dirty("u", 500)]


@each
async def test_a_history_of_another_codebook_is_refused_unchanged(make: Any) -> None:
    await make().append([append(entry(1, record(1)))])
    with pytest.raises(Permanent, match="CODEBOOK"):
        await make(codebook_version=8).append([append(entry(2, record(2)))])
    assert len((await read(make())).records) == 1


@each
async def test_a_history_that_cannot_be_read_is_left_alone_and_holds_up_nobody(make: Any) -> None:
    store = make()
    await spoil(store, "u", b"\x07of a format to come")
    refused, applied = await store.append([append(entry(1, record(1))), append(entry(1, record(1)), user="v")])
    assert isinstance(refused, Permanent)
    assert "FORMAT" in str(refused)
    assert applied == Applied(2, 1, 0, 0)
    assert await store.read(["u"]) == [b"\x07of a format to come"]


async def spoil(store: Histories, user: str, data: bytes) -> None:
    if isinstance(store, MemoryHistories):
        store.packed[user] = data
    elif isinstance(store, RedisHistories):
        await store._redis.set(redis_adapter.history_key(user), data)


events = st.lists(
    st.tuples(
        st.integers(0, 40),  # time
        st.integers(0, 2),  # scenario
        st.integers(0, 12),  # event id
        st.booleans(),  # codes pending
    ),
    max_size=40,
)


def batches(data: st.DataObject, stream: list[Any]) -> list[Append]:
    """The stream as its topics deliver it: cut at random, each batch perhaps delivered again."""
    per_topic: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    for ts, scenario, event, pending in stream:
        codes = None if pending else bytes([ts, scenario, event])
        topic = per_topic[scenario]
        topic.append(entry(len(topic), record(ts, event, scenario=scenario, codes=codes), event=f"{scenario}-{event}"))
    out = []
    while any(per_topic.values()):
        scenario = data.draw(st.sampled_from([s for s, left in per_topic.items() if left]))
        size = data.draw(st.integers(1, len(per_topic[scenario])))
        part = append(*per_topic[scenario][:size], scenario=scenario)
        del per_topic[scenario][:size]
        out += [part] * data.draw(st.integers(1, 2))
    return out


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stream=events, data=st.data())
def test_the_scripts_and_the_model_agree_on_every_byte(redis_db: str, stream: list[Any], data: st.DataObject) -> None:
    plan = batches(data, stream)
    fills = data.draw(st.lists(st.integers(0, 12), max_size=3))

    async def run(store: Histories) -> list[Any]:
        seen: list[Any] = [await store.append([part]) for part in plan]
        seen.append(await store.fill({"u": dict.fromkeys(fills, b"new")}))
        seen += [await store.read(["u"]), await store.dirty([shard("u")], 5)]
        return [*seen, await store.settle([Refreshed("u", 9, 77, 0)]), await store.dirty([shard("u")], 5)]

    async def on_redis() -> list[Any]:
        client = redis_connection.connect(redis_db, load())
        await client.flushdb()
        store = RedisHistories(client, code_bytes=CODE_BYTES, codebook_version=CODEBOOK, length=LENGTH, window=WINDOW)
        try:
            return await run(store)
        finally:
            await client.aclose()

    twin = MemoryHistories(CODE_BYTES, CODEBOOK, LENGTH, WINDOW)
    assert asyncio.run(on_redis()) == asyncio.run(run(twin))


@settings(max_examples=150, deadline=None)
@given(stream=events, data=st.data())
def test_any_cut_and_interleaving_of_the_topics_gives_the_same_bytes(stream: list[Any], data: st.DataObject) -> None:
    def replay() -> bytes | None:
        twin = MemoryHistories(CODE_BYTES, CODEBOOK, LENGTH, WINDOW)
        for part in batches(data, stream):
            asyncio.run(twin.append([part]))
        return twin.packed.get("u")

    assert replay() == replay()


async def test_scripts_lost_in_a_failover_are_loaded_again(redis_db: str) -> None:
    client = redis_connection.connect(redis_db, load())
    store = RedisHistories(client, code_bytes=CODE_BYTES, codebook_version=CODEBOOK, length=LENGTH, window=WINDOW)
    await store.append([append(entry(1, record(1)))])
    await client.script_flush()
    appends = [append(entry(2, record(2))), append(entry(1, record(1)), user="v")]
    assert [a.events for a in await store.append(appends)] == [1, 1]
    await client.aclose()


async def test_a_redis_that_is_away_is_transient() -> None:
    client = redis_connection.connect("redis://127.0.0.1:1", load())
    store = RedisHistories(client, code_bytes=CODE_BYTES, codebook_version=CODEBOOK, length=LENGTH, window=WINDOW)
    with pytest.raises(Transient, match="Redis"):
        await store.append([append(entry(1, record(1)))])
    await client.aclose()


@pytest.mark.parametrize("server", ["redis", "cluster"])
async def test_a_cancellation_is_not_lost(request: pytest.FixtureRequest, server: str) -> None:
    """Whatever it interrupts: redis-py would go on after some."""
    client = client_of(server, request)
    store = RedisHistories(client, code_bytes=CODE_BYTES, codebook_version=CODEBOOK, length=LENGTH, window=WINDOW)
    ended = []

    async def work() -> None:
        for _ in range(100):
            await store.dirty([1], 1)
        ended.append("by itself")

    for turns in range(60):
        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        ended += ["cancelled"] * task.cancelled()
    assert ended == ["cancelled"] * 60
    await client.aclose()


@dataclass(frozen=True)
class _Full:
    """A Redis at its memory limit under noeviction."""

    client: Any

    async def __aenter__(self) -> None:
        await self.client.config_set("maxmemory", "1")

    async def __aexit__(self, *_: object) -> None:
        await self.client.config_set("maxmemory", "0")


async def test_a_full_redis_is_transient_and_loses_nothing(redis_db: str) -> None:
    client = redis_connection.connect(redis_db, load())
    store = RedisHistories(client, code_bytes=CODE_BYTES, codebook_version=CODEBOOK, length=LENGTH, window=WINDOW)
    async with _Full(client):
        with pytest.raises(Transient, match="maxmemory"):
            await store.append([append(entry(1, record(1)))])
    assert (await store.append([append(entry(1, record(1)))]))[0].events == 1
    await client.aclose()


async def test_a_redis_that_is_loading_is_waited_for(tmp_path: Path) -> None:
    """While it reads its file, it answers after every thousandth command of it."""
    keys, delay_us = 20_000, 50
    with (tmp_path / "appendonly.aof").open("w") as file:
        file.writelines(f"*3\r\n$3\r\nSET\r\n$5\r\n{n:05}\r\n$1\r\nv\r\n" for n in range(keys))
    port = port_for(load(), "redis_port")
    options = {"port": port, "dir": tmp_path, "appendonly": "yes", "save": "", "key-load-delay": delay_us}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server = spawn("Redis", f"redis://127.0.0.1:{port}", tmp_path, [executable(), *words])
    client = redis_connection.connect(server.address, load())
    store = RedisHistories(client, code_bytes=CODE_BYTES, codebook_version=CODEBOOK, length=LENGTH, window=WINDOW)
    heard = []

    async def ask() -> list[Applied]:
        try:
            return await store.append([append(entry(1, record(1)))])
        except Transient as error:
            heard.append(str(error))
            raise

    try:
        assert (await persistently(ask))[0].events == 1
        assert any("loading the dataset" in said for said in heard), heard
        assert await client.dbsize() > keys
    finally:
        await client.aclose()
        server.stop()


async def test_a_replica_is_transient_until_it_is_promoted(redis_db: str) -> None:
    client = redis_connection.connect(redis_db, load())
    store = RedisHistories(client, code_bytes=CODE_BYTES, codebook_version=CODEBOOK, length=LENGTH, window=WINDOW)
    await client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(Transient, match=r"(?i)read ?only"):
            await store.append([append(entry(1, record(1)))])
    finally:
        await client.replicaof("NO", "ONE")
    assert (await store.append([append(entry(1, record(1)))]))[0].events == 1
    await client.aclose()
