"""Ranks: against plain Python over Qdrant's own fusion and the retrieval's own merging."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from qdrant_client import QdrantClient, models
from qdrant_client.hybrid.fusion import reciprocal_rank_fusion
from torch import Tensor

from models import ranking
from models.ranking import CANDIDATES, Places, places, quotas, ranks, top
from stream import retrieval
from stream.ports import Hit

LIMITS = (1, 3, 10)
NOTHING = (torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))


Problem = tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]


def problem(seed: int, interests: int = 3, items: int = 80) -> Problem:
    """Interests, weights (some absent), items, targets and what was seen (perhaps the target too)."""
    B, K, V, D = 6, interests, items, 4
    rng = np.random.default_rng(seed)
    weights = rng.random((B, K)) * (rng.random((B, K)) < 0.8)
    weights[:, 0] += 0.1
    arrays = (
        rng.standard_normal((B, K, D)),
        weights / weights.sum(axis=1, keepdims=True),
        rng.standard_normal((V, D)),
        rng.integers(V, size=B),
        rng.integers(B, size=60),
        rng.integers(V, size=60),
    )
    *rest, rows, seen = map(torch.from_numpy, arrays)
    return *rest, (rows, seen)


def known(seen: tuple[Tensor, Tensor], row: int) -> set[int]:
    return set(seen[1][seen[0] == row].tolist())


def nearest(interest: Tensor, items: Tensor, banned: set[int], limit: int) -> list[Hit]:
    scores = (items @ interest).tolist()
    kept = sorted((-score, item) for item, score in enumerate(scores) if item not in banned)
    return [Hit(item_id=str(item), score=-score, payload={}) for score, item in kept[:limit]]


def fused(lists: list[list[Hit]], limit: int) -> list[str]:
    points = [[models.ScoredPoint(id=int(hit.item_id), version=0, score=hit.score) for hit in hits] for hits in lists]
    return [str(point.id) for point in reciprocal_rank_fusion(points, limit)]


def place(target: int, answer: list[str]) -> int:
    return answer.index(str(target)) + 1 if str(target) in answer else 0


def brute(
    interests: Tensor, weights: Tensor, items: Tensor, targets: Tensor, seen: tuple[Tensor, Tensor]
) -> tuple[list[list[list[int]]], list[list[bool]]]:
    """The places [3 ways][B][limits] and the budget's hits [B][limits], through the functions that serve."""
    ways: list[list[list[int]]] = [[], [], []]
    hits = []
    for b, target in enumerate(targets.tolist()):
        banned = known(seen, b) - {target}
        here = [k for k, weight in enumerate(weights[b].tolist()) if weight > 0]
        share = [weights[b, k].item() for k in here]
        found: list[list[int]] = [[], [], []]
        hits.append([])
        for limit in LIMITS:
            lists = [nearest(interests[b, k], items, banned, limit) for k in here]
            deep = [nearest(interests[b, k], items, banned, max(limit, CANDIDATES)) for k in here]
            answers = (
                [hit.item_id for hit in retrieval.max_merge(lists, limit)],
                fused(deep, limit),
                [hit.item_id for hit in retrieval.quota_merge(lists, share, limit)],
            )
            for way, answer in zip(found, answers, strict=True):
                way.append(place(target, answer))
            heavy = sorted(range(len(here)), key=lambda k: -share[k])
            parts = [limit // len(here) + (turn < limit % len(here)) for turn in range(len(here))]
            candidates = {hit.item_id for k, part in zip(heavy, parts, strict=True) for hit in lists[k][:part]}
            hits[-1].append(str(target) in candidates)
        for way, row in zip(ways, found, strict=True):
            way.append(row)
    return ways, hits


@given(seed=st.integers(0, 10_000), interests=st.integers(1, 5), items=st.integers(2, 120))
@settings(deadline=None, max_examples=60)
def test_every_way_is_that_of_retrieval(seed: int, interests: int, items: int) -> None:
    args = problem(seed, interests, items)
    found = places(*args, limits=LIMITS)
    ways, hits = brute(*args)
    assert found.max.tolist() == ways[0]
    assert found.rrf.tolist() == ways[1]
    assert found.quota.tolist() == ways[2]
    assert found.budget.tolist() == hits


def test_rrf_is_one_request_to_qdrant() -> None:
    interests, _, items, targets, seen = problem(1, items=90)
    found = places(interests, torch.ones(6, 3), items, targets, seen, LIMITS).rrf
    client = QdrantClient(":memory:")
    client.create_collection("items", models.VectorParams(size=4, distance=models.Distance.DOT))
    client.upsert("items", [models.PointStruct(id=n, vector=row) for n, row in enumerate(items.tolist())])
    for b, target in enumerate(targets.tolist()):
        hidden = models.Filter(must_not=[models.HasIdCondition(has_id=list(known(seen, b) - {target}))])
        prefetch = [models.Prefetch(query=row, limit=CANDIDATES) for row in interests[b].tolist()]
        fusion = models.FusionQuery(fusion=models.Fusion.RRF)
        for n, limit in enumerate(LIMITS):
            answer = client.query_points("items", prefetch=prefetch, query=fusion, query_filter=hidden, limit=limit)
            assert found[b, n] == place(target, [str(point.id) for point in answer.points])
    client.close()


@given(
    weights=st.lists(st.sampled_from([0.01, 0.04, 0.05, 0.1, 0.3, 1.0, 2.5]), min_size=1, max_size=6),
    limit=st.integers(1, 40),
)
@settings(deadline=None)
def test_quotas_are_those_of_retrieval(weights: list[float], limit: int) -> None:
    assert quotas(torch.tensor([weights, weights[::-1]], dtype=torch.float64), limit).tolist() == [
        retrieval.quotas(weights, limit),
        retrieval.quotas(weights[::-1], limit),
    ]


def test_the_constants_are_those_that_serve() -> None:
    assert (CANDIDATES, ranking.SMALL_WEIGHT) == (retrieval.CANDIDATES, retrieval.SMALL_WEIGHT)


def hand(interests: list[list[float]], items: list[list[float]], target: int, seen: tuple[int, ...] = ()) -> Places:
    K = len(interests)
    history = torch.zeros(len(seen), dtype=torch.long), torch.tensor(seen, dtype=torch.long)
    return places(
        torch.tensor([interests]),
        torch.full((1, K), 1 / K),
        torch.tensor(items),
        torch.tensor([target]),
        history,
        (2, 4),
    )


AXES = [[3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.5], [1.0, 0.2]]


def test_by_hand() -> None:
    found = hand([[1.0, 0.0], [0.0, 1.0]], AXES, target=2)
    # max: 3 and 2 of items 0 and 1, then the target's 1, which item 4 has too
    assert found.max.tolist() == [[0, 4]]
    # rrf: last of one list and first of the other, 1/6 + 1/2; item 0 has at least as much and comes from the first list
    assert found.rrf.tolist() == [[2, 2]]
    # quota: each interest takes its best one (two); 0 before 2, and 0 1 before 2 before 3
    assert found.quota.tolist() == [[2, 3]]
    assert found.budget.tolist() == [[True, True]]


def test_a_tie_counts_against_the_target() -> None:
    for target in (0, 1, 2):
        found = hand([[1.0, 0.0]], [[1.0, 0.0]] * 3 + [[0.5, 0.0]], target)
        assert [way.tolist() for way in found[:3]] == [[[0, 3]]] * 3
        assert found.budget.tolist() == [[False, True]]


@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=30), target=st.integers(0, 29))
@settings(deadline=None)
def test_the_rank_counts_all_that_are_not_worse(scores: list[int], target: int) -> None:
    target %= len(scores)
    items = torch.tensor(scores, dtype=torch.float32)[:, None]
    rank = ranks(torch.ones(1, 1, 1), torch.ones(1, 1), items, torch.tensor([target]), NOTHING)
    assert rank.item() == sum(score >= scores[target] for score in scores)


