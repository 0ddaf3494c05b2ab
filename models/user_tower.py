"""The user tower: residual codes in, K interests per scenario out (HyMiRec and RED-Rec, PAPERS).

Two branches, each over a part (view) of the item vector of its own: the light recommender over the whole history, and
the LLM over its coarse interests and the recent events, mixed from all scenarios. Interest k of a scenario is the light
one and the refined one side by side, each as long as its branch is sure (its learned inverse temperature), so that one
dot product with an item adds the two branches' logits. They are trained apart and fused because views of an item fail
on different users (PAPERS, "measured here"); either can be left out.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from models.codebook import CodebookConfig, ResidualCodebook
from models.contract import DIM, SCENARIOS
from models.events import EventEncoder, Histories
from models.files import write_tensors
from models.light import InterestHead, LightRecommender, SelfAttentive, States
from models.loss import bounded
from models.refine import Refiner
from models.spread import spread

FILE = "user_tower.safetensors"
LLM_DROPS = 0.6  # of the light branch's dropout: it over-fits less (by validation on Beauty)


@dataclass(frozen=True)
class UserTowerConfig:
    """Sizes. A branch whose part of the item vector has no component is left out."""

    llm: dict[str, Any]  # a transformers config with its `model_type`: any causal LLM
    light_dim: int = DIM  # components of the item vector, the first, that are the light branch's
    llm_dim: int = DIM  # those after them
    interests: int = 4  # K, per scenario
    scenarios: tuple[int, ...] = tuple(range(len(SCENARIOS)))  # that training knew, most frequent first
    width: int = 64  # of the light recommender
    light: Literal["sasrec", "comirec"] = "sasrec"
    layers: int = 2
    heads: int = 2
    quotas: tuple[int, ...] = (24, 24, 16)  # recent events of search, feed, discovery that the LLM reads
    dropout: float = 0.1
    apart: bool = False  # whether the light branch reads, for each scenario, its events alone; those of scenarios that
    # are not known count as the most frequent one's
    spread: float = 1.0  # how far the interests answered are moved apart
    codebook: dict[str, int] = field(default_factory=lambda: asdict(CodebookConfig()))
    training: dict[str, Any] = field(default_factory=dict)  # seed, command, figures: how it came to be

    @property
    def dim(self) -> int:
        return self.light_dim + self.llm_dim


class Interests(NamedTuple):
    """What the tower knows behind G cuts of B histories; of a branch that is left out, an empty last axis."""

    light: Tensor  # unit, [B, G, S, K, light_dim], S of the scenarios known
    refined: Tensor  # unit, [B, G, S, K, llm_dim]
    weights: Tensor  # logits, [B, G, S, K]
    light_states: States  # to be asked
    llm_states: Tensor  # [B, R, h], behind the mixed events
    llm_events: Tensor  # int64 [B, R]: which event each of those is; -1 for none


class Answer(NamedTuple):
    """What is served. `coarse` may be given again with a history of the same user that has grown by little."""

    interests: Tensor  # unit, [B, scenario, K, dim]
    weights: Tensor  # [B, scenario, K], sum to one per scenario
    coarse: Tensor  # [B, `coarse_size`], of the light branch: unit interests, then logits of weights


class UserTower(nn.Module):
    """Histories to interests. The answer for a user depends on their valid rows alone: padding never matters."""

    slot: Tensor

    def __init__(self, config: UserTowerConfig) -> None:
        super().__init__()
        self.config = config
        c, shape = config, (len(config.scenarios), config.interests)
        slot = torch.tensor([c.scenarios.index(s) if s in c.scenarios else 0 for s in range(len(SCENARIOS))])
        self.register_buffer("slot", slot, persistent=False)  # [scenario]: one not known answers as the most frequent
        self.codebook = ResidualCodebook(CodebookConfig(**config.codebook))
        self.log_scale = nn.Parameter(torch.full((2,), math.log(1 / 0.05)))  # of the light branch and the LLM's
        if c.light_dim:
            self.encoder = EventEncoder(c.light_dim, c.width, c.dropout)
            self.light = (
                LightRecommender(c.width, c.layers, c.heads, c.dropout, shape[0])
                if c.light == "sasrec"
                else SelfAttentive(c.width, c.interests, c.dropout)
            )
            self.coarse = InterestHead(c.width, c.light_dim, *shape, c.dropout)
            self.weigh = nn.Linear(c.width, c.interests)
        if c.llm_dim:
            self.refiner = Refiner(c.llm, c.llm_dim, c.light_dim, shape, c.quotas, c.dropout * LLM_DROPS)

    def forward(self, histories: Histories) -> tuple[Tensor, Tensor]:
        """Unit interests [B, scenario, K, dim] and weights [B, scenario, K] that sum to one per scenario."""
        return self.read(self.codebook.decode(histories.codes), histories)

    def read(self, items: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:
        """As `forward`, of given item vectors [B, L, dim]."""
        return self.answer(items, histories, self.unknown(len(items)))[:2]

    def answer(self, items: Tensor, histories: Histories, coarse: Tensor) -> Answer:
        """Of item vectors [B, L, dim]. The light branch, whose cost grows with the history, is spared the rows of
        `coarse` [B, `coarse_size`] that are known (HyMiRec's cached coarse interests)."""
        items = items.gather(1, _order(histories.valid)[..., None].expand_as(items))
        histories = histories.compact()
        items, cuts = items[:, : histories.valid.shape[1]], histories.valid.sum(dim=1, keepdim=True)
        unseen = coarse.isnan().any(dim=1)
        if self.config.light_dim and unseen.any():
            first = items[unseen, :, : self.config.light_dim]
            light, weights, _ = self._look(first, histories.rows(unseen), cuts[unseen], self.config.apart)
            coarse = coarse.index_put((unseen,), torch.cat([light, weights[..., None]], dim=-1).flatten(1))
        shape = (1, len(self.config.scenarios), self.config.interests)
        light, logits = coarse.unflatten(1, (*shape, -1)).split([self.config.light_dim, 1], dim=-1)
        weights, refined = logits[..., 0], light[..., :0]
        if self.config.llm_dim:
            refined, more, *_ = self.refiner(items[..., self.config.light_dim :], histories, light, cuts)
            weights = weights + more
        interests, weights = self.fuse(light, refined)[:, 0], weights.softmax(dim=-1)[:, 0]
        interests = spread(interests, weights, self.config.spread)
        return Answer(interests[:, self.slot], weights[:, self.slot], coarse)

    @property
    def coarse_size(self) -> int:
        c = self.config
        return len(c.scenarios) * c.interests * (c.light_dim + 1)

    def unknown(self, rows: int) -> Tensor:
        """Coarse interests [rows, `coarse_size`] that are still to be looked for."""
        fill = math.nan if self.config.light_dim else 0.0
        return torch.full((rows, self.coarse_size), fill, device=self.log_scale.device)

    def interests(self, items: Tensor, histories: Histories, cuts: Tensor, apart: bool) -> Interests:
        """Of compact `histories` with item vectors `items` [B, L, dim], cut behind `cuts` [B, G] events; `apart` as in
        the config."""
        c, (B, G), shape = self.config, cuts.shape, (len(self.config.scenarios), self.config.interests)
        first, second = items.split([c.light_dim, c.llm_dim], dim=-1)
        light = refined = items.new_zeros(B, G, *shape, 0)
        weights = items.new_zeros(B, G, *shape)
        llm_states = items.new_zeros(B, 0, 0)
        light_states = States(llm_states, *(cuts.new_zeros(B, 0) for _ in range(2)))
        llm_events = cuts.new_zeros(B, 0)
        if c.light_dim:
            light, weights, light_states = self._look(first, histories, cuts, apart)
        if c.llm_dim:
            refined, more, llm_states, mixed = self.refiner(second, histories, light.detach(), cuts)
            weights = weights + more
            llm_events = mixed.rows.masked_fill(~mixed.picked, -1)
        return Interests(light, refined, weights, light_states, llm_states, llm_events)

    def _look(self, items: Tensor, histories: Histories, cuts: Tensor, apart: bool) -> tuple[Tensor, Tensor, States]:
        """What the light branch makes of its part of the items: `light`, its logits of `weights`, `light_states`."""
        (B, G), scenarios = cuts.shape, len(self.config.scenarios)
        states = self.light(self.encoder(items, histories), self.slot[histories.scenario] * apart)
        known, scenario = cuts.repeat_interleave(scenarios, dim=1), torch.arange(scenarios, device=cuts.device)
        scenario = scenario.repeat(B, G)
        asked = self.light.asked(states, known, scenario * apart, scenario).unflatten(1, (G, -1))
        return self.coarse(asked), self.weigh(asked.mean(dim=3)), states

    def scales(self) -> Tensor:
        """The learned inverse temperatures [2] of the branches, within 1..100."""
        return bounded(self.log_scale)

    def fuse(self, light: Tensor, refined: Tensor) -> Tensor:
        """Unit interests [..., dim] of those of the branches."""
        scales = self.scales()
        return F.normalize(torch.cat([light * scales[0], refined * scales[1]], dim=-1), dim=-1)

    @torch.no_grad()
    def temper(self, temperature: float) -> None:
        """Divides the logits of the weights by `temperature`."""
        layers = [self.weigh] if self.config.light_dim else []
        layers += [self.refiner.weigh] if self.config.llm_dim else []
        for layer in layers:
            layer.weight.div_(temperature)
            layer.bias.div_(temperature)

    def save(self, folder: Path) -> None:
        """Writes `user_tower.safetensors` in `folder`, codebook included, whole or not at all."""
        write_tensors(folder / FILE, dict(self.state_dict()), {"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, folder: Path) -> "UserTower":
        """The tower that was saved in `folder`, ready to answer."""
        with safe_open(folder / FILE, framework="pt") as file:
            stored = json.loads(file.metadata()["config"])
            lists = {name: tuple(stored[name]) for name in ("quotas", "scenarios")}
            tower = cls(UserTowerConfig(**stored | lists))
            tower.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return tower.eval()


def _order(valid: Tensor) -> Tensor:
    """Rows [B, L], the valid ones first, as `Histories.compact` puts them."""
    return (~valid).long().argsort(dim=1, stable=True)
