"""From raw records to histories: what is applied, what is refused, and in which order things become durable."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream import retry
from stream.adapters.memory import MemoryLog
from stream.adapters.memory_stores import MemoryHistories, MemoryItems
from stream.errors import Permanent, Transient
from stream.events import Scenario
from stream.identity import item_index, query_key
from stream.ingest import CACHE_SECONDS, ItemCache
from stream.ledger import Batch, Record
from stream.stores import Append, Applied, StoredItem
from tests.path.rig import NOW_MS, Rig, event, item


async def test_events_of_a_batch_reach_their_users_histories_in_order() -> None:
    rig = Rig()
    await rig.feed(event(1, "a"), event(2, "b", user="v"), event(3, "c"))
    assert [r.item for r in (await rig.history("u")).records] == [item_index("i:a"), item_index("i:c")]
    assert [r.ts for r in (await rig.history("v")).records] == [NOW_MS + 2]
    assert rig.stats.counts["events_applied"] == 3


async def test_a_typed_query_is_a_record_of_its_own_kind() -> None:
    rig = Rig()
    await rig.feed(event(1, None, action="search", query="  Trail  SHOES "), scenario="search")
    await rig.feed(event(2, "a", query="trail shoes"), scenario="search", first=1)
    records = (await rig.history()).records
    assert [r.item for r in records] == [item_index(query_key("trail shoes")), item_index("i:a")]


BAD = {
    "tombstone": (None, "value: is null"),
    "empty": (b"", "value: is empty"),
    "not UTF-8": (b'{"event_id":"\xff"}', "Invalid JSON"),
    "not JSON": (b"{", "Invalid JSON"),
    "no object": (b"[1]", "object"),
    "null": (b"null", "object"),
    "deep": (b'{"a":' * 10_000, "Invalid JSON"),
    "large": (b" " * 1_000_000, "value: has 1000000 bytes"),
    "missing": (b"{}", "event_id: Field required"),
    "null field": (event(1) | {"user_id": None}, "user_id:"),
    "unknown action": (event(1, action="zap"), "action:"),
    "long id": (event(1, "x" * 10_000), "item_id: must be at most 256 bytes"),
    "1970": (event(1, ts=1), "ts: must not be before 2000"),
    "2100": (event(1, ts=4_102_444_800_000), "ts: must not be more than 5 minutes ahead"),
    "other version": (event(1, schema_version=2), "schema_version:"),
    "float time": (event(1, ts=1.5e12), "ts:"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_event_becomes_a_dead_letter_and_its_neighbours_are_applied(name: str) -> None:
    value, reason = BAD[name]
    rig = Rig()
    await rig.feed(event(100), value, event(101))  # type: ignore[arg-type]
    (letter,) = rig.log.letters
    assert reason in letter.reason
    assert (letter.topic, letter.partition, letter.offset, letter.key) == ("events.feed", 0, 1, b"key")
    assert letter.value is None or isinstance(value, dict) or letter.value == value
    assert len((await rig.history()).records) == 2


@settings(max_examples=30, deadline=None)
@given(st.data())
async def test_ten_thousand_generated_bad_messages_leave_every_good_one_applied(data: Any) -> None:
    """350 messages an example over 30 examples: more than 10,000, of all kinds."""
    junk = st.one_of(
        st.none(),
        st.binary(max_size=200),
        st.sampled_from([v for v, _ in BAD.values()]),
        st.builds(mangled, st.integers(0, 1 << 30), st.integers(0, 255)),
    )
    bad = data.draw(st.lists(junk, min_size=25, max_size=25)) * 14
    rig = Rig()
    await rig.feed(*(value for n, b in enumerate(bad) for value in (event(n, user="good"), b)))
    good = await rig.history("good")
    assert good.events_applied == len(bad)
    assert len(rig.log.letters) == len(bad)


def mangled(at: int, byte: int) -> bytes:
    """A valid event with one byte overwritten so that it is none: its first."""
    raw = bytearray(b'{"event_id":"m","user_id":"m","item_id":"m","action":"click","ts":1750000000000}')
    raw[0] = byte if byte not in b"{ \t\r\n" else 0
    raw[at % len(raw)] = raw[at % len(raw)] if at % len(raw) else raw[0]
    return bytes(raw)


class Recorder(MemoryLog):
    """A log that says when it was written to."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order = order

    async def dead_letter(self, letters: Sequence[Any]) -> None:
        self.order.append("dead letter")
        await super().dead_letter(letters)


class Failing(MemoryHistories):
    """Refuses the first calls as a Redis that is away does."""

    failures = 2
    order: list[str]

    async def append(self, appends: Sequence[Append]) -> list[Applied]:
        if self.failures:
            self.failures -= 1
            self.order.append("away")
            raise Transient("Redis does not answer")
        self.order.append("history")
        return await super().append(appends)


