"""Trains both towers and the codebook on a dataset folder and puts them into a Triton model repository.

    python -m models.train --data DIR --out triton_repo

1. The item tower: items and queries that one user met close together attract each other (InfoNCE).
2. The codebook, on the item tower's vectors; from here on they are frozen and stored as codes (HyMiRec).
3. The user tower: from a decoded history before a random cut to the vectors of what followed (RED-Rec's window of W
   future items, here of every scenario; the targets are the items' own vectors).
4. Figures on users held out of steps 1 and 3; then the weights are written aside and renamed.

Both papers train end to end with a large LLM; here, for minutes on two cores, in steps with small ones.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from transformers.utils import logging

from models import dataset, evaluate, repository
from models.codebook import CodebookConfig, ResidualCodebook
from models.contract import DIM
from models.dataset import Behaviour, Ints
from models.item_tower import ItemTower, ItemTowerConfig
from models.loss import InfoNCE, interest_loss, near_duplicates, nearest_query
from models.text_encoder import TextEncoder
from models.tiny import llama, llama_config, train_tokenizer
from models.user_tower import UserTower, UserTowerConfig

NEIGHBOURS = 3  # events: how far apart the two texts of a pair may be
HISTORY = 128  # events of a training history
WINDOW = 10  # W, future items of a scenario
NEGATIVES = 512
WARMUP = 0.1  # share of the steps
CLIP = 1.0
ENCODE_ROWS = 512
CODEBOOK_ROWS = 8_192  # vectors the codebook is fitted on, at most


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    try:
        data = dataset.read(args.data)
        repository.check(args.out)
        book = CodebookConfig(DIM, args.levels, args.codewords, args.scale_bits, args.codebook_version, args.seed)
        if data.users < 20 or len(data.texts) < book.codewords:
            raise ValueError(f"{args.data} has too little: 20 users and {book.codewords} items and queries are needed")
    except ValueError as error:
        sys.exit(f"python -m models.train: {error}")
    shuffled = rng.permutation(data.users)
    held, train = np.sort(shuffled[: data.users // 10]), np.sort(shuffled[data.users // 10 :])
    print(f"{data.items} items, {len(data.texts) - data.items} queries, {data.users} users, {len(data.text)} events")

    items = train_item_tower(data, train, args.item_steps, rng)
    vectors = encode(items, data.texts)
    sample = torch.from_numpy(rng.permutation(len(vectors))[:CODEBOOK_ROWS])
    codebook = ResidualCodebook.fit(vectors[sample], book)
    codes = codebook.encode(vectors)

    llm = llama_config(vocabulary=1, hidden=64, layers=2).to_dict()
    users = UserTower(UserTowerConfig(llm, DIM, args.interests, codebook=asdict(book)))
    users.codebook.load_state_dict(codebook.state_dict())
    train_user_tower(users, data, train, vectors, codes, args.user_steps, rng)
    test = evaluate.heldout(data, held)
    figures = {"codebook, mean cosine": float(codebook.fidelity(vectors).mean())}
    if len(test.users):
        figures |= evaluate.recalls(users, data, vectors, codes, test, train)
        figures |= evaluate.burst(users, data, vectors, codes, test)
    print(f"on {len(test.users)} users held out:")
    print(*(f"  {name:24}{value:.4f}" for name, value in figures.items()), sep="\n")
    users.config = replace(users.config, training={"seed": args.seed, "command": _command(argv), "figures": figures})
    repository.write(args.out, items, codebook, users)


def train_item_tower(data: Behaviour, users: Ints, steps: int, rng: np.random.Generator, batch: int = 192) -> ItemTower:
    """Step 1, on pairs of neighbouring events of `users`; a text is no negative of itself."""
    tokenizer = train_tokenizer(data.texts)
    texts = TextEncoder(llama(len(tokenizer), hidden=64, layers=2), tokenizer)
    tower = ItemTower(texts, ItemTowerConfig())
    ids, mask = texts.tokenize(data.texts)
    cold = torch.full((2 * batch,), -1)
    lefts, rights = pairs(data, users)
    loss = InfoNCE()
    for update in updates("item tower", [tower, loss], steps):
        rows = rng.integers(len(lefts), size=batch)
        left, right = torch.from_numpy(lefts[rows]), torch.from_numpy(rights[rows])
        both = torch.cat([left, right])
        width = int(mask[both].sum(dim=1).max())
        a, b = tower.vectors(texts.encode(ids[both, :width], mask[both, :width]), cold).chunk(2)
        update(loss(a[:, None], b, b, right[:, None] == right).mean())
    return tower.eval()


def pairs(data: Behaviour, users: Ints) -> tuple[Ints, Ints]:
    """The texts of all pairs of different events of one user in one scenario, at most NEIGHBOURS apart."""
    owner = np.repeat(np.arange(data.users), np.diff(data.first))
    found = []
    for apart in range(1, NEIGHBOURS + 1):
        near = (owner[apart:] == owner[:-apart]) & (data.scenario[apart:] == data.scenario[:-apart])
        near &= np.isin(owner[apart:], users) & data.liked[apart:] & data.liked[:-apart]
        near &= data.text[apart:] != data.text[:-apart]
        found.append(np.stack([data.text[:-apart][near], data.text[apart:][near]]))
    lefts, rights = np.concatenate(found, axis=1)
    return lefts, rights


@torch.inference_mode()
def encode(tower: ItemTower, texts: list[str]) -> Tensor:
    """The vectors [N, dim] of all `texts`."""
    return torch.cat([tower(texts[start : start + ENCODE_ROWS]) for start in range(0, len(texts), ENCODE_ROWS)])


def train_user_tower(
    tower: UserTower,
    data: Behaviour,
    users: Ints,
    vectors: Tensor,
    codes: Tensor,
    steps: int,
    rng: np.random.Generator,
    batch: int = 96,
) -> None:
    """Step 3, on random cuts of the events of `users`."""
    loss = InfoNCE()
    vectors, codes = vectors.clone(), codes.clone()  # out of inference mode
    owner = np.repeat(np.arange(data.users), np.diff(data.first))
    candidates = np.flatnonzero(np.isin(owner, users))
    for update in updates("user tower", [tower, loss], steps):
        cuts = rng.choice(candidates, size=batch)
        seen = dataset.examples(data, codes, cuts, owner[cuts], HISTORY, WINDOW)
        interests, weights = tower.interests(tower.codebook.decode(seen.histories.codes), seen.histories)
        user, place = seen.present.nonzero(as_tuple=True)
        scenario = seen.target_scenario[user, place]
        targets = vectors[seen.targets[user, place]]
        negatives = vectors[torch.from_numpy(rng.integers(len(vectors), size=NEGATIVES))]
        queries = interests[user, scenario]
        losses = loss(queries, targets, negatives, near_duplicates(targets, negatives))
        similarity = (queries @ targets[..., None])[..., 0]
        update(interest_loss(losses, weights[user, scenario], nearest_query(similarity, scenario)))
    tower.eval()


def updates(name: str, modules: list[nn.Module], steps: int, rate: float = 2e-3) -> Iterator[Callable[[Tensor], None]]:
    """One function per step that takes the step's loss; AdamW, warm-up and cosine schedule, clipped (RED-Rec)."""
    parameters = [parameter for module in modules for parameter in module.train().parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _schedule(step / steps))
    losses: list[float] = []

    def update(loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())

    with Progress() as progress:
        task = progress.add_task(name, total=steps)
        for _ in range(steps):
            yield update
            progress.update(task, advance=1, description=f"{name}, loss {np.mean(losses[-50:]):.3f}")


def _schedule(progress: float) -> float:
    return progress / WARMUP if progress < WARMUP else 0.5 + 0.5 * math.cos(math.pi * progress)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.train", description="Train and put into a model repository."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with events.parquet and items.parquet")
    parser.add_argument("--out", type=Path, required=True, help="a Triton model repository with our two models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more only help on cores that nothing else uses")
    parser.add_argument("--item-steps", type=int, default=300)
    parser.add_argument("--user-steps", type=int, default=1_500)
    parser.add_argument("--interests", type=int, default=4, help="K, per scenario")
    parser.add_argument("--levels", type=int, default=3, help="of the codebook")
    parser.add_argument("--codewords", type=int, default=256, help="per level, a power of two")
    parser.add_argument("--scale-bits", type=int, default=0, help="stored per level")
    parser.add_argument("--codebook-version", type=int, default=1)
    return parser.parse_args(argv)


def _command(argv: list[str] | None) -> str:
    return shlex.join(["python", "-m", "models.train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()
