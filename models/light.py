"""The light recommender: the whole history to coarse interests (HyMiRec).

The paper does not say what it is (unknown); ours is SASRec (Kang and McAuley 2018) with pre-norm blocks, rotary
positions and an explicit sink: the strongest cheap model on public sets, and trained alone it is the baseline.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contract import SCENARIOS
from models.head import ProjectionHead

AGO_BUCKETS = 24  # halves of powers of two
SINK = -1  # its group


class States(NamedTuple):
    """Of B histories, before the last block: 0 is the sink, i stands behind event i - 1."""

    values: Tensor  # [B, L + 1, width]
    place: Tensor  # int64 [B, L + 1]: how many events of its group a state knows
    group: Tensor  # int64 [B, L + 1]: a state knows events of its group alone


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

    def forward(self, events: Tensor, group: Tensor) -> States:
        """Of compact encoded events [B, L, width], each of a `group` [B, L]."""
        values, place, groups = states = behind(self.sink, events, group)
        mask = None  # of a single group: causal alone is a third faster on long histories
        if (group != group[:, :1]).any():
            mask = readable(groups, torch.arange(values.shape[1], device=group.device).expand_as(groups), groups)
        for block in self.blocks[:-1]:
            values = block(values, place, values, place, mask)
        return states._replace(values=values)

    def asked(self, states: States, known: Tensor, group: Tensor, scenario: Tensor) -> Tensor:
        """[B, Q, 1, width]: what those of the first `known` events [B, Q] that are of a `group` [B, Q] say of a
        `scenario` [B, Q]."""
        mask = readable(states.group, known, group)
        newest = (mask * torch.arange(mask.shape[2], device=mask.device)).amax(dim=2)
        asking = states.values.gather(1, newest[..., None].expand(-1, -1, states.values.shape[2]))
        asking, place = asking + self.wanted(scenario), mask.sum(dim=2) - 1
        answers: Tensor = self.norm(self.blocks[-1](asking, place, states.values, states.place, mask))
        return answers[:, :, None]


def behind(sink: Tensor, events: Tensor, group: Tensor) -> States:
    """The `sink` [width] and, behind it, the `events` [B, L, width], each of a `group` [B, L], a scenario's number."""
    place = F.one_hot(group, len(SCENARIOS)).cumsum(dim=1).gather(2, group[..., None])[..., 0]
    values = torch.cat([sink.expand(len(events), 1, -1), events], dim=1)
    return States(values, F.pad(place, (1, 0)), F.pad(group, (1, 0), value=SINK))


def readable(group: Tensor, known: Tensor, asking: Tensor) -> Tensor:
    """Which states, each of a `group` [B, L + 1], answer for the first `known` events [B, Q] of the group `asking`
    [B, Q]: the sink and those of that group. Bool [B, Q, L + 1]."""
    row = torch.arange(group.shape[1], device=group.device)
    return (row <= known[..., None]) & ((group[:, None] == asking[..., None]) | (row == 0))


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

    def forward(self, events: Tensor, group: Tensor) -> States:
        """H [B, L + 1, width] of compact encoded events [B, L, width]: they and, before them, the sink."""
        return behind(self.sink, events, group)

    def asked(self, states: States, known: Tensor, group: Tensor, scenario: Tensor) -> Tensor:  # noqa: ARG002
        """[B, Q, K, width] of H of the first `known` [B, Q] events that are of a `group` [B, Q]; the same for every
        scenario."""
        there = readable(states.group, known, group)
        ago = there.sum(dim=2, keepdim=True) - 1 - states.place[:, None]  # [B, Q, L + 1]
        bias = self.ago((1 + ago.clamp_min(0)).float().log2().mul(2).long().clamp_max(AGO_BUCKETS - 1))
        scores = self.w2(torch.tanh(self.w1(states.values)))[:, None] + bias  # [B, Q, L + 1, K]
        weights = scores.masked_fill(~there[..., None], -torch.inf).softmax(dim=2)
        normed: Tensor = self.norm(torch.einsum("bqjk,bjw->bqkw", self.dropout(weights), states.values))
        return normed


class Block(nn.Module):
    """x + Attention(LN(x)), then x + FeedForward(LN(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, asking: Tensor, at: Tensor, x: Tensor, place: Tensor, mask: Tensor | None) -> Tensor:
        """[B, Q, width] of `asking` [B, Q, width], which stand `at` [B, Q] and read, where `mask` [B, Q, L] allows (or
        row i the first i + 1), `x` [B, L, width] in their `place` [B, L]."""
        p = self.dropout.p if self.training else 0.0
        k, v = self._heads(self.kv(self.attention_norm(x))).chunk(2, dim=-1)
        q = rotate(self._heads(self.q(self.attention_norm(asking))), at[:, None, :, None])
        k = rotate(k, place[:, None, :, None])
        allowed = None if mask is None else mask[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v, allowed, p, is_causal=mask is None)
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
