"""The queue of dirty users: oldest first, each once, none lost, none too often."""

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from stream.dirty_queue import DirtyQueue
from stream.stores import Dirty

users = st.sampled_from("abcdef")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), users, st.integers(0, 50)),
        st.tuples(st.just("take"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("done"), st.integers(0, 3), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_every_user_put_is_taken_and_never_twice_at_once(plan: list[tuple[str, object, int]]) -> None:
    queue, running, waiting = DirtyQueue(), [], set()
    for step, what, since in plan:
        if step == "put":
            queue.put([Dirty(str(what), since)])
            waiting.add(what)
        elif step == "take":
            taken = [m.user_id for m in queue.take(int(str(what)), now=0.0)]
            assert not set(taken) & set(running)
            running += taken
            waiting -= set(taken)
        else:
            ended, running = running[: int(str(what))], running[int(str(what)) :]
            queue.done(ended)
        assert len(queue) == len(waiting)
    queue.done(running)
    assert {m.user_id for m in queue.take(100, now=0.0)} == waiting


@given(st.lists(st.tuples(users, st.integers(0, 50)), min_size=1))
def test_the_oldest_is_taken_first_and_keeps_its_oldest_date(marks: list[tuple[str, int]]) -> None:
    queue = DirtyQueue()
    queue.put(Dirty(user, since) for user, since in marks)
    oldest: dict[str, int] = {}
    for user, since in marks:
        oldest[user] = min(since, oldest.get(user, since))
    taken = queue.take(100, now=0.0)
    assert [(m.since_ms, m.user_id) for m in taken] == sorted((since, user) for user, since in oldest.items())


def test_a_user_is_not_refreshed_again_within_the_interval() -> None:
    queue = DirtyQueue(min_interval=10.0)
    queue.put([Dirty("a", 1)])
    assert queue.take(1, now=0.0) == [Dirty("a", 1)]
    queue.done(["a"])
    queue.put([Dirty("a", 2)])
    assert queue.take(1, now=9.9) == []
    assert queue.take(1, now=10.0) == [Dirty("a", 2)]


def test_a_user_that_became_dirty_while_running_is_ready_afterwards() -> None:
    queue = DirtyQueue()
    queue.put([Dirty("a", 1)])
    queue.take(1, now=0.0)
    queue.put([Dirty("a", 2)])
    assert queue.take(1, now=0.0) == []
    queue.done(["a"])
    assert queue.take(1, now=0.0) == [Dirty("a", 2)]


def test_it_holds_no_more_than_its_capacity_and_only_its_own_users() -> None:
    queue = DirtyQueue(capacity=2, mine=lambda user: user != "x")
    queue.put(Dirty(user, 1) for user in "xabc")
    assert [m.user_id for m in queue.take(9, now=0.0)] == ["a", "b"]


async def test_waiting_ends_when_somebody_arrives_or_is_due() -> None:
    queue = DirtyQueue(min_interval=0.05)
    waiting = asyncio.create_task(queue.arrival(time.monotonic(), idle=30.0))
    await asyncio.sleep(0)
    queue.put([Dirty("a", 1)])
    await asyncio.wait_for(waiting, 5)
    queue.take(1, now=time.monotonic())
    queue.put([Dirty("a", 2)])
    queue.done(["a"])
    assert queue.take(1, now=time.monotonic()) == []
    await asyncio.wait_for(queue.arrival(time.monotonic(), idle=30.0), 5)
    await asyncio.sleep(0.06)
    assert queue.take(1, now=time.monotonic()) == [Dirty("a", 2)]


def test_users_of_other_workers_are_pruned() -> None:
    mine = {"a", "b"}
    queue = DirtyQueue(mine=lambda user: user in mine)
    queue.put([Dirty("a", 1), Dirty("b", 2)])
    mine.remove("a")
    queue.prune()
    assert queue.take(9, now=0.0) == [Dirty("b", 2)]
