"""From dirty users to searchable profiles, over the twins, with every step made to fail in turn."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from stream import refresh
from stream.adapters.memory import MemoryLog, MemoryModels, MemoryVectors
from stream.adapters.memory_stores import MemoryHistories
from stream.coarse import CoarseCache
from stream.errors import Permanent, Transient
from stream.identity import SHARDS
from stream.ports import Encoded, HistoryTensors, Interests, Profile
from stream.stores import Refreshed
from tests.path.rig import NOW_MS, Rig, event, item


async def settled(rig: Rig, seconds: float = 20.0) -> None:
    """Run the refresher until nobody is dirty."""
    running = asyncio.create_task(rig.refresher.run())
    deadline = time.monotonic() + seconds
    while await rig.histories.dirty(range(SHARDS), 1) and time.monotonic() < deadline:  # noqa: ASYNC110  a poll
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await rig.histories.dirty(range(SHARDS), 1) == []


async def test_a_dirty_user_gets_a_point_of_the_historys_version_and_is_announced() -> None:
    rig = await Rig().provision()
    await rig.catalogue(item("a"))
    await rig.feed(event(1, "a"), event(2, "a", user="v"))
    assert await rig.refresh() == 2
    for user in "uv":
        profile = await rig.vectors.profile(user)
        assert profile is not None
        assert profile.version == (await rig.history(user)).version
    assert profile.event_ts == NOW_MS + 2
    assert [u.user_id for u in rig.log.updates] == ["u", "v"]
    assert await rig.histories.dirty(range(SHARDS), 1) == []
    assert rig.stats.counts["refreshes"] == 2


async def test_inferences_made_and_saved_add_up_to_the_events() -> None:
    rig = await Rig().provision()
    await rig.feed(event(1), event(2), event(3, user="v"))
    await rig.feed(event(4), first=3)
    await rig.refresh()
    await rig.feed(event(5), first=4)
    await rig.refresh()
    counts = rig.stats.counts
    assert (counts["inferences"], counts["inferences_saved"], counts["events_applied"]) == (3, 2, 5)


async def test_an_event_during_the_refresh_keeps_the_user_dirty_and_queued() -> None:
    rig = await Rig().provision()

    class Busy(MemoryModels):
        async def interests(self, histories: HistoryTensors) -> Interests:
            if not rig.stats.counts["interrupted"]:
                rig.stats.add("interrupted")
                await rig.feed(event(2), first=1)
            return await super().interests(histories)

    rig.refresher._models = Busy()
    await rig.feed(event(1))
    await rig.refresh()
    assert [m.user_id for m in await rig.histories.dirty(range(SHARDS), 1)] == ["u"]
    assert await rig.refresh() == 1
    assert await rig.histories.dirty(range(SHARDS), 1) == []


async def test_an_unknown_item_is_completed_when_it_arrives() -> None:
    rig = await Rig().provision()
    await rig.feed(event(1, "late"))
    await rig.refresh()
    before = await rig.vectors.profile("u")
    assert (await rig.history()).records[0].codes is None
    await rig.catalogue(item("late"))
    assert await rig.refresh() == 1
    after, history = await rig.vectors.profile("u"), await rig.history()
    assert history.records[0].codes is not None
    assert before is not None
    assert after is not None
    assert (before.version, after.version) == (1, 2)
    assert rig.items.waiters[history.records[0].item] == set()


async def test_a_query_is_encoded_by_the_first_refresh_that_meets_it() -> None:
    rig = await Rig().provision()
    await rig.feed(event(1, None, action="search", query="trail shoes"), scenario="search")
    await rig.refresh()
    (encoded,) = (await MemoryModels().encode(["trail shoes"])).codes
    assert (await rig.history()).records[0].codes == encoded.tobytes()


async def test_an_item_that_arrives_between_look_up_and_waiting_is_not_missed() -> None:
    """The race of stream.pending, step by step: the catalogue finishes just before the user is on the waiting list."""
    rig = await Rig().provision()
    wait = rig.items.wait

    async def late(waiting: Sequence[tuple[int, str]]) -> None:
        await rig.catalogue(item("late"))
        await wait(waiting)

    rig.items.wait = late
    await rig.feed(event(1, "late"))
    await rig.refresh()
    assert (await rig.history()).records[0].codes is not None


async def test_an_item_that_arrives_while_another_worker_asks_the_model_is_not_lost() -> None:
    """The catalogue's mark must outlive the settling of a refresh that has not seen the codes."""
    rig = await Rig().provision()
    other = Rig(histories=rig.histories, items=rig.items, vectors=rig.vectors)  # has the item's partition

    class Slow(MemoryModels):
        async def interests(self, histories: HistoryTensors) -> Interests:
            if not rig.stats.counts["interrupted"]:
                rig.stats.add("interrupted")
                await other.catalogue(item("late"))
            return await super().interests(histories)

    rig.refresher._models = Slow()
    await rig.feed(event(1, "late"))
    await rig.refresh()
    assert (await rig.history()).records[0].codes is not None
    assert [m.user_id for m in await rig.histories.dirty(range(SHARDS), 9)] == ["u"]
    await settled(other)
    profile = await rig.vectors.profile("u")
    assert profile is not None
    assert profile.version == (await rig.history()).version == 2


