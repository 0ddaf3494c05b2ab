"""RED-Rec's loss (PAPERS "loss"): InfoNCE of each future item with its query; near-duplicates are no negatives."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contract import SCENARIOS
from models.kmeans import sinkhorn_prices

NEAR_DUPLICATE = 0.98  # cosine above which a negative counts as the target itself
SPREAD = 0.05  # share of the loss that goes to all queries of the scenario
WEIGHT_SHARE = 0.1  # of the weights' cross-entropy


class InfoNCE(nn.Module):
    """-log exp(τ q·t) / (exp(τ q·t) + Σ exp(τ q·n)), with learnable τ that starts at 1/0.07 and stays within 1..100."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, queries: Tensor, targets: Tensor, negatives: Tensor, masked: Tensor) -> Tensor:
        """Losses [M, K] of unit `queries` [M, K, D] for unit `targets` [M, D] against `negatives` [P, D], those of
        `masked` [M, P] left out."""
        scale = self.log_scale.exp().clamp(1, 100)
        positive = scale * (queries @ targets[..., None])[..., 0]
        logits = (scale * (queries @ negatives.T)).masked_fill(masked[:, None], -torch.inf)
        return torch.logaddexp(positive, logits.logsumexp(dim=-1)) - positive


def near_duplicates(targets: Tensor, negatives: Tensor) -> Tensor:
    """Which `negatives` [P, D] are as good as the `targets` [M, D]: bool [M, P]."""
    return targets @ negatives.T > NEAR_DUPLICATE


def nearest_query(similarity: Tensor, scenario: Tensor) -> Tensor:
    """The query [M] that each target trains, given its similarity [M, K] to the K queries of its `scenario` [M].

    The most similar one (ComiRec), at prices that share a batch's targets of a scenario out evenly (ours): without them
    the query that is nearest at the start gets every target and the others nothing. RED-Rec clusters each user's
    targets and matches clusters to queries instead, which is left to a later version.
    """
    priced = similarity.detach().clone()
    for code in range(len(SCENARIOS)):
        rows = scenario == code
        priced[rows] += sinkhorn_prices(priced[rows])
    return priced.argmax(dim=-1)


def interest_loss(losses: Tensor, weight_logits: Tensor, query: Tensor) -> Tensor:
    """The mean loss of M targets, given those against all K queries [M, K] and the one each trains [M].

    The weights learn which query that will be. A share SPREAD goes to all K queries, so that none strays (ours).
    """
    chosen = losses.gather(-1, query[:, None])[:, 0]
    weight = F.cross_entropy(weight_logits, query, reduction="none")
    return ((1 - SPREAD) * chosen + SPREAD * losses.mean(dim=-1) + WEIGHT_SHARE * weight).mean()
