"""Figures of a ranking: HR, Recall, NDCG and MRR with intervals, for groups of questions; and how diverse it is.

A question has one wanted item, so HR@N and Recall@N are one number under two names; NDCG@N = 1 / log2(1 + place) and
MRR@N = 1 / place within the first N, else 0. All are means over questions. The 95 % intervals are percentiles over
samples of *users*, drawn with replacement, each with all of their questions: a user's questions are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import SCENARIOS
from models.dataset import Behaviour, Ints
from models.ranking import CUTOFFS

RESAMPLES = 1_000
DRAWS_AT_ONCE = 2**22  # users drawn at once, 32 MiB
HEAD_SHARE = 0.8  # of the training events
LENGTHS = (5, 10, 20, 50, 200)  # events before the question: up to 5, 6 to 10, … over 200
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """The figures of one group of questions, by name: `HR@10`, `Recall@10`, `NDCG@10`, `MRR@10`, …"""

    questions: int
    users: int
    values: dict[str, Interval]

    def as_dict(self) -> dict[str, object]:
        """For JSON: the counts, and `[value, low, high]` of every figure."""
        values = {name: list(interval) for name, interval in self.values.items()}
        return {"questions": self.questions, "users": self.users, **values}


@dataclass(frozen=True)
class Diversity:
    """How different a user's interests and recommendations are, as means over users."""

    cosine: float | None  # of pairs of a user's interests; None where nobody has two
    categories: float | None  # distinct ones among the first N; None where no category is known
    entropy: float | None  # of the categories among the first N, bits

    def as_dict(self) -> dict[str, float | None]:
        return {"cosine": self.cosine, "categories": self.categories, "entropy": self.entropy}


def figures(places: Tensor, users: Ints, limits: Sequence[int] = CUTOFFS, seed: int = 0) -> Figures:
    """The figures of questions of `users` [Q] whose item got `places` (see `ranking`): int64 [Q, limits], or bool
    [Q, limits] where all that is known is whether it was found, which gives HR and Recall alone. Q ≥ 1."""
    names, values = zip(*gains(places, limits).items(), strict=True)
    found = intervals(np.stack(values, axis=1), users, seed)
    return Figures(len(users), len(np.unique(users)), dict(zip(names, found, strict=True)))


def figures_of_groups(
    places: Tensor, users: Ints, groups: Mapping[str, Mask], limits: Sequence[int] = CUTOFFS, seed: int = 0
) -> dict[str, Figures]:
    """`figures` of each of `groups` (bool [Q]) that has a question."""
    return {
        name: figures(places[torch.from_numpy(mask)], users[mask], limits, seed)
        for name, mask in groups.items()
        if mask.any()
    }


def gains(places: Tensor, limits: Sequence[int] = CUTOFFS) -> dict[str, Floats]:
    """What every question [Q] adds to each figure."""
    found: dict[str, Floats] = {}
    for column, limit in zip(places.T, limits, strict=True):
        hit = (column > 0).double()
        found |= {f"HR@{limit}": hit.numpy(), f"Recall@{limit}": hit.numpy()}
        if places.dtype != torch.bool:
            place = column.double().clamp_min(1)
            found |= {f"NDCG@{limit}": (hit / (1 + place).log2()).numpy(), f"MRR@{limit}": (hit / place).numpy()}
    return found


def places_of(ranks: Tensor, limits: Sequence[int] = CUTOFFS) -> Tensor:
    """Places int64 [Q, limits] from full `ranks` [Q]: the rank where it is within the limit, else 0."""
    wide = ranks[:, None].expand(-1, len(limits))
    return wide.masked_fill(wide > torch.tensor(limits), 0)


def intervals(values: Floats, users: Ints, seed: int = 0, resamples: int = RESAMPLES) -> list[Interval]:
    """Means of the columns of `values` [Q, M] over questions of `users` [Q], with bootstrap intervals. Of two models'
    gains on the same questions, the interval of the difference is that of the differences."""
    names, owner = np.unique(users, return_inverse=True)
    sums = np.zeros((len(names), values.shape[1] + 1))  # per user; the last column counts questions
    np.add.at(sums, owner, np.column_stack([values, np.ones(len(values))]))
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // len(names))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    samples = np.concatenate([_resample(sums, size, rng) for size in sizes])
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(values.mean(axis=0), low, high, strict=True)]


