"""Who is asked for alone, and who is set aside."""

from stream.stores import Dirty
from stream.suspects import Suspects

A, B, C = (Dirty(user, 0) for user in "abc")


def suspected() -> Suspects:
    """After a budget of failures of a and b together."""
    suspects = Suspects(budget=10.0)
    assert suspects.failed([A, B], 0.0) == [A, B]
    assert suspects.failed([A, B], 10.0) == [A, B]
    return suspects


def test_within_the_budget_a_batch_is_asked_for_again_as_it_is() -> None:
    suspects = Suspects(budget=10.0)
    for second in range(10):
        assert suspects.failed([A, B], float(second)) == [A, B]
        assert suspects.together([A, B, C]) == [A, B, C]
    assert suspects.failed([C], 9.0) == [C]


def test_a_success_renews_the_budget() -> None:
    suspects = Suspects(budget=10.0)
    suspects.failed([A, B], 0.0)
    suspects.succeeded([C])
    suspects.failed([A, B], 11.0)
    assert suspects.together([A, B]) == [A, B]


def test_suspects_are_asked_for_alone_and_the_others_together() -> None:
    suspects = suspected()
    assert suspects.together([A, C, B]) == [A]
    assert suspects.together([C, A, B]) == [C]
    assert suspects.together([C, C, B]) == [C, C]
    assert suspects.together([]) == []
    suspects.succeeded([A])
    assert suspects.together([A, C, B]) == [A, C]


def test_who_fails_alone_is_set_aside_for_a_while_and_stays_a_suspect() -> None:
    suspects = suspected()
    suspects.succeeded([A])
    assert suspects.failed([B], 11.0) == []
    assert [suspects.aside("b", now) for now in (11.0, 20.9, 21.0)] == [True, True, False]
    assert not suspects.aside("a", 11.0)
    assert suspects.together([B, A]) == [B]
    assert suspects.failed([B], 30.0) == []


def test_in_an_outage_one_after_the_other_is_set_aside() -> None:
    suspects = suspected()
    assert [suspects.failed([each], 12.0) for each in (A, B, C)] == [[], [], []]


def test_who_is_no_longer_dirty_is_forgotten() -> None:
    suspects = suspected()
    suspects.keep({"b"})
    assert suspects.together([A, C, B]) == [A, C]
