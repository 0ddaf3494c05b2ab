"""Interests moved apart (ours). Those that a tower has learned share much of what a user likes in general, and so much
of what each retrieves. In the order of their weights, each but the first goes on in the direction in which it differs
from the heavier ones:

    q_k <- c_k + factor (q_k - c_k), normalised        c_k: the mean of the interests heavier than k

The heaviest, which serves most of what is to come, stays where it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(interests: Tensor, weights: Tensor, factor: float) -> Tensor:
    """Unit `interests` [..., K, D] of `weights` [..., K], moved apart; a factor of 1 leaves them."""
    order = weights.argsort(dim=-1, descending=True, stable=True)[..., None].expand_as(interests)
    first, *lighter = interests.gather(-2, order).unbind(dim=-2)
    moved = [first]
    for interest in lighter:
        centre = torch.stack(moved, dim=-2).mean(dim=-2)
        moved.append(F.normalize(centre + factor * (interest - centre), dim=-1))
    return torch.empty_like(interests).scatter(-2, order, torch.stack(moved, dim=-2))
