"""Interests moved apart: what stays, what becomes of the rest, and how far is borne."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.evaluate import FACTORS, UNMOVED, bearable
from models.spread import spread


def answers(seed: int, shape: tuple[int, ...] = (5, 3, 4), dim: int = 8) -> tuple[Tensor, Tensor]:
    """Unit interests that share a direction, and weights."""
    torch.manual_seed(seed)
    return F.normalize(torch.randn(*shape, dim) + 2, dim=-1), torch.randn(shape).softmax(dim=-1)


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0])
def test_the_heaviest_stays_and_the_others_leave_the_mean_of_the_heavier(factor: float) -> None:
    before, weights = answers(0)
    after = spread(before, weights, factor)
    torch.testing.assert_close(after.norm(dim=-1), torch.ones(after.shape[:-1]))
    order = weights.argsort(dim=-1, descending=True)[..., None].expand_as(before)
    old, new = before.gather(-2, order), after.gather(-2, order)
    assert torch.equal(old[..., 0, :], new[..., 0, :])
    for k in range(1, 4):
        centre = F.normalize(new[..., :k, :].mean(dim=-2), dim=-1)
        nearer, farther = ((some[..., k, :] * centre).sum(dim=-1) for some in (old, new))
        assert (farther < nearer).all() if factor > 1 else torch.allclose(farther, nearer, atol=1e-6)


def test_places_of_interests_mean_nothing() -> None:
    interests, weights = answers(1)
    places = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        spread(interests, weights, 2.0)[..., places, :], spread(interests[..., places, :], weights[..., places], 2.0)
    )


def test_one_interest_and_two_alike_stay() -> None:
    interests, weights = answers(2, (6, 1))
    assert torch.equal(spread(interests, weights, 3.0), interests)
    alike = interests.expand(-1, 2, -1)
    torch.testing.assert_close(spread(alike, torch.full((6, 2), 0.5), 3.0), alike)


def planted(between: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Interests and weights of 50 users, 400 items around two tastes that are akin, and the items wanted, which are the
    nearest to the second. The light interest lies `between` the tastes: 0 at the first, 1 at the second."""
    torch.manual_seed(0)
    tastes = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]) @ torch.eye(8)[:2], dim=-1)
    items = F.normalize(tastes.repeat_interleave(200, dim=0) + 0.2 * torch.randn(400, 8), dim=-1)
    light = F.normalize(tastes[0] + between * (tastes[1] - tastes[0]), dim=0)
    interests = torch.stack([tastes[0], light]).expand(50, -1, -1)
    return interests, torch.tensor([[0.7, 0.3]]).expand(50, -1), items, (items @ tastes[1]).topk(50).indices


NOTHING = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)


def test_interests_that_bring_the_same_are_moved_and_those_that_do_not_are_left() -> None:
    assert bearable(*planted(0.4), NOTHING) == max(FACTORS)
    assert bearable(*planted(1.0), NOTHING) == UNMOVED
    interests, weights, items, targets = planted(0.4)
    assert bearable(interests[:, :1], weights[:, :1], items, targets, NOTHING) == UNMOVED, "there is only one"