def groups(data: Behaviour, training: Mask, questions: Ints) -> dict[str, Mask]:
    """Masks [Q] of the `questions` (event indices): all, by scenario, by how often the wanted item is among the events
    for `training` (`Split.training`), and by how many events the user had before.

    Head items are the fewest that make up HEAD_SHARE of the training events (of equally frequent ones the first),
    cold items are in none of them, the others are the tail.
    """
    popularity = _head_tail_cold(item_counts(data, training))[data.text[questions]]
    length = questions - data.first[data.owner(questions)]
    edges = (-1, *LENGTHS, np.iinfo(np.int64).max)
    buckets = ["up to " + str(LENGTHS[0]), *(f"{a + 1} to {b}" for a, b in pairwise(LENGTHS)), f"over {LENGTHS[-1]}"]
    return (
        {"overall": np.ones(len(questions), dtype=bool)}
        | {f"scenario {name}": data.scenario[questions] == code for code, name in enumerate(SCENARIOS)}
        | {f"items {name}": popularity == code for code, name in enumerate(("head", "tail", "cold"))}
        | {
            f"history {name}": (a < length) & (length <= b)
            for name, (a, b) in zip(buckets, pairwise(edges), strict=True)
        }
    )


def item_counts(data: Behaviour, events: Mask) -> Ints:
    """How many of the `events` (bool) are about each item: [items]."""
    return np.bincount(data.text[events & (data.text < data.items)], minlength=data.items)


def diversity(interests: Tensor, weights: Tensor, best: Tensor, categories: Sequence[str]) -> Diversity:
    """Of users with `interests` [B, K, D] and `weights` [B, K] (0: absent), whose first items are `best` [B, N] (-1:
    none), when items have `categories` ("": unknown)."""
    cosine = interest_cosines(interests, weights)
    cosine = cosine[~cosine.isnan()]
    known = any(categories) and best.numel() > 0
    counts, entropy = category_coverage(best, categories) if known else (None, None)
    mean = (None if part is None or not len(part) else float(part.mean()) for part in (cosine, counts, entropy))
    return Diversity(*mean)


def interest_cosines(interests: Tensor, weights: Tensor) -> Tensor:
    """The mean cosine [B] of pairs of a user's interests; NaN for users with fewer than two."""
    here = (weights > 0).double()
    units = torch.nn.functional.normalize(interests.double(), dim=-1) * here[..., None]
    # the sum over ordered pairs is |Σ u|², less each with itself
    pairs = units.sum(dim=1).square().sum(dim=-1) - units.square().sum(dim=(1, 2))
    number = here.sum(dim=1)
    cosines: Tensor = pairs / (number * (number - 1)).where(number > 1, torch.nan)
    return cosines


def category_coverage(best: Tensor, categories: Sequence[str]) -> tuple[Tensor, Tensor]:
    """How many distinct categories items `best` [B, N] have [B], and the entropy of their distribution in bits [B]."""
    names, code = np.unique(np.array(["", *categories]), return_inverse=True)
    of_item = torch.from_numpy(code)  # shifted by one, so that -1 (no item) is "" too, which is code 0
    parts = []
    for rows in of_item[best + 1].split(max(1, DRAWS_AT_ONCE // len(names))):
        counts = torch.zeros(len(rows), len(names), dtype=torch.double).scatter_add_(
            1, rows, torch.ones(rows.shape, dtype=torch.double)
        )[:, 1:]
        shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
        parts.append(((counts > 0).double().sum(dim=1), torch.special.entr(shares).sum(dim=1) / np.log(2)))
    number, entropy = map(torch.cat, zip(*parts, strict=True))
    return number, entropy


def _resample(sums: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Means [size, M] of `size` samples of users, from their sums [U, M + 1]."""
    users = len(sums)
    draws = rng.integers(users, size=(size, users)) + users * np.arange(size)[:, None]
    totals = np.bincount(draws.ravel(), minlength=size * users).reshape(size, users).astype(float) @ sums
    means: Floats = totals[:, :-1] / totals[:, -1:]
    return means


def _head_tail_cold(counts: Ints) -> Ints:
    """0, 1 or 2 for each item."""
    order = np.argsort(-counts, kind="stable")
    before = counts[order].cumsum() - counts[order]
    head = np.empty(len(counts), dtype=bool)
    head[order] = before < HEAD_SHARE * counts.sum()
    return np.where(counts == 0, 2, np.where(head, 0, 1))
