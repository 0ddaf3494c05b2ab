"""Continual training: a checkpoint learns from fresh events, and is kept only if it is no worse for it."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

from accelerate import PartialState
from torch import Tensor

from models import benchmark, checkpoint, evaluate, splits
from models.config import Training
from models.dataset import Behaviour
from models.errors import BadInput
from models.evaluate import Towers
from models.objective import Objective
from models.train import FEATURES, METRICS, STATE, WATCHED, train

# What a run leaves that was cut short.
UNFINISHED = (FEATURES, METRICS, STATE, f"{METRICS}.writing", f"{STATE}.writing")
# What can be changed: how a user tower learns, not what it is.
LEARNING = (
    *("length", "questions", "cuts", "window", "draws", "share_window", "share_weights", "code_epochs", "patience"),
    *("tokens", "accumulate", "rate", "warmup", "decay", "clip", "precision", "threads", "seed"),
)


def train_on(folder: Path, out: Path, config: Training, start: Path) -> dict[str, float]:
    """Go on from the checkpoint `start` with the events in `folder`, and compare both on the newest hour of them, which
    was neither trained nor validated on. Raises `BadInput`, and leaves no `out`, where the new one is worse there."""
    checkpoint.refuse_finished(out)
    _refuse_without_effect(config, checkpoint.config(start))
    before, unfinished = _names(out), (out / STATE).exists()
    if before - set(UNFINISHED) and not unfinished:
        raise BadInput(f"{out} is not empty: give another --out")
    config = replace(config, split="newest-hours")

    def no_worse(objective: Objective, data: Behaviour) -> dict[str, float]:
        old, new = (
            _answered(*towers, data, config)
            for towers in (
                benchmark.opened(start, data, config, out / FEATURES),
                (evaluate.of(objective, data), objective.codes.cpu()),
            )
        )
        count = len(splits.newest_hours(data).test)
        PartialState().wait_for_everyone()
        if new < old:
            _discard(out, set())
            raise BadInput(
                f"{WATCHED} on the {count:,} questions of the newest hour of {folder} would fall from {old:.4f} to "
                f"{new:.4f}: nothing was kept; keep serving {start}, or train anew on more events"
            )
        return {
            f"{WATCHED}, newest hour, before": old,
            f"{WATCHED}, newest hour": new,
            "questions of the newest hour": count,
        }

    try:
        return train(folder, out, config, start, no_worse)
    except BadInput:
        if not unfinished:
            _discard(out, before)
        raise


def _refuse_without_effect(config: Training, old: Training) -> None:
    for name in (field.name for field in fields(Training) if field.name not in LEARNING):
        if (value := getattr(config, name)) != (kept := getattr(old, name)):
            raise BadInput(
                f"{name}={value}: a checkpoint that goes on learning keeps its {name}={kept}; leave that out, or train "
                "anew without --resume"
            )


def _answered(towers: Towers, codes: Tensor, data: Behaviour, config: Training) -> float:
    questions = splits.newest_hours(data).test
    return evaluate.watched(towers, data, questions, codes, config.length)[WATCHED]


def _names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} if out.is_dir() else set()


def _discard(out: Path, keep: set[str]) -> None:
    """Removes what an unfinished run has left in `out`, and `out` where nothing else is in it."""
    if not PartialState().is_main_process or not out.is_dir():
        return
    for name in set(UNFINISHED) - keep:
        if name == FEATURES:
            shutil.rmtree(out / name, ignore_errors=True)
        else:
            (out / name).unlink(missing_ok=True)
    if not keep and not any(out.iterdir()):
        out.rmdir()