async def test_histories_come_before_dead_letters_and_a_store_that_is_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    order: list[str] = []
    histories = Failing(4, 1)
    histories.order = order
    rig = Rig(histories=histories, log=Recorder(order))
    await rig.feed(event(1), b"bad")
    assert order == ["away", "away", "history", "dead letter"]
    assert rig.stats.counts["events_applied"] == 1


class Refusing(MemoryHistories):
    async def append(self, appends: Sequence[Append]) -> list[Applied]:
        raise Permanent("CODEBOOK history was written with codebook 2")


async def test_a_history_that_cannot_be_written_stops_the_batch_instead_of_losing_it() -> None:
    with pytest.raises(Permanent, match="CODEBOOK"):
        await Rig(histories=Refusing(4, 1)).feed(event(1))


async def test_events_of_a_user_whose_history_cannot_be_read_become_dead_letters() -> None:
    rig = Rig()
    rig.histories.packed["sick"] = b"\x07of a format to come"
    await rig.feed(event(1, user="sick"), event(2), event(3, user="sick"))
    assert [(letter.offset, "FORMAT" in letter.reason) for letter in rig.log.letters] == [(0, True), (2, True)]
    assert (await rig.history()).events_applied == 1


async def test_a_topic_made_anew_under_a_running_worker_counts_from_its_beginning() -> None:
    rig = Rig()
    await rig.feed(event(1), event(2), first=100)
    await rig.registry.count_creation(["events.feed"])
    await rig.registry.count_creation(["events.feed"])
    await rig.feed(event(3), event(4), first=0)
    assert (await rig.history()).events_applied == 4


async def test_what_was_impossible_when_it_was_produced_is_refused_by_a_replay_too() -> None:
    rig = Rig()
    produced_ms = NOW_MS - 600_000
    values = [json.dumps(event(n, ts=produced_ms + ahead)).encode() for n, ahead in enumerate((299_000, 301_000))]
    records = tuple(Record(n, b"k", value, produced_ms) for n, value in enumerate(values))
    await rig.ingest.handle(Batch("events.feed", 0, records), Scenario.feed)
    assert [letter.offset for letter in rig.log.letters] == [1]
    assert (await rig.history()).events_applied == 1


async def test_codes_of_an_old_text_are_used_for_a_while_only() -> None:
    now = 0.0
    items = MemoryItems()
    cache = ItemCache(items, 10, clock=lambda: now)
    (item,) = await items.claim(["i:a"])
    await items.put_codes({item.index: b"old."})
    await cache.get(["i:a"])
    await items.put_codes({item.index: b"new."})
    assert (await cache.get(["i:a"]))["i:a"].codes == b"old."
    now = CACHE_SECONDS + 1
    assert (await cache.get(["i:a"]))["i:a"].codes == b"new."


async def test_of_too_many_items_those_known_longest_are_asked_for_again() -> None:
    items = MemoryItems()
    cache = ItemCache(items, 2)
    names = ["i:a", "i:b", "i:c"]
    indexes = [item.index for item in await items.claim(names)]
    await items.put_codes(dict.fromkeys(indexes, b"old."))
    for name in ("i:a", "i:b", "i:a", "i:c"):
        await cache.get([name])
    await items.put_codes(dict.fromkeys(indexes, b"new."))
    found = await cache.get(names)
    assert [found[name].codes for name in names] == [b"new.", b"old.", b"old."]


async def test_codes_that_came_late_are_no_longer_used_for_it() -> None:
    now = 0.0
    held = asyncio.Event()

    class Held(MemoryItems):
        async def claim(self, names: Sequence[str]) -> list[StoredItem]:
            found = await super().claim(names)
            if names == ["i:a"]:
                await held.wait()
            return found

    items = Held()
    cache = ItemCache(items, 10, clock=lambda: now)
    a, b = await MemoryItems.claim(items, ["i:a", "i:b"])
    await items.put_codes({a.index: b"old.", b.index: b"old."})
    slow = asyncio.create_task(cache.get(["i:a"]))
    await asyncio.sleep(0)
    now = CACHE_SECONDS / 2
    await cache.get(["i:b"])
    held.set()
    assert (await slow)["i:a"].codes == b"old."
    await items.put_codes({a.index: b"new."})
    now = CACHE_SECONDS + 1
    assert (await cache.get(["i:a"]))["i:a"].codes == b"new."


async def test_codes_are_written_with_the_event_once_the_item_is_known() -> None:
    rig = await Rig().provision()
    await rig.catalogue(item("a"))
    await rig.feed(event(1, "a"), event(2, "unknown"))
    coded = [r.codes is not None for r in (await rig.history()).records]
    assert coded == [True, False]
