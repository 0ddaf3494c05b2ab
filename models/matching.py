"""Which query each future item trains (RED-Rec, arXiv:2510.14788, PAPERS "loss", steps 1 to 3).

Each user's window of W future items is clustered by cosine into at most K clusters; the clusters are assigned to the K
queries one to one, so that the sum of cosines is largest. A query that is nearest to everything still gets one cluster
of a user: that is what makes queries differ, without a diversity term. All of it is batched over users.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import BadInput

ITERATIONS = 5  # of k-means
MOST_QUERIES = 10  # the exact assignment looks at all 2^K sets of queries
SAME = 1 - 1e-5  # cosine above which two targets are one; rounding is some 1e-6


@dataclass(frozen=True)
class Clusters:
    """A clustering of each user's targets; a cluster that is not present has no members and its centre no meaning."""

    centres: Tensor  # [B, K, D], unit
    present: Tensor  # bool [B, K]
    member: Tensor  # int64 [B, W], the cluster of each target, -1 where there is no target


@torch.no_grad()
def match(queries: Tensor, targets: Tensor, present: Tensor, alike: float = SAME) -> Tensor:
    """The query [B, W] that each of `targets` [B, W, D] trains, among its user's `queries` [B, K, D]; -1 where not
    `present` [B, W]. Lengths of vectors do not matter; `alike` as in `cluster`. Raises `BadInput` for more than
    MOST_QUERIES."""
    clusters = cluster(targets, present, queries.shape[1], alike)
    cosines = clusters.centres @ F.normalize(queries.float(), dim=-1).mT
    query = assign(cosines, clusters.present).gather(1, clusters.member.clamp_min(0))
    return query.masked_fill(~present, -1)


@torch.no_grad()
def cluster(targets: Tensor, present: Tensor, k: int, alike: float = SAME) -> Clusters:
    """Cosine k-means of each user's `targets` [B, W, D] where `present` [B, W], into at most `k` clusters.

    A target opens no cluster when its cosine with a centre is above `alike`. By default as in the paper: only equal
    targets share one from the start, so a window of fewer interests than queries has its interests split among queries;
    a lower value keeps them together (ours). A cluster that loses its members is dropped. Deterministic; users and
    absent targets do not influence each other.
    """
    points = F.normalize(targets.float(), dim=-1).masked_fill(~present[..., None], 0)
    centres, there = _farthest_first(points, present, k, alike)
    for _ in range(ITERATIONS):
        members = _nearest(points, centres, there, present)
        sums = members.mT @ points
        there = members.any(dim=1)
        moves = sums.norm(dim=-1, keepdim=True) > 1e-6  # neither empty nor of opposites that cancel
        centres = torch.where(moves, F.normalize(sums, dim=-1), centres)
    members = _nearest(points, centres, there, present)
    return Clusters(centres, members.any(dim=1), members.argmax(dim=-1).masked_fill(~present, -1))


@torch.no_grad()
def assign(worth: Tensor, present: Tensor) -> Tensor:
    """The query [B, K] of each cluster, one to one and of the largest total `worth` [B, clusters K, queries K]; -1
    where a cluster is not `present` [B, K]. What the Hungarian method finds, by dynamic programming over sets:

        best(S) = max over q in S of  best(S \\ q) + worth[|S| - 1, q],    best({}) = 0

    where best(S) is the most that the first |S| clusters can get from the queries S. An absent cluster is worth
    nothing anywhere, so it takes what is left.
    """
    B, K = worth.shape[:2]
    worth = worth.masked_fill(~present[..., None], 0)
    best, last = worth.new_zeros(B, 2**K), torch.zeros(B, 2**K, dtype=torch.int64, device=worth.device)
    for size, queries in enumerate(_sets(K), start=1):
        queries = queries.to(worth.device)
        bits = 1 << queries
        whole = bits.sum(dim=1)
        values, places = (best[:, whole[:, None] - bits] + worth[:, size - 1][:, queries]).max(dim=-1)
        best[:, whole] = values
        last[:, whole] = queries.expand(B, -1, -1).gather(2, places[..., None])[..., 0]
    query = torch.empty(B, K, dtype=torch.int64, device=worth.device)
    left = torch.full((B, 1), 2**K - 1, device=worth.device)
    for number in reversed(range(K)):
        query[:, number] = last.gather(1, left)[:, 0]
        left = left - (1 << query[:, number, None])
    return query.masked_fill(~present, -1)


def _farthest_first(points: Tensor, present: Tensor, k: int, alike: float) -> tuple[Tensor, Tensor]:
    """The first target, then always the one least similar to those chosen, as long as it is not `alike` to one:
    centres [B, k, D] and which are there [B, k]."""
    cosines = points @ points.mT
    nearest = torch.where(present, -torch.inf, torch.inf)  # [B, W], cosine with the nearest centre
    centres, there = [], []
    for _ in range(k):
        value, chosen = nearest.min(dim=1)
        rows = chosen[:, None, None]
        there.append(value < alike)
        centres.append(points.gather(1, rows.expand(-1, 1, points.shape[-1])))
        nearest = torch.maximum(nearest, cosines.gather(1, rows.expand(-1, 1, points.shape[1]))[:, 0])
    return torch.cat(centres, dim=1), torch.stack(there, dim=1)


def _nearest(points: Tensor, centres: Tensor, there: Tensor, present: Tensor) -> Tensor:
    """One-hot [B, W, K] of the centre nearest to each point, all zero where there is no point."""
    cosines = (points @ centres.mT).masked_fill(~there[:, None], -torch.inf)
    return F.one_hot(cosines.argmax(dim=-1), centres.shape[1]).to(points.dtype) * present[..., None]


@cache
def _sets(k: int) -> list[Tensor]:
    """For each size 1..k, the sets of queries of that size: [k over size, size]."""
    if k > MOST_QUERIES:
        raise BadInput(f"{k} interests cannot be matched exactly; ask for at most {MOST_QUERIES} per scenario")
    return [torch.tensor(list(combinations(range(k), size))) for size in range(1, k + 1)]
