"""Interest weights: the share of the user's coming events of a scenario that each interest will serve (ours).

An event is served by the interest of the highest cosine. The share that interest k serves of a window of events j is

    share_k = Σ_j d_j [k serves j] / Σ_j d_j        d_j = 2^(-age_j / half-life)

and the cross-entropy -Σ_k share_k log w_k is least, in expectation, where w is the expected share (it is a proper
score). How far the weights of new users are from that is measured by bins; one temperature, fitted on validation, puts
right what over-fitting made too sure (Guo et al. 2017, arXiv:1706.04599).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURES = (0.05, 20.0)  # a fitted temperature stays within
STEPS = 50  # of bisection


@dataclass(frozen=True)
class Reliability:
    """What was predicted and what came true, by bins of equal counts, in ascending order of the prediction."""

    predicted: Tensor  # [bins], mean weight
    realised: Tensor  # [bins], mean share
    count: Tensor  # [bins], interests of users

    @property
    def error(self) -> float:
        """The expected calibration error: mean |predicted - realised|, in shares."""
        gaps = (self.predicted - self.realised).abs() * self.count
        return float(gaps.sum() / self.count.sum())


def decay(age: Tensor, half_life: float) -> Tensor:
    """2^(-age / half_life): 1 for an event right at the cut; `age` and `half_life` in one unit, ms or events."""
    return torch.exp2(-age.clamp_min(0).double() / half_life).float()


@torch.no_grad()
def shares(
    queries: Tensor, targets: Tensor, importance: Tensor, present: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The share [M, K] of the events `targets` [M, W, D] that each of the unit interests `queries` [M, K, D], those
    `present` [M, K], serves; all 0 for a row without events.

    `importance` [M, W] is an event's `decay`, or 1; 0 where there is no event. With `scale` an event is shared among
    interests by softmax(scale × cosine) instead of going to the nearest.
    """
    cosines = F.normalize(targets, dim=-1) @ queries.mT
    if present is not None:
        cosines = cosines.masked_fill(~present[:, None], -torch.inf)
    if scale is None:
        served = F.one_hot(cosines.argmax(dim=-1), queries.shape[1]).to(cosines.dtype)
    else:
        served = (scale * cosines).softmax(dim=-1)
    total = (served * importance[..., None].to(served.dtype)).sum(dim=1)
    return total / total.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)


def log_weights(logits: Tensor, present: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """log of the weights [..., K], which sum to one over the interests `present` [..., K] (all of them by default)."""
    if present is not None:
        logits = logits.masked_fill(~present, -torch.inf)
    return (logits / temperature).log_softmax(dim=-1)


def weight_loss(logits: Tensor, share: Tensor, present: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """-Σ_k share_k log w_k of `logits` [M, K], a mean over the rows that have a `share` [M, K] at all."""
    logs = log_weights(logits, present, temperature).masked_fill(share == 0, 0)  # 0 log 0 = 0
    return -(share * logs).sum() / (share.sum(dim=-1) > 0).sum().clamp_min(1)


@torch.no_grad()
def fit_temperature(logits: Tensor, share: Tensor, present: Tensor | None = None) -> float:
    """The temperature that makes `weight_loss` of `logits` [M, K] least.

    The loss is convex in the inverse temperature β, with slope Σ_k (w_k - share_k) logit_k, whose zero is bisected.
    """
    known = share.sum(dim=-1) > 0
    share = share[known].double()
    there = torch.ones_like(share, dtype=torch.bool) if present is None else present[known]
    z = logits[known].double().masked_fill(~there, 0)
    low, high = (1 / temperature for temperature in reversed(TEMPERATURES))
    for _ in range(STEPS):
        beta = (low * high) ** 0.5
        slope = ((log_weights(z * beta, there).exp() - share) * z).sum()
        low, high = (low, beta) if slope > 0 else (beta, high)
    return float((low * high) ** -0.5)


def reliability(weights: Tensor, share: Tensor, bins: int = 10) -> Reliability:
    """Predicted `weights` [M, K] against the realised `share` [M, K] of rows that have one, by bins of equal counts."""
    known = share.sum(dim=-1) > 0
    order = weights[known].flatten().argsort(stable=True)
    parts = [part for part in order.tensor_split(bins) if len(part)]
    predicted, realised = (
        torch.stack([values[known].flatten()[part].double().mean() for part in parts]) for values in (weights, share)
    )
    return Reliability(predicted, realised, torch.tensor([len(part) for part in parts]))
