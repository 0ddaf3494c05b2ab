"""Small unsigned integers packed into bytes, most significant bit first."""

from collections.abc import Sequence

import torch
from torch import Tensor


def packed_bytes(widths: Sequence[int]) -> int:
    """Bytes that hold one number of each of `widths` bits."""
    return -(-sum(widths) // 8)


def pack(numbers: Tensor, widths: Sequence[int]) -> Tensor:
    """`numbers` [N, len(widths)], each below 2**width, as uint8 [N, packed_bytes(widths)]; spare bits are zero."""
    shifts, column = _layout(widths, numbers.device)
    bits = (numbers.int()[:, column] >> shifts) & 1
    bits = torch.nn.functional.pad(bits, (0, packed_bytes(widths) * 8 - len(column)))
    weights = 2 ** torch.arange(7, -1, -1, device=numbers.device, dtype=torch.int32)
    packed: Tensor = (bits.reshape(len(bits), -1, 8) * weights).sum(dim=-1)
    return packed.to(torch.uint8)


def unpack(packed: Tensor, widths: Sequence[int]) -> Tensor:
    """The inverse of `pack`: int64 [N, len(widths)]."""
    if all(width == 8 for width in widths):
        return packed.long()
    shifts, column = _layout(widths, packed.device)
    ends = torch.arange(7, -1, -1, device=packed.device, dtype=torch.int32)
    bits = ((packed.int()[..., None] >> ends) & 1).flatten(1)[:, : len(column)]
    numbers = torch.zeros(len(packed), len(widths), dtype=torch.int32, device=packed.device)
    return numbers.index_add_(1, column, bits << shifts).long()


def _layout(widths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For every bit in storage order: its place value's exponent, and which number it belongs to."""
    shifts = [shift for width in widths for shift in range(width - 1, -1, -1)]
    column = [i for i, width in enumerate(widths) for _ in range(width)]
    return torch.tensor(shifts, dtype=torch.int32, device=device), torch.tensor(column, dtype=torch.long, device=device)
