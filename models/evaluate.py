"""How well a recommender answers the questions of a split, whatever it is: our towers, served or not, or a baseline."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models import metrics, ranking, splits
from models.dataset import Behaviour, Ints, history
from models.events import Histories
from models.metrics import Diversity, Figures
from models.objective import Objective
from models.splits import Split
from models.spread import spread
from models.user_tower import UserTower
from models.weights import Reliability, decay, reliability, shares

ROWS = 256  # questions answered at once
QUICK = (10, 100)
LIMIT = 100  # candidates by which `bearable_spread` decides
KEPT = 0.99
UNMOVED = 1.0
FACTORS = (UNMOVED, 1.25, 1.5, 2.0)


class Recommender(Protocol):
    """Answers with unit interests [B, K, D] and weights [B, K], or with those of all scenarios, [B, scenario, K, …]."""

    @property
    def items(self) -> Tensor:
        """[V, D]"""

    def answer(self, rows: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:
        """`rows` int64 [B, L] are the texts of the histories' events."""


@dataclass(frozen=True)
class Towers:
    """Ours, offline."""

    users: UserTower
    vectors: Tensor  # [N, D], of items and queries
    items_count: int
    read: Tensor | None = None  # [N, D], what the histories' texts are read as, where not through their codes

    @property
    def items(self) -> Tensor:
        return self.vectors[: self.items_count]

    @torch.inference_mode()
    def answer(self, rows: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:
        histories = histories.to(self.vectors.device)
        if self.read is None:
            answer: tuple[Tensor, Tensor] = self.users(histories)
        else:
            answer = self.users.read(self.read[rows.to(self.read.device)], histories)
        return answer


@dataclass(frozen=True)
class Result:
    """Figures by way of merging, then by group of questions."""

    figures: dict[str, dict[str, Figures]]
    diversity: Diversity
    reliability: Reliability | None  # of the weights; None where a recommender has a single interest

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        by_way = {
            way: {name: found.as_dict() for name, found in groups.items()} for way, groups in self.figures.items()
        }
        error = None if self.reliability is None else self.reliability.error
        return {"figures": by_way, "diversity": self.diversity.as_dict(), "calibration error of weights": error}


def evaluate(
    recommender: Recommender, data: Behaviour, split: Split, questions: Ints, codes: Tensor, length: int
) -> Result:
    """All figures of `questions` (events), with histories of at most `length` events and the `codes` of texts."""
    interests, weights = together(recommender, data, questions, codes, length)
    seen = splits.seen(data, questions)
    target = torch.from_numpy(data.text[questions])
    places = ranking.places(interests, weights, recommender.items, target, seen)
    groups = metrics.groups(data, split.training(data), questions)
    users = data.owner(questions)
    figures = {
        way: metrics.figures_of_groups(getattr(places, way), users, groups) for way in ("max", "rrf", "quota", "budget")
    }
    best = ranking.top(interests, weights, recommender.items, seen, 10)
    reliable = None
    if interests.shape[1] > 1:
        reliable = reliability(weights, _served(interests, data, questions, recommender.items, window=10))
    return Result(figures, metrics.diversity(interests, weights, best, data.categories), reliable)


def together(
    recommender: Recommender, data: Behaviour, questions: Ints, codes: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """The answers to all questions: interests [Q, K, D] and weights [Q, K] of the scenario that each asks. Histories
    of like lengths are read together, so that little of a batch is padding."""
    before = np.minimum(questions - data.first[data.owner(questions)], length)
    order = np.argsort(before, kind="stable")
    parts = [
        _answer(recommender, data, questions[some], codes, max(1, int(before[some].max())))
        for some in np.split(order, range(ROWS, len(order), ROWS))
    ]
    interests, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    place = torch.from_numpy(order.argsort())
    return interests[place], weights[place]


def _answer(
    recommender: Recommender, data: Behaviour, questions: Ints, codes: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    rows, histories = history(data, codes, questions, data.owner(questions), length)
    interests, weights = recommender.answer(rows, histories)
    if interests.dim() == 4:
        asked = torch.arange(len(questions)), torch.from_numpy(data.scenario[questions])
        interests, weights = interests[asked], weights[asked]
    return interests.cpu(), weights.cpu()


def quick(objective: Objective, data: Behaviour, questions: Ints, length: int) -> dict[str, float]:
    """`watched`, of a recommender that is being trained."""
    return watched(of(objective, data), data, questions, objective.codes.cpu(), length)


def watched(recommender: Towers, data: Behaviour, questions: Ints, codes: Tensor, length: int) -> dict[str, float]:
    """HR, NDCG and MRR of the maximum over interests."""
    interests, weights = together(recommender, data, questions, codes, length)
    target, seen = torch.from_numpy(data.text[questions]), splits.seen(data, questions)
    ranks = ranking.ranks(interests, weights, recommender.items.cpu(), target, seen)
    gains = metrics.gains(metrics.places_of(ranks, QUICK), QUICK)
    return {name: round(float(gain.mean()), 6) for name, gain in gains.items() if not name.startswith("Recall")}


def of(objective: Objective, data: Behaviour) -> Towers:
    """The recommender being trained: through codes as soon as there are some."""
    vectors = objective.vectors()
    return Towers(objective.users, vectors, data.items, None if objective.codes.shape[1] else vectors)


def bearable_spread(objective: Objective, data: Behaviour, questions: Ints, length: int) -> float:
    """How far to move apart interests that are not yet: `bearable` of the answers to the questions."""
    interests, weights = together(of(objective, data), data, questions, objective.codes.cpu(), length)
    target, seen = torch.from_numpy(data.text[questions]), splits.seen(data, questions)
    return bearable(interests, weights, objective.vectors()[: data.items].cpu(), target, seen)


def bearable(interests: Tensor, weights: Tensor, items: Tensor, targets: Tensor, seen: ranking.Pairs) -> float:
    """The factor of `spread` that puts most targets among `LIMIT` candidates in all, of those that keep `KEPT` of the
    targets that fusion by ranks lists."""
    listed, candidates = dict[float, float](), dict[float, float]()
    for factor in FACTORS if interests.shape[1] > 1 else ():
        places = ranking.places(spread(interests, weights, factor), weights, items, targets, seen, (LIMIT,))
        listed[factor] = float((places.rrf > 0).double().mean())
        candidates[factor] = float(places.budget.double().mean())
    kept = [factor for factor in listed if listed[factor] >= KEPT * listed[UNMOVED]]
    return max(kept, key=candidates.__getitem__, default=UNMOVED)


def predicted_and_realised(
    objective: Objective, data: Behaviour, questions: Ints, length: int, window: int
) -> tuple[Tensor, Tensor]:
    """Logits [Q, K] of the weights, and the share [Q, K] of the next `window` wanted events each interest served."""
    interests, weights = together(of(objective, data), data, questions, objective.codes.cpu(), length)
    share = _served(interests, data, questions, objective.vectors()[: data.items].cpu(), window)
    return weights.clamp_min(1e-30).log(), share


def _served(interests: Tensor, data: Behaviour, questions: Ints, items: Tensor, window: int) -> Tensor:
    index = torch.from_numpy(questions)[:, None] + torch.arange(window)
    end = torch.from_numpy(data.first[1:][data.owner(questions)])[:, None]
    inside = index < end
    index = index.where(inside, 0)
    same = torch.from_numpy(data.scenario)[index] == torch.from_numpy(data.scenario[questions])[:, None]
    wanted = inside & same & torch.from_numpy(data.wanted)[index]
    targets = items[torch.from_numpy(data.text)[index].where(wanted, 0)]
    return shares(interests, targets, decay(torch.arange(window), 5.0) * wanted)
