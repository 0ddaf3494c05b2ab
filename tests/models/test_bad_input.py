"""What a user can get wrong with datasets and folders: one sentence, exit code 2, nothing half-written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from models import train
from models.text_encoder import TextEncoder
from stream import cli
from tests.models import populations
from tests.models.populations import START_MS, as_settings
from tests.models.test_variants import save_model

Rows = list[dict[str, Any]]


def row(user: str, item: str | None, ts: int, action: str = "click", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "ts": START_MS + ts, "scenario": "feed", "action": action} | more


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence of a command that must fail."""
    capsys.readouterr()
    assert cli.run(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.split())


def train_fails(capsys: pytest.CaptureFixture[str], data: Path, out: Path, **settings: Any) -> str:
    return fails(capsys, "train", "--data", str(data), "--out", str(out), *as_settings(**settings))


def without(column: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([column])


def as_numbers(table: pa.Table) -> pa.Table:
    return table.set_column(0, "user_id", pa.array([1.5] * len(table)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "has no events.parquet"),
        (without("action"), "action"),
        (as_numbers, "user_id"),
        (lambda table: table.slice(0, 0), "has no events"),
        (lambda table: table.set_column(4, "action", pa.array(["dance"] * len(table))), "dance"),
        (lambda table: table.set_column(3, "scenario", pa.array(["radio"] * len(table))), "radio"),
    ],
)
def test_a_folder_that_is_no_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[pa.Table], pa.Table] | None, message: str
) -> None:
    data, path = tmp_path / "data", tmp_path / "data" / "events.parquet"
    data.mkdir()
    if change:
        populations.write(data, populations.events())
        parquet.write_table(change(parquet.read_table(path)), path)
    assert message in train_fails(capsys, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            [row("a", "x", 1), row("b", "y", 2)],
            {},
            "give more events, or train with --set split=time",
        ),
        (
            [row(user, "x", ts) for user in "abc" for ts in range(5)],
            {},
            "the dataset has a single item; a codebook needs at least two",
        ),
        (
            [row(user, "xyz"[ts], ts) for user in "abc" for ts in range(3)],
            {},
            "no user has an item to train on behind another event",
        ),
        ([row("a", "xy"[ts % 2], 5) for ts in range(6)], {"split": "time"}, "split by time leaves a part empty"),
        ([row(u, "xyz"[ts % 3], ts) for u in "abc" for ts in range(9)], {"codewords": 100}, "must be a power of two"),
        ([row(u, "xyz"[ts % 3], ts) for u in "abc" for ts in range(9)], {"text_model": "."}, "is no language model"),
        (
            [row(u, "xyz"[ts % 3], ts) for u in "abc" for ts in range(9)],
            {"llm": "./nowhere"},
            "llm=./nowhere is no causal LLM that transformers can load",
        ),
        (
            [row(u, "xyz"[ts % 3], ts) for u in "abc" for ts in range(9)],
            {"levels": 5, "scale_bits": 6},
            "a record has 32",
        ),
    ],
)
def test_a_dataset_or_settings_that_cannot_be_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Rows, settings: dict[str, Any], message: str
) -> None:
    data = populations.write(tmp_path / "data", rows)
    if "text_model" in settings:
        populations.write(data, rows, [{"item_id": "x", "title": "red shoes"}])
        settings = {"text_model": str(tmp_path)}
    assert message in train_fails(capsys, data, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_model_that_reads_in_both_directions_is_no_llm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "bert", "bert")
    assert TextEncoder.over(model).width == 16
    data = populations.write(tmp_path / "data", populations.events())
    error = train_fails(capsys, data, tmp_path / "out", llm=str(model))
    assert "bert reads in both directions; give a causal LLM" in error


def test_duplicates_users_of_one_event_and_items_without_text_are_said_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = populations.events()
    data = populations.write(tmp_path / "data", [*rows, rows[0], row("once", "i000", 3)], populations.items())
    command = ["train", "--data", str(data), "--out", str(tmp_path / "out"), *as_settings(epochs=1, text_steps=0)]
    assert cli.run(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "15 users (1 with one event), 24 items (3 without text)" in said
    assert "1 duplicates" in said
    assert (tmp_path / "out" / train.METRICS).exists()


def test_folders_that_cannot_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = populations.write(tmp_path / "data", populations.events())
    (tmp_path / "file").touch()
    assert "file" in train_fails(capsys, data, tmp_path / "file")
    assert "file" in train_fails(capsys, tmp_path / "file", tmp_path / "out")
    assert "there is no folder" in train_fails(capsys, tmp_path / "none", tmp_path / "out")
    assert "/proc/x cannot be made" in train_fails(capsys, data, Path("/proc/x/out"))
    assert "best" in fails(capsys, "train", "--data", str(data), "--out", str(tmp_path / "out"), "--preset", "best")
    assert not (tmp_path / "out").exists()
