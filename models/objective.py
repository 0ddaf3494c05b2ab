"""What is minimised: every branch tells the next item, and together they tell the window (RED-Rec, PAPERS "loss").

    next       light branch and LLM, at every event: cross-entropy of the next wanted item (HLLM, SASRec)
    refined    LLM, at the queries behind some cuts: cross-entropy of the next item of every scenario
    window     each of the next W items trains, in both branches, the interest its cluster was matched to when fused
    weights    the share of the window that each interest serves

Targets are the future items' own vectors. The branches share no parameter but the item table they read, if they do, and
the LLM cannot change the coarse interests it reads: they are trained apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.codebook import ResidualCodebook
from models.item_vectors import ItemVectors
from models.loss import NEAR_DUPLICATE, disentangled
from models.sequences import NONE, Sequences
from models.softmax import cross_entropy
from models.user_tower import Interests, UserTower
from models.weights import decay, shares, weight_loss

VECTOR_ROWS = 4_096  # of the catalogue at once
NEGATIVES = 512  # of the window's loss, of the draws
HALF_LIFE = 5.0  # coming events after which one counts half for the weights
Losses = dict[str, tuple[Tensor, int]]  # name -> summed loss and how many targets it is of


@dataclass(frozen=True)
class Shares:
    """Of the parts in the whole."""

    next: float = 1.0
    refined: float = 1.0
    window: float = 0.1
    weights: float = 0.1


class Catalogue(nn.Module):
    """What is known of the items and queries before training: features [N, F] and rows of the id table [N], frozen."""

    features: Tensor
    rows: Tensor
    warm: Tensor

    def __init__(self, features: Tensor, rows: Tensor, hidden: float) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("warm", (rows >= 0).nonzero()[:, 0], persistent=False)
        self.hidden = hidden  # share of items whose id is hidden in a step, so that texts learn to stand alone

    @property
    def known(self) -> Tensor:
        """Bool [N]: of which there is an id, a text or an image; the others have one vector for all."""
        return (self.rows >= 0) | self.features.any(dim=1)

    def vectors(self, items: ItemVectors, wanted: Tensor) -> Tensor:
        """Vectors [N, dim] of the `wanted` [N]."""
        rows, features, hide = self.rows[wanted], self.features[wanted], None
        if items.training and self.hidden and features.shape[1]:
            hide = (torch.rand(len(rows), device=rows.device) < self.hidden) & features.any(dim=1)
        vectors: Tensor = items(features, rows, hide)
        return vectors


class Objective(nn.Module):
    """Both towers and the loss: one module, so that data-parallel wrappers see one forward pass."""

    codes: Tensor

    def __init__(self, items: ItemVectors, users: UserTower, catalogue: Catalogue, shares: Shares) -> None:
        super().__init__()
        self.items, self.users, self.catalogue, self.shares = items, users, catalogue, shares
        none = torch.zeros(len(catalogue.rows), 0, dtype=torch.uint8)
        self.register_buffer("codes", none, persistent=False)  # of items and queries, once histories are read through

    def read_through_codes(self, codebook: ResidualCodebook) -> None:
        """From here on item vectors stay as they are, and histories are read through codes."""
        self.items.requires_grad_(False)
        self.users.codebook.load_state_dict(codebook.state_dict())
        self.codes = self.users.codebook.encode(self.vectors())

    def train(self, mode: bool = True) -> "Objective":
        """As of any module; item vectors that are to stay as they are have no dropout and hide no id either."""
        super().train(mode)
        self.items.train(mode and not self.codes.shape[1])
        return self

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """Unit vectors [N, dim] of all items and queries, nothing hidden."""
        training = self.items.training
        self.items.eval()
        places = torch.arange(len(self.catalogue.rows), device=self.catalogue.rows.device)
        vectors = torch.cat([self.catalogue.vectors(self.items, some) for some in places.split(VECTOR_ROWS)])
        self.items.train(training)
        return vectors

    def forward(self, batch: Sequences, draws: Tensor, apart: bool) -> Losses:
        """The parts of the loss of `batch` against the items `draws` [P]; `apart` as in the user tower's config."""
        asked = (batch.rows, batch.target, batch.window, draws)
        needed, place = torch.cat([part.flatten().clamp_min(0) for part in asked]).unique(return_inverse=True)
        vectors = self.catalogue.vectors(self.items, needed)
        rows, target, window, drawn = (
            places.view_as(part).where(part != NONE, NONE)
            for places, part in zip(place.split([part.numel() for part in asked]), asked, strict=True)
        )
        known = self.users.codebook.decode(self.codes[batch.rows]) if self.codes.shape[1] else vectors[rows]
        found = self.users.interests(known, batch.histories, batch.cuts, apart)
        window = window[:, :, list(self.users.config.scenarios)]
        own = torch.full((len(needed),), NONE, device=drawn.device)
        own[drawn] = torch.arange(len(drawn), device=drawn.device)
        pool = Pool(vectors, self.users.config.light_dim, drawn, own, len(self.catalogue.warm))
        return {
            **self._next(found, target, self.users.slot[batch.target_scenario], pool, apart),
            **self._refined(found, window[..., 0], pool),
            **self._window(found, window, pool),
        }

    def total(self, losses: Losses, counts: Sequence[int]) -> Tensor:
        """The weighted sum of the losses, each divided by its count (of all processes)."""
        share = vars(self.shares)
        pairs = zip(losses.items(), counts, strict=True)
        return torch.stack([share[name.split()[0]] * loss / max(n, 1) for (name, (loss, _)), n in pairs]).sum()

    def _next(self, found: Interests, target: Tensor, scenario: Tensor, pool: "Pool", apart: bool) -> Losses:
        """Of the target [B, L + 1] behind the first 0..L events: nothing is asked where nothing is known."""
        users, scales, losses = self.users, self.users.scales(), Losses()
        if users.config.light_dim:
            known = torch.arange(1, target.shape[1], device=target.device).expand(len(target), -1)
            wanted = scenario[:, 1:]
            asked = users.light.asked(found.light_states, known, wanted * apart, wanted)
            at = (target[:, 1:] != NONE).nonzero(as_tuple=True)
            queries = users.coarse.of(asked[at], wanted[at])
            losses["next light"] = pool.loss("light", queries * scales[0], target[:, 1:][at])
        if users.config.llm_dim:
            behind = found.llm_events + 1  # 0 for no event
            there = target.gather(1, behind).where(behind > 0, NONE)
            at = (there != NONE).nonzero(as_tuple=True)
            queries = users.refiner.of(found.llm_states[at], scenario.gather(1, behind)[at])
            losses["next llm"] = pool.loss("llm", queries * scales[1], there[at])
        return losses

    def _refined(self, found: Interests, target: Tensor, pool: "Pool") -> Losses:
        """Of the next item [B, G, scenario] behind each cut."""
        if not self.users.config.llm_dim:
            return {}
        at = (target != NONE).nonzero(as_tuple=True)
        return {"refined": pool.loss("llm", found.refined[at] * self.users.scales()[1], target[at])}

    def _window(self, found: Interests, window: Tensor, pool: "Pool") -> Losses:
        """Of the next W items [B, G, scenario, W] behind each cut: RED-Rec's matching and InfoNCE, and the weights."""
        if not self.shares.window and not self.shares.weights:
            return {}
        at = (window[..., 0] != NONE).nonzero(as_tuple=True)
        window, queries = window[at], self.users.fuse(found.light[at], found.refined[at])  # [M, W], [M, K, D]
        present = window != NONE
        targets = pool.vectors[window.clamp_min(0)]
        negatives = pool.vectors[pool.drawn[:NEGATIVES]]
        c, scales = self.users.config, self.users.scales()
        apart = disentangled(
            queries,
            targets,
            present,
            negatives,
            scales[[c.light_dim > 0, c.llm_dim > 0]],
            alike=NEAR_DUPLICATE,
            views=[size for size in (c.light_dim, c.llm_dim) if size],
        )
        importance = decay(torch.arange(window.shape[1], device=window.device), HALF_LIFE) * present
        weighed = weight_loss(found.weights[at], shares(queries.detach(), targets, importance))
        return {"window": (apart.sum(), len(apart)), "weights": (weighed * len(window), len(window))}


@dataclass(frozen=True)
class Pool:
    """The vectors of a step, and which of them are draws."""

    vectors: Tensor  # [N, dim]
    light_dim: int
    drawn: Tensor  # int64 [P], places in `vectors`
    own: Tensor  # int64 [N], place among the draws or NONE
    items: int  # V, that the draws stand for

    def loss(self, branch: Literal["light", "llm"], queries: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """The summed cross-entropy of scaled `queries` [M, K, d] of a branch for items `target` [M], and M."""
        part = self.vectors[:, : self.light_dim] if branch == "light" else self.vectors[:, self.light_dim :]
        view = F.normalize(part, dim=-1)
        return cross_entropy(queries, view[target], view[self.drawn], self.own[target], self.items), len(target)
