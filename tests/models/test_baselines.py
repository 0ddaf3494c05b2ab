"""Baselines: popularity knows training alone; medoids are items of the user, one for each of planted interests."""

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings
from torch import Tensor

from models.baselines import DAY_MS, Medoids, Popularity, clusters, medoid
from models.contract import ACTIONS
from models.dataset import Behaviour
from models.events import Histories
from models.ranking import ranks

VIEW, SKIP = ACTIONS.index("view"), ACTIONS.index("skip")
QUERY = 9  # a text that is no item


def histories(rows: Tensor, days: list[float] | None = None, action: Tensor | None = None) -> Histories:
    """Histories [B, L] of `rows`, -1 for padding."""
    time = torch.tensor(days or range(rows.shape[1])) * DAY_MS
    return Histories(
        codes=torch.zeros(*rows.shape, 1, dtype=torch.uint8),
        time=time.long().expand(rows.shape),
        scenario=torch.zeros_like(rows),
        action=torch.full_like(rows, VIEW) if action is None else action,
        valid=rows >= 0,
    )


def answer(model: Medoids, rows: list[int], **more: object) -> tuple[Tensor, Tensor]:
    batch = torch.tensor([rows])
    interests, weights = model.answer(batch.clamp_min(0), histories(batch, **more))
    return interests[0], weights[0]


def test_popularity_counts_what_was_wanted_in_training() -> None:
    data = Behaviour(
        user_ids=["a"],
        item_ids=list("0123"),
        texts=list("0123q"),
        items=4,
        categories=[""] * 4,
        images=None,
        first=np.array([0, 9]),
        text=np.array([1, 1, 1, 0, 0, 2, 4, 3, 3]),
        time=np.arange(9),
        scenario=np.zeros(9, dtype=np.int64),
        action=np.array([VIEW, VIEW, SKIP, VIEW, VIEW, VIEW, VIEW, VIEW, VIEW]),
    )
    model = Popularity(data, np.arange(9) < 7)
    assert model.items[:, 0].tolist() == [2, 2, 1, 0]
    batch = torch.tensor([[0, 1]] * 3)
    interests, weights = model.answer(batch, histories(batch))
    nothing = torch.empty(0, dtype=torch.long)
    rank = ranks(interests, weights, model.items, torch.tensor([0, 2, 3]), (nothing, nothing))
    assert rank.tolist() == [2, 3, 4], "equally popular items count against each other"


ITEMS = torch.tensor([[1, 0, 0], [0.99, 0.1, 0], [0.9, 0.3, 0], [0, 0, 1], [0, 0.1, 0.99], [0, 1, 0]])


def test_one_medoid_for_each_interest_heaviest_first() -> None:
    model = Medoids(ITEMS, 4)
    interests, weights = answer(model, [-1, 3, 0, 1, 2, 3])
    assert interests[0].equal(model.items[1]), "the middle one of three"
    assert interests[1].equal(model.items[3]), "met twice"
    assert (weights > 0).tolist() == [True, True, False, False]
    assert weights.sum().item() == 1


def test_what_is_recent_weighs_more() -> None:
    interests, weights = answer(Medoids(ITEMS, 2), [0, 3], days=[0, 100])
    assert interests[0].equal(Medoids(ITEMS, 2).items[3])
    assert (weights[1] / weights[0]).item() == np.float32(np.exp(-0.01 * 100))


def test_only_the_most_important_interests_are_kept() -> None:
    interests, weights = answer(Medoids(ITEMS, 1), [0, 3, 3])
    assert interests.equal(Medoids(ITEMS, 1).items[[3]])
    assert weights.tolist() == [1]


def test_what_is_unwanted_or_no_item_says_nothing() -> None:
    zero = torch.cat([ITEMS, torch.zeros(1, 3)])
    action = torch.tensor([[SKIP, VIEW, VIEW, VIEW]])
    interests, weights = answer(Medoids(zero, 2), [0, QUERY, 6, 3], action=action)
    assert interests[0].equal(Medoids(zero, 2).items[3])
    assert weights.tolist() == [1, 0]


def test_who_has_no_item_gets_the_mean_item() -> None:
    model = Medoids(ITEMS, 2)
    interests, weights = answer(model, [-1, -1, QUERY])
    torch.testing.assert_close(interests[0], torch.nn.functional.normalize(model.items.mean(dim=0), dim=0))
    assert weights.tolist() == [1, 0]


@given(seed=st.integers(0, 10_000), length=st.integers(1, 12), interests=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_interests_are_the_users_items_and_the_batch_never_matters(seed: int, length: int, interests: int) -> None:
    rng = np.random.default_rng(seed)
    model = Medoids(torch.from_numpy(rng.standard_normal((9, 5))), interests)
    batch = torch.from_numpy(rng.integers(-1, QUERY + 1, size=(4, length)))
    found, weights = model.answer(batch.clamp_min(0), histories(batch))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert (weights.diff(dim=1) <= 0).all(), "heaviest first"
    for row, vectors, shares in zip(batch, found, weights, strict=True):
        own = [item for item in row.tolist() if 0 <= item < QUERY]
        for vector in vectors[shares > 0] if own else []:
            assert any(vector.equal(model.items[item]) for item in own)
        alone = model.answer(row[None].clamp_min(0), histories(row[None]))
        assert vectors.equal(alone[0][0])
        assert shares.equal(alone[1][0])


def test_clusters_follow_the_distance() -> None:
    points = np.array([[0.0, 0], [0, 0.1], [5, 0], [5, 0.1]])
    assert len(set(clusters(points, 0.5).tolist())) == 2
    assert len(set(clusters(points, 0.01).tolist())) == 4
    assert len(set(clusters(points, 50).tolist())) == 1


def test_a_medoid_has_the_least_sum_of_squared_distances() -> None:
    points = np.random.default_rng(0).standard_normal((20, 3))
    squares = np.square(points[:, None] - points[None]).sum(axis=(1, 2))
    assert medoid(points) == squares.argmin()
