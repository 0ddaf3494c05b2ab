"""Law 5: whatever the batches, the order of the topics, and the moment at which items and refreshes come in between,
the log gives byte-for-byte the same histories."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.adapters.memory_stores import MemoryHistories
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
    assert asyncio.run(replay(log, data)) == asyncio.run(replay(log, data))


async def replay(log: list[Any], data: st.DataObject) -> dict[str, bytes]:
    """One way in which the log may be delivered; at the end every item is known and every user refreshed."""
    rig = await Rig(histories=MemoryHistories(4, 1, LENGTH, WINDOW)).provision()
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
    return rig.histories.packed


def made(scenario: str, user: str, time: int, item_id: str | None, number: int) -> dict[str, Any]:
    query = {"query": f"query {number}", "action": "search"} if item_id is None and scenario == "search" else {}
    return event(time, None if query else item_id or "a", user, event_id=f"{scenario}-{user}-{number}", **query)
