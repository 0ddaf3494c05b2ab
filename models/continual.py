"""Continual training: a checkpoint learns from fresh events, and is kept only if it is no worse for it."""

import shutil
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from accelerate.utils import broadcast_object_list
from torch import Tensor

from models import benchmark, checkpoint, evaluate, splits
from models.config import Training
from models.contract import ITEM_ENCODER, USER_INTERESTS
from models.dataset import Behaviour, Ints
from models.errors import BadInput
from models.evaluate import Towers
from models.objective import Objective
from models.train import FEATURES, METRICS, STATE, WATCHED, processes, train

SPLIT: Final = "newest-hours"
MARK = "unfinished"  # a file in a folder that was new or empty when a run began in it, and so holds nothing else
# What such a run leaves; the mark is last.
LEFT = (
    *(STATE, f"{STATE}.writing", METRICS, f"{METRICS}.writing", FEATURES),
    *(checkpoint.WRITING, ITEM_ENCODER, USER_INTERESTS, checkpoint.CATALOGUE, MARK),
)
# What can be changed: how a user tower learns, not what it is.
LEARNING = (
    *("length", "questions", "cuts", "window", "draws", "share_window", "share_weights", "code_epochs", "patience"),
    *("tokens", "accumulate", "rate", "warmup", "decay", "clip", "precision", "threads", "seed"),
)


class _Worse(BadInput):
    """The verdict on what has been learnt; every other refusal comes before anything is."""


def train_on(folder: Path, out: Path, config: Training, start: Path) -> dict[str, float]:
    """Go on from the checkpoint `start` with the events in `folder`, and compare both on the newest hour of them, which
    was neither trained nor validated on. Raises `BadInput`, and leaves no `out`, where the new one is worse there. A
    run that was cut short goes on."""
    checkpoint.refuse_finished(out)
    config = _judged(config, checkpoint.config(start))
    unfinished, existed = (out / MARK).exists(), out.exists()
    if existed and not unfinished and any(out.iterdir()):
        raise BadInput(f"{out} is not empty: give another --out")
    everyone = processes()
    everyone.wait_for_everyone()
    if everyone.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()

    def discard() -> None:
        if everyone.is_main_process:
            _discard(out, folder_too=unfinished or not existed)

    def no_worse(objective: Objective, data: Behaviour) -> dict[str, float]:
        questions = splits.newest_hours(data).test
        towers, codes = benchmark.opened(start, data, config, out / FEATURES)
        device = objective.codes.device
        towers = replace(towers, users=towers.users.to(device), vectors=towers.vectors.to(device))
        old = _answered(towers, data, questions, codes, config.length)
        new = _answered(evaluate.of(objective, data), data, questions, objective.codes.cpu(), config.length)
        old, new = broadcast_object_list([old, new])
        if new < old:
            raise _Worse(
                f"{WATCHED} on the {len(questions):,} questions of the newest hour of {folder} would fall from "
                f"{old:.4f} to {new:.4f}: nothing was kept; keep serving {start}, or train anew on more events"
            )
        newest = {f"{WATCHED}, newest hour, before": old, f"{WATCHED}, newest hour": new}
        return newest | {"questions of the newest hour": len(questions)}

    try:
        figures = train(folder, out, config, start, no_worse)
    except _Worse:
        discard()
        everyone.wait_for_everyone()
        raise
    except BadInput:
        if not unfinished:
            discard()
        raise
    (out / MARK).unlink(missing_ok=True)
    return figures


def _judged(config: Training, old: Training) -> Training:
    """`config` with the split that decides. Raises `BadInput` where it asks for what going on cannot change."""
    if config.split not in (old.split, SPLIT):
        raise BadInput(f"split={config.split}: a checkpoint that goes on learning is judged by the newest hour")
    config, old = replace(config, split=SPLIT), replace(old, split=SPLIT)
    for name in (field.name for field in fields(Training) if field.name not in LEARNING):
        if (value := getattr(config, name)) != (kept := getattr(old, name)):
            raise BadInput(
                f"{name}={value}: a checkpoint that goes on learning keeps its {name}={kept}; leave that, or a "
                "--preset, out, or train anew without --resume"
            )
    return config


def _answered(towers: Towers, data: Behaviour, questions: Ints, codes: Tensor, length: int) -> float:
    return evaluate.watched(towers, data, questions, codes, length)[WATCHED]


def _discard(out: Path, folder_too: bool) -> None:
    for path in (out / name for name in LEFT):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if folder_too:
        with suppress(OSError):  # something else was put there, or it is mounted
            out.rmdir()
