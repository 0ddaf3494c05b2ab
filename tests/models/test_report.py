"""The report: tables that Markdown can read, plots that are there or missed by name, nothing half-written."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.metrics import figures, places_of
from models.report import (
    UserMap,
    curves,
    facts,
    figures_table,
    interest_map,
    nearest_table,
    over_history,
    principal_plane,
    road,
    table,
    training_curves,
    training_lines,
    write,
)

PNG = b"\x89PNG"


def test_a_table_is_one_line_a_row() -> None:
    text = table(["name", "n"], [["a | b\nc", 3]])
    assert text.splitlines() == ["| name | n |", "| :-- | --: |", "| a \\| b c | 3 |"]


def test_figures_stand_with_their_intervals() -> None:
    found = figures(places_of(torch.tensor([1, 1, 400, 20])), np.arange(4)).as_dict()
    rows = figures_table({"model": json.loads(json.dumps(found)), "other": {"HR@10": 0.25}}).splitlines()
    low, high = found["HR@10"][1:]
    assert rows[0] == "|  | HR@10 | NDCG@10 | Recall@100 |"
    assert rows[2].startswith(f"| model | 0.5000 ({low:.4f}–{high:.4f}) | 0.5000")
    assert rows[3] == "| other | 0.2500 |  |  |", "a figure that is not known stays empty"
    assert figures_table({"all": {"questions": 22_363}}, ["questions"]).endswith("| all | 22,363 |")


def test_the_road_says_what_each_part_gave() -> None:
    rows = road({"id": {"HR@10": 0.08}, "id + text": {"HR@10": [0.1, 0.09, 0.11], "NDCG@10": 0.05}, "?": {}})
    assert rows.splitlines()[2:] == [
        "| id | 0.0800 |  |  | +0.0% |",
        "| id + text | 0.1000 | 0.0500 |  | +25.0% |",
        "| ? |  |  |  |  |",
    ]


def test_a_report_is_written_whole_over_an_older_one(tmp_path: Path) -> None:
    write(tmp_path / "new", "Old", {})
    path = write(tmp_path / "new", "Beauty", {"Measured with": facts({"seed": 1, "ties": "as in the file"})})
    assert path.read_text() == "# Beauty\n\n## Measured with\n\n- seed: 1\n- ties: as in the file\n"
    assert [file.name for file in path.parent.iterdir()] == ["report.md"]


def test_curves_are_drawn_beside_the_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    groups = {"overall": {"HR@10": [1, 1, 1]}, "history up to 5": {"HR@10": [0.5, 0.4, 0.6]}}
    line = over_history(groups, "HR@10")
    assert line == [("up to 5", 0.5, 0.4, 0.6)]
    assert (
        curves(tmp_path / "history.png", {"$model": line, "none": []}, "events", "HR@10") == "![history](history.png)"
    )
    curves(tmp_path / "empty.png", {}, "K", "Recall@100")
    curves(tmp_path / "k.png", {"model": [(1, 0.1), (4, 0.2)]}, "K", "Recall@100", log=True)
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in ("history.png", "k.png"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.png", "history.png", "k.png"]


def test_without_matplotlib_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = curves(tmp_path / "k.png", {}, "K", "HR@10")
    assert "k.png" in said
    assert "facetstream[report]" in said
    assert not list(tmp_path.iterdir())


def test_training_curves_come_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert "metrics.jsonl" in training_curves(tmp_path / "training.png", log), "no log, no curve, no error"
    records = [{"step": 1, "loss": 3.0, "note": "x"}, {"step": 2, "loss": 2.5, "NDCG@10": 0.01}]
    log.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3, "lo')
    assert training_lines(log) == {"loss": [(1, 3.0), (2, 2.5)], "NDCG@10": [(2, 0.01)]}
    pytest.importorskip("matplotlib")
    assert training_curves(tmp_path / "training.png", log) == "![training](training.png)"


def user() -> UserMap:
    interests = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    return UserMap("u$1$ | x", [0, 1], interests, torch.tensor([0.3, 0.7, 0.0]), [2])


ITEMS = torch.tensor([[1, 0.1, 0], [0.1, 1, 0], [0.7, 0.7, 0], [0, 0, 1]])
NAMES = ["tea | green", "pot", "both", "x" * 200]
KINDS = ["tea", "pots", "", ""]


def test_what_lies_nearest_to_each_interest() -> None:
    rows = nearest_table(ITEMS, user(), NAMES, KINDS, limit=2).splitlines()[2:]
    assert rows == ["| interest 1 | pot; both | pots | 0.70 |", "| interest 0 | tea \\| green; both | tea | 0.30 |"]


def test_a_map_of_interests(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    nobody = UserMap("new", [], torch.ones(1, 3), torch.ones(1), [])
    text = interest_map(tmp_path / "map.png", ITEMS, [user(), nobody], NAMES, KINDS)
    assert text.startswith("![map](map.png)")
    assert "**u$1$ \\| x**" in text
    assert "x" * 100 not in text, "long names are cut"
    assert (tmp_path / "map.png").read_bytes().startswith(PNG)


def test_the_plane_is_where_items_vary_most() -> None:
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.standard_normal((500, 4)) * [5, 0.1, 3, 0.1])
    plane = principal_plane(items)
    torch.testing.assert_close(plane.T @ plane, torch.eye(2, dtype=torch.double))
    assert plane[[1, 3]].abs().max() < 0.05
    assert principal_plane(torch.ones(3, 1)).shape == (1, 2)
