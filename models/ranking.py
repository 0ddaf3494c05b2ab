"""Where the wanted item stands in the list that a request would answer, for every way of merging interests' lists.

The ways are those of retrieval: `rrf` is one Qdrant request (each interest brings its nearest `CANDIDATES`, or as many
as the request's limit if that is more, fused as Qdrant does); `max` takes the highest score over interests (RED-Rec's
at test); `quota` shares the limit out by weight. `budget` asks what a later ranking stage could still save: is the item
among `limit` candidates in all, `limit`/K of each interest? Interests that repeat each other waste candidates there.

Full ranking, never sampled. What the user has seen is no candidate; the target always is. Two equal scores of an
interest count against the target, and so does a score that is not a number: a broken model never looks good. Equal
*fused* scores, which RRF gives by construction, go as in Qdrant's local engine: earlier list first.

Shapes: interests [B, K, D] and weights [B, K] of a batch of questions, an interest of weight 0 is absent; items [V, D];
targets int64 [B]; seen, pairs of (row of the batch, item) as from `splits.seen`, in any order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.dataset import Ints

CUTOFFS = (10, 50, 100, 1_000)
CANDIDATES = 50  # of each interest, at least, as retrieval asks for
RRF_CONSTANT = 2  # Qdrant's: an item at place p (from 0) of a list gets 1 / (p + 2)
SMALL_WEIGHT = 0.05  # as in retrieval: an interest below it may end without a place of its own
CHUNK_SCORES = 2**24  # scores held at once, 64 MiB


Pairs = tuple[Tensor, Tensor] | tuple[Ints, Ints]


class Places(NamedTuple):
    """Per limit the target's place in the list, from 1; 0 where it is not in it."""

    max: Tensor  # int64 [B, limits]
    rrf: Tensor  # int64 [B, limits]
    quota: Tensor  # int64 [B, limits]
    budget: Tensor  # bool [B, limits], whether it is a candidate


class _Scored(NamedTuple):
    scores: Tensor  # [b, K, V]; of items seen and of absent interests -inf
    weights: Tensor  # float64 [b, K]
    targets: Tensor  # [b, 1]
    own: Tensor  # [b, K], the target's scores
    position: Tensor  # [b, K], how many items stand before the target; V where the interest does not list it


class _Lists(NamedTuple):
    ids: Tensor  # int64 [b, K, depth], best first; V where a list has ended
    scores: Tensor  # [b, K, depth]


@torch.no_grad()
def places(
    interests: Tensor, weights: Tensor, items: Tensor, targets: Tensor, seen: Pairs, limits: Sequence[int] = CUTOFFS
) -> Places:
    """The target's place in the answers to requests of each of `limits`."""
    parts = [_places(chunk, limits) for chunk in _scored(interests, weights, items, targets, seen)]
    empty = torch.empty(0, len(limits), dtype=torch.long)
    return Places(*map(torch.cat, zip(*parts, strict=True))) if parts else Places(empty, empty, empty, empty.bool())


@torch.no_grad()
def ranks(interests: Tensor, weights: Tensor, items: Tensor, targets: Tensor, seen: Pairs) -> Tensor:
    """The target's rank [B] among all V items by the maximum over interests, from 1; V when it has no score."""
    found = [_rank(chunk) for chunk in _scored(interests, weights, items, targets, seen)]
    return torch.cat([targets.new_empty(0), *found])


@torch.no_grad()
def top(interests: Tensor, weights: Tensor, items: Tensor, seen: Pairs, limit: int) -> Tensor:
    """The best items int64 [B, min(limit, V)] by the maximum over interests; -1 where there are no more."""
    nobody = torch.full((len(interests),), -1, device=interests.device)
    found = [torch.empty(0, min(limit, len(items)), dtype=torch.long, device=interests.device)]
    for _, scores in _masked(interests, weights, items, nobody, seen):
        best = scores.amax(dim=1).topk(min(limit, len(items)), dim=1)
        found.append(best.indices.masked_fill(best.values == -torch.inf, -1))
    return torch.cat(found)


def quotas(weights: Tensor, limit: int) -> Tensor:
    """`limit` places int64 [B, K] dealt to interests by weight [B, K], by the rule of retrieval: largest remainder,
    then the earlier interest; while there are places, the richest cede one to those of SMALL_WEIGHT that got none."""
    weights = weights.double()
    total = weights.cumsum(dim=1)[:, -1:]
    shares = weights / total.clamp_min(1e-30) * limit
    seats = shares.long()
    spare = limit - seats.sum(dim=1, keepdim=True)
    seats += _order(seats - shares).argsort(dim=1) < spare
    row = torch.arange(len(seats), device=seats.device)
    for k in _order(-weights).T:
        richest = torch.where(seats == seats.amax(dim=1, keepdim=True), weights, torch.inf).argmin(dim=1)
        cedes = (seats[row, k] == 0) & (weights[row, k] / total[:, 0] >= SMALL_WEIGHT) & (seats[row, richest] > 1)
        seats[row, richest] -= cedes.long()
        seats[row, k] += cedes.long()
    return seats


def _places(chunk: _Scored, limits: Sequence[int]) -> Places:
    items = chunk.scores.shape[-1]
    rank, depth = _rank(chunk), min(items, max(CANDIDATES, *limits))
    budget = torch.stack([_candidate(chunk, limit) for limit in limits], dim=1)
    lists = _lists(chunk, depth)
    rrf = [_fused(_Lists(*(part[..., : max(limit, CANDIDATES)] for part in lists)), chunk) for limit in limits]
    quota = [_shared(_Lists(*(part[..., :limit] for part in lists)), chunk, limit) for limit in limits]
    cut = torch.tensor(limits, device=rank.device)
    merged = [torch.stack(found, dim=1) for found in ([rank] * len(limits), rrf, quota)]
    best, fused, shared = (place.masked_fill(place > cut, 0) for place in merged)
    return Places(best, fused, shared, budget)


