"""AdamW with warm-up and a cosine schedule (RED-Rec, PAPERS "training")."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

CLIP = 1.0


def optimiser(parameters: Iterable[nn.Parameter], rate: float, decay: float) -> torch.optim.AdamW:
    """Matrices decay; biases, norms and temperatures do not."""
    known = list(parameters)
    matrices: dict[str, Any] = {"params": [p for p in known if p.dim() > 1]}
    others: dict[str, Any] = {"params": [p for p in known if p.dim() <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, others], lr=rate, weight_decay=decay)


def schedule(adam: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """From 0 up to the rate in the first `warmup` share of `steps`, then down to 0 along a cosine. Where that share is
    less than a step there is no warm-up, or a single step would learn nothing."""
    warmup = warmup if warmup * steps >= 1 else 0.0

    def at(step: int) -> float:
        done = min(step / max(steps, 1), 1.0)
        if done < warmup:
            return done / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))

    return torch.optim.lr_scheduler.LambdaLR(adam, at)


def updates(name: str, modules: list[nn.Module], steps: int, rate: float = 2e-3) -> Iterator[Callable[[Tensor], None]]:
    """One function per step that takes the step's loss, with a progress bar."""
    parameters = [parameter for module in modules for parameter in module.train().parameters()]
    adam = optimiser(parameters, rate, decay=0.01)
    rates = schedule(adam, steps, warmup=0.1)
    losses: list[float] = []

    def update(loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        adam.step()
        rates.step()
        losses.append(loss.item())

    with Progress() as progress:
        task = progress.add_task(name, total=steps)
        for _ in range(steps):
            yield update
            progress.update(task, advance=1, description=f"{name}, loss {np.mean(losses[-50:]):.3f}")
