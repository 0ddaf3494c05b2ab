"""The queue of dirty users: who has waited for too long first, each once, none lost, none too often."""

import asyncio
import itertools
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import dirty_queue
from stream.dirty_queue import DirtyQueue
from stream.events import Scenario
from stream.identity import shard
from stream.stores import Dirty
from stream.urgency import Urgency

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
            taken = [m.user_id for m in queue.take(int(str(what)), now=0.0, now_ms=0.0)]
            assert not set(taken) & set(running)
            running += taken
            waiting -= set(taken)
        else:
            ended, running = running[: int(str(what))], running[int(str(what)) :]
            queue.done(ended)
        assert len(queue) == len(waiting)
    queue.done(running)
    assert {m.user_id for m in queue.take(100, now=0.0, now_ms=0.0)} == waiting


@given(st.lists(st.tuples(users, st.integers(0, 50)), min_size=1))
def test_the_oldest_is_taken_first_and_keeps_its_oldest_date(marks: list[tuple[str, int]]) -> None:
    queue = DirtyQueue()
    queue.put(Dirty(user, since) for user, since in marks)
    oldest: dict[str, int] = {}
    for user, since in marks:
        oldest[user] = min(since, oldest.get(user, since))
    taken = queue.take(100, now=0.0, now_ms=0.0)
    assert [(m.since_ms, m.user_id) for m in taken] == sorted((since, user) for user, since in oldest.items())


def test_a_user_is_not_refreshed_again_within_the_interval() -> None:
    queue = DirtyQueue(min_interval=10.0)
    queue.put([Dirty("a", 1)])
    assert queue.take(1, now=0.0, now_ms=0.0) == [Dirty("a", 1)]
    queue.done(["a"])
    queue.put([Dirty("a", 2)])
    assert queue.take(1, now=9.9, now_ms=0.0) == []
    assert queue.take(1, now=10.0, now_ms=0.0) == [Dirty("a", 2)]


def test_a_user_that_became_dirty_while_running_is_ready_afterwards() -> None:
    queue = DirtyQueue()
    queue.put([Dirty("a", 1)])
    queue.take(1, now=0.0, now_ms=0.0)
    queue.put([Dirty("a", 2)])
    assert queue.take(1, now=0.0, now_ms=0.0) == []
    queue.done(["a"])
    assert queue.take(1, now=0.0, now_ms=0.0) == [Dirty("a", 2)]


def test_it_holds_no_more_than_its_capacity_and_only_its_own_users() -> None:
    queue = DirtyQueue(capacity=2, mine=lambda user: user != "x")
    queue.put(Dirty(user, 1) for user in "xabc")
    assert [m.user_id for m in queue.take(9, now=0.0, now_ms=0.0)] == ["a", "b"]


async def test_waiting_ends_when_somebody_arrives_or_is_due() -> None:
    queue = DirtyQueue(min_interval=0.05)
    waiting = asyncio.create_task(queue.arrival(time.monotonic(), idle=30.0))
    await asyncio.sleep(0)
    queue.put([Dirty("a", 1)])
    await asyncio.wait_for(waiting, 5)
    queue.take(1, now=time.monotonic(), now_ms=0.0)
    queue.put([Dirty("a", 2)])
    queue.done(["a"])
    assert queue.take(1, now=time.monotonic(), now_ms=0.0) == []
    await asyncio.wait_for(queue.arrival(time.monotonic(), idle=30.0), 5)
    await asyncio.sleep(0.06)
    assert queue.take(1, now=time.monotonic(), now_ms=0.0) == [Dirty("a", 2)]


def test_users_of_other_workers_are_pruned() -> None:
    mine = {"a", "b"}
    queue = DirtyQueue(mine=lambda user: user in mine)
    queue.put([Dirty("a", 1), Dirty("b", 2)])
    mine.remove("a")
    queue.prune()
    assert queue.take(9, now=0.0, now_ms=0.0) == [Dirty("b", 2)]


many = st.sampled_from([f"u{n}" for n in range(40)])
arrivals = st.lists(st.tuples(many, st.integers(0, 30_000), st.sampled_from([None, *Scenario])), max_size=80)
HEAD_STARTS = Urgency({Scenario.search: 3.0, Scenario.feed: 1.0})


