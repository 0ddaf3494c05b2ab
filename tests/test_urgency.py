"""Head starts: by scenario, by drift, and how they are written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import Scenario
from stream.urgency import DRIFT_SECONDS, Urgency, head_starts


def turned(degrees: float) -> np.ndarray:
    """All interests, turned away from where they were at 0 degrees."""
    angle = np.radians(degrees)
    return np.tile(np.float32([np.cos(angle), np.sin(angle)]), (3, 4, 1))


def test_head_starts_as_they_are_written() -> None:
    assert head_starts(" search=0.5, feed = 2 ,") == {Scenario.search: 0.5, Scenario.feed: 2.0}
    assert head_starts("") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("radio=1", "there is no scenario 'radio'"),
        ("search", "'search' does not end in seconds, write search=0.5"),
        ("feed=1,search=0,feed=2", "feed is named twice"),
        ("feed=-1", "'feed=-1' does not end in seconds"),
        ("feed=nan", "'feed=nan' does not end in seconds"),
        ("feed=inf", "'feed=inf' does not end in seconds"),
    ],
)
def test_what_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        head_starts(text)


def test_the_scenario_of_the_newest_event_counts_and_no_event_has_none() -> None:
    urgency = Urgency({Scenario.search: 2.0})
    assert [urgency.seconds("u", s) for s in (Scenario.search, Scenario.feed, None)] == [2.0, 0.0, 0.0]


@pytest.mark.parametrize(("degrees", "share"), [(0, 0.0), (60, 0.5), (90, 1.0), (180, 1.0)])
def test_who_has_moved_comes_earlier(degrees: float, share: float) -> None:
    urgency = Urgency()
    urgency.refreshed("u", turned(0))
    assert urgency.seconds("u", None) == 0.0
    urgency.refreshed("u", turned(degrees))
    assert urgency.seconds("u", None) == pytest.approx(DRIFT_SECONDS * share, abs=1e-3)
    urgency.refreshed("u", turned(degrees))
    assert urgency.seconds("u", None) == pytest.approx(0.0, abs=1e-3)


def test_vectors_of_another_shape_say_nothing() -> None:
    urgency = Urgency()
    urgency.refreshed("u", turned(0))
    urgency.refreshed("u", turned(90)[:, :2])
    assert urgency.seconds("u", None) == 0.0


@given(st.lists(st.integers(0, 20)))
def test_no_more_than_the_last_users_are_remembered(users: list[int]) -> None:
    urgency = Urgency(remembered=5)
    for user in users:
        urgency.refreshed(f"u{user}", turned(0))
    assert list(urgency._last) == [f"u{user}" for user in list(dict.fromkeys(reversed(users)))[:5][::-1]]
