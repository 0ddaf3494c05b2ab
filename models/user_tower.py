"""The user tower: residual codes in, K interests per scenario out (HyMiRec and RED-Rec, PAPERS).

HyMiRec's input (inferred): [coarse interests, projected] ⊕ [recent events] ⊕ [learnable queries]; the last hidden
states at the queries are the refined interests. RED-Rec's: the recent events are mixed from all scenarios, and every
scenario has its own K queries, so one pass answers for all of them.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from models.codebook import CodebookConfig, ResidualCodebook
from models.contract import DIM, SCENARIOS
from models.events import EventEncoder, Histories
from models.files import write_tensors
from models.head import ProjectionHead
from models.light import LightRecommender
from models.mixing import Mixed, mix

FILE = "user_tower.safetensors"


@dataclass(frozen=True)
class UserTowerConfig:
    """Sizes; `llm` is a transformers config as a dictionary with its `model_type`: any causal LLM."""

    llm: dict[str, Any]
    dim: int = DIM
    interests: int = 4  # K, per scenario
    width: int = 64  # of an encoded event
    coarse: int = 4  # coarse interests
    quotas: tuple[int, ...] = (24, 24, 16)  # recent events of search, feed, discovery
    dropout: float = 0.1
    codebook: dict[str, int] = field(default_factory=lambda: asdict(CodebookConfig()))
    training: dict[str, Any] = field(default_factory=dict)  # seed, command, figures: how it came to be


class UserTower(nn.Module):
    """Histories to interests. The answer for a user depends on their valid rows alone: padding never matters."""

    def __init__(self, config: UserTowerConfig) -> None:
        super().__init__()
        self.config = config
        llm = AutoConfig.for_model(**config.llm)
        self.codebook = ResidualCodebook(CodebookConfig(**config.codebook))
        self.encoder = EventEncoder(config.dim, config.width)
        self.light = LightRecommender(config.width, config.coarse)
        self.coarse_in = nn.Linear(config.width, llm.hidden_size)
        self.event_in = nn.Linear(config.width, llm.hidden_size)
        self.queries = nn.Parameter(torch.randn(len(SCENARIOS) * config.interests, llm.hidden_size) * 0.5)
        self.llm = AutoModel.from_config(llm)
        self.head = ProjectionHead(llm.hidden_size, config.dim, config.dropout)
        self.weigh = nn.Linear(llm.hidden_size, 1)

    def forward(self, histories: Histories) -> tuple[Tensor, Tensor]:
        """Unit interests [B, scenario, K, dim] and weights [B, scenario, K] that sum to one per scenario."""
        vectors, logits = self.interests(self.codebook.decode(histories.codes), histories)
        return vectors, logits.softmax(dim=-1)

    def interests(self, items: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:
        """As `forward` but for given item vectors [B, L, dim], and with the logits of the weights."""
        events = self.encoder(items, histories)
        coarse = self.coarse_in(self.light(events, histories.valid))
        recent, picked = self._recent(events, mix(histories.scenario, histories.valid, self.config.quotas))
        states = self._refine(coarse, self.event_in(recent), picked)
        shape = (len(items), len(SCENARIOS), self.config.interests)
        return self.head(states).reshape(*shape, -1), self.weigh(states).reshape(shape)

    def _recent(self, events: Tensor, mixed: Mixed) -> tuple[Tensor, Tensor]:
        """The mixed events [B, R, width] and which of them are there; R is cut to the longest."""
        longest = int(mixed.picked.sum(dim=1).max()) if mixed.picked.numel() else 0
        rows, picked = mixed.rows[:, :longest], mixed.picked[:, :longest]
        recent = events.gather(1, rows[..., None].expand(-1, -1, events.shape[-1]))
        return recent.masked_fill(~picked[..., None], 0), picked

    def _refine(self, coarse: Tensor, recent: Tensor, picked: Tensor) -> Tensor:
        """The LLM's last hidden states [B, scenario * K, h] at the queries, which see all that comes before them."""
        queries = self.queries.expand(len(coarse), -1, -1)
        present = torch.cat(
            [picked.new_ones(coarse.shape[:2]), picked, picked.new_ones(queries.shape[:2])], dim=1
        ).long()
        position = (present.cumsum(dim=1) - 1).clamp_min(0)
        inputs = torch.cat([coarse, recent, queries], dim=1)
        states = self.llm(inputs_embeds=inputs, attention_mask=present, position_ids=position).last_hidden_state
        return torch.as_tensor(states[:, -queries.shape[1] :])

    def save(self, folder: Path) -> None:
        """Writes `user_tower.safetensors` in `folder`, codebook included, whole or not at all."""
        write_tensors(folder / FILE, dict(self.state_dict()), {"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, folder: Path) -> "UserTower":
        """The tower that was saved in `folder`, ready to answer."""
        with safe_open(folder / FILE, framework="pt") as file:
            stored = json.loads(file.metadata()["config"])
            tower = cls(UserTowerConfig(**stored | {"quotas": tuple(stored["quotas"])}))
            tower.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return tower.eval()
