"""Freshness quantiles are right within one bucket; delays are bounded."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import retry
from stream.errors import Permanent, Transient
from stream.stats import GROWTH, Stats, quantiles


@given(st.lists(st.floats(1, 1e6), min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_at_most_one_bucket_above_the_true_one(values: list[float], point: float) -> None:
    stats = Stats()
    for value in values:
        stats.fresh(value)
    (found,) = quantiles(stats.counts, (point,))
    true = sorted(values)[math.ceil(point * len(values)) - 1]
    assert found is not None
    assert true * 0.99 - 0.1 <= found <= true * GROWTH * 1.01 + 0.1


def test_without_a_refresh_there_is_no_freshness() -> None:
    assert quantiles({"events_applied": 5}) == [None, None, None]


def test_taking_the_counts_starts_again_from_zero() -> None:
    stats = Stats()
    stats.add("refreshes", 2)
    assert stats.take() == {"refreshes": 2}
    assert stats.take() == {}


@given(st.integers(0, 1 << 32))
def test_delays_double_up_to_a_bound_and_never_fall_below_half(seed: int) -> None:
    whole = retry.FIRST_DELAY
    for delay in itertools.islice(retry.delays(random.Random(seed)), 20):
        assert whole / 2 <= delay <= whole
        whole = min(2 * whole, retry.LONGEST_DELAY)


async def test_persistence_outlasts_what_is_transient_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    failures = [Transient("away")] * 3

    async def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert await retry.persistently(call) == "done"
    failures.append(Permanent("never"))  # type: ignore[arg-type]
    with pytest.raises(Permanent):
        await retry.persistently(call)
