"""Interest weights: shares, their loss, calibration."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from models.weights import decay, fit_temperature, log_weights, reliability, shares, weight_loss

SEEDS = st.integers(0, 2**32)
QUICK = settings(max_examples=50, deadline=None)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def served(logits: Tensor, events: int, seed: int = 0) -> Tensor:
    """Shares [M, K] of users whose events come from softmax(logits)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.softmax(dim=-1), events, replacement=True, generator=generator)
    return F.one_hot(drawn, logits.shape[-1]).float().mean(dim=1)


def test_an_event_counts_half_after_a_half_life() -> None:
    age = torch.tensor([0, 3_600_000, 7_200_000, -5])
    assert decay(age, 3_600_000).tolist() == [1.0, 0.5, 0.25, 1.0]


def test_shares_are_of_events_by_their_nearest_interest_and_by_their_age() -> None:
    interests = torch.eye(3)[None]
    targets = 7 * F.normalize(torch.tensor([[3.0, 1, 1], [1, 3, 1], [3, 2, 2], [1, 1, 3]]), dim=-1)[None]
    importance = decay(torch.tensor([[0, 1, 1, 2]]), half_life=1) * torch.tensor([[1, 1, 1, 0]])
    torch.testing.assert_close(shares(interests, targets, importance), torch.tensor([[0.75, 0.25, 0.0]]))
    torch.testing.assert_close(
        shares(interests, targets, importance, torch.tensor([[False, True, True]])), torch.tensor([[0.0, 1.0, 0.0]])
    )


@given(SEEDS, st.integers(1, 5), st.integers(1, 8), st.one_of(st.none(), st.floats(1, 50)))
@QUICK
def test_shares_sum_to_one_where_there_are_events(seed: int, k: int, w: int, scale: float | None) -> None:
    interests, targets = F.normalize(draw(seed, 4, k, 6), dim=-1), draw(seed + 1, 4, w, 6)
    there = torch.tensor([True, False, True, False])
    importance = draw(seed + 2, 4, w).abs() * there[:, None]
    found = shares(interests, targets, importance, scale=scale)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=-1), there.float())


@given(SEEDS, st.integers(1, 6))
@QUICK
def test_weights_are_positive_and_sum_to_one_over_the_interests_present(seed: int, k: int) -> None:
    present = draw(seed, 5, k) > 0
    present[:, 0] = True
    weights = log_weights(3 * draw(seed + 1, 5, k), present).exp()
    assert ((weights > 0) == present).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(5))


def test_the_loss_is_least_at_the_shares_and_blind_to_users_without_events() -> None:
    share = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 0.0]])
    logits = torch.zeros(3, 3, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> float:
        optimiser.zero_grad()
        value = weight_loss(logits, share)
        value.backward()
        return value.item()

    optimiser.step(step)
    torch.testing.assert_close(logits[:2].softmax(dim=-1).detach(), share[:2], atol=5e-3, rtol=0)
    assert logits[2].tolist() == [0.0] * 3


def test_absent_interests_cost_nothing_and_get_no_gradient() -> None:
    logits, present = draw(0, 4, 3).requires_grad_(), torch.tensor([True, True, False]).expand(4, 3)
    share = torch.tensor([0.25, 0.75, 0.0]).expand(4, 3)
    value = weight_loss(logits, share, present)
    torch.testing.assert_close(value, weight_loss(logits[:, :2], share[:, :2]))
    value.backward()
    assert not logits.grad[:, 2].any()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_wrong_is_found_and_calibrates(temperature: float) -> None:
    true = 1.5 * draw(1, 3_000, 4)
    share, told = served(true, events=10), true * temperature
    share[:100] = 0  # users without events
    found = fit_temperature(told, share)
    assert found == pytest.approx(temperature, rel=0.05)
    before = reliability(told.softmax(dim=-1), share)
    after = reliability(log_weights(told, temperature=found).exp(), share)
    assert after.error < 0.01
    assert temperature == 1 or before.error > 5 * after.error
    torch.testing.assert_close(after.predicted, after.realised, atol=0.02, rtol=0)


def test_an_absent_interest_does_not_change_the_temperature() -> None:
    true = 1.5 * draw(2, 500, 3)
    share, present = served(true, events=5), torch.tensor([True, True, True, False]).expand(500, 4)
    more = torch.cat([true * 2, torch.full((500, 1), 9.0)], dim=1)
    padded = torch.cat([share, torch.zeros(500, 1)], dim=1)
    assert fit_temperature(more, padded, present) == pytest.approx(fit_temperature(true * 2, share), rel=1e-6)


def test_reliability_has_bins_of_equal_counts_in_ascending_order() -> None:
    found = reliability(torch.rand(50, 4), torch.rand(50, 4), bins=8)
    assert found.count.tolist() == [25] * 8
    assert found.predicted.equal(found.predicted.sort().values)
    assert reliability(torch.tensor([[0.3, 0.7]]), torch.tensor([[0.3, 0.7]])).error == 0
    assert reliability(torch.tensor([[0.3, 0.7]]), torch.tensor([[0.0, 1.0]])).error == pytest.approx(0.3)
