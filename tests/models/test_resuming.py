"""Training that is cut short: it goes on as if it had not been, and nothing half-written can be read."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from models import checkpoint, train
from models.errors import BadInput
from models.files import held
from tests.models.populations import as_settings, tiny
from tests.models.runs import Killed, must_be_same

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from stream.cli import main; main(sys.argv[1:])"
TWO_ROUNDS = tiny(epochs=1, rounds=2)  # of one epoch and of two


@pytest.fixture(scope="module")
def two_rounds(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two_rounds") / "out"
    train.train(bare, out, TWO_ROUNDS)
    return out


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("_epoch", 3),
        ("_save", 1),
        ("_save", 2),
        ("_save", 3),
        ("_save", 4),
        ("phase", 2),
        ("phase", 3),
        ("calibrate", 1),
    ],
)
def test_a_run_that_was_cut_short_ends_where_an_unbroken_one_does(
    bare: Path, two_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    """Before or between the epochs' lines and states, at the end of a round or phase, and behind the last epoch."""
    usual, calls = getattr(train.Run, method), []

    def dies(run: train.Run, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return usual(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, method, dies)
        with pytest.raises(Killed):
            train.train(bare, tmp_path, TWO_ROUNDS)
    assert not (tmp_path / checkpoint.TRAINING).exists()
    train.train(bare, tmp_path, TWO_ROUNDS)
    must_be_same(two_rounds, tmp_path)
    assert not (tmp_path / train.STATE).exists()


@pytest.mark.parametrize("part", ["_write_catalogue", "shutil"])
def test_a_kill_while_the_checkpoint_is_written_leaves_none_that_is_not_whole(
    bare: Path, once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def dies(*arguments: Any, **_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if part != "shutil" else checkpoint.shutil, part.replace("shutil", "rmtree"), dies)
        with pytest.raises(Killed):
            train.train(bare, tmp_path, tiny())
    with pytest.raises(BadInput, match="is no finished checkpoint"):
        checkpoint.load(tmp_path)
    train.train(bare, tmp_path, tiny())
    must_be_same(once, tmp_path)


def test_a_killed_process_goes_on(bare: Path, tmp_path: Path) -> None:
    settings = as_settings(epochs=8, code_epochs=2)
    command = [sys.executable, "-c", SCRIPT, "train", "--data", str(bare), *settings]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        state = tmp_path / "killed" / train.STATE
        while not state.exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / checkpoint.TRAINING).exists()
    for out in ("killed", "unbroken"):
        train.train(bare, tmp_path / out, tiny(epochs=8, code_epochs=2))
    must_be_same(tmp_path / "killed", tmp_path / "unbroken")


def test_two_processes_do_not_write_one_checkpoint(bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, "train", "--data", str(bare), "--out", str(out), *as_settings()]
    with held(out):
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"{out} is being written by another process" in refused.stderr
    assert not list(tmp_path.iterdir())
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_wants_its_own_settings_and_data_and_a_finished_one_none(
    bare: Path, whole: Path, once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "calibrate", dies)
        with pytest.raises(Killed):
            train.train(bare, tmp_path, tiny())
    before = (tmp_path / train.STATE).read_bytes()
    for data, settings in ((bare, tiny(epochs=3)), (whole, tiny())):
        with pytest.raises(BadInput, match="is of a run with other settings or data: give those again"):
            train.train(data, tmp_path, settings)
    assert (tmp_path / train.STATE).read_bytes() == before
    assert not (tmp_path / train.FEATURES).exists()
    with pytest.raises(BadInput, match="holds a finished checkpoint, which is never overwritten"):
        train.train(bare, once, tiny())


def test_a_state_that_is_damaged_is_named(bare: Path, tmp_path: Path) -> None:
    (tmp_path / train.STATE).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(BadInput, match=r"state.pt is damaged: remove it to begin anew"):
        train.train(bare, tmp_path, tiny())
