"""Scenario quotas: against a plain Python reading of the rule."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from models.mixing import mix

EVENTS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=40)
QUOTAS = st.tuples(*[st.integers(0, 6)] * 3).filter(any)


def rule(events: list[tuple[int, bool]], quotas: tuple[int, ...]) -> list[int]:
    """Each scenario's newest events up to its quota, then the newest of the rest, all in order."""
    newest_first = [row for row, (_, valid) in reversed(list(enumerate(events))) if valid]
    left = list(quotas)
    sure = []
    for row in newest_first:
        if left[events[row][0]] > 0:
            left[events[row][0]] -= 1
            sure.append(row)
    rest = [row for row in newest_first if row not in sure]
    return sorted([*sure, *rest][: sum(quotas)])


@given(events=EVENTS, quotas=QUOTAS)
@settings(deadline=None)
def test_picks_by_quota_then_by_time_and_keeps_the_order(events: list, quotas: tuple[int, ...]) -> None:
    scenario = torch.tensor([[code for code, _ in events]])
    valid = torch.tensor([[flag for _, flag in events]])
    mixed = mix(scenario, valid, quotas)
    assert mixed.rows[mixed.picked].tolist() == rule(events, quotas)
    assert mixed.picked[0].tolist() == sorted(mixed.picked[0].tolist(), reverse=True), "empty places come last"


def test_a_quiet_scenario_is_not_crowded_out() -> None:
    scenario = torch.tensor([[2, 2, *[1] * 50]])
    mixed = mix(scenario, torch.ones_like(scenario, dtype=torch.bool), (4, 4, 4))
    assert mixed.rows[0, :2].tolist() == [0, 1]
    assert mixed.picked.all()
