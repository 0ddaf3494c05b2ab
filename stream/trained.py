"""What training leaves for the stream: the catalogue, encoded, and the codebook that its codes are of.

catalogue.parquet has `item_id`, `embedding` (list of float32, unit), `codes` (binary) and `fidelity` (cosine between
the two). Nothing here knows torch: of a safetensors file only its bytes are compared.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stream.errors import UserError
from stream.files import read_rows, rows_in
from stream.ports import Floats, ModelCard
from stream.stores import Codebook

CATALOGUE = "catalogue.parquet"
CODEBOOK = "item_encoder/codebook.safetensors"
COLUMNS = ("item_id", "embedding", "codes", "fidelity")
BATCH = 512  # items
UNIT = 1e-2  # how far an embedding's length may be from one


@dataclass(frozen=True)
class Coded:
    """One item of a checkpoint's catalogue."""

    item_id: str
    embedding: Floats  # [dim], unit
    codes: bytes
    fidelity: float


def catalogue_size(checkpoint: Path) -> int:
    """How many items the catalogue has. `UserError` where there is none."""
    if not (checkpoint / CATALOGUE).is_file():
        raise UserError(
            f"{checkpoint} is no finished checkpoint: {CATALOGUE} is missing; `facetstream train` makes one"
        )
    return rows_in(checkpoint / CATALOGUE)


def catalogue(checkpoint: Path, card: ModelCard) -> Iterator[list[Coded]]:
    """The catalogue in batches. `UserError` where a row is not what these models make of an item."""
    start = 1
    for rows in read_rows(checkpoint / CATALOGUE, COLUMNS, BATCH):
        yield [_coded(number, row, card) for number, row in enumerate(rows, start)]
        start += len(rows)


def refuse_other_codebook(checkpoint: Path, codebook: Codebook) -> None:
    """`UserError` unless the checkpoint's codebook is the one in force, whose codes are stored."""
    path = checkpoint / CODEBOOK
    try:
        (version, tensors), (known, theirs) = _opened(path.read_bytes()), _opened(codebook.file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no codebook of ours: train the checkpoint anew") from None
    if version != known:
        raise UserError(
            f"{checkpoint} is of codebook {version}, Redis holds histories of codebook {known}: load the checkpoint "
            "that is served, or provision an empty Redis and Qdrant for the new one"
        )
    if tensors != theirs:
        raise UserError(f"{path} is another codebook {version} than the one in Redis: train with another version")


def _opened(file: bytes) -> tuple[int, bytes]:
    """A codebook's version and its tensors' bytes."""
    size = int.from_bytes(file[:8], "little")
    config = json.loads(json.loads(file[8 : 8 + size])["__metadata__"]["config"])
    return int(config["version"]), file[8 + size :]


def _coded(number: int, row: dict[str, Any], card: ModelCard) -> Coded:
    try:
        embedding, fidelity = np.asarray(row["embedding"] or (), np.float32), float(row["fidelity"])
    except (TypeError, ValueError):
        raise UserError(f"{CATALOGUE} row {number}: item {row['item_id']!r} has nulls or no numbers in it") from None
    if not row["item_id"] or embedding.shape != (card.dim,) or len(row["codes"] or b"") != card.code_bytes:
        raise UserError(
            f"{CATALOGUE} row {number}: item {row['item_id']!r} has an embedding of {embedding.size} components and "
            f"{len(row['codes'] or b'')} bytes of codes; Triton serves {card.dim} and {card.code_bytes}"
        )
    if not abs(float(np.linalg.norm(embedding)) - 1) < UNIT:  # nor NaN
        raise UserError(f"{CATALOGUE} row {number}: the embedding of item {row['item_id']!r} is no unit vector")
    return Coded(row["item_id"], embedding, row["codes"], fidelity)
