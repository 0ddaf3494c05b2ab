"""Continual training: a checkpoint learns from fresh events, and is kept only if it is no worse for it."""

import shutil
from dataclasses import replace
from pathlib import Path

from models import benchmark, checkpoint, dataset, evaluate, splits
from models.config import Training
from models.dataset import Behaviour
from models.errors import BadInput
from models.train import FEATURES, WATCHED, train


def train_on(folder: Path, out: Path, config: Training, start: Path) -> dict[str, float]:
    """Go on from the checkpoint `start` with the events in `folder`, and compare both on the newest hour of them, which
    was neither trained nor validated on. Raises `BadInput`, and leaves no `out`, where the new one is worse there."""
    checkpoint.refuse_finished(out)
    config, trial = replace(config, split="newest-hours"), out.with_name(f"{out.name}.trial")
    shutil.rmtree(trial, ignore_errors=True)
    figures = train(folder, trial, config, start)
    data = dataset.read(folder)
    before, after = (_newest_hour(path, data, config, trial / FEATURES) for path in (start, trial))
    if after < before:
        shutil.rmtree(trial)
        raise BadInput(
            f"{WATCHED} on the newest hour of {folder} would fall from {before:.4f} to {after:.4f}: nothing was kept; "
            f"keep serving {start}, or train anew on more events"
        )
    trial.replace(out)
    return figures | {f"{WATCHED}, newest hour, before": before, f"{WATCHED}, newest hour": after}


def _newest_hour(trained: Path, data: Behaviour, config: Training, cache: Path) -> float:
    towers, codes = benchmark.opened(trained, data, config, cache)
    questions = splits.newest_hours(data).test
    return evaluate.watched(towers, data, questions, codes, config.length)[WATCHED]
