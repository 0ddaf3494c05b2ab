"""A trained checkpoint as a version of the two models of a Triton model repository.

A version is a numbered folder, the same number for both models, that is never written again: it is made aside, tried
out, and renamed. config.pbtxt belongs to all versions of a model; Triton serves the newest of them.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import pbtxt
from models.codebook import FILE as CODEBOOK
from models.codebook import ResidualCodebook
from models.contract import (
    ACTIONS,
    INPUTS,
    ITEM_ENCODER,
    OUTPUTS,
    SCENARIOS,
    USER_INTERESTS,
    Tensor,
)
from models.errors import BadInput
from models.item_tower import FILE as ITEM_TOWER
from models.item_tower import ItemTower
from models.serving import join
from models.user_tower import FILE as USER_TOWER
from models.user_tower import UserTower

WEIGHTS = {ITEM_ENCODER: (ITEM_TOWER, CODEBOOK), USER_INTERESTS: (USER_TOWER,)}
TRIAL = ("", "running shoes", "日本語 \U0001f600", "espresso " * 300)  # texts to try a model on

Columns = dict[str, NDArray[Any]]  # tensors by name


@dataclass(frozen=True)
class Towers:
    """A checkpoint, loaded."""

    items: ItemTower
    codebook: ResidualCodebook
    users: UserTower

    @property
    def parameters(self) -> dict[str, int]:
        """What the stream must know; each config.pbtxt states those it has."""
        book = self.codebook.config
        shared = {"codebook_version": book.version, "code_bytes": book.code_bytes, "dim": book.dim}
        return shared | {"interests": self.users.config.interests}


def export(checkpoint: Path, repository: Path, version: int, breaking: bool = False) -> None:
    """Put `checkpoint` into `repository` as `version` of both models, newer than every other, or change nothing.

    `checkpoint` holds item_encoder/ and user_interests/ with what the towers and the codebook have saved. Raises
    `BadInput` where the version is there or older, where the checkpoint does not fit itself, the contract of tensors or
    config.pbtxt, or answers nonsense; and, unless `breaking`, where what the stream has stored under the served version
    (codes, collections) would mean nothing to the new one.
    """
    check(repository)
    _refuse_old(repository, version)
    _refuse_incomplete(checkpoint)
    asides = {model: repository / model / "writing" for model in INPUTS}  # Triton ignores names that are no numbers
    try:
        for model, aside in asides.items():
            _fill(aside, checkpoint / model)
        towers = load(asides[ITEM_ENCODER], asides[USER_INTERESTS])
        _refuse_other_codebook(repository, towers.codebook)
        if not breaking:
            _refuse_break(repository, towers.parameters)
        configs = {model: configured(repository / model / "config.pbtxt", towers.parameters) for model in INPUTS}
        for model, columns in try_out(towers).items():
            _refuse_misfit(model, pbtxt.parse(configs[model]), columns)
        for model, aside in asides.items():
            (repository / model / "config.writing").write_text(configs[model])
            aside.rename(repository / model / str(version))
        for model in INPUTS:
            (repository / model / "config.writing").replace(repository / model / "config.pbtxt")
    finally:
        for model, aside in asides.items():
            shutil.rmtree(aside, ignore_errors=True)
            (repository / model / "config.writing").unlink(missing_ok=True)


def check(repository: Path) -> None:
    """Raises `BadInput` unless `repository` has, of both models, a config.pbtxt that can be read and a version with
    model.py."""
    for model in INPUTS:
        newest = max(versions(repository / model), default=1)
        for name in ("config.pbtxt", f"{newest}/model.py"):
            if not (repository / model / name).exists():
                raise BadInput(
                    f"{repository} is no model repository of ours: {model}/{name} is missing; begin with a copy of "
                    "triton_repo"
                )
        try:
            pbtxt.parse((repository / model / "config.pbtxt").read_text())
        except BadInput as error:
            raise BadInput(f"{repository / model / 'config.pbtxt'}: {error}") from None


def versions(model: Path) -> list[int]:
    """The versions in a model's folder."""
    return [int(path.name) for path in model.glob("*") if path.is_dir() and re.fullmatch(r"[1-9]\d*", path.name)]