def test_items_seen_are_passed_over_but_never_the_target() -> None:
    assert hand([[1.0, 0.0]], AXES, target=4).max.tolist() == [[0, 3]]
    assert hand([[1.0, 0.0]], AXES, target=4, seen=(0, 4, 0)).max.tolist() == [[2, 2]]
    found = hand([[1.0, 0.0]], AXES, target=4, seen=(0, 1, 2, 3, 4))
    assert all((way == 1).all() for way in found)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_one_interest_makes_all_ways_one(seed: int) -> None:
    interests, _, items, targets, seen = problem(seed, interests=1)
    found = places(interests, torch.ones(6, 1), items, targets, seen, LIMITS)
    rank = ranks(interests, torch.ones(6, 1), items, targets, seen)[:, None]
    expected = rank.masked_fill(rank > torch.tensor(LIMITS), 0)
    assert found.max.equal(expected)
    assert found.rrf.equal(expected)
    assert found.quota.equal(expected)
    assert found.budget.equal(expected > 0)


@given(seed=st.integers(0, 10_000), copies=st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_copies_of_an_interest_win_nothing(seed: int, copies: int) -> None:
    interests, _, items, targets, seen = problem(seed, interests=1)
    one = places(interests, torch.ones(6, 1), items, targets, seen, LIMITS)
    many = places(interests.expand(-1, copies, -1), torch.full((6, copies), 1 / copies), items, targets, seen, LIMITS)
    assert many.max.equal(one.max)
    assert many.rrf.equal(one.rrf)
    assert many.quota.equal(one.quota)
    assert not (many.budget & ~one.budget).any()
    assert many.budget.sum() <= one.budget.sum()


def test_a_score_that_is_no_number_counts_against_the_target() -> None:
    nan = float("nan")
    assert [way.any().item() for way in hand([[nan, 0.0]], AXES, target=0)] == [False] * 4
    beaten = hand([[1.0, 0.0]], [[3.0, 0.0], [nan, 0.0], [1.0, 0.0]], target=0)
    assert [way.tolist() for way in beaten[:3]] == [[[2, 2]]] * 3
    interests, weights, items, targets, seen = problem(0)
    assert not any(way.any() for way in places(interests, weights * nan, items, targets, seen, LIMITS))
    assert (ranks(interests * nan, weights, items, targets, seen) == len(items)).all()


def test_an_absent_interest_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    interests, _, items, _, seen = problem(3, interests=2)
    targets = top(interests[:, :1], torch.ones(6, 1), items, seen, 6).diagonal()  # first, second, … of each
    alone = places(interests[:, :1], torch.ones(6, 1), items, targets, seen, LIMITS)
    monkeypatch.setattr(ranking, "CHUNK_SCORES", 2 * len(items) * 2)  # two questions at once
    for absent in (0.0, -1.0, float("nan")):
        beside = places(interests, torch.tensor([[1.0, absent]]).expand(6, 2), items, targets, seen, LIMITS)
        assert all(a.equal(b) for a, b in zip(alone, beside, strict=True))


def test_the_best_items() -> None:
    interests, weights, items, targets, seen = problem(5, items=20)
    best = top(interests, weights, items, seen, 20)
    for b, row in enumerate(best.tolist()):
        assert sorted(item for item in row if item >= 0) == sorted(set(range(20)) - known(seen, b))
    wanted = torch.where(best[:, 0] >= 0, best[:, 0], targets)
    assert (ranks(interests, weights, items, wanted, seen) == 1).all()


def test_nobody_asks() -> None:
    found = places(torch.empty(0, 2, 3), torch.empty(0, 2), torch.ones(5, 3), torch.empty(0).long(), NOTHING)
    assert [tuple(way.shape) for way in found] == [(0, 4)] * 4
