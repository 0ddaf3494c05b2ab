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
from typing import Any

import torch
from torch import Tensor, nn

from models.matching import SAME, match

NEAR_DUPLICATE = 0.98  # cosine above which a negative counts as the target itself
SCALES = (1.0, 100.0)  # bounds of the inverse temperature
CHUNK_SCORES = 2**22  # scores held at once by `full_softmax`: 16 MB; larger is slower on a CPU


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
) -> Tensor:
    """RED-Rec's loss, a mean over targets: InfoNCE of each of the window's `targets` [M, W, D], where `present` [M, W],
    with the query that `match` gives it among its row's `queries` [M, K, D]. All unit. The rest as in `info_nce`."""
    row, place = present.nonzero(as_tuple=True)
    query, target = match(queries, targets, present, alike)[row, place], targets[row, place]
    losses = info_nce(queries[row, query, None], target, negatives, near_duplicates(target, negatives), scale, log_q)
    return losses.sum() / max(len(row), 1)


def full_softmax(queries: Tensor, targets: Tensor, items: Tensor, scale: Tensor, soft: bool = False) -> Tensor:
    """Cross-entropy over all `items` [V, D] of `targets` [M] (indices), scored as when serving, a mean over targets:

        s_v = max_k τ q_k·v,    or with `soft`    s_v = log Σ_k exp(τ q_k·v)

    for `queries` [M, K, D] and τ the `scale`. Holds some CHUNK_SCORES × 4 numbers, whatever M and V.
    """
    loss: Tensor = _FullSoftmax.apply(queries, targets, items, scale, soft)  # type: ignore[no-untyped-call]
    return loss


class _FullSoftmax(torch.autograd.Function):
    """Gradients are taken chunk by chunk along with the loss, while the scores are there: nothing is computed twice.

    dL/ds_v = p_v - [v = t]        ds_v/dq_k = r_kv τ v        r_kv = [k is v's best], or softmax_k(τ q_k·v)
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, targets: Tensor, items: Tensor, scale: Tensor, soft: bool) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            q, items_ = queries.float(), items.float()
            to_queries, to_items, total = torch.zeros_like(q), torch.zeros_like(items_), q.new_zeros(())
            rows = max(1, CHUNK_SCORES // (q.shape[1] * len(items_)))
            for some, wanted, gradient in zip(q.split(rows), targets.split(rows), to_queries.split(rows), strict=True):
                each = [scale * (query @ items_.T) for query in some.unbind(dim=1)]
                scores = torch.stack(each).logsumexp(dim=0) if soft else _largest(each)
                log_z = scores.logsumexp(dim=1, keepdim=True)
                total += (log_z - scores.gather(1, wanted[:, None])).sum()
                slope = (scores - log_z).exp()
                slope[torch.arange(len(wanted)), wanted] -= 1
                for k, own in enumerate(each):
                    share = slope * (own - scores).exp() if soft else slope.masked_fill(own < scores, 0)
                    gradient[:, k] = share @ items_
                    to_items.addmm_(share.T, some[:, k])
        count = max(len(targets), 1)
        ctx.save_for_backward(to_queries * (scale / count), to_items * (scale / count), (q * to_queries).sum() / count)
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_queries, to_items, to_scale = (part * gradients[0] for part in ctx.saved_tensors)
        return to_queries, None, to_items, to_scale, None


def _largest(scores: list[Tensor]) -> Tensor:
    best = scores[0]
    for more in scores[1:]:
        best = torch.maximum(best, more)
    return best
