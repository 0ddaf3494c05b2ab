"""What training left behind, and how to cut it short."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from models import checkpoint, train


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = ("item_encoder/item_tower", "item_encoder/codebook", "user_interests/user_tower")
    return {f"{f} {name}": t for f in files for name, t in load_file(out / f"{f}.safetensors").items()}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / train.METRICS).read_text().splitlines()]


def must_be_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (one / train.METRICS).read_text() == (other / train.METRICS).read_text()
    assert (one / checkpoint.TRAINING).read_text() == (other / checkpoint.TRAINING).read_text()


class Killed(BaseException):
    pass


def killed(run: train.Run) -> None:
    raise Killed
