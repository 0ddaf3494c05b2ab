"""Going on from a checkpoint with fresh events: kept when no worse on the newest hour, else as if nothing had been."""

import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file

from models import checkpoint, continual, dataset, splits, train
from models.dataset import Behaviour, Ints
from models.errors import BadInput
from models.evaluate import Towers
from models.train import WATCHED
from stream import cli
from tests.models import populations
from tests.models.populations import MINUTE_MS, tiny
from tests.models.runs import Killed, must_be_same


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    data = populations.write(folder / "data", populations.events(queries=True), populations.items())
    train.train(data, folder / "checkpoint", tiny(epochs=1, interests=3))
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hours of events, on the items that are known and on two new ones."""
    events = populations.events(items=26, queries=True, pace_ms=20 * MINUTE_MS, seed=5)
    return populations.write(tmp_path_factory.mktemp("fresh"), events, populations.items(26))


def run(data: Path, out: Path, start: Path, *settings: str) -> int:
    return cli.run(["train", "--data", str(data), "--out", str(out), "--resume", str(start), *settings])


def test_what_is_stored_can_still_be_read(
    served: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, epochs, usual = iter([0.1, 0.2]), count(), train.Run.validate
    monkeypatch.setattr(continual, "_answered", lambda *_: next(figures))
    monkeypatch.setattr(train.Run, "validate", lambda run: usual(run) | {WATCHED: next(epochs)})  # each the best so far
    before = {path: path.read_bytes() for path in served.rglob("*") if path.is_file()}
    assert run(fresh, tmp_path / "new", served, "--set", "rate=0.01") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert {path: path.read_bytes() for path in served.rglob("*") if path.is_file()} == before
    names = ("item_encoder/item_tower.safetensors", "item_encoder/codebook.safetensors")
    for name in names:
        old, new = load_file(served / name), load_file(tmp_path / "new" / name)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)
    old, new = (load_file(folder / "user_interests/user_tower.safetensors") for folder in (served, tmp_path / "new"))
    assert not torch.equal(old["refiner.queries"], new["refiner.queries"])
    old, new = (parquet.read_table(folder / checkpoint.CATALOGUE).to_pylist() for folder in (served, tmp_path / "new"))
    known = {row["item_id"]: row for row in new}
    assert len(new) == len(old) + 2
    for row in old:
        assert row["codes"] == known[row["item_id"]]["codes"]
        assert row["embedding"] == pytest.approx(known[row["item_id"]]["embedding"], abs=1e-5)
    config = checkpoint.config(tmp_path / "new")
    assert (config.interests, config.dim, config.split, config.rate) == (3, 8, "newest-hours", 0.01)


def test_settings_are_judged_beside_those_of_the_checkpoint(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its 12 is no multiple of what the default's four heads need, but of what its own two do."""
    data = populations.write(tmp_path / "data", populations.events())
    train.train(data, tmp_path / "old", tiny(epochs=1, llm_hidden=12, llm_heads=2))
    assert run(fresh, tmp_path / "new", tmp_path / "old", "--set", "rate=0") == 0
    assert run(fresh, tmp_path / "newer", tmp_path / "old", "--set", "split=time") == 2
    assert "split=time: a checkpoint that goes on learning is judged by the newest hour" in capsys.readouterr().err
    for setting in ("dim=32", "codewords=64", "dropout=0.1", "epochs=3", "light_reads=own", "spread=1.5"):
        assert run(fresh, tmp_path / "newer", tmp_path / "old", "--set", setting) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert f"{setting}: a checkpoint that goes on learning keeps its {setting.partition('=')[0]}=" in error
        assert not (tmp_path / "newer").exists()


def test_one_that_is_no_worse_is_kept_by_its_figures_on_the_newest_hour(
    served: Path, fresh: Path, tmp_path: Path
) -> None:
    config = tiny(epochs=1, rate=0.0, interests=3)
    figures = continual.train_on(fresh, tmp_path / "new", config, served)
    assert figures[f"{WATCHED}, newest hour"] == figures[f"{WATCHED}, newest hour, before"]
    assert figures["questions of the newest hour"] > 0
    assert (tmp_path / "new" / checkpoint.TRAINING).exists()


