"""Balanced k-means by cosine: every centroid serves n/K vectors, give or take one (HyMiRec, residual codebook).

PAPERS: "balanced k-means: sizes kept within n/K ± 1 by constrained assignment; for large n by Sinkhorn on chunks".
How the constraint is met is our reading (inferred): Sinkhorn finds a price per centroid that evens the demand, and
deferred acceptance (each vector asks for its best centroid, a full centroid keeps its best) makes the sizes exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_SCORES = 2**24  # vectors × centroids scored at once: bounds memory
MOST_AT_ONCE = 4_096  # centroids that prices and offers are found for together; of more, balanced groups are split
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
    centroids = _balanced(vectors, points, k, generator, iterations)
    for _ in range(FREE_ITERATIONS):
        chosen = [(rows @ centroids.T).argmax(dim=1) for rows in points.split(max(1, CHUNK_SCORES // k))]
        centroids = _moved(centroids, torch.cat(chosen), vectors)
    return centroids


def _balanced(vectors: Tensor, points: Tensor, k: int, generator: torch.Generator, iterations: int) -> Tensor:
    """Centroids [K, D] of balanced clusters of `vectors` [N, D], whose directions are `points`. A multiple of
    MOST_AT_ONCE are found as MOST_AT_ONCE in each of fewer, coarser clusters, which costs that much less."""
    if k > MOST_AT_ONCE and k % MOST_AT_ONCE == 0:
        coarse = _balanced(vectors, points, k // MOST_AT_ONCE, generator, iterations)
        cluster = balanced_assign(points @ coarse.T)
        within = [cluster == number for number in range(len(coarse))]
        return torch.cat([_balanced(vectors[w], points[w], MOST_AT_ONCE, generator, iterations) for w in within])
    centroids = points[_shuffled(points, generator)[:k]]
    for _ in range(iterations):
        rows = _shuffled(points, generator)
        chosen = [balanced_assign(points[r] @ centroids.T) for r in rows.split(max(4 * k, CHUNK_SCORES // k))]
        centroids = _moved(centroids, torch.cat(chosen), vectors[rows])
    return centroids


def _moved(centroids: Tensor, chosen: Tensor, vectors: Tensor) -> Tensor:
    """The directions [K, D] of the sums of the `vectors` [N, D] that have `chosen` [N] each; where none, as before."""
    sums = torch.zeros_like(centroids).index_add_(0, chosen, vectors)
    return torch.where(sums.norm(dim=-1, keepdim=True) > 1e-6, F.normalize(sums, dim=-1), centroids)


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
