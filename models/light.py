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

    The last block is asked for a scenario: what a state looks for in the past is moved by a vector of the scenario
    whose next item is wanted (scenario-aware querying, RED-Rec; inside the light branch it is ours). The sink is always
    attendable, and as heavily as the zero padding of the usual SASRec, which keeps attention weak while little is known
    (PAPERS, "measured here": the number of attendable pads is part of the model).
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float, scenarios: int) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.wanted = nn.Embedding(scenarios, width)
        nn.init.normal_(self.wanted.weight, std=0.02)
        self.norm = nn.LayerNorm(width)

    def forward(self, events: Tensor) -> Tensor:
        """States [B, L + 1, width] of compact encoded events [B, L, width], before the last block."""
        states = torch.cat([self.sink.expand(len(events), 1, -1), events], dim=1)
        for block in self.blocks[:-1]:
            states = block(states)
        return states

    def asked(self, states: Tensor, place: Tensor, scenario: Tensor) -> Tensor:
        """[B, Q, 1, width] of the `states` of `forward`: what those in `place` [B, Q] say of a `scenario` [B, Q]."""
        asking = states.gather(1, place[..., None].expand(-1, -1, states.shape[2])) + self.wanted(scenario)
        answers: Tensor = self.norm(self.blocks[-1](states, asking, place))
        return answers[:, :, None]


class SelfAttentive(nn.Module):
    """ComiRec-SA (Cen et al. 2020), a baseline: A = softmax(W2 tanh(W1 Hᵀ)) over the events, V = A H, one row of A per
    interest. How long ago an event was is a learned bias here, so that any prefix can be asked (ours)."""

    def __init__(self, width: int, interests: int, dropout: float) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(width))
        self.w1, self.w2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, interests)
        self.ago = nn.Embedding(AGO_BUCKETS, interests)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.ago.weight)

    def forward(self, events: Tensor) -> Tensor:
        """H [B, L + 1, width] of compact encoded events [B, L, width]: they and, before them, the sink."""
        return torch.cat([self.sink.expand(len(events), 1, -1), events], dim=1)

    def asked(self, states: Tensor, place: Tensor, scenario: Tensor) -> Tensor:  # noqa: ARG002
        """[B, Q, K, width] of H up to each `place` [B, Q]; the same for every scenario."""
        ago = place[..., None] - torch.arange(states.shape[1], device=states.device)  # [B, Q, L + 1]
        bias = self.ago((1 + ago.clamp_min(0)).float().log2().mul(2).long().clamp_max(AGO_BUCKETS - 1))
        scores = self.w2(torch.tanh(self.w1(states)))[:, None] + bias  # [B, Q, L + 1, K]
        weights = scores.masked_fill((ago < 0)[..., None], -torch.inf).softmax(dim=2)
        normed: Tensor = self.norm(torch.einsum("bqjk,bjw->bqkw", self.dropout(weights), states))
        return normed


class Block(nn.Module):
    """x + Attention(LN(x)), then x + FeedForward(LN(x)); causal."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, asking: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        """[B, L, width] of `x` [B, L, width]; or [B, Q, width] of `asking`, each as if it stood in its `place` [B, Q]
        of `x` and read that and what is before."""
        p = self.dropout.p if self.training else 0.0
        row = torch.arange(x.shape[1], device=x.device)
        k, v = self._heads(self.kv(self.attention_norm(x))).chunk(2, dim=-1)
        if asking is None or place is None:
            asking, place, mask = x, row, None
        else:
            mask = (place[..., None] >= row)[:, None]
        q = rotate(self._heads(self.q(self.attention_norm(asking))), place[..., None, :, None])
        mixed = F.scaled_dot_product_attention(q, rotate(k, row[:, None]), v, mask, p, is_causal=mask is None)
        y = asking + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        fed: Tensor = y + self.dropout(self.down(self.dropout(F.gelu(self.up(self.forward_norm(y))))))
        return fed

    def _heads(self, x: Tensor) -> Tensor:
        """[B, heads, L, D] of [B, L, heads · D]."""
        heads: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return heads


def rotate(x: Tensor, place: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of `x` [..., L, D] in `place` [..., L, 1]."""
    frequency = 10_000 ** (-torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])
    angle = place * frequency
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
        """Unit interests [..., scenario, K, dim] of `states` [..., scenario, 1 or K, width]."""
        interests: Tensor = self.head(states + self.queries)
        return interests

    def of(self, states: Tensor, scenario: Tensor) -> Tensor:
        """Unit interests [P, K, dim] of `states` [P, 1 or K, width], each in its `scenario` [P]."""
        interests: Tensor = self.head(states + self.queries[scenario])
        return interests
