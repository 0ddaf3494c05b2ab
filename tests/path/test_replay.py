"""Law 5: whatever the batches, the order of the topics, and the moment at which items and refreshes come in between,
the log gives byte-for-byte the same histories, and so the same digest."""

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.adapters import redis_connection
from stream.adapters.memory import MemoryModels
from stream.adapters.memory_stores import MemoryHistories
from stream.adapters.redis import RedisHistories, RedisItems, RedisRegistry
from stream.digest import Digest, digest
from stream.errors import Permanent
from stream.replay import refresh_dirty
from stream.settings import load
from tests.path.rig import Rig, event, item

LENGTH, WINDOW = 6, 3
acts = st.lists(
    st.tuples(
        st.sampled_from(["search", "feed", "discovery"]),
        st.sampled_from(["u", "v"]),
        st.integers(0, 30),  # time
        st.sampled_from(["a", "b", "c", None]),  # item; none: a query
        st.integers(0, 9),  # event id
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(log=acts, data=st.data())
def test_replaying_the_log_gives_the_same_bytes(log: list[Any], data: st.DataObject) -> None:
    assert asyncio.run(on_the_twin(log, data)) == asyncio.run(on_the_twin(log, data))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=acts, data=st.data())
def test_and_redis_as_well(redis_db: str, log: list[Any], data: st.DataObject) -> None:
    on_redis = [asyncio.run(delivered_to(redis_db, log, data)) for _ in range(2)]
    assert on_redis == [asyncio.run(digest(MemoryHistories(4, 1, packed=asyncio.run(on_the_twin(log, data)))))] * 2


async def on_the_twin(log: list[Any], data: st.DataObject) -> dict[str, bytes]:
    histories = MemoryHistories(4, 1, LENGTH, WINDOW)
    await replay(await Rig(histories=histories).provision(), log, data)
    return histories.packed


async def delivered_to(url: str, log: list[Any], data: st.DataObject) -> Digest:
    redis = redis_connection.connect(url, load())
    await redis.flushdb()
    histories = RedisHistories(redis, code_bytes=4, codebook_version=1, length=LENGTH, window=WINDOW)
    items = RedisItems(redis, codebook_version=1)
    await replay(await Rig(histories=histories, items=items, registry=RedisRegistry(redis)).provision(), log, data)
    found = await digest(histories)
    await redis.aclose()
    return found


async def replay(rig: Rig, log: list[Any], data: st.DataObject) -> None:
    """One way in which the log may be delivered; at the end every item is known and every user refreshed."""
    topics = {s: [made(*act) for act in log if act[0] == s] for s in ("search", "feed", "discovery")}
    offsets = dict.fromkeys(topics, 0)
    items = ["a", "b", "c"]
    while any(topics.values()) or items:
        step = data.draw(st.sampled_from([*(s for s, left in topics.items() if left), *items, "refresh"]))
        if step == "refresh":
            await rig.refresh()
        elif step in items:
            items.remove(step)
            await rig.catalogue(item(step))
        else:
            size = data.draw(st.integers(1, len(topics[step])))
            await rig.feed(*topics[step][:size], scenario=step, first=offsets[step])
            offsets[step] += size
            del topics[step][:size]
    while await rig.refresh():
        pass


def made(scenario: str, user: str, time: int, item_id: str | None, number: int) -> dict[str, Any]:
    query = {"query": f"query {number}", "action": "search"} if item_id is None and scenario == "search" else {}
    return event(time, None if query else item_id or "a", user, event_id=f"{scenario}-{user}-{number}", **query)


class Picky(MemoryModels):
    """Models that cannot answer for more than one event."""

    async def interests(self, histories: Any) -> Any:
        if histories.valid.shape[1] > 1:
            raise Permanent("too long")
        return await super().interests(histories)


async def test_everybody_is_refreshed_once_but_whom_the_models_refuse() -> None:
    rig = await Rig(models=Picky()).provision()
    await rig.feed(*(event(n, user=f"u{n}") for n in range(300)), event(300, user="u0"))
    steps: list[int] = []
    await refresh_dirty(rig.refresher, rig.histories, steps.append)
    assert sum(steps) == rig.stats.counts["refreshes"] == 299
    assert list(rig.histories.marks) == ["u0"]
    assert len(rig.log.updates) == 299