async def test_a_qdrant_without_collections_is_waited_for_not_dead_lettered() -> None:
    rig = Rig()
    catalogue = asyncio.create_task(rig.catalogue(item("a")))
    await asyncio.sleep(0.1)
    assert not catalogue.done()
    await rig.provision()
    await asyncio.wait_for(catalogue, 20)
    assert rig.log.letters == []
    assert (await rig.vectors.stats()).items == 1


class Flaky:
    """Makes one named method fail, at first for a while."""

    def __init__(self, inner: Any, method: str, failures: int) -> None:
        self._inner, self._method, self._left = inner, method, failures

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self._left:
            self._left -= 1
            return self._fail
        return getattr(self._inner, name)

    async def _fail(self, *_: Any) -> Any:
        raise Transient("away")


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("_histories", "read"),
        ("_histories", "dirty"),
        ("_histories", "settle"),
        ("_pending", "fill"),
        ("_models", "interests"),
        ("_vectors", "put_profiles"),
        ("_log", "announce"),
    ],
)
async def test_no_step_that_fails_for_a_while_loses_a_user(
    part: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "LONGEST_DELAY", 0.02)
    rig = await Rig().provision()
    await rig.feed(*(event(n, user=f"u{n}") for n in range(20)))
    setattr(rig.refresher, part, Flaky(getattr(rig.refresher, part), method, failures=3))
    await settled(rig)
    for n in range(20):
        profile = await rig.vectors.profile(f"u{n}")
        assert profile is not None
        assert profile.version == (await rig.history(f"u{n}")).version


async def test_users_whom_a_dead_worker_left_dirty_are_found_by_the_sweep() -> None:
    rig = await Rig().provision()
    await rig.feed(event(1), event(2, user="v"))
    heir = await Rig(histories=rig.histories, items=rig.items, vectors=rig.vectors).provision()
    await settled(heir)
    assert await rig.vectors.profile("u") is not None
    assert await rig.vectors.profile("v") is not None


class Choosy(MemoryVectors):
    """Refuses one user for good."""

    async def put_profiles(self, profiles: Sequence[Profile]) -> None:
        if any(p.user_id == "u3" for p in profiles):
            raise Permanent("Qdrant refuses")
        await super().put_profiles(profiles)


async def test_one_user_refused_for_good_does_not_hold_up_the_others() -> None:
    rig = await Rig(vectors=Choosy()).provision()
    await rig.feed(*(event(n, user=f"u{n}") for n in range(8)))
    marks = rig.queue.take(100, time.monotonic(), 0.0)
    await rig.refresher._refresh_or_split(marks)
    assert [m.user_id for m in await rig.histories.dirty(range(SHARDS), 9)] == ["u3"]
    assert rig.stats.counts["refreshes_refused"] == 1


class Sick(MemoryModels):
    """Fails whenever the history of one user is among those asked for, which its time tells."""

    def __init__(self, ts: int) -> None:
        super().__init__()
        self.ts: int | None = ts

    async def interests(self, histories: HistoryTensors) -> Interests:
        if (histories.time == self.ts).any():
            raise Transient("Triton: the model has crashed")
        return await super().interests(histories)


async def test_one_user_with_whom_a_model_fails_holds_the_others_up_no_longer_than_the_budget() -> None:
    models = Sick(ts=NOW_MS + 3)
    rig = await Rig(models=models).provision()
    rig.refresher._suspects.budget = 0.2
    await rig.feed(*(event(n, user=f"u{n}") for n in range(30)))

    async def until_dirty(users: list[str]) -> None:
        async with asyncio.timeout(20):
            while [m.user_id for m in await rig.histories.dirty(range(SHARDS), 9)] != users:  # noqa: ASYNC110  a poll
                await asyncio.sleep(0.01)

    running = asyncio.create_task(rig.refresher.run())
    await until_dirty(["u3"])
    await rig.feed(*(event(n, user=f"v{n}") for n in range(100, 130)), first=100)
    await until_dirty(["u3"])
    models.ts = None
    await until_dirty([])
    running.cancel()
    await asyncio.wait({running})


async def test_a_long_history_that_grew_by_little_is_not_looked_at_again() -> None:
    rig = await Rig(coarse=CoarseCache(events=8, seconds=60)).provision()
    await rig.catalogue(item("a"))
    for count in (300, 1, 1, 30):
        first = int((await rig.history()).events_applied) if count < 300 else 0
        await rig.feed(*(event(n, "a") for n in range(first, first + count)), first=first)
        await rig.refresh()
    assert rig.stats.counts["coarse_computed"] == 2
    assert rig.stats.counts["coarse_reused"] == 2
    assert rig.stats.counts["inferences"] == 4


