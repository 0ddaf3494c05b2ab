"""Datasets to train on in miniature, and a run on one. One thread: the models are small, and threads that spin for each
other on busy cores cost more than they bring."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from models import train
from models.contract import SCENARIOS
from tests.models import populations
from tests.models.populations import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without texts: quick."""
    return populations.write(tmp_path_factory.mktemp("bare"), populations.events())


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenarios."""
    rows = populations.events(scenarios=("feed", "discovery"))
    return populations.write(tmp_path_factory.mktemp("several"), rows)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenarios, queries, texts of most items, images."""
    rows = populations.events(scenarios=SCENARIOS, queries=True)
    return populations.write(tmp_path_factory.mktemp("whole"), rows, populations.items(images=3))


@pytest.fixture(scope="session")
def once(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once") / "out"
    train.train(bare, out, tiny())
    return out


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """accelerate keeps that of the first run in a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
