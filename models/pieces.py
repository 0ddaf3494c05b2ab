"""Batches of few shapes, so that an answer depends on its row alone, to the last bit.

A matrix product rounds by its shape, and on CPUs an element-wise function by the place too: a text among others differs
from the same text alone by some 2e-7, and now and then that gives it other codes. A replay, which meets other
neighbours, must find the same ones (DESIGN, law 5).
"""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = {"cpu": 1}  # of a batch; there a larger one saves little
MANY_ROWS = 64  # on any other device


def in_pieces(run: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """`run(*columns)` of N rows each, in batches of always as many; the last is filled with copies of a row."""
    rows, n = ROWS.get(columns[0].device.type, MANY_ROWS), len(columns[0])
    filled = [torch.cat([column, column[:1].expand(-n % rows, *column.shape[1:])]) for column in columns]
    return torch.cat([run(*batch) for batch in zip(*(column.split(rows) for column in filled), strict=True)])[:n]


def rounded_up(tokens: int, most: int) -> int:
    """The length that a text of so many tokens is padded to: a multiple of 8, at most `most`."""
    return min(most, max(8, -(-tokens // 8) * 8))
