"""RED-Rec's loss (PAPERS "loss"): InfoNCE of each future item with its query; near-duplicates are no negatives."""

import math

import torch
from torch import Tensor, nn

NEAR_DUPLICATE = 0.98  # cosine above which a negative counts as the target itself
SPREAD = 0.1  # share of the loss that goes to all queries of the scenario
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


def interest_loss(losses: Tensor, similarity: Tensor, weight_logits: Tensor) -> Tensor:
    """The mean loss of M targets, each against the K queries of its scenario; all arguments are [M, K].

    A target goes to the query most similar to it (ComiRec; RED-Rec clusters the targets and matches clusters to
    queries, left to a later version), and the weights learn which query that will be. A share SPREAD goes to all K
    queries, so that none is left without a gradient (ours).
    """
    best = similarity.argmax(dim=-1, keepdim=True)
    nearest = losses.gather(-1, best)[..., 0]
    weight = -weight_logits.log_softmax(dim=-1).gather(-1, best)[..., 0]
    return ((1 - SPREAD) * nearest + SPREAD * losses.mean(dim=-1) + WEIGHT_SHARE * weight).mean()