def _scored(interests: Tensor, weights: Tensor, items: Tensor, targets: Tensor, seen: Pairs) -> Iterator[_Scored]:
    for rows, scores in _masked(interests, weights, items, targets, seen):
        target = targets[rows, None]
        own = scores.gather(2, target[..., None].expand(-1, scores.shape[1], 1))
        behind = (scores < own).count_nonzero(dim=2)
        position = (len(items) - 1 - behind).masked_fill(~(own[..., 0] > -torch.inf), len(items))
        share = weights[rows].double()
        yield _Scored(scores, share.where(share > 0, 0), target, own[..., 0], position)


def _masked(
    interests: Tensor, weights: Tensor, items: Tensor, targets: Tensor, seen: Pairs
) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of the batch and their scores [b, K, V]."""
    B, K, V = *interests.shape[:2], len(items)
    row, item = (torch.as_tensor(part, device=items.device) for part in seen)
    step = max(1, CHUNK_SCORES // max(1, K * V))
    for start in range(0, B, step):
        rows = slice(start, start + step)
        here = (row >= start) & (row < start + step) & (item != targets[row])
        scores = interests[rows] @ items.T
        scores.masked_fill_(~(weights[rows] > 0)[..., None], -torch.inf)
        scores[row[here] - start, :, item[here]] = -torch.inf
        yield rows, scores


def _rank(chunk: _Scored) -> Tensor:
    best = chunk.scores.amax(dim=1)
    behind = (best < best.gather(1, chunk.targets)).count_nonzero(dim=1)
    return chunk.scores.shape[-1] - behind


def _candidate(chunk: _Scored, budget: int) -> Tensor:
    """Whether the target is among `budget` candidates [b]; what K does not divide goes to the heaviest interests."""
    present = chunk.weights > 0
    interests = present.sum(dim=1, keepdim=True).clamp_min(1)
    heavier = _order(-chunk.weights).argsort(dim=1)
    share = budget // interests + (heavier < budget % interests)
    return (present & (chunk.position < share)).any(dim=1)


def _lists(chunk: _Scored, depth: int) -> _Lists:
    """Every interest's best `depth` items. The others are ranked first, then the target is put in at its place."""
    items = chunk.scores.shape[-1]
    targets = chunk.targets[..., None].expand(-1, chunk.scores.shape[1], 1)
    found = chunk.scores.scatter(2, targets, -torch.inf).topk(depth, dim=2)
    ids = found.indices.masked_fill(found.values == -torch.inf, items)
    order = torch.arange(depth, device=ids.device)
    place = torch.cat([order + (order >= chunk.position[..., None]), chunk.position.clamp_max(depth)[..., None]], dim=2)
    ids = torch.cat([ids, targets], dim=2)
    scores = torch.cat([found.values, chunk.own[..., None]], dim=2)
    ways = (part.new_empty(part.shape).scatter_(2, place, part)[..., :depth] for part in (ids, scores))
    return _Lists(*ways)


def _fused(lists: _Lists, chunk: _Scored) -> Tensor:
    """The target's place [b] by reciprocal rank fusion, 0 where no list has it; in double precision, list by list, so
    that sums are equal where Qdrant's local engine finds them equal."""
    b, K, depth = lists.ids.shape
    V = chunk.scores.shape[-1]
    order = torch.arange(depth, device=lists.ids.device)
    worth = 1 / (order.double() + RRF_CONSTANT)
    fused = worth.new_zeros(b, V + 1)
    first = order.new_full((b, V + 1), K * depth)
    for k, ids in enumerate(lists.ids.unbind(dim=1)):
        fused.scatter_add_(1, ids, worth.expand_as(ids))
        first.scatter_reduce_(1, ids, (k * depth + order).expand_as(ids), "amin")
    fused[:, V] = 0  # where ended lists have put their rest
    own, met = fused.gather(1, chunk.targets), first.gather(1, chunk.targets)
    ahead = ((fused > own) | (fused == own) & (first < met)).count_nonzero(dim=1)
    return (ahead + 1).where(own[:, 0] > 0, 0)


def _shared(lists: _Lists, chunk: _Scored, limit: int) -> Tensor:
    """The target's place [b] by quotas, 0 where it gets none: the heaviest interest takes first, an item belongs to
    whoever takes it, and what was taken is ranked by the taker's score. Retrieval gives places that a short list
    leaves free to the rest; here a list is short only when every candidate is in it, so there is no rest."""
    V = chunk.scores.shape[-1]
    seats = quotas(chunk.weights, limit)
    taken = torch.zeros(len(seats), V + 1, dtype=torch.bool, device=seats.device)
    score = lists.scores.new_full(taken.shape, -torch.inf)
    row = torch.arange(len(seats), device=seats.device)
    for k in _order(-chunk.weights).T:
        ids = lists.ids[row, k]
        fresh = ~taken.gather(1, ids)
        takes = ids.masked_fill(~(fresh & (fresh.cumsum(dim=1) <= seats[row, k, None])), V)
        score.scatter_(1, takes, lists.scores[row, k])
        taken.scatter_(1, takes, True)
        taken[:, V] = False
    ahead = (taken & ~(score < score.gather(1, chunk.targets))).count_nonzero(dim=1)
    return ahead.where(taken.gather(1, chunk.targets)[:, 0], 0)


def _order(keys: Tensor) -> Tensor:
    """Columns [B, K] by ascending key; equal keys by column."""
    return keys.argsort(dim=1, stable=True)
