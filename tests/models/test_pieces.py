"""Batches of few shapes: what a row gives does not depend on its neighbours, to the last bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.pieces import ROWS, in_pieces, rounded_up

WEIGHT = torch.randn(384, 4_096, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(200, 384, generator=torch.Generator().manual_seed(1))


@given(st.lists(st.integers(0, len(VECTORS) - 1), max_size=70))
def test_a_row_gives_the_same_in_any_company(rows: list[int]) -> None:
    def product(some: Tensor) -> Tensor:
        return some @ WEIGHT

    together = in_pieces(product, VECTORS[rows])
    assert together.shape == (len(rows), 4_096)
    for place in range(0, len(rows), 7):
        assert torch.equal(together[place], in_pieces(product, VECTORS[rows[place] : rows[place] + 1])[0])


def test_every_batch_has_the_same_rows_and_columns_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "cpu", 4)
    met: list[tuple[int, ...]] = []

    def run(a: Tensor, b: Tensor) -> Tensor:
        met.append(tuple(a.shape))
        return a[:, 0] + b

    answer = in_pieces(run, torch.arange(10)[:, None], 100 * torch.arange(10))
    assert answer.tolist() == [101 * n for n in range(10)]
    assert met == [(4, 1)] * 3


def test_lengths_are_few_and_never_too_short() -> None:
    assert {rounded_up(tokens, 96) for tokens in range(97)} == set(range(8, 97, 8))
    assert all(rounded_up(tokens, 96) >= tokens for tokens in range(97))
    assert rounded_up(3, 5) == 5
