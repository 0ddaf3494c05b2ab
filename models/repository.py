"""A trained checkpoint as the two models of a Triton model repository."""

import re
import shutil
from pathlib import Path

from models.codebook import ResidualCodebook
from models.contract import ITEM_ENCODER, USER_INTERESTS
from models.item_tower import ItemTower
from models.user_tower import UserTower

VERSION = "1"  # the model version folder


def check(repository: Path) -> None:
    """Raises `ValueError` unless `repository` has config.pbtxt and model.py of both models."""
    for model in (ITEM_ENCODER, USER_INTERESTS):
        for name in ("config.pbtxt", f"{VERSION}/model.py"):
            if not (repository / model / name).exists():
                raise ValueError(f"{repository} is no model repository of ours: {model}/{name} is missing")


def write(repository: Path, items: ItemTower, codebook: ResidualCodebook, users: UserTower) -> None:
    """Replaces the weights of both models, each version folder written aside and renamed, and the parameters that the
    stream reads in config.pbtxt."""
    config = codebook.config
    shared = {"codebook_version": config.version, "code_bytes": config.code_bytes, "dim": config.dim}

    aside = _aside(repository / ITEM_ENCODER)
    items.save(aside)
    codebook.save(aside)
    _swap(repository / ITEM_ENCODER, aside, shared)

    aside = _aside(repository / USER_INTERESTS)
    users.save(aside)
    _swap(repository / USER_INTERESTS, aside, shared | {"interests": users.config.interests})


def set_parameters(config: str, values: dict[str, int]) -> str:
    """The text of a config.pbtxt with the `string_value` of every parameter in `values` replaced; all must be there."""
    for key, value in values.items():
        pattern = rf'(key:\s*"{key}"\s+value:?\s*\{{\s*string_value:\s*")[^"]*(")'
        config, found = re.subn(pattern, rf"\g<1>{value}\g<2>", config)
        if found != 1:
            raise ValueError(f"config.pbtxt has {found} parameters {key}")
    return config


def _aside(model: Path) -> Path:
    """An empty folder beside the version folder (Triton ignores names that are no numbers), with its model.py."""
    aside = model / "writing"
    for left in (aside, model / "old"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir()
    shutil.copy(model / VERSION / "model.py", aside)
    return aside


def _swap(model: Path, aside: Path, parameters: dict[str, int]) -> None:
    config, written = model / "config.pbtxt", model / "config.writing"
    written.write_text(set_parameters(config.read_text(), parameters))
    for path in filter(Path.is_file, aside.rglob("*")):
        path.chmod(0o644)  # safetensors writes for the owner alone; the server may be another user
    old = (model / VERSION).rename(model / "old")
    aside.rename(model / VERSION)
    written.replace(config)
    shutil.rmtree(old)
