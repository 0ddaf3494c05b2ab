"""Balanced k-means by cosine: every centroid serves n/K vectors, give or take one (HyMiRec, residual codebook).

PAPERS: "balanced k-means: sizes kept within n/K ± 1 by constrained assignment; for large n by Sinkhorn on chunks".
How the constraint is met is our reading (inferred): Sinkhorn finds a price per centroid that evens the demand, and
deferred acceptance (each vector asks for its best centroid, a full centroid keeps its best) makes the sizes exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_SCORES = 2**24  # vectors × centroids scored at once: bounds memory
SINKHORN_STEPS = 10
SINKHORN_TEMPERATURE = 0.05
OFFERS = 20  # rounds of deferred acceptance; the few vectors left by then take what room there is
FREE_ITERATIONS = 4  # the last ones


def balanced_kmeans(vectors: Tensor, k: int, generator: torch.Generator, iterations: int = 15) -> Tensor:
    """K unit centroids [K, D] of `vectors` [N, D], N ≥ K, on their device; zero vectors are allowed and pull nowhere.

    A centroid is the direction of the sum of its vectors, so long ones, of which more is to be explained, count for
    more. After the balanced iterations come FREE_ITERATIONS with plain cosine assignment, which is the one that
    encoding uses (ours; both raise the reconstruction a little).
    """
    points = F.normalize(vectors, dim=-1)
    centroids = points[_shuffled(points, generator)[:k]]
    for iteration in range(iterations + FREE_ITERATIONS):
        sums = torch.zeros_like(centroids)
        for rows in _shuffled(points, generator).split(max(4 * k, CHUNK_SCORES // k)):
            scores = points[rows] @ centroids.T
            chosen = balanced_assign(scores) if iteration < iterations else scores.argmax(dim=1)
            sums.index_add_(0, chosen, vectors[rows])
        moved = F.normalize(sums, dim=-1)
        centroids = torch.where(sums.norm(dim=-1, keepdim=True) > 1e-6, moved, centroids)
    return centroids


def balanced_assign(scores: Tensor) -> Tensor:
    """The centroid [N] of each row of `scores` [N, K]; each centroid is taken floor(N/K) or ceil(N/K) times."""
    n, k = scores.shape
    wanted = scores + sinkhorn_prices(scores)
    capacity = wanted.new_full((k,), n // k, dtype=torch.long)
    capacity[wanted.argmax(dim=1).bincount(minlength=k).topk(n % k).indices] += 1
    chosen = torch.full_like(wanted[:, 0], -1, dtype=torch.long)
    for _ in range(OFFERS):
        free = (chosen < 0).nonzero()[:, 0]
        if not len(free):
            return chosen
        chosen[free] = wanted[free].argmax(dim=1)
        worth = wanted.gather(1, chosen[:, None])[:, 0]
        rejected = (_rank_within(chosen, worth) >= capacity[chosen]).nonzero()[:, 0]
        wanted[rejected, chosen[rejected]] = -torch.inf
        chosen[rejected] = -1
    room = capacity - chosen[chosen >= 0].bincount(minlength=k)
    chosen[chosen < 0] = torch.arange(k, device=room.device).repeat_interleave(room)
    return chosen


def sinkhorn_prices(scores: Tensor) -> Tensor:
    """A bonus [K] per centroid that evens out how many rows of `scores` [N, K] prefer it (entropic transport)."""
    plan = ((scores - scores.amax(dim=1, keepdim=True)) / SINKHORN_TEMPERATURE).exp()
    price = scores.new_ones(scores.shape[1])
    for _ in range(SINKHORN_STEPS):
        rows = 1 / (plan @ price).clamp_min(1e-30)
        price = 1 / (plan.T @ rows).clamp_min(1e-30)
        price = price / price.log().mean().exp()  # their ratios are what counts
    return price.log() * SINKHORN_TEMPERATURE


def _shuffled(points: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(points), generator=generator).to(points.device)


def _rank_within(groups: Tensor, worth: Tensor) -> Tensor:
    """The place [N] of each row in its group, 0 for the group's largest `worth`."""
    order = worth.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sorted_groups = groups[order]
    starts = torch.searchsorted(sorted_groups, sorted_groups)
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).index_copy_(0, order, places - starts)
