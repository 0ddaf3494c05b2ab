"""Baselines that need no gradient: popularity, and the medoids of a user's history (PinnerSage, arXiv:2007.03634).

They answer as the models do: `items` [V, D], and for a batch of histories, as `dataset.history` gives them, interests
[B, K, D] and weights [B, K] that sum to one, 0 for an interest the user has not. Both know no scenario.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from models.contract import ACTIONS
from models.dataset import UNWANTED, Behaviour
from models.events import Histories
from models.metrics import item_counts

DAY_MS = 86_400_000
DECAY = 0.01  # λ per day (PinnerSage, section 4.3)
APART = 0.8  # Ward distance at which clusters are no longer merged: two items of cosine 0.68; by validation on Beauty
Floats = NDArray[np.float32]


class Popularity:
    """One interest of one number for everybody; an item's vector is how often it was wanted in training."""

    def __init__(self, data: Behaviour, training: NDArray[np.bool_]) -> None:
        """`training`: which events may be learnt from (`Split.training`)."""
        self.items = torch.from_numpy(item_counts(data, training & data.wanted)).float()[:, None]

    def answer(self, rows: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return torch.ones(len(rows), 1, 1), torch.ones(len(rows), 1)


class Medoids:
    """A user's items clustered by Ward's criterion; the medoids of the K most important clusters are the interests.

    Importance: Σ exp(-λ (now - t)) over a cluster's events; `now` is the user's newest event, as any other moment gives
    the same shares. Every event counts, however often its item comes; skipped, hidden and disliked ones do not, nor do
    queries and items whose vector is zero. PinnerSage draws three clusters by importance at a time; here the K most
    important are taken, so that an answer is one list. Who has no item yet gets the mean item.
    """

    def __init__(self, items: Tensor, interests: int, apart: float = APART, decay: float = DECAY) -> None:
        """`items` [V, D], of any length: cosines are what counts; `interests` is K."""
        self.items = F.normalize(items.float(), dim=-1)
        self.interests = interests
        self.apart = apart
        self.decay = decay

    def answer(self, rows: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:
        """`rows` int64 [B, L], the texts of the histories' events."""
        interests = torch.zeros(len(rows), self.interests, self.items.shape[1])
        weights = torch.zeros(len(rows), self.interests)
        interests[:, 0], weights[:, 0] = F.normalize(self.items.mean(dim=0), dim=0), 1
        unwanted = torch.tensor([ACTIONS.index(name) for name in UNWANTED])
        useful = histories.valid & (rows < len(self.items)) & ~torch.isin(histories.action, unwanted)
        useful &= self.items.any(dim=1)[rows.clamp_max(len(self.items) - 1)]
        for user in useful.any(dim=1).nonzero()[:, 0].tolist():
            found, shares = self._of_user(rows[user, useful[user]], histories.time[user, useful[user]])
            interests[user, : len(found)] = self.items[found]
            weights[user, : len(found)] = shares
        return interests, weights

    def _of_user(self, rows: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The medoids (item numbers) of at most K clusters and their shares, heaviest first."""
        vectors = self.items[rows].double().numpy()
        age = (time.max() - time).double().numpy() / DAY_MS
        cluster = clusters(vectors, self.apart)
        importance = np.bincount(cluster, np.exp(-self.decay * age))
        heaviest = np.argsort(-importance, kind="stable")[: self.interests]
        medoids = [np.flatnonzero(cluster == number)[medoid(vectors[cluster == number])] for number in heaviest]
        shares = importance[heaviest] / importance[heaviest].sum()
        return rows[torch.tensor(medoids)], torch.from_numpy(shares).float()


def clusters(vectors: NDArray[np.float64], apart: float) -> NDArray[np.int64]:
    """The cluster [N] of each of `vectors` [N, D], numbered from 0; merged while Ward's distance is at most `apart`."""
    if len(vectors) == 1:
        return np.zeros(1, dtype=np.int64)
    found: NDArray[np.int64] = fcluster(linkage(vectors, "ward"), apart, "distance").astype(np.int64) - 1
    return found


def medoid(vectors: NDArray[np.float64]) -> int:
    """Which of `vectors` [N, D] has the least sum of squared distances to all (PinnerSage): that nearest their mean."""
    return int(np.square(vectors - vectors.mean(axis=0)).sum(axis=1).argmin())