def arrive(queue: DirtyQueue, user: str, since_ms: int, scenario: int | None) -> None:
    if scenario is None:
        queue.put([Dirty(user, since_ms)])
    else:
        queue.tell(Dirty(user, since_ms), scenario, 1)


@given(arrivals, st.integers(0, 40_000), st.integers(1, 10))
def test_whoever_is_overdue_is_taken_before_anybody_younger_and_nobody_is_left(
    plan: list[tuple[str, int, int | None]], now_ms: int, batch: int
) -> None:
    queue, dates = DirtyQueue(max_staleness=10.0, urgency=HEAD_STARTS), dict[str, int]()
    for user, since_ms, scenario in plan:
        arrive(queue, user, since_ms, scenario)
        dates[user] = min(since_ms, dates.get(user, since_ms))
    taken = list(itertools.chain(*iter(lambda: queue.take(batch, now=0.0, now_ms=now_ms), [])))
    assert {mark.user_id: mark.since_ms for mark in taken} == dates
    late = [mark.since_ms <= now_ms - 10_000 for mark in taken]
    assert late == sorted(late, reverse=True)
    by_group = defaultdict(list)
    for mark in taken[: sum(late)]:
        by_group[shard(mark.user_id) % 64].append(mark.since_ms)
    assert all(group == sorted(group) for group in by_group.values())
    for first, second in itertools.pairwise(taken[sum(late) :]):  # no head start is longer than 3 s
        assert first.since_ms - 3_000 <= second.since_ms


