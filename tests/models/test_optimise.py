"""Rates: a warm-up and a cosine, and in the shortest phase something to learn with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from models.optimise import optimiser, schedule


def rates(steps: int, warmup: float) -> list[float]:
    adam = optimiser([torch.nn.Parameter(torch.zeros(1))], rate=1.0, decay=0.0)
    falling, found = schedule(adam, steps, warmup), []
    for _ in range(steps):
        found.append(falling.get_last_lr()[0])
        adam.step()
        falling.step()
    return [*found, falling.get_last_lr()[0]]


@given(some.integers(1, 60), some.floats(0, 0.9))
def test_it_rises_to_the_rate_falls_to_nothing_and_never_learns_nothing_at_all(steps: int, warmup: float) -> None:
    found = rates(steps, warmup)
    assert sum(found) > 0
    assert all(0 <= rate <= 1 for rate in found)
    assert found[-1] == pytest.approx(0, abs=1e-9)
    top = found.index(max(found))
    assert found[:top] == sorted(found[:top])
    assert found[top:] == sorted(found[top:], reverse=True)


def test_a_single_step_has_the_whole_rate() -> None:
    assert rates(1, 0.1) == pytest.approx([1, 0])
    assert rates(10, 0.1)[:2] == pytest.approx([0, 1])
