"""Where id vectors begin: items that users meet close together begin close together (ours; Levy and Goldberg 2014).

The positive pointwise mutual information of two items that stand up to REACH events apart in a scenario of a user,

    M_ij = max(0, log(n_ij Σ_k c_k / (n_i c_j)))        n_i = Σ_j n_ij,  c_j = n_j^0.75

with n_ij counted 1 / distance, is factorised, M ≈ U S Vᵀ, and item i begins at the direction of U_i √S. From random
directions both branches spend most of their epochs on finding this out, and over-fit meanwhile. The largest part of
M is found from random directions (Halko, Martinsson and Tropp 2011), which do not mind equal singular values, such as
many pairs of items have that nothing else joins; ARPACK's Lanczos method gave up on a real set.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from models.contract import SCENARIOS
from models.dataset import Behaviour, Ints

REACH = 5  # events
SMOOTHING = 0.75  # of how common a neighbour is, so that rare ones do not weigh too much
LENGTH = 0.3  # of a vector: the shorter, the faster it turns; by validation on Beauty (.0585 of NDCG@10; with 1: .0559)
SPARE, POWERS = 16, 8  # directions beyond those wanted, and how often they are turned towards M's largest
NOISE = 0.1  # of that is random: tells items of the same neighbours apart, and is all an item without any has

Floats = NDArray[np.float64]


def id_vectors(data: Behaviour, training: NDArray[np.bool_], rows: Ints, dim: int, seed: int) -> Tensor:
    """First vectors [items, dim], about LENGTH long, of the items that have a row (`rows` [texts], -1: none), from the
    wanted events for `training`. The same for the same seed."""
    items = int(rows.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    vectors = NOISE * rng.normal(size=(items, dim)) / dim**0.5
    if not items:
        return torch.from_numpy(vectors).float()
    known = information(pair_counts(data, training, rows, items))
    for group in worlds(known, dim):
        begin = directions(known[group][:, group], dim, rng)
        vectors[group, : begin.shape[1]] += begin
    return torch.from_numpy(LENGTH * vectors).float()


def worlds(known: csr_matrix, least: int) -> list[Ints]:
    """Items that no chain of neighbours joins, such as two scenarios with catalogues of their own, apart: each group
    has all components to itself. Those of at most `least` items are one group."""
    _, label = connected_components(known, directed=False)
    size = np.bincount(label)
    label = np.where(size[label] > least, label, len(size))
    return [np.flatnonzero(label == number) for number in np.unique(label)]


def directions(known: csr_matrix, dim: int, rng: np.random.Generator) -> Floats:
    """Of M: U √S, at most `dim` columns, every row of length 1 (0 where M knows nothing of the item)."""
    rank = min(dim, known.shape[0] - 1)
    if rank < 1 or not known.nnz:
        return np.zeros((known.shape[0], 0))
    basis = rng.normal(size=(known.shape[0], min(known.shape[0], rank + SPARE)))
    for _ in range(POWERS):
        basis, _ = np.linalg.qr(known @ (known.T @ basis))
    left, strength, _ = np.linalg.svd((known.T @ basis).T, full_matrices=False)
    begin = basis @ left[:, :rank] * np.sqrt(strength[:rank])
    unit: Floats = begin / np.maximum(np.linalg.norm(begin, axis=1, keepdims=True), 1e-6)
    return unit


def pair_counts(data: Behaviour, training: NDArray[np.bool_], rows: Ints, items: int) -> csr_matrix:
    """n_ij [items, items], symmetric: pairs of different items of a user in a scenario, 1 / distance each. Pairs across
    scenarios say little of what is alike, and drown what does."""
    events = np.flatnonzero(training & data.wanted)
    events = events[rows[data.text[events]] >= 0]
    owner = data.owner(events) * len(SCENARIOS) + data.scenario[events]
    order = np.argsort(owner, kind="stable")
    item, owner = rows[data.text[events[order]]], owner[order]
    counts = csr_matrix((items, items))
    for apart in range(1, REACH + 1):
        a, b = item[:-apart], item[apart:]
        pair = (owner[apart:] == owner[:-apart]) & (a != b)
        met = csr_matrix((np.full(pair.sum(), 1 / apart), (a[pair], b[pair])), shape=(items, items))
        counts = counts + met + met.T
    return counts


def information(counts: csr_matrix) -> csr_matrix:
    """M of the counts n; only what is above zero is stored."""
    total = np.asarray(counts.sum(axis=1))[:, 0]
    common = total**SMOOTHING
    pairs = counts.tocoo()
    values = np.log(pairs.data * common.sum() / (total[pairs.row] * common[pairs.col]))
    there = values > 0
    return csr_matrix((values[there], (pairs.row[there], pairs.col[there])), shape=counts.shape)