async def test_models_that_are_swapped_are_not_given_what_others_made_of_a_history() -> None:
    class Swapped(MemoryModels):
        version = "1"

        def __init__(self) -> None:
            super().__init__()
            self.given: list[bool] = []

        async def interests(self, histories: HistoryTensors) -> Interests:
            self.given.append(histories.coarse is not None)
            return replace(await super().interests(histories), model_version=self.version)

    models = Swapped()
    rig = await Rig(models=models, coarse=CoarseCache(events=8, seconds=60)).provision()
    await rig.catalogue(item("a"))
    await rig.feed(*(event(n, "a") for n in range(300)))
    await rig.refresh()
    models.version = "2"
    await rig.feed(event(300, "a"), first=300)
    await rig.refresh()
    assert models.given == [False, True, False]
    assert rig.stats.counts["coarse_computed"] == 2


async def test_an_announcement_that_fails_leaves_the_user_dirty() -> None:
    class Mute(MemoryLog):
        async def announce(self, updates: Any) -> None:
            raise Transient("Kafka is away")

    rig = await Rig(log=Mute()).provision()
    await rig.feed(event(1))
    with pytest.raises(Transient):
        await rig.refresh()
    assert [m.user_id for m in await rig.histories.dirty(range(SHARDS), 9)] == ["u"]


async def test_a_mark_without_a_history_is_cleared() -> None:
    rig = await Rig().provision()
    await rig.feed(event(1))
    rig.histories.packed.clear()
    await rig.refresh()
    assert await rig.histories.dirty(range(SHARDS), 9) == []


async def test_items_refused_one_by_one_become_dead_letters() -> None:
    class Picky(MemoryModels):
        async def encode(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> Encoded:
            if any("cursed" in text for text in texts):
                raise Permanent("Triton: INVALID_ARGUMENT")
            return await super().encode(texts, item_ids)

    rig = await Rig(models=Picky()).provision()
    await rig.catalogue(item("a"), b"{}", item("b", "cursed"), item("c"))
    assert sorted((letter.offset, letter.reason) for letter in rig.log.letters) == [
        (1, "item_id: Field required"),
        (2, "Triton: INVALID_ARGUMENT"),
    ]
    assert (await rig.vectors.stats()).items == 2


@pytest.mark.parametrize("away", [False, True])
async def test_an_item_with_which_a_model_fails_again_and_again_is_given_up_but_not_in_an_outage(
    away: bool,
) -> None:
    class Sick(MemoryModels):
        async def encode(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> Encoded:
            if away or any("cursed" in text for text in texts):
                raise Transient("Triton: the model has crashed")
            return await super().encode(texts, item_ids)

    rig = await Rig(models=Sick(), catalogue_budget=0.1).provision()
    applying = asyncio.create_task(rig.catalogue(item("a"), item("b", "cursed"), item("c")))
    if away:
        await asyncio.sleep(1.0)
        assert not applying.done()
        away = False
    await applying
    (letter,) = rig.log.letters
    assert letter.offset == 1
    assert letter.reason == "for 0.1 s, and not with another text: Triton: the model has crashed"
    assert (await rig.vectors.stats()).items == 2


async def test_an_item_is_not_given_up_for_an_outage_that_ends_behind_its_last_failure() -> None:
    class Recovering(MemoryModels):
        """Away when the item comes, there when another text is tried."""

        async def encode(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> Encoded:
            outage.append(texts == ["?"])
            if sum(outage) < 2 and texts != ["?"]:
                raise Transient("Triton: connection refused")
            return await super().encode(texts, item_ids)

    outage: list[bool] = []
    rig = await Rig(models=Recovering(), catalogue_budget=0.1).provision()
    await rig.catalogue(item("a"))
    assert rig.log.letters == []
    assert (await rig.vectors.stats()).items == 1


async def test_settling_an_older_version_keeps_the_mark() -> None:
    histories = MemoryHistories(4, 1)
    rig = await Rig(histories=histories).provision()
    await rig.feed(event(1), event(2))
    assert await histories.settle([Refreshed("u", 1, 5, 0)]) == [False]


async def test_the_catalogue_says_which_item_a_text_is_of() -> None:
    rig = await Rig(models=MemoryModels(warm=frozenset({"warm"}))).provision()
    await rig.catalogue(item("warm", "tea"), item("cold", "tea"))
    await rig.feed(event(1, "warm"), event(2, "cold"))
    warm, cold = (await MemoryModels().encode(["warm", "tea"])).codes
    assert [record.codes for record in (await rig.history()).records] == [warm.tobytes(), cold.tobytes()]
