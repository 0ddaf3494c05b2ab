"""How well a user tower retrieves for held-out users, against two baselines, and what a burst of searches changes."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ACTIONS, SCENARIOS
from models.dataset import Behaviour, Ints, history
from models.events import Histories
from models.user_tower import UserTower

HISTORY = 256  # events
FEED = SCENARIOS.index("feed")
SEARCH = SCENARIOS.index("search")
BURST_GAP_MS = 10_000


@dataclass(frozen=True)
class Heldout:
    """Users cut at three quarters of their events: what came before, and the feed items wanted afterwards."""

    users: Ints
    cuts: Ints
    future: list[set[int]]  # item indices, none met before the cut
    met: list[set[int]]


def heldout(data: Behaviour, users: Ints) -> Heldout:
    """Those of `users` who meet at least one new item in the feed after the cut."""
    kept, cuts, future, met = [], [], [], []
    feed = data.wanted & (data.scenario == FEED)
    for user in users:
        first, end = data.first[user], data.first[user + 1]
        cut = first + (end - first) * 3 // 4
        seen = set(data.text[first:cut].tolist())
        new = set(data.text[cut:end][feed[cut:end]].tolist()) - seen
        if new and seen:
            kept.append(user)
            cuts.append(cut)
            future.append(new)
            met.append(seen)
    return Heldout(np.array(kept), np.array(cuts), future, met)


def top(interests: Tensor, items: Tensor, k: int) -> Tensor:
    """The k best items [B, k] by the maximum over interests [B, K, dim] (RED-Rec's score at test)."""
    return (interests @ items.T).amax(dim=1).topk(k, dim=1).indices


def recall(scores: Tensor, test: Heldout, k: int) -> float:
    """The mean share of a user's future that is among the k best items not met, by `scores` [B, items]."""
    scores = scores.clone()
    for row, met in enumerate(test.met):
        scores[row, [item for item in met if item < scores.shape[1]]] = -torch.inf
    best = scores.topk(k, dim=1).indices.tolist()
    shares = [len(future & set(row)) / len(future) for future, row in zip(test.future, best, strict=True)]
    return float(np.mean(shares))


@torch.inference_mode()
def recalls(
    tower: UserTower, data: Behaviour, vectors: Tensor, codes: Tensor, test: Heldout, train: Ints
) -> dict[str, float]:
    """Feed recall@10 and @50: the tower, the most popular items among `train` users, and the mean of the history."""
    items = vectors[: data.items]
    rows, histories = history(data, codes, test.cuts, test.users, HISTORY)
    mean = F.normalize((vectors[rows] * histories.valid[..., None]).sum(dim=1), dim=-1)
    popular = torch.zeros(data.items)
    for user in train:
        events = data.text[data.first[user] : data.first[user + 1]]
        popular += torch.from_numpy(np.bincount(events[events < data.items], minlength=data.items))
    scores = {
        "model": (tower(histories)[0][:, FEED] @ items.T).amax(dim=1),
        "history mean": mean @ items.T,
        "popularity": popular.expand(len(rows), -1),
    }
    return {f"recall@{k} {name}": recall(score, test, k) for name, score in scores.items() for k in (10, 50)}


@torch.inference_mode()
def burst(tower: UserTower, data: Behaviour, vectors: Tensor, codes: Tensor, test: Heldout) -> dict[str, float]:
    """What eight searches in a category that the user never met change in the feed's top 10: the category's share of it
    before and after, and how much of the list stays."""
    items = vectors[: data.items]
    categories = np.array(data.categories)
    rng = np.random.default_rng(0)
    _, before = history(data, codes, test.cuts, test.users, HISTORY)
    clicked = np.stack([_foreign(items, categories, met, rng) for met in test.met])
    after = append(before, codes[torch.from_numpy(clicked)])
    lists = [top(tower(histories)[0][:, FEED], items, 10).numpy() for histories in (before, after)]
    wanted = categories[clicked[:, 0]][:, None]
    stays = [len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)]
    shares = [float((categories[best] == wanted).mean()) for best in lists]
    return {"burst, before": shares[0], "burst, after": shares[1], "burst, list kept": float(np.mean(stays))}


def append(histories: Histories, codes: Tensor) -> Histories:
    """`histories` with a burst in search on the items of `codes` [B, N, code_bytes] an hour behind them; every fourth
    event is a query, the others are clicks."""
    B, N = codes.shape[:2]
    newest = histories.time.masked_fill(~histories.valid, 0).amax(dim=1, keepdim=True)
    action = torch.full((B, N), ACTIONS.index("click"))
    action[:, ::4] = ACTIONS.index("search")
    return Histories(
        codes=torch.cat([histories.codes, codes], dim=1),
        time=torch.cat([histories.time, newest + 3_600_000 + BURST_GAP_MS * torch.arange(N)], dim=1),
        scenario=torch.cat([histories.scenario, torch.full((B, N), SEARCH)], dim=1),
        action=torch.cat([histories.action, action], dim=1),
        valid=torch.cat([histories.valid, torch.ones(B, N, dtype=torch.bool)], dim=1),
    )


def _foreign(items: Tensor, categories: NDArray[np.str_], met: set[int], rng: np.random.Generator) -> Ints:
    """An item of a category not met (or any), and its seven nearest."""
    known = {categories[item] for item in met if item < len(items)}
    strange = np.flatnonzero(~np.isin(categories, list(known)))
    anchor = rng.choice(strange if len(strange) else len(items))
    nearest: Ints = (items @ items[anchor]).topk(8).indices.numpy()
    return nearest
