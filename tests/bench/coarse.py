"""What coarse interests of a while ago (`stream.coarse`) cost in quality and save in time, by the length of histories.

    python -m tests.bench.coarse --data DIR --checkpoint DIR [--part valid]

The coarse interests are those of the history without its newest events, as many as the worst case allows: a share of
the history, and no more than so many. Figures are of the checkpoint's own split, read through codes, by the maximum
over interests, as in `facetstream evaluate`; milliseconds are of one core a user, medians of rounds, 64 users at once.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import benchmark, checkpoint, dataset, evaluate, ranking, splits
from models.dataset import Behaviour, Ints
from models.evaluate import Towers
from models.events import Histories
from models.train import FEATURES
from models.user_tower import UserTower

LENGTHS = ((0, 50), (50, 200), (200, 1_024))  # events of a history: more than, at most
POLICIES = ((0.0, 0), (1 / 64, 16), (1 / 32, 16), (1 / 16, 16), (1 / 4, 64), (1.0, 1_024))  # share, events
TIMED = (32, 128, 512, 1_024)  # events
USERS, ROUNDS = 64, 7


@dataclass(frozen=True)
class Stale:
    """A recommender whose light branch has not seen the newest events."""

    towers: Towers
    share: float
    most: int

    @property
    def items(self) -> Tensor:
        return self.towers.items

    @torch.inference_mode()
    def answer(self, rows: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:
        tower = self.towers.users
        items = tower.codebook.decode(histories.codes)
        count = histories.valid.sum(dim=1, keepdim=True)
        missed = (count * self.share).long().clamp_max(self.most)
        seen = histories.valid & (histories.valid.cumsum(dim=1) <= count - missed)
        known = tower.answer(items, replace(histories, valid=seen), tower.unknown(len(items))).coarse
        return tower.answer(items, histories, known)[:2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.coarse")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--part", choices=["valid", "test"], default="test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config, data = checkpoint.config(args.checkpoint), dataset.read(args.data)
    towers, codes = benchmark.opened(args.checkpoint, data, config, args.checkpoint / FEATURES)
    questions = getattr(splits.SPLITS[config.split](data), args.part)
    before = questions - data.first[data.owner(questions)]
    print(
        "| history | questions | newest events missed | HR@10 | NDCG@10 | Recall@100 |",
        "| --- |" + " --: |" * 5,
        sep="\n",
    )
    for low, high in LENGTHS:
        asked = questions[(before > low) & (before <= high)]
        for share, most in POLICIES if len(asked) else ():
            figures = _figures(Stale(towers, share, most), data, asked, codes)
            print(f"| {low + 1} to {high} | {len(asked)} | {share:.3f}, at most {most} | {figures} |", flush=True)
    print("", "| events | ms a user | coarse interests known |", "| --: | --: | --: |", sep="\n")
    for length in TIMED:
        fresh, known = _milliseconds(towers.users, length)
        print(f"| {length} | {fresh:.2f} | {known:.2f} |", flush=True)


def _figures(recommender: Stale, data: Behaviour, questions: Ints, codes: Tensor) -> str:
    interests, weights = evaluate.together(recommender, data, questions, codes, benchmark.HISTORY)
    target, seen = torch.from_numpy(data.text[questions]), splits.seen(data, questions)
    ranks = ranking.ranks(interests, weights, recommender.items, target, seen).numpy()
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)
    return " | ".join(f"{value.mean():.4f}" for value in (ranks <= 10, gains, ranks <= 100))


@torch.inference_mode()
def _milliseconds(tower: UserTower, events: int) -> tuple[float, float]:
    """Without and with known coarse interests."""
    draw = torch.Generator().manual_seed(0)
    shape = (USERS, events)
    histories = Histories(
        codes=torch.randint(0, 256, (*shape, tower.codebook.config.code_bytes), generator=draw, dtype=torch.uint8),
        time=1_700_000_000_000 + (torch.arange(events) * 3_600_000).expand(shape),
        scenario=torch.randint(0, 3, shape, generator=draw),
        action=torch.zeros(shape, dtype=torch.int64),
        valid=torch.ones(shape, dtype=torch.bool),
    )
    unknown = tower.unknown(USERS)
    known = tower.answer(tower.codebook.decode(histories.codes), histories, unknown).coarse

    def clock(coarse: Tensor) -> float:
        began = time.process_time()
        tower.answer(tower.codebook.decode(histories.codes), histories, coarse)
        return (time.process_time() - began) * 1000 / USERS

    rounds = [(clock(unknown), clock(known)) for _ in range(ROUNDS)]
    fresh, spared = zip(*rounds, strict=True)
    return statistics.median(fresh), statistics.median(spared)


if __name__ == "__main__":
    main()
