"""The LLM branch: coarse interests and mixed recent events to refined interests (HyMiRec and RED-Rec, PAPERS).

A causal LLM reads [recent events | coarse interests | queries]; its last hidden states at the queries, K per scenario,
are the refined interests. The papers put the coarse interests first (inferred). Behind the events they say the same to
the queries, and the states of events depend on nothing but events: several cuts of one history share a pass, and every
event can be trained to tell the next. To that state, of the newest event, each query adds its own (ours).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from models.events import EventEncoder, Histories
from models.head import ProjectionHead
from models.mixing import Mixed, mix


class Refiner(nn.Module):
    """`llm` is a transformers config as a dictionary with its `model_type`: any causal LLM."""

    def __init__(
        self,
        llm: dict[str, Any],
        dim: int,
        coarse_dim: int,
        shape: tuple[int, int],
        quotas: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        config = AutoConfig.for_model(**llm)
        self.shape, self.quotas = shape, quotas
        self.encoder = EventEncoder(dim, config.hidden_size, dropout)
        self.coarse = nn.Linear(coarse_dim, config.hidden_size) if coarse_dim else None
        self.queries = nn.Parameter(torch.randn(*shape, config.hidden_size) * 0.2)
        self.next = nn.Parameter(torch.randn(shape[0], config.hidden_size) * 0.02)
        self.llm = AutoModel.from_config(config)
        add_dropout(self.llm, dropout)
        self.head = ProjectionHead(config.hidden_size, dim, dropout).pass_through()
        self.weigh = nn.Linear(config.hidden_size, 1)

    def forward(
        self, items: Tensor, histories: Histories, coarse: Tensor, cuts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Mixed]:
        """Of compact `histories` with item vectors `items` [B, L, dim], cut behind `cuts` [B, G] events, and of the
        `coarse` interests [B, G, scenario, K, coarse_dim] there: unit interests [B, G, scenario, K, dim], logits of
        their weights [B, G, scenario, K], the states of the mixed events [B, R, h], and those."""
        mixed = recent(mix(histories.scenario, histories.valid, self.quotas))
        picked = items.gather(1, mixed.rows[..., None].expand(-1, -1, items.shape[-1]))
        events = self.encoder(picked, histories.at(mixed.rows, mixed.picked))
        known = (mixed.picked[:, None] & (mixed.rows[:, None] < cuts[..., None])).sum(dim=-1)  # [B, G]
        B, G = cuts.shape
        asked = self.queries.flatten(0, 1).expand(B, G, -1, -1)
        if self.coarse is not None:
            asked = torch.cat([self.coarse(coarse).flatten(2, 3), asked], dim=2)
        mask, position = layout(events.shape[1], known, asked.shape[2])
        states = self.llm(
            inputs_embeds=torch.cat([events, asked.flatten(1, 2)], dim=1), attention_mask=mask, position_ids=position
        ).last_hidden_state
        R, queries = events.shape[1], self.queries[..., 0].numel()
        answers = states[:, R:].unflatten(1, (G, -1))[:, :, -queries:].unflatten(2, self.shape)
        newest = states[torch.arange(B, device=cuts.device)[:, None], (known - 1).clamp_min(0)] * (known > 0)[..., None]
        answers = answers + newest[:, :, None, None]
        return self.head(answers), self.weigh(answers)[..., 0], states[:, :R], mixed

    def of(self, states: Tensor, scenario: Tensor) -> Tensor:
        """The unit interest [P, 1, dim] of the states [P, h] of events, in a `scenario` [P]."""
        interest: Tensor = self.head(states + self.next[scenario])
        return interest[:, None]


def recent(mixed: Mixed) -> Mixed:
    """`mixed`, as long as the longest."""
    longest = int(mixed.picked.sum(dim=1).max()) if mixed.picked.numel() else 0
    return Mixed(mixed.rows[:, :longest], mixed.picked[:, :longest])


def layout(events: int, known: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Attention mask [B, 1, T, T] and positions [B, T] of `events` tokens and, behind them, G groups of `group` tokens:
    group g reads the first known[b, g] events and itself, as if it stood right behind them. All is causal."""
    B, G = known.shape
    place = torch.arange(group, device=known.device)
    event = torch.arange(events, device=known.device)
    position = torch.cat([event.expand(B, -1), (known[..., None] + place).flatten(1)], dim=1)
    owner = torch.arange(G, device=known.device).repeat_interleave(group)
    within = (owner[:, None] == owner) & (place.repeat(G)[:, None] >= place.repeat(G))
    mask = torch.zeros(B, events + G * group, events + G * group, dtype=torch.bool, device=known.device)
    mask[:, :events, :events] = event[:, None] >= event
    mask[:, events:, :events] = event < known.repeat_interleave(group, dim=1)[..., None]
    mask[:, events:, events:] = within
    return mask[:, None], position


def add_dropout(llm: nn.Module, p: float) -> None:
    """Dropout on what every block adds to the residual stream, which Llama-style models do not have (ours)."""

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], p, module.training), *output[1:])
        return nn.functional.dropout(output, p, module.training)

    for block in getattr(llm, "layers", ()):
        for name in ("self_attn", "mlp"):
            if (part := getattr(block, name, None)) is not None:
                part.register_forward_hook(drop)
