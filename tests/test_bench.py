"""What the benchmark says of lanes that fail, and who installs what it compares with."""

import tomllib

import pytest

from tests.bench.report import Section, compared, interleaved, markdown
from tests.conftest import ROOT


def test_a_lane_that_fails_is_told_of_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    rates = iter([3.0, 1.0, 2.0])

    def broken() -> float:
        raise RuntimeError("no such peer")

    found = interleaved({"ours": lambda: next(rates), "theirs": broken}, rounds=3)
    assert found == {"ours": [3.0, 1.0, 2.0], "theirs": []}
    assert "no such peer" in capsys.readouterr().err
    table = markdown({}, [Section("Race", "Who is faster.", compared(found, "laps", {"a peer": "theirs"}))])
    assert "| ours | 2.0 | 1.0 – 3.0 | laps |" in table
    assert "| theirs | not measured |  | laps |" in table


def test_ratios_are_to_the_median_of_the_baseline() -> None:
    slow, fast = compared({"slow": [1.0, 2.0, 9.0], "fast": [4.0, 5.0, 6.0]}, "laps", {"slow": "slow"})
    assert slow.ratios == {"slow": 1.0}
    assert fast.ratios == {"slow": 2.5}


def test_peers_are_installed_by_the_extra_of_the_benchmark_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {name for name, packages in extras.items() if "bytewax" in " ".join(packages)} == {"bench"}
    assert "bytewax" not in " ".join(project["dependencies"])