def test_a_worse_one_is_refused_and_nothing_is_left(
    served: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = iter([0.5, 0.4])
    monkeypatch.setattr(continual, "_answered", lambda *_: next(figures))
    assert run(fresh, tmp_path / "new", served) == 2
    error = capsys.readouterr().err
    assert "would fall from 0.5000 to 0.4000: nothing was kept; keep serving" in error
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_gone_on_from_is_refused_and_nothing_is_left(
    served: Path, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = populations.write(
        tmp_path / "strange",
        [row | {"item_id": "x" + row["item_id"]} for row in populations.events(26, 26, pace_ms=20 * MINUTE_MS, seed=5)],
    )
    short = populations.write(tmp_path / "short", populations.events(length=5))
    (tmp_path / "full" / train.FEATURES).mkdir(parents=True)
    (tmp_path / "full" / train.FEATURES / "precious").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for data, out, start, message in (
        (fresh, "new", tmp_path / "none", "is no finished checkpoint"),
        (strange, "new", served, "knows no item of this dataset: train anew"),
        (short, "new", served, "continual training needs more than two hours of events"),
        (tmp_path / "full", "new", served, "has no events.parquet"),
        (fresh, "full", served, "is not empty: give another --out"),
        (short, "empty", served, "continual training needs more than two hours of events"),
    ):
        assert run(data, tmp_path / out, start) == 2
        error = capsys.readouterr().err.replace("\n", " ")
        assert message in error
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(BadInput, match="finished checkpoint"):
        continual.train_on(fresh, served, tiny(), served)


def test_folders_of_others_stay_as_they_are(
    served: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new.trial", "new.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    before = sorted(tmp_path.rglob("*"))
    figures = iter([0.5, 0.4, 0.4, 0.5])
    monkeypatch.setattr(continual, "_answered", lambda *_: next(figures))
    assert run(fresh, tmp_path / "new", served) == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert run(fresh, tmp_path / "new", served) == 0
    assert [path for path in before if not path.exists()] == []


def test_the_new_tower_is_what_is_judged_by_the_newest_hour(
    served: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, answered, calibrate = list[Ints](), continual._answered, train.Run.calibrate

    def notes(towers: Towers, data: Behaviour, questions: Ints, *arguments: Any) -> float:
        asked.append(questions)
        return answered(towers, data, questions, *arguments)

    def spoils(run: train.Run) -> None:
        calibrate(run)
        with torch.no_grad():
            for parameter in run.objective.users.parameters():
                parameter.zero_()

    monkeypatch.setattr(continual, "_answered", notes)
    assert run(fresh, tmp_path / "good", served, "--set", "rate=0") == 0
    monkeypatch.setattr(train.Run, "calibrate", spoils)
    assert run(fresh, tmp_path / "spoilt", served) == 2
    assert "to 0.0000: nothing was kept" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    test = splits.newest_hours(dataset.read(fresh)).test
    assert [questions.tolist() for questions in asked] == [test.tolist()] * 4


@pytest.mark.parametrize("method", ["_epoch", "_record", "_save", "calibrate"])
def test_one_that_was_cut_short_goes_on(
    served: Path,
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    """In and after the first epoch, and after the last; called otherwise it stays, to go on as it began."""
    settings, out, other = ("--set", "rate=0.01", "--set", "code_epochs=2"), tmp_path / "cut", tmp_path / "other"
    monkeypatch.setattr(continual, "_answered", lambda *_: 0.5)
    assert run(fresh, tmp_path / "unbroken", served, *settings) == 0
    shutil.copytree(served, other)
    cut_short(monkeypatch, method, fresh, out, served, *settings)
    if method in ("_save", "calibrate"):
        for start, more in ((served, ("--seed", "1")), (other, ())):
            assert run(fresh, out, start, *settings, *more) == 2
            assert "is of a run with other settings or data" in " ".join(capsys.readouterr().err.split())
    assert run(fresh, out, served, *settings) == 0
    must_be_same(out, tmp_path / "unbroken")
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in other.iterdir())


@pytest.mark.parametrize("method", ["_epoch", "_save", "calibrate"])
def test_one_that_was_cut_short_and_is_worse_leaves_nothing(
    served: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    cut_short(monkeypatch, method, fresh, tmp_path / "new", served)
    figures = iter([0.5, 0.4])
    monkeypatch.setattr(continual, "_answered", lambda *_: next(figures))
    assert run(fresh, tmp_path / "new", served) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_where_the_folder_cannot_be_removed_is_one_all_the_same(
    served: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    figures = iter([0.5, 0.4])
    monkeypatch.setattr(continual, "_answered", lambda *_: next(figures))
    assert run(fresh, Path(), served) == 2
    assert "would fall from 0.5000 to 0.4000" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verdict", ["kept", "worse"])
def test_two_processes_go_on_together(served: Path, fresh: Path, tmp_path: Path, verdict: str) -> None:
    """On CPUs, told to or not."""
    program = tmp_path / "program.py"
    spoiled = "lambda *_: next(figures)" if verdict == "worse" else "continual._answered"
    program.write_text(
        "import sys; from models import continual; from stream import cli; figures = iter([0.5, 0.4])\n"
        f"continual._answered = {spoiled}\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    arguments = ["train", "--data", str(fresh), "--out", str(tmp_path / "new"), "--resume", str(served)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if torch.accelerator.is_available():
        environment["ACCELERATE_USE_CPU"] = "1"
    done = subprocess.run(
        [*launch, *arguments, "--set", "rate=0"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (verdict == "kept"), done.stderr[-3_000:]
    assert done.stdout.count(" events (") == 1, "of two processes one speaks"
    assert done.stdout.count("questions of the newest hour") == (verdict == "kept")
    assert ("nothing was kept" in " ".join(done.stderr.split())) == (verdict == "worse")
    left = {path.name for path in tmp_path.iterdir()} - {"program.py", "new.lock"}
    assert left == ({"new"} if verdict == "kept" else set())
    if verdict == "kept":
        assert (tmp_path / "new" / checkpoint.TRAINING).exists()
        assert not (tmp_path / "new" / continual.MARK).exists()


def cut_short(monkeypatch: pytest.MonkeyPatch, method: str, data: Path, out: Path, start: Path, *settings: str) -> None:
    """Killed behind the first call of a `method` of the run."""
    usual = getattr(train.Run, method)

    def dies(*arguments: Any) -> None:
        usual(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, method, dies)
        with pytest.raises(Killed):
            run(data, out, start, *settings)
    assert out.exists()


def test_a_tower_that_only_gets_worse_stays_as_it_was(
    served: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs, usual = count(), train.Run.validate
    monkeypatch.setattr(train.Run, "validate", lambda run: usual(run) | {WATCHED: -next(epochs)})
    assert run(fresh, tmp_path / "new", served, "--set", "rate=0.01", "--set", "code_epochs=2") == 0
    old, new = (load_file(folder / "user_interests/user_tower.safetensors") for folder in (served, tmp_path / "new"))
    assert all(torch.equal(old[name], new[name]) for name in old if "weigh" not in name), "weights are calibrated anew"
