"""Which recent events the LLM reads: quotas per scenario, kept in order of time (RED-Rec's 2-D dense mixing).

PAPERS: "balanced quotas over scenario and time". Our reading (inferred): every scenario is sure of its newest q_s
events; places it cannot fill go to the newest events left over, whatever their scenario. The released code never
re-sorts what it picked; here the order is that of the history.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.events import rank_from_newest


class Mixed(NamedTuple):
    """R picked rows per user: first the picked ones in order, then the empty places."""

    rows: Tensor  # int64 [B, R], indices into the history; anything where not `picked`
    picked: Tensor  # bool [B, R]


def mix(scenario: Tensor, valid: Tensor, quotas: tuple[int, ...]) -> Mixed:
    """The rows of histories [B, L] that the LLM reads, R = min(L, sum of `quotas`); invalid rows are never picked."""
    length = scenario.shape[1]
    sure = torch.zeros_like(valid)
    for code, quota in enumerate(quotas):
        mine = valid & (scenario == code)
        sure |= mine & (rank_from_newest(mine) <= quota)
    places = min(length, sum(quotas))
    position = torch.arange(length, device=valid.device)
    worth = torch.where(sure, position + length, position).masked_fill(~valid, -1)
    best = worth.topk(places, dim=1).indices
    picked = valid.gather(1, best)
    order = torch.where(picked, best, best + length).argsort(dim=1)
    return Mixed(best.gather(1, order), picked.gather(1, order))
