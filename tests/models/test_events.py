"""Histories as tensors, and the encoding of events."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from models.contract import ACTIONS, SCENARIOS
from models.events import GAP_BUCKETS, HOUR_MS, EventEncoder, Histories, rank_from_newest

MASKS = st.integers(1, 12).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=5)
)


def numbered(valid: torch.Tensor) -> Histories:
    """Event i has the number i everywhere."""
    number = torch.arange(valid.shape[1]).expand_as(valid)
    return Histories(number[..., None].to(torch.uint8), number * HOUR_MS, number % 3, number % 16, valid)


@given(MASKS)
@settings(deadline=None)
def test_compact_keeps_the_valid_rows_in_order(mask: list[list[bool]]) -> None:
    compact = numbered(torch.tensor(mask)).compact()
    assert compact.valid.shape[1] == max(map(sum, mask))
    for row, flags in enumerate(mask):
        kept = [place for place, flag in enumerate(flags) if flag]
        assert compact.valid[row].tolist() == [True] * len(kept) + [False] * (compact.valid.shape[1] - len(kept))
        assert compact.codes[row, : len(kept), 0].tolist() == kept
        assert compact.time[row, : len(kept)].tolist() == [place * HOUR_MS for place in kept]
        assert compact.scenario[row, : len(kept)].tolist() == [place % 3 for place in kept]
        assert compact.action[row, : len(kept)].tolist() == [place % 16 for place in kept]


@given(MASKS)
@settings(deadline=None)
def test_rank_from_newest_counts_valid_rows(mask: list[list[bool]]) -> None:
    ranks = rank_from_newest(torch.tensor(mask))
    for row, flags in enumerate(mask):
        assert ranks[row].tolist() == [sum(flags[place:]) for place in range(len(flags))]


def encode(times: list[int], scenario: int = 0, action: int = 0) -> torch.Tensor:
    torch.manual_seed(0)
    encoder = EventEncoder(4, 8, dropout=0.0)
    time = torch.tensor([times])
    same = torch.zeros_like(time)
    histories = Histories(same[..., None].byte(), time, same + scenario, same + action, same == 0)
    return encoder(torch.ones(1, len(times), 4), histories)[0]


def test_an_encoding_is_a_sum_and_every_part_of_an_event_shows() -> None:
    torch.manual_seed(0)
    encoder = EventEncoder(4, 8, dropout=0.0)
    time = torch.tensor([[5 * HOUR_MS, 5 * HOUR_MS + 7_000]])  # 7 s: octave 3
    events = Histories(torch.zeros(1, 2, 1).byte(), time, torch.tensor([[1, 2]]), torch.tensor([[3, 4]]), time > 0)
    items = torch.randn(1, 2, 4)
    expected = encoder.item(items * 2)[0]  # sqrt(4)
    expected = expected + encoder.scenario.weight[1:3] + encoder.action.weight[3:5]
    expected = expected + encoder.hour.weight[5] + encoder.gap.weight[[0, 3]]
    torch.testing.assert_close(encoder(items, events)[0], expected)


@torch.inference_mode()
def test_only_the_hour_and_the_gap_before_matter_of_a_time() -> None:
    day = 24 * HOUR_MS
    torch.testing.assert_close(encode([0, HOUR_MS]), encode([400 * day, 400 * day + HOUR_MS]))
    torch.testing.assert_close(
        encode([0, HOUR_MS, 5 * day])[:2], encode([0, HOUR_MS, 9 * day])[:2], msg="no look ahead"
    )
    assert (encode([0, HOUR_MS])[1] - encode([0, HOUR_MS + day])[1]).abs().max() > 1e-4, "the gap"
    assert (encode([0])[0] - encode([HOUR_MS])[0]).abs().max() > 1e-4, "the hour"


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=6))
@settings(deadline=None)
@torch.inference_mode()
def test_any_time_can_be_encoded(times: list[int]) -> None:
    """Also before 1970, out of order and 68 years apart."""
    assert encode(times, len(SCENARIOS) - 1, len(ACTIONS) - 1).isfinite().all()
    assert GAP_BUCKETS == 32
