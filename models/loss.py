"""What the towers learn from: RED-Rec's disentangled InfoNCE (PAPERS "loss") and cross-entropy over all items.

Sampling and its correction. The cross-entropy of a target t over all items is log Z - s_t, Z = Σ_v exp(s_v). With P
negatives n drawn from Q, of which those that are t itself (or its like) are left out,

    Z ≈ exp(s_t) + 1/P Σ_{n≠t} exp(s_n) / Q(n) = exp(s_t) + Σ_{n≠t} exp(s_n - log(P Q(n)))

has the expectation Z (importance sampling), so loss and gradient are the full softmax's up to O(1/P). The target is in
Z with certainty, so its score is not corrected. Subtracting log Q(t) there too belongs to another estimator: that t is
the one of {t, n, …} that was not drawn from Q (sampled softmax of Jean et al. 2015, in-batch softmax of Yi et al.
2019). That one is right at its minimum, for every P, as long as negatives that happen to be t stay; with them left out
it is biased (Khrylchenko et al., arXiv:2507.09331, whose correction is the estimator above).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.matching import SAME, match

NEAR_DUPLICATE = 0.98  # cosine above which a negative counts as the target itself
SCALES = (1.0, 100.0)  # bounds of the inverse temperature


class InfoNCE(nn.Module):
    """`info_nce` with a learnable inverse temperature τ that starts at 1/0.07 and stays within SCALES."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(
        self, queries: Tensor, targets: Tensor, negatives: Tensor, masked: Tensor, log_q: Tensor | None = None
    ) -> Tensor:
        return info_nce(queries, targets, negatives, masked, bounded(self.log_scale), log_q)


def bounded(log_scale: Tensor) -> Tensor:
    """τ = exp(log_scale), put back within SCALES first (as CLIP does): clamping τ itself would end its gradient."""
    with torch.no_grad():
        log_scale.clamp_(*(math.log(bound) for bound in SCALES))
    return log_scale.exp()


def info_nce(
    queries: Tensor, targets: Tensor, negatives: Tensor, masked: Tensor, scale: Tensor, log_q: Tensor | None = None
) -> Tensor:
    """-log exp(τ q·t) / (exp(τ q·t) + Σ exp(τ q·n)), with τ the `scale`: losses [M, K].

    Unit `queries` [M, K, D] for unit `targets` [M, D] against `negatives` [P, D] shared by all, but those of `masked`
    [M, P]. Given the log-probability `log_q` [P] with which each negative was drawn, it estimates the cross-entropy
    over all items (see above).
    """
    positive = scale * (queries @ targets[..., None])[..., 0]
    logits = scale * (queries @ negatives.T)
    if log_q is not None:
        logits = logits - (log_q + math.log(len(negatives)))
    logits = logits.masked_fill(masked[:, None], -torch.inf)
    return torch.logaddexp(positive, logits.logsumexp(dim=-1)) - positive


def near_duplicates(targets: Tensor, negatives: Tensor) -> Tensor:
    """Which unit `negatives` [P, D] are as good as the unit `targets` [M, D]: bool [M, P]."""
    return targets @ negatives.T > NEAR_DUPLICATE


def disentangled(
    queries: Tensor,
    targets: Tensor,
    present: Tensor,
    negatives: Tensor,
    scale: Tensor,
    log_q: Tensor | None = None,
    alike: float = SAME,
    views: Sequence[int] = (),
) -> Tensor:
    """RED-Rec's losses [N]: InfoNCE of each of the N `targets` [M, W, D] of the windows that are `present` [M, W],
    with the query that `match` gives it among its row's `queries` [M, K, D]. All unit. The rest as in `info_nce`.

    Where all are `views` of these sizes side by side, the whole is matched, and each view learns by a loss of its own,
    at its own of the scales [views]: one that already tells the item does not keep the others from it (ours).
    """
    row, place = present.nonzero(as_tuple=True)
    query, target = match(queries, targets, present, alike)[row, place], targets[row, place]
    masked = near_duplicates(target, negatives)
    sizes = list(views) or [queries.shape[-1]]
    parts = (some.split(sizes, dim=-1) for some in (queries[row, query, None], target, negatives))
    units = ((F.normalize(part, dim=-1) for part in view) for view in zip(*parts, strict=True))
    losses = [
        info_nce(q, t, n, masked, own, log_q)[:, 0] for (q, t, n), own in zip(units, scale.reshape(-1), strict=True)
    ]
    return torch.stack(losses).sum(dim=0)
