"""InfoNCE, its correction for sampling, and cross-entropy over all items: values, and who gets a gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.loss import InfoNCE, bounded, disentangled, info_nce, near_duplicates
from models.matching import match

TAU = torch.tensor(8.0)


def units(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def nothing_masked(targets: Tensor, negatives: Tensor) -> Tensor:
    return torch.zeros(len(targets), len(negatives), dtype=torch.bool)


def test_info_nce_is_the_cross_entropy_of_the_target_among_the_negatives() -> None:
    queries, targets, negatives = units(5, 3, 8), units(5, 8, seed=1), units(7, 8, seed=2)
    losses = info_nce(queries, targets, negatives, nothing_masked(targets, negatives), TAU)
    for row in range(5):
        logits = TAU * queries[row] @ torch.cat([targets[row, None], negatives]).T
        torch.testing.assert_close(losses[row], F.cross_entropy(logits, torch.zeros(3).long(), reduction="none"))


def test_masked_negatives_contribute_nothing_and_get_no_gradient() -> None:
    queries, targets, negatives = units(4, 1, 8), units(4, 8, seed=1), units(6, 8, seed=2).requires_grad_()
    masked = nothing_masked(targets, negatives)
    masked[:, 4:] = True
    losses = info_nce(queries, targets, negatives, masked, TAU)
    torch.testing.assert_close(losses, info_nce(queries, targets, negatives[:4], masked[:, :4], TAU))
    losses.sum().backward()
    assert negatives.grad is not None
    assert (negatives.grad[:4] != 0).any(dim=1).all()
    assert not negatives.grad[4:].any()


def test_without_any_negative_there_is_nothing_to_learn() -> None:
    queries, targets = units(2, 1, 8).requires_grad_(), units(2, 8, seed=1)
    losses = info_nce(queries, targets, targets, torch.ones(2, 2, dtype=torch.bool), TAU)
    assert losses.tolist() == [[0.0], [0.0]]
    losses.sum().backward()
    assert not queries.grad.any()


def test_the_target_and_its_like_are_near_duplicates() -> None:
    target = F.normalize(torch.tensor([[1.0, 0.0]]), dim=-1)
    others = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.19], [1.0, 0.22], [-1.0, 0.0]]), dim=-1)
    assert near_duplicates(target, others).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("at", "bound", "inwards"), [(200.0, 100.0, 1.0), (0.1, 1.0, -1.0)])
def test_the_temperature_stays_within_bounds_and_can_leave_them(at: float, bound: float, inwards: float) -> None:
    log_scale = torch.tensor(at).log().requires_grad_()
    optimiser = torch.optim.SGD([log_scale], 1e-4)
    for slope in (-inwards, inwards):
        scale = bounded(log_scale)
        torch.testing.assert_close(scale.item(), bound)
        optimiser.zero_grad()
        (slope * scale).backward()
        optimiser.step()
    assert inwards * (bound - bounded(log_scale).item()) > 1e-5


def test_the_temperature_starts_as_published() -> None:
    torch.testing.assert_close(bounded(InfoNCE().log_scale).item(), 1 / 0.07)


def test_logq_corrected_gradient_is_that_of_the_full_softmax() -> None:
    """On a vocabulary of 12, averaged over draws of 256 negatives by popularity, for a popular target and a query near
    the rarest item. It is far off without the correction, and with the target's score corrected as well."""
    V, P, draws, target = 12, 256, 300, torch.tensor([0])
    items, tau = units(V, 6), torch.tensor(2.0)
    log_q = (torch.arange(V, 0, -1.0) / 4).log_softmax(dim=0)
    start = F.normalize(items[11] + items[0], dim=-1)[None, None]
    full = start.clone().requires_grad_()
    F.cross_entropy(tau * full[:, 0] @ items.T, target).backward()
    generator = torch.Generator().manual_seed(4)
    drawn = torch.multinomial(log_q.exp().expand(draws, V), P, replacement=True, generator=generator)

    def distance(correction: Tensor) -> float:
        query = start.clone().requires_grad_()
        for rows in drawn:
            info_nce(query, items[target], items[rows], (rows == target)[None], tau, correction[rows]).sum().backward()
        return float((query.grad / draws - full.grad).norm() / full.grad.norm())

    assert distance(log_q) < 0.06
    assert distance(torch.full((V,), 1 / V).log()) > 0.3
    assert distance(log_q - log_q[target] - math.log(P)) > 0.3


def test_disentangled_is_info_nce_of_each_target_with_its_matched_query() -> None:
    queries, targets, negatives = units(6, 3, 8), units(6, 5, 8, seed=1), units(20, 8, seed=2)
    present = torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) < 0.6
    chosen = match(queries, targets, present)
    each = [
        info_nce(
            queries[row, chosen[row, place]][None, None],
            targets[row, place, None],
            negatives,
            near_duplicates(targets[row, place, None], negatives),
            TAU,
        )
        for row, place in present.nonzero().tolist()
    ]
    torch.testing.assert_close(disentangled(queries, targets, present, negatives, TAU), torch.stack(each).flatten())


def test_only_matched_queries_get_a_gradient() -> None:
    queries, targets = units(2, 3, 8).requires_grad_(), units(2, 4, 8, seed=1)
    targets = targets[:, [0, 1, 0, 1]]  # two different ones: two clusters, so one query of three stays idle
    present = torch.tensor([[True] * 4, [False] * 4])
    disentangled(queries, targets, present, units(9, 8, seed=2), TAU).mean().backward()
    moved = (queries.grad != 0).any(dim=-1)
    assert moved[0].nonzero()[:, 0].tolist() == match(queries, targets, present)[0].unique().tolist()
    assert not moved[1].any()


def test_a_batch_without_targets_costs_nothing() -> None:
    queries = units(2, 3, 8).requires_grad_()
    value = disentangled(queries, units(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool), units(9, 8), TAU).sum()
    value.backward()
    assert value == 0
    assert not queries.grad.any()


def test_of_views_side_by_side_the_whole_is_matched_and_each_learns_by_itself() -> None:
    queries, targets, negatives = units(2, 3, 8), units(2, 4, 8, seed=1), units(9, 8, seed=2)
    present = torch.tensor([[True, True, True, False], [True, False, False, False]])
    scales = torch.tensor([5.0, 20.0])
    row, place = present.nonzero(as_tuple=True)
    query = match(queries, targets, present)[row, place]
    masked = near_duplicates(targets[row, place], negatives)
    each = [
        info_nce(
            *(
                F.normalize(part[..., view], dim=-1)
                for part in (queries[row, query, None], targets[row, place], negatives)
            ),
            masked,
            scale,
        )[:, 0]
        for view, scale in ((slice(3), scales[0]), (slice(3, 8), scales[1]))
    ]
    torch.testing.assert_close(
        disentangled(queries, targets, present, negatives, scales, views=(3, 5)), each[0] + each[1]
    )
