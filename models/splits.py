"""Which events a model may learn from, and the questions it is asked afterwards.

A question is the index of an event whose item was wanted: "the events of the same user before this one; which item is
this one?", asked in that event's scenario. Its history is *every* event of the user before it in the order of
`Behaviour` (by time, ties as in the file), of all scenarios and actions, queries included, and validation events too
when the question is one of the test. Items of the history are masked out of the ranking, all but the one asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.dataset import Behaviour, Ints
from models.errors import BadInput

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Split:
    """`train` bounds what training may see of each user; `valid` and `test` are ascending, disjoint and beyond it."""

    train: Ints  # [users]: training may use the events first[u] .. train[u] - 1 of user u
    valid: Ints  # [Q], events
    test: Ints  # [Q'], events
    unasked: int = 0  # users of whom nothing is asked; what training may see of them stays in it

    def training(self, data: Behaviour) -> NDArray[np.bool_]:
        """Which events training may use."""
        return np.arange(len(data.text)) < np.repeat(self.train, np.diff(data.first))


def leave_one_out(data: Behaviour) -> Split:
    """Each user's last wanted event is asked in the test, the last but one in validation; training ends before it.

    A user with fewer than three wanted events is asked nothing, and all their events are for training.
    """
    wanted = np.flatnonzero(data.wanted)
    ends = np.searchsorted(wanted, data.first)  # a user's wanted events are wanted[ends[u]:ends[u + 1]]
    asked = np.diff(ends) >= 3
    if not asked.any():
        raise BadInput(
            "no user has three events that may be asked for, as leave-one-out needs them: give more events, or train "
            "with --set split=time"
        )
    test, valid = wanted[ends[1:][asked] - 1], wanted[ends[1:][asked] - 2]
    train = data.first[1:].copy()
    train[asked] = valid
    return Split(train, valid, test, unasked=int((~asked).sum()))


def by_time(data: Behaviour, valid_share: float = 0.1, test_share: float = 0.1) -> Split:
    """The newest `test_share` of all events are the test's, the `valid_share` before them validation's.

    Events at the very millisecond of a cut come after it. Every wanted event of a part is a question, unless it is
    the first event of its user: nothing is known then.
    """
    return at(data, cuts(data, valid_share, test_share))


def cuts(data: Behaviour, valid_share: float = 0.1, test_share: float = 0.1) -> Ints:
    """The two times in ms where `by_time` cuts."""
    if min(valid_share, test_share) <= 0 or valid_share + test_share >= 1:
        raise BadInput(f"shares of {valid_share} and {test_share} must be above 0 and leave something to train on")
    ordered = np.sort(data.time)
    known = np.array([1 - valid_share - test_share, 1 - test_share])
    return ordered[(len(ordered) * known).astype(np.int64)]


def at(data: Behaviour, cuts: Ints) -> Split:
    """The parts before, between and behind two times in ms; an event at the very millisecond of a cut is after."""
    part = np.searchsorted(cuts, data.time, side="right")  # 0, 1, 2
    before = np.concatenate([[0], (part == 0).cumsum()])
    ask = data.wanted.copy()
    ask[data.first[:-1]] = False
    valid, test = (np.flatnonzero(ask & (part == number)) for number in (1, 2))
    if not (part == 0).any() or not len(valid) or not len(test):
        raise BadInput(f"split by time leaves a part empty (cuts at {cuts[0]} and {cuts[1]} ms)")
    asked = np.unique(data.owner(np.concatenate([valid, test])))
    return Split(data.first[:-1] + np.diff(before[data.first]), valid, test, unasked=data.users - len(asked))


def newest_hours(data: Behaviour) -> Split:
    """Of events fresh from the log: the newest hour is the test's, the hour before it validation's."""
    try:
        return at(data, data.time.max() + 1 - HOUR_MS * np.array([2, 1]))
    except BadInput as error:
        raise BadInput(f"{error}; continual training needs more than two hours of events, up to the newest") from None


SPLITS: dict[str, Callable[[Behaviour], Split]] = {
    "leave-one-out": leave_one_out,
    "time": by_time,
    "newest-hours": newest_hours,
}


def sample(questions: Ints, limit: int, seed: int) -> Ints:
    """At most `limit` of the `questions`, ascending; the same for the same seed."""
    if len(questions) <= limit:
        return questions
    return np.sort(np.random.default_rng(seed).choice(questions, limit, replace=False))


def seen(data: Behaviour, questions: Ints) -> tuple[Ints, Ints]:
    """What is masked out of the ranking: (rows into `questions`, items), one pair for each event of their histories
    whose item is not the one asked for."""
    lengths = questions - data.first[data.owner(questions)]
    row = np.repeat(np.arange(len(questions)), lengths)
    event = questions[row] - 1 - (np.arange(len(row)) - np.repeat(lengths.cumsum() - lengths, lengths))
    item = data.text[event]
    masked = (item < data.items) & (item != data.text[questions][row])
    return row[masked], item[masked]