def load(items: Path, users: Path) -> Towers:
    """What was saved in two folders. Raises `BadInput` where they cannot be read or do not belong together."""
    try:
        towers = Towers(ItemTower.load(items), ResidualCodebook.load(items), UserTower.load(users))
    except BadInput:
        raise
    except Exception as error:  # safetensors, transformers, json and torch each have errors of their own
        raise BadInput(
            f"the checkpoint cannot be loaded ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}): it "
            "is damaged, or of another version of Facetstream; train it anew"
        ) from error
    if not _same(towers.codebook, towers.users.codebook):
        raise BadInput("the checkpoint's user tower holds another codebook than its item encoder: train them together")
    return towers


@torch.inference_mode()
def try_out(towers: Towers) -> dict[str, Columns]:
    """Inputs and outputs of both models, by model and tensor, on a few texts and histories. Raises `BadInput` where an
    answer is not finite, a vector not unit, a shape not the codebook's, or weights are no shares."""
    vectors = towers.items(list(TRIAL))
    codes = towers.codebook.encode(vectors)
    strings = np.array([[text.encode()] for text in TRIAL], dtype=np.object_)
    fidelity = (vectors * towers.codebook.decode(codes)).sum(dim=-1, keepdim=True)
    items = {"TEXT": strings, "ITEM_ID": strings, "EMBEDDING": vectors, "CODES": codes, "FIDELITY": fidelity}
    histories = _histories(towers.codebook.config.code_bytes)
    asked, unknown = join(histories), towers.users.unknown(len(histories))
    interests, weights, coarse = towers.users.answer(towers.codebook.decode(asked.codes), asked, unknown)
    users = {name: np.stack([row[name] for row in histories]) for name in histories[0]}
    answers: dict[str, Any] = {
        ITEM_ENCODER: items,
        USER_INTERESTS: users | {"INTERESTS": interests, "WEIGHTS": weights, "COARSE": coarse.half()},
    }
    for name, unit in (("embeddings", vectors), ("interests", interests)):
        if unit.shape[-1] != towers.codebook.config.dim:
            wanted = towers.codebook.config.dim
            raise BadInput(f"the checkpoint's {name} have {unit.shape[-1]} components, its codebook has {wanted}")
        if not torch.allclose(unit.norm(dim=-1), torch.ones(()), atol=1e-3):  # NaN is close to nothing
            raise BadInput(f"the checkpoint's {name} are not all finite unit vectors: train it anew")
    if not (weights > 0).all() or not torch.allclose(weights.sum(dim=-1), torch.ones(()), atol=1e-3):
        raise BadInput("the checkpoint's weights of interests are not positive with sum one: train it anew")
    return {model: {name: np.asarray(column) for name, column in found.items()} for model, found in answers.items()}


def configured(config: Path, parameters: dict[str, int]) -> str:
    """The text of a config.pbtxt with the parameters that it states set to those of the weights, in the warm-up too."""
    text = config.read_text()
    stated = stated_parameters(text)
    text = set_parameters(text, {name: value for name, value in parameters.items() if name in stated})
    return re.sub(r'(key:\s*"CODES"[^}]*?dims:\s*\[\s*\d+\s*,\s*)\d+', rf"\g<1>{parameters['code_bytes']}", text)


def stated_parameters(config: str) -> dict[str, str]:
    """The parameters in the text of a config.pbtxt."""
    rows = pbtxt.parse(config).get("parameters", [])
    return {row["key"][0]: row["value"][0]["string_value"][0] for row in rows}


def set_parameters(config: str, values: dict[str, int]) -> str:
    """The text of a config.pbtxt with the `string_value` of every parameter in `values` replaced; all must be there."""
    for key, value in values.items():
        pattern = rf'(key:\s*"{key}"\s+value:?\s*\{{\s*string_value:\s*")[^"]*(")'
        config, found = re.subn(pattern, rf"\g<1>{value}\g<2>", config)
        if found != 1:
            raise BadInput(f"config.pbtxt has {found} parameters {key}")
    return config


def _fill(aside: Path, weights: Path) -> None:
    """The weights, and model.py of the newest version."""
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    shutil.copytree(weights, aside)
    shutil.copy(aside.parent / str(max(versions(aside.parent))) / "model.py", aside)
    for path in filter(Path.is_file, aside.rglob("*")):
        path.chmod(0o644)  # safetensors writes for the owner alone; the server may be another user


def _refuse_incomplete(checkpoint: Path) -> None:
    for model, names in WEIGHTS.items():
        for name in names:
            if not (checkpoint / model / name).exists():
                raise BadInput(f"{checkpoint} is no checkpoint: {model}/{name} is missing")


