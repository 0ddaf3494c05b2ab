"""`facetstream train`: a dataset folder becomes a checkpoint."""

import os
from contextlib import nullcontext
from pathlib import Path

import click

from models.commands import Command
from models.config import PRESETS, configured

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("train", cls=Command)
@click.option("--data", type=FOLDER, required=True, help="events.parquet and, where there are texts, items.parquet.")
@click.option("--out", type=FOLDER, required=True, help="For the checkpoint; of an unfinished run, to go on with it.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="One choice of models/config.py.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--resume", type=FOLDER, help="A finished checkpoint that goes on learning, from fresh events.")
def command(data: Path, out: Path, preset: str, settings: tuple[str, ...], seed: int, resume: Path | None) -> None:
    """Train both towers and the codebook on a dataset.

    A run that was cut short goes on when the same command is given again. On several GPUs or processes:
    torchrun --nproc-per-node N $(which facetstream) train ...

    With --resume the settings are those of the old checkpoint where none are given, the item vectors and the codebook
    stay what they are, so that all that is stored can still be read, and the new checkpoint is kept only if it answers
    the newest hour of --data no worse than the old one.
    """
    if not resume:
        config = configured(preset, settings, seed=seed)  # refused before torch is loaded
    from models import checkpoint, continual, train
    from models.files import held

    if resume:
        config = configured(preset, settings, checkpoint.config(resume), seed=seed)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun has started
    with held(out.resolve()) if first else nullcontext():
        figures = continual.train_on(data, out, config, resume) if resume else train.train(data, out, config)
    if first:
        click.echo(f"{out}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