@given(
    st.lists(st.tuples(many, st.integers(0, 500), st.integers(1, 5)), min_size=1, max_size=60),
    st.floats(0.1, 2.0),
)
def test_no_user_is_taken_more_often_than_the_interval_and_all_are_in_the_end(
    plan: list[tuple[str, int, int]], interval: float
) -> None:
    queue, now, last, left = DirtyQueue(min_interval=interval, max_staleness=1.0), 0.0, dict[str, float](), set[str]()

    def take(count: int) -> None:
        for mark in queue.take(count, now, 1000 * now):
            assert now - last.get(mark.user_id, -9.0) >= interval - 1e-9
            last[mark.user_id] = now
            left.discard(mark.user_id)
            queue.done([mark.user_id])

    for user, pause_ms, count in plan:
        queue.put([Dirty(user, int(1000 * now))])
        left.add(user)
        now += pause_ms / 1000
        take(count)
    now += interval
    take(100)
    assert left == set()


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30_000), st.booleans()), max_size=200))
def test_memory_is_bounded_whatever_arrives(plan: list[tuple[int, int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirty_queue, "SLACK", 10)
        queue = DirtyQueue(min_interval=5.0, max_staleness=10.0, capacity=16, backlog_rate=1.0, urgency=HEAD_STARTS)
        for step, (number, since_ms, taking) in enumerate(plan):
            arrive(queue, f"u{number}", since_ms, number % 3)
            if taking:
                queue.done([mark.user_id for mark in queue.take(2, now=step / 10, now_ms=25_000)])
            held = [queue._ready, queue._ages, queue._later, queue._overdue, queue._last, queue._delayed]
            assert len(queue) <= 16
            assert max(map(len, held)) <= 2 * 16 + 10 + 1


def test_newcomers_find_room_where_many_are_overdue() -> None:
    queue = DirtyQueue(max_staleness=10.0, backlog_rate=1.0, capacity=8)
    queue.put(Dirty(f"old{n}", n) for n in range(8))
    queue.take(0, now=0.0, now_ms=60_000)
    queue.put([Dirty("new", 60_000)])
    assert [m.user_id for m in queue.take(9, now=0.0, now_ms=60_000)] == ["old0", "new"]
    assert len(queue) == 3
    queue.fill(Dirty(f"old{n}", n) for n in reversed(range(8)))  # what made room is found again, for half of it
    assert len(queue) == 4


def test_a_steady_stream_of_searches_starves_nobody() -> None:
    queue = DirtyQueue(max_staleness=5.0, urgency=Urgency({Scenario.search: 60.0}))
    queue.tell(Dirty("patient", 0), Scenario.feed, 1)
    for second in range(10):
        for n in range(3):
            queue.tell(Dirty(f"{second}-{n}", 1000 * second), Scenario.search, 1)
        if queue.take(1, now=second, now_ms=1000 * second) == [Dirty("patient", 0)]:
            break
    assert second == 5


def users_of(partition: int, count: int) -> list[str]:
    """Of one in four partitions."""
    found = (f"u{n}" for n in itertools.count())
    return list(itertools.islice((user for user in found if shard(user) % 4 == partition), count))


def test_every_partition_with_a_backlog_has_its_share() -> None:
    queue, ages = DirtyQueue(max_staleness=10.0), {0: 3_600_000, 1: 60_000, 3: 20_000}
    for partition, age_ms in ages.items():
        queue.put(Dirty(user, 10_000_000 - age_ms) for user in users_of(partition, 600))
    share = Counter(shard(mark.user_id) % 4 for mark in queue.take(300, now=0.0, now_ms=10_000_000))
    assert share.keys() == ages.keys()
    assert min(share.values()) >= 90


def test_a_backlog_is_drained_at_its_rate_and_news_are_not_held_up() -> None:
    queue, overdue = DirtyQueue(max_staleness=10.0, backlog_rate=50.0), 0
    queue.put(Dirty(f"old{n}", n) for n in range(1_000))
    for tick in range(100):  # of 0.1 s
        now_ms = 60_000 + 100 * tick
        queue.put([Dirty(f"new{tick}", now_ms)])
        taken = queue.take(64, now=tick / 10, now_ms=now_ms)
        assert taken[-1] == Dirty(f"new{tick}", now_ms)
        overdue += len(taken) - 1
    assert 480 <= overdue <= 505


def test_an_overdue_user_who_acts_again_is_served_with_the_news() -> None:
    queue = DirtyQueue(max_staleness=10.0, backlog_rate=1.0)
    queue.put(Dirty(f"old{n}", n) for n in range(9))
    assert queue.take(9, now=0.0, now_ms=60_000) == [Dirty("old0", 0)]
    queue.tell(Dirty("old7", 60_000), Scenario.feed, 1)
    queue.tell(Dirty("old8", 60_000), Scenario.feed, 1)
    assert queue.take(1, now=0.0, now_ms=60_001) == [Dirty("old7", 7)]
    assert queue.take(9, now=0.0, now_ms=70_000) == []  # news no longer
    assert queue.take(9, now=1.0, now_ms=71_000) == [Dirty("old1", 1)]
    assert len(queue) == 6


async def test_waiting_ends_when_the_rate_allows_one_more() -> None:
    queue = DirtyQueue(max_staleness=10.0, backlog_rate=20.0)
    queue.put([Dirty("a", 1), Dirty("b", 2)])
    taken: list[Dirty] = []
    while len(taken) < 2:
        taken += queue.take(2, time.monotonic(), now_ms=60_000)
        await asyncio.wait_for(queue.arrival(time.monotonic(), idle=30.0 if len(taken) < 2 else 0.0), 5)


def test_events_that_wait_for_one_refresh_save_inferences_and_a_delay_is_counted_once() -> None:
    queue = DirtyQueue(min_interval=10.0)
    queue.tell(Dirty("a", 1), Scenario.feed, 3)
    queue.tell(Dirty("a", 2), Scenario.search, 2)
    assert queue.stats.counts["inferences_saved"] == 4
    queue.done(m.user_id for m in queue.take(1, now=0.0, now_ms=0.0))
    queue.tell(Dirty("a", 3), Scenario.feed, 1)
    for now in (1.0, 2.0):
        assert queue.take(1, now=now, now_ms=0.0) == []
    assert queue.stats.counts == Counter(inferences_saved=4, refreshes_delayed=1)


def test_a_refresh_that_failed_waits_for_no_interval() -> None:
    queue = DirtyQueue(min_interval=10.0)
    queue.put([Dirty("a", 1)])
    failed = queue.take(1, now=0.0, now_ms=0.0)
    queue.back(failed)
    queue.done(["a"])
    assert queue.take(1, now=0.1, now_ms=0.0) == failed
