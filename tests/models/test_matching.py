"""Clustering and matching of targets: what must hold for any queries and targets (PAPERS "loss", steps 1 to 3)."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.errors import BadInput
from models.matching import assign, cluster, match

SEEDS = st.integers(0, 2**32)
SIZES = {"b": st.integers(1, 4), "w": st.integers(1, 10), "k": st.integers(1, 6)}
QUICK = settings(max_examples=60, deadline=None)


def windows(seed: int, b: int, w: int, d: int = 6, distinct: int = 4) -> tuple[Tensor, Tensor]:
    """Targets [B, W, D], a few distinct ones of each user repeated at different lengths, and which are present."""
    g = torch.Generator().manual_seed(seed)
    some = torch.randn(b, distinct, d, generator=g)
    which = torch.randint(distinct, (b, w), generator=g)
    lengths = 2 ** torch.randint(-2, 3, (b, w, 1), generator=g).float()
    targets = some.gather(1, which[..., None].expand(-1, -1, d)) * lengths
    return targets, torch.rand(b, w, generator=g) < 0.7


def worths(seed: int, b: int, k: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, k, k, generator=g), torch.rand(b, k, generator=g) < 0.7


@given(seed=SEEDS, b=SIZES["b"], k=st.integers(1, 10))
@QUICK
def test_assignment_is_one_to_one_and_worth_what_the_hungarian_method_finds(seed: int, b: int, k: int) -> None:
    worth, present = worths(seed, b, k)
    query = assign(worth, present)
    assert ((query >= 0) == present).all()
    for user in range(b):
        there = present[user]
        chosen = query[user][there]
        assert len(set(chosen.tolist())) == len(chosen)
        mine = worth[user][there]
        best = mine[linear_sum_assignment(mine.numpy(), maximize=True)].sum()
        torch.testing.assert_close(mine.gather(1, chosen[:, None]).sum(), best, rtol=1e-5, atol=1e-5)


@given(seed=SEEDS, k=SIZES["k"])
@QUICK
def test_assignment_follows_the_order_of_queries(seed: int, k: int) -> None:
    worth, present = worths(seed, 3, k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    shuffled = assign(worth[..., order], present)
    assert torch.where(present, order[shuffled.clamp_min(0)], -1).equal(assign(worth, present))


def test_too_many_queries_for_an_exact_answer() -> None:
    with pytest.raises(BadInput, match=r"11 interests .* at most 10"):
        assign(torch.zeros(1, 11, 11), torch.ones(1, 11, dtype=torch.bool))


@given(seed=SEEDS, **SIZES)
@QUICK
def test_every_target_is_in_a_present_cluster_whose_centre_is_its_nearest(seed: int, b: int, w: int, k: int) -> None:
    targets, present = windows(seed, b, w)
    found = cluster(targets, present, k)
    assert ((found.member >= 0) == present).all()
    cosines = F.normalize(targets, dim=-1) @ found.centres.mT
    cosines = cosines.masked_fill(~found.present[:, None], -torch.inf)
    for user, place in present.nonzero().tolist():
        mine = found.member[user, place]
        assert found.present[user, mine]
        assert cosines[user, place, mine] > cosines[user, place].max() - 1e-5
    torch.testing.assert_close(found.centres[found.present].norm(dim=-1), torch.ones(int(found.present.sum())))
    for user in range(b):
        assert found.present[user].nonzero()[:, 0].tolist() == found.member[user][present[user]].unique().tolist()


@given(seed=SEEDS, b=SIZES["b"], w=SIZES["w"])
@QUICK
def test_equal_targets_share_a_cluster_and_as_many_clusters_as_different_targets(seed: int, b: int, w: int) -> None:
    targets, present = windows(seed, b, w, distinct=3)
    found = cluster(targets, present, 3)
    same = (F.cosine_similarity(targets[:, :, None], targets[:, None], dim=-1) > 1 - 1e-6) & present[:, :, None]
    together = found.member[:, :, None] == found.member[:, None]
    both = present[:, :, None] & present[:, None]
    assert (same & both).equal(together & both)


@given(seed=SEEDS, **SIZES)
@QUICK
def test_what_is_masked_and_who_else_is_there_change_nothing(seed: int, b: int, w: int, k: int) -> None:
    targets, present = windows(seed, b, w)
    g = torch.Generator().manual_seed(seed)
    queries = torch.randn(b, k, targets.shape[-1], generator=g)
    whole = match(queries, targets, present)
    assert ((whole >= 0) == present).all()
    noise = torch.where(present[..., None], targets, torch.randn(targets.shape, generator=g) * 9)
    assert match(queries, noise, present).equal(whole)
    for user in range(b):
        there = present[user]
        if there.any():
            alone = match(queries[user, None], targets[user, None, there], there[None, there])
            assert alone[0].equal(whole[user, there])


@given(seed=SEEDS, w=SIZES["w"], k=SIZES["k"])
@QUICK
def test_matching_follows_the_order_of_queries_and_ignores_lengths(seed: int, w: int, k: int) -> None:
    targets, present = windows(seed, 3, w)
    g = torch.Generator().manual_seed(seed)
    queries, order = torch.randn(3, k, targets.shape[-1], generator=g), torch.randperm(k, generator=g)
    shuffled = match(3 * queries[:, order], targets, present)
    assert torch.where(present, order[shuffled.clamp_min(0)], -1).equal(match(queries, targets, present))


def test_the_query_nearest_to_everything_still_gets_one_cluster_only() -> None:
    east, north = torch.eye(2)
    queries = F.normalize(torch.stack([east + north, -east - north]), dim=-1)[None]
    targets = torch.stack([east, north, east, north])[None]
    query = match(queries, targets, torch.ones(1, 4, dtype=torch.bool))[0]
    assert query[0] == query[2] != query[1] == query[3]


def test_opposites_leave_no_zero_centre() -> None:
    east = torch.eye(2)[0]
    found = cluster(torch.stack([east, -east])[None], torch.ones(1, 2, dtype=torch.bool), 1)
    assert found.centres.norm(dim=-1).tolist() == [[1.0]]


def test_a_user_without_targets_has_no_clusters() -> None:
    found = cluster(torch.randn(1, 5, 4), torch.zeros(1, 5, dtype=torch.bool), 3)
    assert not found.present.any()
    assert found.member.tolist() == [[-1] * 5]


def test_alike_targets_open_one_cluster() -> None:
    targets = F.normalize(torch.tensor([[1.0, 0], [1, 0.2], [0, 1], [0.2, 1]]), dim=-1)[None]
    present = torch.ones(1, 4, dtype=torch.bool)
    assert cluster(targets, present, 4).present.sum() == 4
    member = cluster(targets, present, 4, alike=0.9).member[0]
    assert member[0] == member[1] != member[2] == member[3]
