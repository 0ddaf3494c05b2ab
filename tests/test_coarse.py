"""When what the models have made of a history is given to them again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.coarse import LEAST, SHARE, CoarseCache
from stream.history import History, Record, encode, version_of
from stream.ports import Interests


def history(events: int, kept: int = 1_024) -> bytes:
    record = Record(1_750_000_000_000, 1, 0, 7, b"code")
    return encode(History(4, 1, version=2 * events, records=(record,) * min(events, kept)))


def answer(*rows: float, version: str = "1") -> Interests:
    coarse = np.array([[row, row] for row in rows], np.float16)
    return Interests(np.zeros((len(rows), 3, 1, 2)), np.ones((len(rows), 3, 1)), version, coarse)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def heard(cache: CoarseCache, user: str, events: int, value: float, version: str = "1") -> None:
    packed = {user: history(events)}
    cache.hear(packed, cache.known(packed), answer(value, version=version))


@given(st.integers(0, 1_500), st.integers(0, 100), st.integers(0, 40), st.floats(0, 20))
def test_it_serves_as_long_as_little_is_new(events: int, more: int, most: int, hours: float) -> None:
    clock = Clock()
    cache = CoarseCache(most, seconds=10 * 3600, clock=clock)
    heard(cache, "u", events, 5.0)
    clock.now += hours * 3600
    grown = history(events + more)
    found = cache.known({"u": grown})
    few = events >= LEAST and more <= min(most, SHARE * min(1_024, events + more))
    assert (found is not None) == (most > 0 and few and hours <= 10)
    assert found is None or found.tolist() == [[5.0, 5.0]]


def test_what_was_known_does_not_grow_younger_by_being_used() -> None:
    cache = CoarseCache(4, seconds=60)
    heard(cache, "u", 1_000, 1.0)
    for events in (1_002, 1_004):
        heard(cache, "u", events, 1.0)
    assert cache.known({"u": history(1_004)}) is not None
    assert cache.known({"u": history(1_005)}) is None


def test_users_are_known_or_not_each_for_themselves() -> None:
    cache = CoarseCache(4, seconds=60)
    heard(cache, "u", 1_000, 1.0)
    packed = {"v": history(500), "u": history(1_001)}
    known = cache.known(packed)
    assert known is not None
    assert np.isnan(known[0]).all()
    assert known[1].tolist() == [1.0, 1.0]
    assert cache.hear(packed, known, answer(2.0, 1.0)) == 1
    assert cache.known({"v": history(501)}).tolist() == [[2.0, 2.0]]  # type: ignore[union-attr]


def test_another_version_of_the_models_begins_anew() -> None:
    cache = CoarseCache(4, seconds=60)
    heard(cache, "u", 1_000, 1.0)
    heard(cache, "v", 1_000, 2.0, version="2")
    assert cache.known({"u": history(1_000)}) is None
    assert cache.known({"v": history(1_000)}) is not None


def test_a_history_that_was_lost_or_begun_anew_is_looked_at() -> None:
    cache = CoarseCache(4, seconds=60)
    heard(cache, "u", 1_000, 1.0)
    assert cache.known({"u": history(900)}) is None
    assert version_of(history(900)) == 1_800


def test_no_more_users_are_remembered_than_it_holds() -> None:
    cache = CoarseCache(4, seconds=60, users=2)
    for user in "uvw":
        heard(cache, user, 1_000, 1.0)
    assert [cache.known({user: history(1_000)}) is None for user in "uvw"] == [True, False, False]


@pytest.mark.parametrize("events", [0, 4])
def test_models_that_have_none_to_give_are_asked_as_ever(events: int) -> None:
    cache = CoarseCache(events, seconds=60)
    packed = {"u": history(1_000)}
    bare = Interests(np.zeros((1, 3, 1, 2)), np.ones((1, 3, 1)), "1")
    assert cache.hear(packed, None, bare) == 0
    assert cache.known(packed) is None
