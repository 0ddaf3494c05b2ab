"""Whether the light branch reads scenarios apart is learnt both ways and chosen by validation."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from models import checkpoint, evaluate, train
from models.objective import Losses, Objective
from models.sequences import Sequences
from tests.models.populations import tiny
from tests.models.runs import Killed, killed


def favour(patch: pytest.MonkeyPatch, apart: bool) -> list[bool]:
    """Validation finds that the light branch answers better where it reads scenarios `apart` or not; what was tried."""
    usual, tried = evaluate.quick, list[bool]()

    def quick(objective: Objective, *arguments: Any) -> dict[str, float]:
        tried.append(objective.users.config.apart)
        return usual(objective, *arguments) | {train.WATCHED: float(tried[-1] == apart)}

    patch.setattr(evaluate, "quick", quick)
    return tried


@pytest.mark.parametrize("apart", [True, False])
def test_the_light_branch_reads_scenarios_as_validation_finds_best(
    several: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    tried = favour(monkeypatch, apart)
    train.train(several, tmp_path / "best", tiny())
    assert checkpoint.load(tmp_path / "best").users.config.apart == apart
    assert tried[:-3] == [False, True] * 3, "in two epochs, and when one is kept"
    assert tried[-3:] == [apart] * 3, "from then on"
    train.train(several, tmp_path / "given", tiny(light_reads="all" if apart else "own"))
    assert checkpoint.load(tmp_path / "given").users.config.apart != apart
    train.train(bare, tmp_path / "single", tiny())
    assert not checkpoint.load(tmp_path / "single").users.config.apart, "there is nothing to choose"


def test_both_ways_are_learnt_until_one_is_chosen(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour(monkeypatch, apart=True)
    usual, read = Objective.forward, list[bool]()

    def forward(objective: Objective, batch: Sequences, draws: Tensor, apart: bool) -> Losses:
        read.append(apart)
        return usual(objective, batch, draws, apart)

    monkeypatch.setattr(Objective, "forward", forward)
    train.train(several, tmp_path, tiny())
    steps = len(read) // 3  # of an epoch: two of the first phase, one of the second
    assert 0 < sum(read[: 2 * steps]) < 2 * steps
    assert all(read[2 * steps :])


def test_how_scenarios_are_read_is_chosen_once(several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run cut short in the second phase goes on with what it chose, and so does one on newer events."""
    favour(monkeypatch, apart=True)
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "calibrate", killed)
        with pytest.raises(Killed):
            train.train(several, tmp_path / "out", tiny())
    favour(monkeypatch, apart=False)
    train.train(several, tmp_path / "out", tiny())
    assert checkpoint.load(tmp_path / "out").users.config.apart
    train.train(several, tmp_path / "newer", tiny(), start=tmp_path / "out")
    assert checkpoint.load(tmp_path / "newer").users.config.apart
