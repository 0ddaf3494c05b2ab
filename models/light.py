"""The light recommender: coarse interests of the whole history (HyMiRec; the form is ComiRec-SA's, inferred).

A = softmax(W2 tanh(W1 Hᵀ)) over the events, one row per coarse interest; V = A H.
"""

import torch
from torch import Tensor, nn


class LightRecommender(nn.Module):
    """Linear in the number of events. An explicit sink is always attendable, so an empty history has an answer."""

    def __init__(self, width: int, coarse: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, width)
        self.w2 = nn.Linear(width, coarse)
        self.sink = nn.Parameter(torch.randn(width) * 0.1)

    def forward(self, events: Tensor, valid: Tensor) -> Tensor:
        """Coarse interests [B, C, width] of encoded events [B, L, width], seen where `valid` [B, L]."""
        sink = self.sink.expand(len(events), 1, -1)
        events = torch.cat([sink, events.masked_fill(~valid[..., None], 0)], dim=1)
        seen = torch.cat([valid.new_ones(len(events), 1), valid], dim=1)
        scores = self.w2(torch.tanh(self.w1(events))).masked_fill(~seen[..., None], -torch.inf)
        coarse: Tensor = scores.softmax(dim=1).transpose(1, 2) @ events
        return coarse