def _refuse_old(repository: Path, version: int) -> None:
    known = {number: model for model in reversed(INPUTS) for number in versions(repository / model)}
    if version in known:
        raise BadInput(
            f"{repository / known[version] / str(version)} exists, and a version is never overwritten: export as "
            f"--version {max(known) + 1}"
        )
    if version < max(known):
        raise BadInput(
            f"version {version} would not be served, for {repository} has version {max(known)}: export as --version "
            f"{max(known) + 1}"
        )


def _refuse_other_codebook(repository: Path, book: ResidualCodebook) -> None:
    """Codes name their codebook by its version alone."""
    for folder in (repository / ITEM_ENCODER / str(number) for number in versions(repository / ITEM_ENCODER)):
        known = ResidualCodebook.load(folder) if (folder / CODEBOOK).exists() else None
        if known is not None and known.config.version == book.config.version and not _same(known, book):
            raise BadInput(
                f"{folder} holds another codebook of version {book.config.version}, and codes are told apart by it: "
                "train with another codebook version"
            )


def _refuse_break(repository: Path, parameters: dict[str, int]) -> None:
    for model in INPUTS:
        stated = stated_parameters((repository / model / "config.pbtxt").read_text())
        for name in parameters.keys() & stated.keys():
            if stated[name] != str(parameters[name]):
                raise BadInput(
                    f"{model} in {repository} has {name}={stated[name]}, the checkpoint has {parameters[name]}: what "
                    "is stored in Redis and Qdrant would mean nothing to it; export with --breaking, and provision an "
                    "empty Redis and Qdrant, load the catalogue and replay the log before it is served"
                )


def _refuse_misfit(model: str, config: pbtxt.Message, columns: Columns) -> None:
    """config.pbtxt keeps the contract, and the weights keep both. `columns` have the batch axis."""
    for key, promised in (("input", INPUTS[model]), ("output", OUTPUTS[model])):
        stated = {row["name"][0]: row for row in config.get(key, [])}
        for tensor in promised:
            if tensor.name not in stated:
                raise BadInput(f"{model}/config.pbtxt has no {key} {tensor.name}, which models/contract.py promises")
            _refuse_tensor(model, tensor, stated[tensor.name], columns[tensor.name])
        if key == "input" and (unknown := stated.keys() - {tensor.name for tensor in promised}):
            raise BadInput(f"{model}/config.pbtxt asks for {min(unknown)}, which nobody sends")


def _refuse_tensor(model: str, promised: Tensor, stated: pbtxt.Message, column: NDArray[Any]) -> None:
    sizes = tuple(int(size) for size in stated["dims"])
    dtype = stated["data_type"][0].removeprefix("TYPE_").replace("STRING", "BYTES")
    if dtype != promised.dtype or not _fits(sizes, promised.shape):
        raise BadInput(
            f"{model}/config.pbtxt has {promised.name} as {dtype} {list(sizes)}; models/contract.py promises "
            f"{promised.dtype} {list(promised.shape)}"
        )
    if _dtype(column) != dtype or not _fits(column.shape[1:], sizes):
        raise BadInput(
            f"{model}/config.pbtxt has {promised.name} as {dtype} {list(sizes)}; the checkpoint has {_dtype(column)} "
            f"{list(column.shape[1:])}"
        )


def _fits(sizes: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(sizes) == len(wanted) and all(want in (-1, size) for size, want in zip(sizes, wanted, strict=True))


def _dtype(column: NDArray[Any]) -> str:
    kind: str = column.dtype.name
    return "BYTES" if kind == "object" else kind.upper().replace("FLOAT", "FP")


def _same(one: ResidualCodebook, other: ResidualCodebook) -> bool:
    tensors, others = one.state_dict(), other.state_dict()
    return tensors.keys() == others.keys() and all(t.equal(others[name]) for name, t in tensors.items())


def _histories(code_bytes: int) -> list[Columns]:
    """Nobody's, nothing valid, and two that hold anything."""
    rng = np.random.default_rng(0)
    time = np.arange(9, dtype=np.int64) * 3_600_000 + 1_700_000_000_000
    return [
        {
            "CODES": rng.integers(0, 256, (9, code_bytes), dtype=np.uint8),
            "TIME": time,
            "SCENARIO": rng.integers(0, len(SCENARIOS), 9, dtype=np.uint8),
            "ACTION": rng.integers(0, len(ACTIONS), 9, dtype=np.uint8),
            "VALID": (np.arange(9) < valid).astype(np.uint8),
            "KNOWN_COARSE": np.full(1, np.nan, np.float16),
        }
        for valid in (0, 1, 9)
    ]
