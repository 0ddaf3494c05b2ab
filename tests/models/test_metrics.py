"""Figures: by hand, against plain Python, and intervals that hold what they promise."""

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from models import metrics
from models.contract import SCENARIOS
from models.dataset import Behaviour
from models.metrics import (
    category_coverage,
    diversity,
    figures,
    figures_of_groups,
    groups,
    interest_cosines,
    intervals,
    item_counts,
    places_of,
)


def test_by_hand() -> None:
    places = places_of(torch.tensor([1, 3, 11, 2_000]), (10, 100))
    found = figures(places, np.array([0, 1, 2, 3]), (10, 100))
    value = {name: interval.value for name, interval in found.values.items()}
    assert value["HR@10"] == value["Recall@10"] == 0.5
    assert value["HR@100"] == 0.75
    assert value["NDCG@10"] == pytest.approx((1 + 1 / 2) / 4)
    assert value["MRR@10"] == pytest.approx((1 + 1 / 3) / 4)
    assert value["NDCG@100"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(12)) / 4)
    assert value["MRR@100"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 4)
    assert (found.questions, found.users) == (4, 4)


def test_figures_are_json() -> None:
    found = figures(torch.tensor([[1, 1], [0, 30]]), np.array([0, 0]), (10, 100)).as_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["questions"] == 2
    assert found["users"] == 1
    assert found["HR@10"] == [0.5, 0.5, 0.5], "one user: nothing to draw from"


def test_hits_alone_give_recall_alone() -> None:
    found = figures(torch.tensor([[True, True], [False, True]]), np.array([0, 1]), (10, 100))
    assert set(found.values) == {"HR@10", "Recall@10", "HR@100", "Recall@100"}
    assert found.values["Recall@100"].value == 1


@given(ranks=st.lists(st.integers(1, 3_000), min_size=1, max_size=40), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_figures_are_means_over_questions(ranks: list[int], seed: int) -> None:
    users = np.random.default_rng(seed).integers(5, size=len(ranks))
    found = figures(places_of(torch.tensor(ranks)), users, seed=seed)
    for limit in (10, 50, 100, 1_000):
        inside = [rank for rank in ranks if rank <= limit]
        plain = {
            "HR": len(inside),
            "Recall": len(inside),
            "NDCG": sum(1 / math.log2(rank + 1) for rank in inside),
            "MRR": sum(1 / rank for rank in inside),
        }
        for name, total in plain.items():
            value, low, high = found.values[f"{name}@{limit}"]
            assert value == pytest.approx(total / len(ranks))
            assert -1e-9 <= low <= high <= 1 + 1e-9
    assert found == figures(places_of(torch.tensor(ranks)), users, seed=seed), "the same seed, the same interval"


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        chance = rng.beta(2, 2, size=80)  # of each user: the questions of one are alike
        users = np.repeat(np.arange(80), rng.integers(1, 6, size=80))
        hits = (rng.random(len(users)) < chance[users]).astype(float)
        _, low, high = intervals(hits[:, None], users, seed, resamples=300)[0]
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_users_are_drawn_not_questions() -> None:
    users = np.repeat([0, 1], 500)
    hits = np.repeat([0.0, 1.0], 500)
    assert intervals(hits[:, None], users)[0] == (0.5, 0.0, 1.0)


def test_bounded_memory_changes_no_bound_much(monkeypatch: pytest.MonkeyPatch) -> None:
    values, users = np.random.default_rng(0).random((300, 2)), np.arange(300)
    whole = intervals(values, users)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 1_000)
    np.testing.assert_allclose(whole, intervals(values, users), atol=0.01)


def behaviour() -> Behaviour:
    """User 0: 7 events on items 0 0 0 0 1 2 3, user 1: a query and item 4, in another scenario."""
    text = np.array([0, 0, 0, 0, 1, 2, 3, 6, 4])
    return Behaviour(
        user_ids=["a", "b"],
        item_ids=list("012345"),
        texts=list("012345q"),
        items=6,
        categories=[""] * 6,
        images=None,
        first=np.array([0, 7, 9]),
        text=text,
        time=np.arange(9),
        scenario=np.array([1] * 7 + [0] * 2),
        action=np.zeros(9, dtype=np.int64),
    )


def test_groups() -> None:
    data = behaviour()
    training = np.array([True] * 6 + [False, True, False])
    questions = np.array([1, 4, 5, 6, 8])
    assert item_counts(data, training).tolist() == [4, 1, 1, 0, 0, 0]
    found = {name: questions[mask].tolist() for name, mask in groups(data, training, questions).items()}
    assert found["overall"] == questions.tolist()
    assert found["scenario feed"] == [1, 4, 5, 6]
    assert found["scenario search"] == [8]
    # items 0 and 1 make up 5 of 6 training events, item 0 alone too few
    assert (found["items head"], found["items tail"], found["items cold"]) == ([1, 4], [5], [6, 8])
    assert (found["history up to 5"], found["history 6 to 10"], found["history over 200"]) == ([1, 4, 5, 8], [6], [])
    for kind in ("scenario", "items", "history"):
        parts = sorted(event for name, events in found.items() if name.startswith(kind) for event in events)
        assert parts == questions.tolist(), "each question is in one group of a kind"
    places = torch.tensor([[1], [0], [0], [2], [1]])
    of_groups = figures_of_groups(places, data.owner(questions), groups(data, training, questions), (10,))
    assert "history over 200" not in of_groups
    assert f"scenario {SCENARIOS[2]}" not in of_groups
    assert of_groups["items cold"].values["HR@10"].value == 1
    assert of_groups["items cold"].users == 2


def test_cosines_of_interests() -> None:
    axes = torch.eye(3)
    interests = torch.stack([axes, axes[[0, 0, 1]] * 5, axes])
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    cosines = interest_cosines(interests, weights)
    assert cosines[:2].tolist() == pytest.approx([0, 1])
    assert cosines[2].isnan()
    assert diversity(interests, weights, torch.empty(3, 0).long(), []).as_dict() == {
        "cosine": 0.5,
        "categories": None,
        "entropy": None,
    }


def test_coverage_of_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    categories = ["tea", "tea", "pots", "", "cups"]
    best = torch.tensor([[0, 1, 2, 4], [0, 1, 3, -1], [3, 3, -1, -1]])
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 4)  # one row at a time
    number, entropy = category_coverage(best, categories)
    assert number.tolist() == [3, 1, 0]
    assert entropy.tolist() == pytest.approx([1.5, 0, 0])
    found = diversity(torch.ones(3, 1, 2), torch.ones(3, 1), best, categories)
    assert found.cosine is None
    assert found.categories == pytest.approx(4 / 3)
