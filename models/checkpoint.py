"""What training leaves: a folder with both towers, the codebook and the catalogue.

item_encoder/     the item tower and the codebook
user_interests/   the user tower
catalogue.parquet item_id, embedding, codes, fidelity of every item, for bulk loading
training.json     config and figures; written last, so that a folder that has it is whole
metrics.jsonl     a line for every epoch
"""

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from torch import Tensor

from models import repository
from models.config import Training
from models.contract import ITEM_ENCODER, USER_INTERESTS
from models.dataset import Behaviour
from models.errors import BadInput
from models.item_tower import ItemTower
from models.user_tower import UserTower

TRAINING = "training.json"
CATALOGUE = "catalogue.parquet"
WRITING = "writing"
CATALOGUE_ROWS = 65_536  # written at once


@dataclass(frozen=True)
class Checkpoint:
    items: ItemTower
    users: UserTower


def refuse_finished(out: Path) -> None:
    """Raises `BadInput` where `out` holds a finished checkpoint or something that is no folder."""
    if (out / TRAINING).exists():
        raise BadInput(f"{out} holds a finished checkpoint, which is never overwritten: give another --out")
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is no folder: give another --out")


def save(out: Path, towers: Checkpoint, data: Behaviour, vectors: Tensor, codes: Tensor) -> None:
    """Writes the checkpoint into `out`, aside and renamed; `vectors` and `codes` are those of the texts of `data`."""
    aside = out / WRITING
    shutil.rmtree(aside, ignore_errors=True)
    for folder in (ITEM_ENCODER, USER_INTERESTS):
        (aside / folder).mkdir(parents=True)
    towers.items.save(aside / ITEM_ENCODER)
    towers.users.codebook.save(aside / ITEM_ENCODER)
    towers.users.save(aside / USER_INTERESTS)
    _write_catalogue(aside / CATALOGUE, data, vectors[: data.items].cpu(), codes[: data.items].cpu(), towers.users)
    (aside / TRAINING).write_text(json.dumps(towers.users.config.training, indent=2) + "\n")
    for name in (ITEM_ENCODER, USER_INTERESTS, CATALOGUE, TRAINING):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        (aside / name).replace(out / name)
    aside.rmdir()


def load(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`. Raises `BadInput` where there is none, or one of another version."""
    _refuse_unfinished(folder)
    towers = repository.load(folder / ITEM_ENCODER, folder / USER_INTERESTS)
    return Checkpoint(towers.items, towers.users)


def training(folder: Path) -> dict[str, Any]:
    """What training said of the checkpoint in `folder`: `config` and `figures`."""
    _refuse_unfinished(folder)
    try:
        said: dict[str, Any] = json.loads((folder / TRAINING).read_text())
    except ValueError as error:
        raise BadInput(f"{folder / TRAINING} is damaged: restore it, or train anew") from error
    return said


def config(folder: Path) -> Training:
    """The settings that the checkpoint in `folder` was trained with. Raises `BadInput` for those of another version."""
    stored = training(folder)["config"]
    if odd := stored.keys() ^ {field.name for field in fields(Training)}:
        raise BadInput(f"{folder} is a checkpoint of another version of Facetstream ({min(odd)}): train it anew")
    return Training(**stored)


def _refuse_unfinished(folder: Path) -> None:
    if not (folder / TRAINING).exists():
        raise BadInput(f"{folder} is no finished checkpoint: {TRAINING} is missing; `facetstream train` makes one")


def _write_catalogue(path: Path, data: Behaviour, vectors: Tensor, codes: Tensor, users: UserTower) -> None:
    schema = pyarrow.schema(
        {
            "item_id": pyarrow.string(),
            "embedding": pyarrow.list_(pyarrow.float32()),
            "codes": pyarrow.binary(),
            "fidelity": pyarrow.float32(),
        }
    )
    with torch.no_grad(), parquet.ParquetWriter(path, schema) as file:
        for start in range(0, data.items, CATALOGUE_ROWS):
            rows = slice(start, start + CATALOGUE_ROWS)
            fidelity = F.cosine_similarity(vectors[rows], users.codebook.decode(codes[rows]), dim=-1)
            columns = [
                data.item_ids[rows],
                list(vectors[rows].numpy()),
                [row.tobytes() for row in codes[rows].numpy()],
                fidelity.numpy(),
            ]
            file.write_table(pyarrow.table(columns, schema=schema))
