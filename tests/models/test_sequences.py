"""Training stretches against a plain reading of the rules, one user and one event at a time."""

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from models.contract import SCENARIOS
from models.dataset import Behaviour
from models.sequences import AHEAD, NONE, Sampler, Sequences
from tests.models.populations import behaviour, random_behaviour

CASES = {
    "seed": st.integers(0, 2**32),
    "users": st.integers(1, 8),
    "most": st.integers(2, 90),
    "length": st.integers(2, 20),
    "window": st.integers(1, 4),
}


def random_sampler(seed: int, users: int, most: int, length: int, window: int, cuts: int = 2) -> Sampler:
    """Of users of whom training may see any number of events, the first ones."""
    rng = np.random.default_rng(seed)
    data = random_behaviour(rng, users, most)
    ends = data.first[:-1] + rng.integers(0, np.diff(data.first) + 1)
    training = np.arange(len(data.text)) < np.repeat(ends, np.diff(data.first))
    return Sampler(data, training, length, cuts, window)


def next_of(data: Behaviour, event: int, end: int) -> tuple[int, int]:
    """Item and scenario of the first wanted event from `event` on, before `end`."""
    for place in range(event, end):
        if data.wanted[place]:
            return int(data.text[place]), int(data.scenario[place])
    return NONE, 0


def start_of(sampler: Sampler, user: int, batch: Sequences, row: int) -> int:
    """Where the stretch begins: times tell events apart."""
    time = int(batch.histories.time[row, 0])
    first, end = sampler.data.first[user], sampler.end[user]
    return int(first + np.flatnonzero(sampler.data.time[first:end] == time)[0])


@given(**CASES)
@settings(max_examples=150, deadline=None)
def test_stretches_targets_and_windows_are_those_of_the_rules(**sizes: int) -> None:
    sampler = random_sampler(**sizes)
    data = sampler.data
    if not len(sampler.users):
        return
    batch = sampler.draw(sampler.users, np.random.default_rng(sizes["seed"]))
    for row, user in enumerate(sampler.users.tolist()):
        first, end = int(data.first[user]), int(sampler.end[user])
        known = int(batch.histories.valid[row].sum())
        start = start_of(sampler, user, batch, row)
        events = slice(start, start + known)
        assert known == min(sizes["length"], end - first)
        assert start >= first
        assert start + known <= end, "nothing from behind the split"
        assert batch.histories.valid[row].tolist() == [True] * known + [False] * (batch.rows.shape[1] - known)
        assert batch.rows[row, :known].tolist() == data.text[events].tolist()
        for name in ("time", "scenario", "action"):
            assert getattr(batch.histories, name)[row, :known].tolist() == getattr(data, name)[events].tolist()
        wanted = [next_of(data, start + behind, end) for behind in range(known + 1)]
        padding = [(NONE, 0)] * (batch.rows.shape[1] - known)
        assert list(zip(batch.target[row].tolist(), batch.target_scenario[row].tolist(), strict=True)) == [
            *wanted,
            *padding,
        ]
        assert batch.cuts[row].min() >= 1
        assert batch.cuts[row].max() == batch.cuts[row, 0] == known - 1
        for cut, windows in zip(batch.cuts[row].tolist(), batch.window[row].tolist(), strict=True):
            ahead = range(start + cut, min(start + cut + AHEAD, end))
            for code, window in enumerate(windows):
                coming = [int(data.text[e]) for e in ahead if data.wanted[e] and data.scenario[e] == code]
                coming = coming[: sizes["window"]]
                assert window == coming + [NONE] * (sizes["window"] - len(coming))


@given(**CASES, tokens=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_user_of_two_events_once_and_is_the_same_for_the_same_seed(
    tokens: int, **sizes: int
) -> None:
    sampler = random_sampler(**sizes)
    known = sampler.end - sampler.data.first[:-1]
    assert sampler.users.tolist() == np.flatnonzero(known >= 2).tolist()
    if not len(sampler.users):
        return
    batches, again = (sampler.epoch(tokens, np.random.default_rng(sizes["seed"])) for _ in range(2))
    assert sorted(np.concatenate(batches).tolist()) == sampler.users.tolist()
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]
    lengths = np.minimum(known, sampler.length)
    assert all(lengths[batch].sum() < tokens + lengths.max() for batch in batches)
    one, other = (sampler.draw(batches[0], np.random.default_rng(sizes["seed"])) for _ in range(2))
    assert torch.equal(one.cuts, other.cuts)
    assert torch.equal(one.rows, other.rows)


def test_long_pasts_are_read_at_their_end_half_the_time_and_anywhere_else() -> None:
    data = behaviour([[(n % 9, 1, 1) for n in range(40)]], items=9)
    sampler = Sampler(data, np.ones(40, dtype=bool), length=10, cuts=1, window=1)
    rng = np.random.default_rng(0)
    starts = [start_of(sampler, 0, sampler.draw(sampler.users, rng), 0) for _ in range(600)]
    assert set(starts) == set(range(31))
    assert 0.45 < np.mean(np.array(starts) == 30) < 0.6


@given(**CASES, count=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_shards_hold_every_stretch_once(count: int, **sizes: int) -> None:
    sampler = random_sampler(**sizes)
    if not len(sampler.users):
        return
    batch = sampler.draw(sampler.users, np.random.default_rng(0))
    parts = [batch.shard(number, count) for number in range(count)]
    assert sum(map(len, parts)) == len(batch) == len(sampler.users)
    for number, part in enumerate(parts):
        whole = {name: value for name, value in vars(batch).items() if name != "histories"} | vars(batch.histories)
        mine = {name: value for name, value in vars(part).items() if name != "histories"} | vars(part.histories)
        assert all(torch.equal(mine[name], whole[name][number::count]) for name in whole)


def test_skipped_items_and_queries_are_read_but_are_no_targets() -> None:
    skip, search, click = 12, 15, 1
    feed, searching = SCENARIOS.index("feed"), SCENARIOS.index("search")
    data = behaviour([[(0, feed, click), (1, feed, skip), (3, searching, search), (2, feed, click)]], 3, queries=1)
    batch = Sampler(data, np.ones(4, dtype=bool), 8, 1, 2).draw(np.array([0]), np.random.default_rng(0))
    assert batch.rows.tolist() == [[0, 1, 3, 2]]
    assert batch.target.tolist() == [[0, 2, 2, 2, NONE]]
    assert batch.window[0, 0].tolist() == [[NONE, NONE], [2, NONE], [NONE, NONE]]
