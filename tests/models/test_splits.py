"""Splits: nothing of a user's future is learnt from, every event has one part, and the same data gives the same."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

from models import splits
from models.contract import ACTIONS
from models.dataset import Behaviour
from models.errors import BadInput

ITEMS = 6
TICK_MS = 600_000  # ten minutes: a population spans some hours
VIEW, SKIP = ACTIONS.index("view"), ACTIONS.index("skip")


def behaviour(users: list[list[tuple[int, int, int]]]) -> Behaviour:
    """One list of (text, time in TICK_MS, action) per user; texts from ITEMS on are queries."""
    events = [event for user in users for event in sorted(user, key=lambda event: event[1])]
    text, time, action = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
    names = [str(number) for number in range(ITEMS + 2)]
    return Behaviour(
        user_ids=[str(user) for user in range(len(users))],
        item_ids=names[:ITEMS],
        texts=names,
        items=ITEMS,
        categories=[""] * ITEMS,
        images=None,
        first=np.cumsum([0, *map(len, users)]),
        text=text,
        time=time * TICK_MS,
        scenario=np.zeros_like(text),
        action=action,
    )


events = st.tuples(st.integers(0, ITEMS + 1), st.integers(0, 40), st.sampled_from([VIEW, VIEW, SKIP]))
populations = st.lists(st.lists(events, min_size=1, max_size=12), min_size=1, max_size=12).map(behaviour)


@pytest.mark.parametrize("name", splits.SPLITS)
@given(data=populations)
@settings(max_examples=100, deadline=None)
def test_every_event_has_one_part_and_no_future_is_learnt_from(name: str, data: Behaviour) -> None:
    try:
        found = splits.SPLITS[name](data)
    except BadInput:
        assume(False)
    learnt = found.training(data)
    owner = data.owner(np.arange(len(data.text)))
    for user in range(data.users):
        assert data.first[user] <= found.train[user] <= data.first[user + 1]
        assert np.flatnonzero(learnt & (owner == user)).tolist() == [*range(data.first[user], found.train[user])]
    parts = [set(np.flatnonzero(learnt)), set(found.valid), set(found.test)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    for questions in (found.valid, found.test):
        assert data.wanted[questions].all()
        assert (np.diff(questions) > 0).all()
        for question in questions:
            mine = np.flatnonzero(learnt & (owner == owner[question]))
            assert (mine < question).all()
            assert (data.time[mine] <= data.time[question]).all()
            assert question > data.first[owner[question]]  # a history
    for user in set(owner[found.valid]) & set(owner[found.test]):
        assert found.valid[owner[found.valid] == user].max() < found.test[owner[found.test] == user].min()
    again = splits.SPLITS[name](data)
    assert all((getattr(found, part) == getattr(again, part)).all() for part in ("train", "valid", "test"))
    assert found.unasked == data.users - len({*owner[found.valid], *owner[found.test]})


@given(data=populations)
@settings(max_examples=100, deadline=None)
def test_leave_one_out_asks_for_the_last_two_wanted(data: Behaviour) -> None:
    wanted = [[e for e in range(a, b) if data.wanted[e]] for a, b in zip(data.first, data.first[1:], strict=False)]
    assume(any(len(mine) >= 3 for mine in wanted))
    found = splits.leave_one_out(data)
    assert found.test.tolist() == [mine[-1] for mine in wanted if len(mine) >= 3]
    assert found.valid.tolist() == [mine[-2] for mine in wanted if len(mine) >= 3]
    for user, mine in enumerate(wanted):
        assert found.train[user] == (mine[-2] if len(mine) >= 3 else data.first[user + 1])


@given(data=populations, shares=st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45)))
@settings(max_examples=100, deadline=None)
def test_by_time_all_that_is_learnt_is_older_than_all_that_is_asked(
    data: Behaviour, shares: tuple[float, float]
) -> None:
    try:
        found = splits.by_time(data, *shares)
    except BadInput:
        assume(False)
    learnt = found.training(data)
    assert data.time[learnt].max() < data.time[~learnt].min() <= data.time[found.valid].min()
    assert data.time[found.valid].max() < data.time[found.test].min()
    later = set(np.flatnonzero(~learnt & data.wanted)) - set(data.first)
    assert later == {*found.valid, *found.test}
    assert learnt.sum() <= (1 - sum(shares)) * len(learnt) + 1e-6


def test_the_newest_hour_is_the_test_and_the_hour_before_it_validation() -> None:
    data = behaviour([[(item % ITEMS, tick, VIEW) for item, tick in enumerate(range(0, 20, 2))]])  # 0 to 180 minutes
    found = splits.newest_hours(data)
    minutes = data.time // 60_000
    assert minutes[found.test].tolist() == [140, 160, 180]
    assert minutes[found.valid].tolist() == [80, 100, 120]
    assert found.train.tolist() == [4]


@given(data=populations)
@settings(max_examples=100, deadline=None)
def test_what_was_seen_is_masked_but_not_what_is_asked_for(data: Behaviour) -> None:
    questions = np.flatnonzero(data.wanted)
    assume(len(questions))
    rows, items = splits.seen(data, questions)
    for row, question in enumerate(questions):
        history = data.text[data.first[data.owner(question)] : question].tolist()
        expected = {item for item in history if item < ITEMS} - {data.text[question]}
        assert set(items[rows == row]) == expected


@given(number=st.integers(0, 30), limit=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_sample_is_a_subset_and_the_same_again(number: int, limit: int, seed: int) -> None:
    questions = np.arange(number) * 3
    chosen = splits.sample(questions, limit, seed)
    assert len(chosen) == min(number, limit)
    assert set(chosen) <= set(questions)
    assert (np.diff(chosen) > 0).all()
    assert (chosen == splits.sample(questions, limit, seed)).all()


def test_mistakes_are_one_sentence() -> None:
    data = behaviour([[(0, 1, VIEW), (1, 1, VIEW), (2, 1, SKIP)], [(3, 1, VIEW)]])
    with pytest.raises(BadInput, match="no user has three events that may be asked for"):
        splits.leave_one_out(data)
    with pytest.raises(BadInput, match=r"leaves a part empty \(cuts at 600000 and 600000 ms\)"):
        splits.by_time(data)
    with pytest.raises(BadInput, match="more than two hours of events"):
        splits.newest_hours(data)
    with pytest.raises(BadInput, match=r"shares of 0.5 and 0.5 must be above 0"):
        splits.by_time(data, 0.5, 0.5)
