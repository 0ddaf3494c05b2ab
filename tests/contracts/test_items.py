"""One contract for the stores of items, of what workers agree on, and of counters: the in-memory twins and Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from stream.adapters.memory_stores import MemoryCounters, MemoryItems, MemoryRegistry
from stream.adapters.redis import RedisCounters, RedisItems, RedisRegistry
from stream.identity import item_index
from stream.stats import CounterStore
from stream.stores import Codebook, Items, Registry, StoredItem
from tests.conftest import client_of


@dataclass(frozen=True)
class Stores:
    items: Items
    registry: Registry
    counters: CounterStore
    redis: Any = None


@pytest.fixture(params=["twin", "redis", "cluster"])
async def stores(request: Any) -> AsyncIterator[Stores]:
    if request.param == "twin":
        yield Stores(MemoryItems(), MemoryRegistry(), MemoryCounters())
        return
    client = client_of(request.param, request)
    yield Stores(RedisItems(client, codebook_version=3), RedisRegistry(client), RedisCounters(client), client)
    await client.aclose()


async def test_a_name_gets_its_index_on_first_sight_and_keeps_it(stores: Stores) -> None:
    first = await stores.items.claim(["i:a", "i:b", "i:a"])
    assert first == [StoredItem(item_index(name), name, None) for name in ("i:a", "i:b", "i:a")]
    assert await stores.items.claim(["i:b"]) == first[1:2]


async def test_an_index_that_another_name_holds_is_left_to_it(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("redis", "memory_stores"):
        monkeypatch.setattr(f"stream.adapters.{module}.item_index", lambda name, salt=0: 100 + salt)
    assert [i.index for i in await stores.items.claim(["i:a"])] == [100]
    assert [i.index for i in await stores.items.claim(["i:b", "i:a", "i:c"])] == [101, 100, 102]
    assert [i.name for i in await stores.items.lookup([100, 101, 102]) if i] == ["i:a", "i:b", "i:c"]


async def test_codes_are_known_once_they_are_put(stores: Stores) -> None:
    (item,) = await stores.items.claim(["i:a"])
    await stores.items.put_codes({item.index: b"\x00\xff\x80"})
    assert await stores.items.lookup([item.index, 5]) == [StoredItem(item.index, "i:a", b"\x00\xff\x80"), None]
    assert (await stores.items.claim(["i:a"]))[0].codes == b"\x00\xff\x80"


async def test_codes_of_another_codebook_count_as_missing(stores: Stores) -> None:
    if stores.redis is None:
        return  # the twin holds one codebook's codes only
    (item,) = await stores.items.claim(["i:a"])
    await stores.items.put_codes({item.index: b"abc"})
    other = RedisItems(stores.redis, codebook_version=4)
    assert await other.lookup([item.index]) == [StoredItem(item.index, "i:a", None)]


async def test_items_are_scanned_and_put_where_they_were(stores: Stores) -> None:
    items = await stores.items.claim([f"i:{n}" for n in range(600)])
    await stores.items.put_codes({items[0].index: b"abc"})
    items[0] = StoredItem(items[0].index, "i:0", b"abc")
    found = {item.index: item for page in [page async for page in stores.items.scan()] for item in page}
    assert found == {item.index: item for item in items}
    moved = [StoredItem(7, "i:elsewhere", None), StoredItem(8, "q:tea", b"xyz")]
    await stores.items.put(moved)
    assert await stores.items.lookup([7, 8]) == moved


async def test_who_waits_is_remembered_until_released(stores: Stores) -> None:
    await stores.items.wait([(1, "u"), (1, "v"), (2, "u"), (1, "u")])
    assert await stores.items.waiting([1, 2, 3]) == [(1, "u"), (1, "v"), (2, "u")]
    await stores.items.release([(1, "u")])
    assert await stores.items.waiting([1, 2]) == [(1, "v"), (2, "u")]


async def test_the_first_codebook_stays_in_force(stores: Stores) -> None:
    assert await stores.registry.codebook() is None
    first, second = Codebook(1, 3, b"\x00file"), Codebook(2, 4, b"other")
    assert await stores.registry.put_codebook(first)
    assert not await stores.registry.put_codebook(second)
    assert await stores.registry.codebook() == first


async def test_creations_of_topics_are_counted(stores: Stores) -> None:
    await stores.registry.count_creation(["a", "b"])
    await stores.registry.count_creation(["a"])
    assert await stores.registry.epochs() == {"a": 2, "b": 1}


async def test_a_worker_that_falls_silent_is_dead(stores: Stores) -> None:
    await stores.registry.beat("w1", 60.0)
    await stores.registry.beat("w2", 0.01)
    await asyncio.sleep(0.05)
    assert await stores.registry.workers() == {"w1"}
    await stores.registry.beat("w1", 0.0)
    assert await stores.registry.workers() == frozenset()


async def test_counts_of_all_workers_add_up(stores: Stores) -> None:
    await stores.counters.add({"events_applied": 3, "freshness:7": 1})
    await stores.counters.add({"events_applied": 2})
    assert await stores.counters.read() == {"events_applied": 5, "freshness:7": 1}
