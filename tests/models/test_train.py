"""Training in miniature: what it leaves, that it can be repeated, early stop, rounds, steps, processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from models import benchmark, checkpoint, dataset, evaluate, splits, train
from models.config import Training
from models.contract import SCENARIOS
from models.errors import BadInput
from tests.models import descent, populations
from tests.models.populations import as_settings, tiny
from tests.models.runs import lines, must_be_same, weights

ROOT = Path(__file__).parents[2]
STEADY = {"dropout": 0.0, "hidden_ids": 0.0}  # nothing random but what is drawn


def test_a_checkpoint_describes_itself_and_answers_as_it_was_measured(whole: Path, tmp_path: Path) -> None:
    figures = train.train(whole, tmp_path, tiny(split="time"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "catalogue.parquet",
        "features",
        "item_encoder",
        "metrics.jsonl",
        "training.json",
        "user_interests",
    ]
    said = checkpoint.training(tmp_path)
    assert Training(**said["config"]) == tiny(split="time")
    assert said["figures"] == figures
    assert [(line["phase"], line["step"]) for line in lines(tmp_path)] == [
        ("1 vectors, round 1", 1),
        ("1 vectors, round 1", 2),
        ("2 codes", 3),
    ]
    data = dataset.read(whole)
    towers, codes = benchmark.opened(tmp_path, data, tiny(), tmp_path / train.FEATURES)
    questions = splits.sample(splits.by_time(data).valid, 20, 0)
    assert evaluate.watched(towers, data, questions, codes, 12) == figures
    rows = parquet.read_table(tmp_path / checkpoint.CATALOGUE).to_pydict()
    assert rows["item_id"] == data.item_ids
    np.testing.assert_allclose(np.array(rows["embedding"]), towers.items, atol=1e-6)
    assert [list(code) for code in rows["codes"]] == codes[: data.items].tolist()
    decoded = towers.users.codebook.decode(codes[: data.items])
    np.testing.assert_allclose(rows["fidelity"], (decoded * towers.items).sum(dim=1), atol=1e-5)
    items = checkpoint.load(tmp_path).items
    encoded = items(data.texts[: data.items], data.item_ids)
    torch.testing.assert_close(encoded, towers.items, atol=1e-5, rtol=0)


def test_a_seed_gives_the_same_twice_and_another_something_else(bare: Path, once: Path, tmp_path: Path) -> None:
    train.train(bare, tmp_path / "again", tiny())
    must_be_same(once, tmp_path / "again")
    train.train(bare, tmp_path / "other", tiny(seed=1))
    assert lines(tmp_path / "other") != lines(once)


def test_training_ends_early_when_validation_no_longer_improves(bare: Path, tmp_path: Path) -> None:
    train.train(bare, tmp_path, tiny(epochs=9, code_epochs=5, patience=2, rate=0.0))
    assert [line["phase"][0] for line in lines(tmp_path)] == ["1"] * 3 + ["2"] * 2


@pytest.mark.parametrize(
    ("rounds", "figures", "expected"),
    [
        (3, [0.1, 0.2, 0.2, 0.1, 0.3, 0.2, 0.0], [1, 1, 2, 2, 2, 2]),  # the second round begins with what is kept
        (2, [0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6], [1, 1, 2, 2, 2, 2]),
        (3, [0.2, 0.1], [1, 1]),
    ],
)
def test_another_round_follows_where_the_last_epochs_of_one_were_the_best(
    bare: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounds: int,
    figures: list[float],
    expected: list[int],
) -> None:
    answers, usual = iter(figures), train.Run.validate
    monkeypatch.setattr(train.Run, "validate", lambda run: usual(run) | {train.WATCHED: next(answers, 0.0)})
    train.train(bare, tmp_path, tiny(rounds=rounds, code_epochs=0))
    assert [line["phase"] for line in lines(tmp_path)] == [f"1 vectors, round {number}" for number in expected]
    assert next(answers, None) is None


def test_a_small_dataset_is_read_more_often(bare: Path, tmp_path: Path) -> None:
    train.train(bare, tmp_path, tiny(epochs=1, code_epochs=0, patience=99, tokens=10_000, least_steps=7))
    assert len(lines(tmp_path)) == 7, "of one step each"


@pytest.mark.parametrize(
    ("epochs", "figures"),
    [
        ({"epochs": 3, "code_epochs": 0}, [0.1, 0.3, 0.2, 0.0]),
        ({"epochs": 1, "code_epochs": 1}, [0.5, 0.3, 0.2, 0.0]),  # the second is where reading through codes begins
    ],
)
def test_the_best_by_validation_is_kept(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: dict[str, int], figures: list[float]
) -> None:
    answers = iter(figures)
    usual = train.Run.validate
    seen = []

    def validates(run: train.Run) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in run.objective.state_dict().items()})
        return usual(run) | {train.WATCHED: next(answers)}

    monkeypatch.setattr(train.Run, "validate", validates)
    train.train(bare, tmp_path, tiny(**epochs))
    kept, best, last = seen[3], seen[1], seen[2]
    same = [torch.equal(kept[name], best[name]) for name in best if "codebook" not in name and "weigh" not in name]
    assert all(same)
    assert not torch.equal(best["users.log_scale"], last["users.log_scale"])


def test_a_loss_that_is_no_number_ends_training(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflows(objective: train.Objective, losses: train.Losses, counts: list[int]) -> torch.Tensor:
        return torch.stack([loss for loss, _ in losses.values()]).sum() * torch.inf

    monkeypatch.setattr(train.Objective, "total", overflows)
    with pytest.raises(BadInput, match="set a lower rate"):
        train.train(bare, tmp_path, tiny())


@pytest.mark.parametrize("accumulate", [3, 100])
def test_a_step_of_several_batches_takes_the_mean_of_their_gradients(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    steps: list[list[torch.Tensor]] = []

    class Spy(torch.optim.AdamW):
        def step(self, closure: Callable[[], float] | None = None) -> None:
            parameters = self.param_groups[0]["params"]
            steps.append([torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters])

    monkeypatch.setattr(train, "optimiser", lambda parameters, rate, decay: Spy(parameters))
    settings = {"epochs": 1, "code_epochs": 0, "clip": 1e9}
    train.train(bare, tmp_path / "single", tiny(**settings))
    batches = steps.copy()
    steps.clear()
    train.train(bare, tmp_path / "several", tiny(accumulate=accumulate, **settings))
    groups = [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]
    assert len(steps) == len(groups) < len(batches)
    for step, group in zip(steps, groups, strict=True):
        for mine, *theirs in zip(step, *group, strict=True):
            torch.testing.assert_close(mine, torch.stack(theirs).mean(dim=0), atol=1e-5, rtol=1e-4)


def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = populations.write(tmp_path / "data", populations.events(scenarios=SCENARIOS))
    settings = {**STEADY, "tokens": 100, "epochs": 3, "code_epochs": 1, "rate": 0.01, "clip": 1e6}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "tests.models.descent"]
    command = [*launch, "train", "--data", str(data), "--out", str(tmp_path / "two"), *as_settings(**settings)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    descent.install(monkeypatch.setattr)
    train.train(data, tmp_path / "one", tiny(**settings))
    for two, one in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert two.keys() == one.keys()
        tolerance = 1e-4 if one["phase"][0] == "1" else 1e-2  # a code is this or that
        for name in one:
            if name.startswith("loss"):
                assert two[name] == pytest.approx(one[name], abs=tolerance, rel=tolerance), (one["step"], name)
    before, after = lines(tmp_path / "one")[0], lines(tmp_path / "one")[2]
    assert after["loss, next light"] < 0.95 * before["loss, next light"], "and there was something to learn"
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-2) for name in ours if "codebook" not in name)
