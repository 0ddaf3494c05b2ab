"""Training events as batches: what a user did, what came next behind every event, and what came after some cuts."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import SCENARIOS
from models.dataset import Behaviour, Ints
from models.events import Histories

AHEAD = 48  # events behind a cut that its window is taken from
SORTED = 32  # batches whose sequences are sorted by length together, so that a batch holds like lengths
NONE = -1


@dataclass(frozen=True)
class Sequences:
    """B stretches of L events at most, padded at the end; items are indices of texts, `NONE` where there is none."""

    rows: Tensor  # int64 [B, L]; anything where not valid
    histories: Histories  # without codes
    target: Tensor  # int64 [B, L + 1]: the next wanted item behind the first 0..L events
    target_scenario: Tensor  # int64 [B, L + 1]
    cuts: Tensor  # int64 [B, G]: events before each cut, at least 1
    window: Tensor  # int64 [B, G, scenario, W]: the next W wanted items (RED-Rec's window) of every scenario

    def to(self, device: torch.device | str) -> "Sequences":
        return Sequences(*(getattr(self, field.name).to(device) for field in fields(self)))

    def shard(self, number: int, count: int) -> "Sequences":
        """Every `count`-th stretch from `number` on: the part of one of `count` processes."""
        rows = slice(number, None, count)
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        histories = parts.pop("histories")
        cut = Histories(*(getattr(histories, field.name)[rows] for field in fields(Histories)))
        return Sequences(histories=cut, **{name: part[rows] for name, part in parts.items()})

    def __len__(self) -> int:
        return len(self.rows)


class Sampler:
    """Draws epochs of `Sequences`: of every user who has two training events, one stretch of at most `length`."""

    def __init__(self, data: Behaviour, training: NDArray[np.bool_], length: int, cuts: int, window: int) -> None:
        self.data, self.length, self.cuts, self.window = data, length, cuts, window
        owner = data.owner(np.arange(len(data.text)))
        self.end = data.first[:-1] + np.bincount(owner[training], minlength=data.users)
        self.users = np.flatnonzero(self.end - data.first[:-1] >= 2)
        self.next = next_wanted(data, training)

    def epoch(self, tokens: int, rng: np.random.Generator) -> list[Ints]:
        """Batches of users, of about `tokens` events each, in random order; the same on every process."""
        users = rng.permutation(self.users)
        lengths = np.minimum(self.end[users] - self.data.first[users], self.length)
        per_block = max(1, int(SORTED * tokens / lengths.mean()))
        batches: list[Ints] = []
        for start in range(0, len(users), per_block):
            block = slice(start, start + per_block)
            order = np.argsort(lengths[block], kind="stable")
            filled = lengths[block][order].cumsum() // tokens
            batches += np.split(users[block][order], np.flatnonzero(np.diff(filled)) + 1)
        return [batches[place] for place in rng.permutation(len(batches))]

    def draw(self, users: Ints, rng: np.random.Generator) -> Sequences:
        """One stretch of each user, ending where training ends or, of a longer past, anywhere in it half the time."""
        first, end = self.data.first[users], self.end[users].copy()
        room = np.maximum(end - first - self.length, 0)
        end -= np.where(rng.random(len(users)) < 0.5, 0, (rng.random(len(users)) * (room + 1)).astype(np.int64))
        start = np.maximum(first, end - self.length)
        known = end - start  # at least 2
        index = np.add.outer(start, np.arange(known.max()))
        valid = np.less(index, end[:, None])
        index = np.where(valid, index, start[:, None])
        target = self.next[np.concatenate([index[:, :1], index + 1], axis=1)]
        target[:, 1:][~valid | (index + 1 >= self.end[users][:, None])] = NONE  # the next event is another user's
        cuts = 1 + np.floor(rng.random((len(users), self.cuts)) * (known - 1)[:, None]).astype(np.int64)
        cuts[:, 0] = known - 1
        rows = torch.from_numpy(self.data.text[index])
        return Sequences(
            rows=rows,
            histories=self._histories(index, valid),
            target=torch.from_numpy(np.where(target == NONE, NONE, self.data.text[target])),
            target_scenario=torch.from_numpy(np.where(target == NONE, 0, self.data.scenario[target])),
            cuts=torch.from_numpy(cuts),
            window=torch.from_numpy(self._windows(start[:, None] + cuts, self.end[users][:, None])),
        )

    def _histories(self, index: Ints, valid: NDArray[np.bool_]) -> Histories:
        """Without codes: what the events are about is in `rows`."""
        data, codes = self.data, torch.zeros(*index.shape, 0, dtype=torch.uint8)
        time, scenario, action = (torch.from_numpy(column[index]) for column in (data.time, data.scenario, data.action))
        return Histories(codes, time, scenario, action, torch.from_numpy(valid))

    def _windows(self, cut: Ints, end: Ints) -> Ints:
        """[..., scenario, W] of cuts [...]: items of the next W wanted events in each scenario, nearest first."""
        index = cut[..., None] + np.arange(AHEAD)
        inside = index < end[..., None]
        index = np.where(inside, index, 0)
        wanted = inside & self.data.wanted[index]
        windows = np.full((*cut.shape, len(SCENARIOS), self.window), NONE)
        for code in range(len(SCENARIOS)):
            mine = wanted & (self.data.scenario[index] == code)
            place = mine.cumsum(axis=-1) - 1
            where = np.nonzero(mine & (place < self.window))
            windows[(*where[:-1], code, place[where])] = self.data.text[index[where]]
        return windows


def next_wanted(data: Behaviour, training: NDArray[np.bool_]) -> Ints:
    """[events + 1]: the first wanted training event at or behind each event, of the same user; NONE where none is."""
    events = len(data.text)
    place = np.where(data.wanted & training, np.arange(events), events)
    place = np.minimum.accumulate(place[::-1])[::-1]
    last = data.first[1:][data.owner(np.arange(events))]
    return np.append(np.where(place < last, place, NONE), NONE)
