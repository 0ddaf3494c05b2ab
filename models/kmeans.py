"""Balanced k-means by cosine: every centroid serves n/K vectors, give or take one (HyMiRec, residual codebook).

PAPERS: "balanced k-means: sizes kept within n/K ± 1 by constrained assignment; for large n by Sinkhorn on chunks".
How the constraint is met is our reading (inferred): Sinkhorn finds a price per centroid that evens the demand, and
deferred acceptance (each vector asks for its best centroid, a full centroid keeps its best) makes the sizes exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = 4_096  # vectors assigned at once: bounds the score matrix to CHUNK_ROWS × K
SINKHORN_STEPS = 10
SINKHORN_TEMPERATURE = 0.05


def balanced_kmeans(vectors: Tensor, k: int, generator: torch.Generator, iterations: int = 15) -> Tensor:
    """K unit centroids [K, D] of `vectors` [N, D], N ≥ K; zero vectors are allowed and pull nowhere."""
    points = F.normalize(vectors, dim=-1)
    centroids = points[torch.randperm(len(points), generator=generator)[:k]]
    for _ in range(iterations):
        order = torch.randperm(len(points), generator=generator)
        sums = torch.zeros_like(centroids)
        for rows in order.split(CHUNK_ROWS):
            sums.index_add_(0, balanced_assign(points[rows] @ centroids.T), points[rows])
        moved = F.normalize(sums, dim=-1)
        centroids = torch.where(sums.norm(dim=-1, keepdim=True) > 1e-6, moved, centroids)
    return centroids


def balanced_assign(scores: Tensor) -> Tensor:
    """The centroid [N] of each row of `scores` [N, K]; each centroid is taken floor(N/K) or ceil(N/K) times."""
    n, k = scores.shape
    wanted = scores + sinkhorn_prices(scores)
    capacity = torch.full((k,), n // k)
    capacity[wanted.argmax(dim=1).bincount(minlength=k).topk(n % k).indices] += 1
    chosen = torch.full((n,), -1)
    while len(free := (chosen < 0).nonzero()[:, 0]):
        chosen[free] = wanted[free].argmax(dim=1)
        worth = wanted.gather(1, chosen[:, None])[:, 0]
        rejected = (_rank_within(chosen, worth) >= capacity[chosen]).nonzero()[:, 0]
        wanted[rejected, chosen[rejected]] = -torch.inf
        chosen[rejected] = -1
    return chosen


def sinkhorn_prices(scores: Tensor) -> Tensor:
    """A bonus [K] per centroid that evens out how many rows of `scores` [N, K] prefer it (entropic transport)."""
    log_plan = scores / SINKHORN_TEMPERATURE
    prices = scores.new_zeros(scores.shape[1])
    for _ in range(SINKHORN_STEPS):
        rows = (log_plan + prices).logsumexp(dim=1, keepdim=True)
        prices = -(log_plan - rows).logsumexp(dim=0)
    return prices * SINKHORN_TEMPERATURE


def _rank_within(groups: Tensor, worth: Tensor) -> Tensor:
    """The place [N] of each row in its group, 0 for the group's largest `worth`."""
    order = worth.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sorted_groups = groups[order]
    starts = torch.searchsorted(sorted_groups, sorted_groups)
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)) - starts)
