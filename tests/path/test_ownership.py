"""Two workers that both take a user for theirs, over the twins: one writes, and in the end it is the right one."""

import asyncio
from dataclasses import dataclass

from stream.adapters.memory import MemoryModels
from stream.adapters.memory_stores import MemoryHistories
from stream.identity import SHARDS, shard
from stream.ownership import Ownership
from stream.ports import HistoryTensors, Interests
from stream.stores import Dirty
from tests.path.rig import Rig, event

MARK = Dirty("u", 1)


@dataclass
class Group:
    """What a worker knows of its group, and what the group would say."""

    shards: frozenset[int] = frozenset(range(SHARDS))
    member: bool = True
    asked: int = 0

    def assigned(self) -> frozenset[int]:
        return self.shards

    async def confirmed(self) -> bool:
        self.asked += 1
        return self.member


class Paused(MemoryModels):
    """Answers as an older model, once it is woken."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.woken = asyncio.Event(), asyncio.Event()

    async def interests(self, histories: HistoryTensors) -> Interests:
        answer = await super().interests(histories)
        self.asked.set()
        await self.woken.wait()
        return Interests(answer.vectors, answer.weights, "0")


def ownership(histories: MemoryHistories, group: Group) -> Ownership:
    return Ownership(histories, group.assigned, group.confirmed)


async def test_a_zombie_neither_overwrites_the_same_version_nor_clears_a_mark_nor_begins_again() -> None:
    models, group = Paused(), Group()
    zombie = await Rig(models=models).provision()
    zombie.refresher._ownership = ownership(zombie.histories, group)
    await zombie.feed(event(1))
    asleep = asyncio.create_task(zombie.refresher.refresh([MARK]))
    await models.asked.wait()

    heir = await Rig(histories=zombie.histories, items=zombie.items, vectors=zombie.vectors).provision()
    await heir.refresher.refresh([MARK])
    await heir.histories.mark([Dirty("u", 2)])  # a reason that no version tells of
    group.member = False
    models.woken.set()
    await asleep
    profile = await heir.vectors.profile("u")
    assert profile is not None
    assert (profile.version, profile.model_version) == (1, "1")
    assert await heir.histories.dirty([shard("u")], 9) == [Dirty("u", 2)]

    updates = len(zombie.log.updates)
    await zombie.refresher.refresh([MARK])
    assert len(zombie.log.updates) == updates
    await heir.refresher.refresh([MARK])
    assert await heir.histories.dirty([shard("u")], 9) == []


async def test_tokens_are_taken_once_and_only_when_the_group_confirms() -> None:
    histories, group = MemoryHistories(4, 1), Group(frozenset({shard("u"), shard("v")}), member=False)
    mine = ownership(histories, group)
    assert await mine.tokens(["u", "v"]) == {}
    assert histories.tokens == {}
    group.member = True
    taken = await mine.tokens(["u", "v", "w"])
    assert taken.keys() == {"u", "v"}
    assert await mine.tokens(["u", "v"]) == taken
    assert group.asked == 2
    group.shards = frozenset({shard("v")})
    assert await mine.tokens(["u", "v"]) == {"v": taken["v"]}


async def test_an_owner_whose_token_was_taken_by_mistake_takes_the_next() -> None:
    histories, late = MemoryHistories(4, 1), Group()
    mine, stray = ownership(histories, Group()), ownership(histories, late)
    before = await mine.tokens(["u"])
    await stray.tokens(["u"])
    late.member = False
    after = await mine.tokens(["u"])
    assert after["u"] > before["u"]
    assert await stray.tokens(["u"]) == {}
    assert await mine.tokens(["u"]) == after


async def test_tokens_that_were_lost_with_redis_are_taken_again() -> None:
    histories = MemoryHistories(4, 1)
    mine = ownership(histories, Group())
    before = await mine.tokens(["u"])
    histories.tokens.clear()
    assert (await mine.tokens(["u"]))["u"] >= before["u"]
