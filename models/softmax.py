"""Cross-entropy over a catalogue, in little memory and, on a CPU, a tenth of the time of the plain way.

Of P positions with K queries each (scaled by the inverse temperature) the probability of item v is

    p(v) = Σ_k exp(q_k·v) / Z,    Z = Σ_k Σ_u exp(q_k·u)

which with K = 1 is SASRec's full cross-entropy and with more is a soft maximum over interests. Z is estimated from n
uniform draws: the target itself plus (V - 1) / n times the sum over draws that are not the target (the logQ correction
of a uniform proposal); with the whole catalogue as draws it is exact.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 128  # positions at once: bounds the scores to CHUNK_ROWS × K × draws, which stays in a CPU's cache
SAFE = 40.0  # scores may be that far on either side of 0 without exp(score - SAFE) ending
HEADROOM = 70.0  # exp() of it, times a catalogue, is still a float


def cross_entropy(queries: Tensor, targets: Tensor, draws: Tensor, own: Tensor, items: int) -> Tensor:
    """The summed loss of `queries` [P, K, D] for `targets` [P, D] against `draws` [N, D]; own [P] is the place of the
    target among the draws, -1 where it was not drawn; `items` is V. All vectors are finite."""
    if not len(queries):
        return queries.sum() + targets.sum() + 0 * draws.sum()  # zero, and known to autograd
    loss: Tensor = _CrossEntropy.apply(queries.float(), targets.float(), draws.float(), own, items)  # type: ignore[no-untyped-call]
    return loss


@cache
def score_type(device: str) -> torch.dtype:
    """bfloat16, but float32 on CPUs that cannot multiply in bfloat16 (no AVX-512): there it is many times slower."""
    return torch.float32 if device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.bfloat16


class _CrossEntropy(torch.autograd.Function):
    """The gradient is made on the way, chunk by chunk, so that no score is kept; scores are of `score_type`."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, targets: Tensor, draws: Tensor, own: Tensor, items: int) -> Tensor:
        (P, K, D), N = queries.shape, len(draws)
        to_targets = (queries * targets[:, None]).sum(dim=-1)  # [P, K]
        bound = queries.norm(dim=-1).amax(dim=1) * draws.norm(dim=-1).max()
        bound = torch.maximum(bound, to_targets.amax(dim=1))
        short = score_type(draws.device.type)
        bound = torch.maximum(bound.clamp_max(SAFE), bound - HEADROOM).to(short)
        ones = draws.new_ones(N, 1)  # one more component takes the bound off every score
        wide = torch.cat([draws, ones], dim=1).to(short)
        asked = torch.cat([queries.to(short), -bound[:, None, None].expand(P, K, 1)], dim=2)
        d_queries, d_draws, loss = torch.empty_like(queries), torch.zeros_like(wide, dtype=torch.float32), 0.0
        target_exp = (to_targets - bound[:, None].float()).exp()
        target_log = to_targets.logsumexp(dim=1) - bound.float()  # exp() of it may be less than a float can hold
        shares = to_targets.softmax(dim=1)
        d_targets = torch.empty_like(targets)
        for start in range(0, P, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            q, mine, t = asked[rows].flatten(0, 1), own[rows], target_exp[rows]
            scores = (q @ wide.T).exp_().unflatten(0, (-1, K))
            hit = (mine >= 0).nonzero()[:, 0]
            scores[hit, :, mine[hit]] = 0
            others = (N - (mine >= 0).long()).clamp_min(1)
            odds = (items - 1) / others
            z = (scores.sum(dim=(1, 2), dtype=torch.float32) * odds + t.sum(dim=1)).clamp_min(1e-37)
            loss += (z.log() - target_log[rows]).sum()
            pull = t / z[:, None] - shares[rows]  # d loss / d (q_k·target)
            weight = (odds / z)[:, None, None]
            flat = scores.flatten(0, 1)
            d_queries[rows] = (flat @ wide)[:, :D].float().unflatten(0, (-1, K)) * weight
            d_queries[rows] += pull[..., None] * targets[rows, None]
            d_targets[rows] = (pull[..., None] * queries[rows]).sum(dim=1)
            d_draws += (flat.T @ (q.unflatten(0, (-1, K)) * weight).flatten(0, 1).to(short)).float()
        ctx.save_for_backward(d_queries, d_targets, d_draws[:, :D])
        return torch.as_tensor(loss)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = upstream
        d_queries, d_targets, d_draws = ctx.saved_tensors
        return d_queries * g, d_targets * g, d_draws * g, None, None
