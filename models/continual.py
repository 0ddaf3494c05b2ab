"""Continual training: a checkpoint learns from fresh events, and is kept only if it is no worse for it."""

import shutil
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from models import benchmark, checkpoint, dataset, evaluate, splits
from models.config import Training
from models.dataset import Behaviour, Ints
from models.errors import BadInput
from models.train import FEATURES, WATCHED, train


def train_on(folder: Path, out: Path, config: Training, start: Path) -> dict[str, float]:
    """Go on from the checkpoint `start` with the events in `folder`, and compare both on the newest hour of them, which
    was neither trained nor validated on. Raises `BadInput`, and leaves no `out`, where the new one is worse there."""
    checkpoint.refuse_finished(out)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty: give another --out")
    processes, out = PartialState(), out.resolve()
    config, trial = replace(config, split="newest-hours"), out.with_name(f"{out.name}.trial")
    if processes.is_main_process:
        shutil.rmtree(trial, ignore_errors=True)  # of a run that was killed
    processes.wait_for_everyone()
    try:
        figures = train(folder, trial, config, start)
        data = dataset.read(folder)
        questions = splits.newest_hours(data).test
        before, after = (_answered(questions, path, data, config, trial / FEATURES) for path in (start, trial))
        processes.wait_for_everyone()
        if after < before:
            raise BadInput(
                f"{WATCHED} on the {len(questions):,} questions of the newest hour of {folder} would fall from "
                f"{before:.4f} to {after:.4f}: nothing was kept; keep serving {start}, or train anew on more events"
            )
        if processes.is_main_process:
            trial.replace(out)
    finally:
        if processes.is_main_process:
            shutil.rmtree(trial, ignore_errors=True)
    newest = {f"{WATCHED}, newest hour, before": before, f"{WATCHED}, newest hour": after}
    return figures | newest | {"questions of the newest hour": len(questions)}


def _answered(questions: Ints, trained: Path, data: Behaviour, config: Training, cache: Path) -> float:
    towers, codes = benchmark.opened(trained, data, config, cache)
    return evaluate.watched(towers, data, questions, codes, config.length)[WATCHED]
