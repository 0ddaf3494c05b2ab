"""The frugal cross-entropy against the plain one: value, gradients, sampling, and hard cases of the arithmetic."""

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from models import softmax
from models.softmax import cross_entropy

KNOWN_TYPE = softmax.score_type
SIZES = {
    "seed": st.integers(0, 2**32),
    "places": st.integers(1, 300),
    "k": st.integers(1, 4),
    "count": st.integers(2, 60),
    "scale": st.floats(1, 60),
}


@pytest.fixture(scope="module", autouse=True, params=[torch.float32, torch.bfloat16], ids=str)
def _either_type(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "score_type", lambda _: request.param)
        yield


def problem(seed: int, places: int, k: int, count: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries [places, k, 8], unit items [count, 8] and wanted items [places]."""
    generator = torch.Generator().manual_seed(seed)
    queries = F.normalize(torch.randn(places, k, 8, generator=generator), dim=-1) * scale
    items = F.normalize(torch.randn(count, 8, generator=generator), dim=-1)
    return queries, items, torch.randint(count, (places,), generator=generator)


def plain(queries: Tensor, items: Tensor, wanted: Tensor) -> Tensor:
    """-log Σ_k exp(q_k·t) / Σ_k Σ_v exp(q_k·v), summed."""
    scores = queries @ items.T
    return (scores.flatten(1).logsumexp(1) - scores[torch.arange(len(wanted)), :, wanted].logsumexp(1)).sum()


@given(**SIZES)
@settings(max_examples=60, deadline=None)
def test_with_the_whole_catalogue_it_is_the_soft_maximum_over_interests(**sizes: float) -> None:
    queries, items, wanted = problem(**sizes)
    found = cross_entropy(queries, items[wanted], items, wanted, len(items))
    expected = plain(queries, items, wanted)
    assert abs(found - expected) / len(queries) <= 0.01 + sizes["scale"] * 2**-7, "the rounding of bfloat16 scores"
    if queries.shape[1] == 1:
        torch.testing.assert_close(expected, F.cross_entropy(queries[:, 0] @ items.T, wanted, reduction="sum"))


def test_rounding_evens_out_over_a_batch() -> None:
    queries, items, wanted = problem(0, 2_000, 2, 500, 20.0)
    found, expected = cross_entropy(queries, items[wanted], items, wanted, 500), plain(queries, items, wanted)
    torch.testing.assert_close(found / 2_000, expected / 2_000, atol=2e-3, rtol=0)


@given(**SIZES | {"scale": st.floats(1, 20)})
@settings(max_examples=40, deadline=None)
def test_gradients_are_those_of_the_plain_formula(**sizes: float) -> None:
    queries, items, wanted = (part.requires_grad_(part.is_floating_point()) for part in problem(**sizes))
    expected = torch.autograd.grad(plain(queries, items, wanted), (queries, items))
    found = torch.autograd.grad(3 * cross_entropy(queries, items[wanted], items, wanted, len(items)), (queries, items))
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine / 3 - theirs).norm() <= 0.05 * theirs.norm() + 1e-3 * mine.numel() ** 0.5


def test_draws_estimate_the_sum_over_all_items_without_bias() -> None:
    queries, items, wanted = problem(1, 40, 2, 200, 4.0)
    scores = (queries @ items.T).exp()
    z = scores.sum(dim=(1, 2))
    mine = scores[torch.arange(40), :, wanted].sum(dim=1)
    estimates = []
    for seed in range(400):
        drawn = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:30]
        own = torch.full((200,), -1)
        own[drawn] = torch.arange(30)
        losses = [
            cross_entropy(queries[row, None], items[wanted[row], None], items[drawn], own[wanted[row], None], 200)
            for row in range(0, 40, 8)
        ]
        estimates.append(torch.stack(losses).exp() * mine[::8])
    means, error = torch.stack(estimates).mean(dim=0), torch.stack(estimates).std(dim=0) / 20
    assert ((means - z[::8]).abs() < 4 * error + 0.01 * z[::8]).all()


@pytest.mark.parametrize("sampled", [False, True])
def test_nothing_asked_is_nothing_lost(sampled: bool) -> None:
    queries, targets = torch.zeros(0, 2, 4, requires_grad=True), torch.zeros(0, 4)
    draws = torch.ones(3 if sampled else 0, 4, requires_grad=True)
    loss = cross_entropy(queries, targets, draws, torch.zeros(0, dtype=torch.long), 3)
    loss.backward()
    assert loss == 0
    assert not draws.grad.any()


def test_a_target_far_from_every_query_still_pulls() -> None:
    """At the highest temperature exp() of the distance to the best item is less than float32 can hold."""
    items = torch.eye(4)
    queries = (torch.tensor([[[0.6, -0.8, 0.0, 0.0]]]) * 100).requires_grad_()
    wanted = torch.tensor([1])
    expected = plain(queries, items, wanted)
    loss = cross_entropy(queries, items[wanted], items, wanted, 4)
    torch.testing.assert_close(loss, expected, atol=0.5, rtol=0)
    gradient, wants = (torch.autograd.grad(part, queries)[0] for part in (loss, expected))
    torch.testing.assert_close(gradient, wants, atol=0.02, rtol=0)


@given(seed=st.integers(0, 2**32), scale=st.floats(1, 500), near=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_temperature_ends_in_something_that_is_no_number(seed: int, scale: float, near: bool) -> None:
    """The bound on scores is |q| |v|: no item need come near it, or all of them do."""
    queries, items, wanted = problem(seed, 5, 2, 7, scale)
    items = F.normalize(items * 0.01 + queries[0, 0] / scale * (1 if near else -1), dim=-1)
    queries.requires_grad_()
    loss = cross_entropy(queries, items[wanted], items, wanted, 7)
    loss.backward()
    assert loss.isfinite()
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_the_same_under_autocast(dtype: torch.dtype) -> None:
    queries, items, wanted = problem(0, 20, 2, 30, 10.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropy(queries.to(dtype), items[wanted], items, wanted, 30)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(queries, items, wanted), rtol=0.02, atol=0)


def test_a_cpu_without_bfloat16_is_not_asked_for_it() -> None:
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert KNOWN_TYPE("cpu") == (torch.bfloat16 if supported else torch.float32)
    assert KNOWN_TYPE("cuda") == torch.bfloat16
