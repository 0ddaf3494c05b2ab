"""The light recommender: the whole history to coarse interests (HyMiRec).

The paper does not say what it is (unknown); ours is SASRec (Kang and McAuley 2018) with pre-norm blocks, rotary
positions and an explicit sink: the strongest cheap model on public sets, and trained alone it is the baseline.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.head import ProjectionHead

AGO_BUCKETS = 24  # halves of powers of two


class LightRecommender(nn.Module):
    """Causal: the state behind an event knows the events up to it, and state 0, the sink, none.

    The sink is always attendable, and as heavily as the zero padding of the usual SASRec, which keeps attention weak
    while little is known (PAPERS, "measured here": the number of attendable pads is part of the model).
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, events: Tensor) -> Tensor:
        """States [B, L + 1, 1, width] of compact encoded events [B, L, width]."""
        states = torch.cat([self.sink.expand(len(events), 1, -1), events], dim=1)
        for block in self.blocks:
            states = block(states)
        normed: Tensor = self.norm(states)
        return normed[:, :, None]


class SelfAttentive(nn.Module):
    """ComiRec-SA (Cen et al. 2020), a baseline: A = softmax(W2 tanh(W1 Hᵀ)) over the events, V = A H, one row of A per
    interest. How long ago an event was is a learned bias here, so that every prefix is answered at once (ours)."""

    def __init__(self, width: int, interests: int, dropout: float) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(width))
        self.w1, self.w2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, interests)
        self.ago = nn.Embedding(AGO_BUCKETS, interests)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.ago.weight)

    def forward(self, events: Tensor) -> Tensor:
        """States [B, L + 1, K, width] of compact encoded events [B, L, width]."""
        events = torch.cat([self.sink.expand(len(events), 1, -1), events], dim=1)
        place = torch.arange(events.shape[1], device=events.device)
        ago = place[:, None] - place
        bias = self.ago((1 + ago.clamp_min(0)).float().log2().mul(2).long().clamp_max(AGO_BUCKETS - 1))
        scores = self.w2(torch.tanh(self.w1(events)))[:, None] + bias  # [B, L + 1, L + 1, K]
        weights = scores.masked_fill((ago < 0)[..., None], -torch.inf).softmax(dim=2)
        normed: Tensor = self.norm(torch.einsum("bijk,bjw->bikw", self.dropout(weights), events))
        return normed


class Block(nn.Module):
    """x + Attention(LN(x)), then x + FeedForward(LN(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, L, width = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        p = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, dropout_p=p, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(B, L, width)))
        fed: Tensor = x + self.dropout(self.down(self.dropout(F.gelu(self.up(self.forward_norm(x))))))
        return fed


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of `x` [..., L, D]."""
    L, D = x.shape[-2:]
    frequency = 10_000 ** (-torch.arange(0, D, 2, device=x.device) / D)
    angle = torch.arange(L, device=x.device)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class InterestHead(nn.Module):
    """K interests per scenario out of one state: the projection head over state + query (ours)."""

    def __init__(self, width: int, dim: int, scenarios: int, interests: int, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(scenarios, interests, width) * 0.2)
        self.head = ProjectionHead(width, dim, dropout).pass_through()

    def forward(self, states: Tensor) -> Tensor:
        """Unit interests [..., scenario, K, dim] of `states` [..., 1 or K, width]."""
        interests: Tensor = self.head(states[..., None, :, :] + self.queries)
        return interests

    def of(self, states: Tensor, scenario: Tensor) -> Tensor:
        """Unit interests [P, K, dim] of `states` [P, 1 or K, width], each in its `scenario` [P]."""
        interests: Tensor = self.head(states + self.queries[scenario])
        return interests
