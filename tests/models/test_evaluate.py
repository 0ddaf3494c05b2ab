"""`facetstream evaluate` in miniature: figures by brute force, complete JSON, a report, and what Triton serves."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models import benchmark, checkpoint, dataset, splits, train
from models.contract import ITEM_ENCODER, SCENARIOS, USER_INTERESTS
from models.events import Histories
from models.repository import export
from stream import cli
from stream.embedded import triton as embedded
from stream.settings import Settings
from tests.conftest import serve
from tests.models import populations
from tests.models.populations import tiny

SHIPPED = Path(__file__).parents[2] / "triton_repo"
OURS = "Facetstream"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = populations.events(items=40, scenarios=SCENARIOS, queries=True)
    return populations.write(tmp_path_factory.mktemp("data"), rows, populations.items(40))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    train.train(data, out, tiny(epochs=1))
    return out


def ask(capsys: pytest.CaptureFixture[str], data: Path, trained: Path, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["evaluate", "--data", str(data), "--checkpoint", str(trained), "--json", *options]) == 0

    def no_number(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=no_number)
    return found


def brute_force(data_folder: Path, trained: Path, exact: bool, length: int) -> dict[str, float]:
    """One question, one item after the other; ties count against the wanted item."""
    data, towers = dataset.read(data_folder), checkpoint.load(trained)
    with torch.no_grad():
        vectors = towers.items(data.texts, [*data.item_ids, *[""] * (len(data.texts) - data.items)])
        codes = towers.users.codebook.encode(vectors)
    places = []
    for question in splits.leave_one_out(data).test.tolist():
        owner = int(data.owner(torch.tensor([question]).numpy())[0])
        before = data.text[int(data.first[owner]) : question]
        recent = slice(max(int(data.first[owner]), question - length), question)
        columns = (torch.from_numpy(column[recent])[None] for column in (data.time, data.scenario, data.action))
        known = torch.from_numpy(data.text[recent])
        histories = Histories(codes[known][None], *columns, torch.ones(1, len(known), dtype=torch.bool))
        with torch.no_grad():
            read = towers.users.read(vectors[known][None], histories) if exact else towers.users(histories)
        interests = read[0][0, data.scenario[question]]
        target = int(data.text[question])
        wanted = max(float(interest @ vectors[target]) for interest in interests)
        place = 1
        for item in range(data.items):
            if item != target and item not in before:
                place += max(float(interest @ vectors[item]) for interest in interests) >= wanted - 1e-6
        places.append(place)
    within = [place for place in places if place <= 10]
    return {
        "HR@10": len(within) / len(places),
        "NDCG@10": sum(1 / math.log2(1 + place) for place in within) / len(places),
        "MRR@10": sum(1 / place for place in within) / len(places),
    }


@pytest.mark.parametrize(("name", "exact"), [(OURS, False), (f"{OURS}, exact", True)])
@pytest.mark.parametrize("history", [3, 1_024])
def test_figures_are_those_of_brute_force(
    data: Path, trained: Path, capsys: pytest.CaptureFixture[str], name: str, exact: bool, history: int
) -> None:
    overall = ask(capsys, data, trained, "--history", str(history))["results"][name]["figures"]["max"]["overall"]
    for figure, value in brute_force(data, trained, exact, history).items():
        assert overall[figure][0] == pytest.approx(value, abs=1e-6), figure
        assert overall[figure][1] <= overall[figure][0] <= overall[figure][2]


def test_the_answer_is_json_and_whole_even_when_texts_must_be_encoded_first(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("features"))
    found = ask(capsys, data, tmp_path / "copy")
    assert found == ask(capsys, data, trained)
    assert (found["questions"], found["items"], found["split"], found["seed"]) == (14, 40, "leave-one-out", 0)
    assert list(found["results"]) == [OURS, f"{OURS}, exact", "medoids", "popularity"]
    for result in found["results"].values():
        assert set(result["figures"]) == {"max", "rrf", "quota", "budget"}
        assert set(result["diversity"]) == {"cosine", "categories", "entropy"}
        for groups in result["figures"].values():
            assert groups["overall"]["questions"] == 14
            asked = [groups[f"scenario {name}"]["questions"] for name in SCENARIOS if f"scenario {name}" in groups]
            assert sum(asked) == 14
            names = {f"HR@{limit}" for limit in (10, 50, 100, 1000)}
            assert names <= set(groups["overall"])
    assert ask(capsys, data, trained, "--limit", "5", "--part", "valid")["questions"] == 5


def test_a_report_can_be_had(data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(data), "--checkpoint", str(trained), "--report", str(tmp_path / "report")]
    assert cli.run(["evaluate", *options]) == 0
    shown = capsys.readouterr().out
    assert "14 questions, split leave-one-out" in shown
    assert shown.count(" HR@10 ") == 8
    text = (tmp_path / "report" / "report.md").read_text()
    for heading in ("What was measured", "Against baselines", "Ways of merging", "Training", "A few users"):
        assert f"## {heading}" in text
    plots = {f"{name}.png" for name in ("history", "interests", "bytes", "training", "map")}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md", *plots}


def test_the_curves_end_in_the_figures_of_the_tables(data: Path, trained: Path) -> None:
    """With all interests, and with all bytes, what is drawn is what was measured."""
    found = benchmark.run(data, trained, "test", limit=100)
    measured = {name: result.figures for name, result in found.results.items()}
    interests, size = benchmark.over_interests(found), benchmark.over_bytes(found)
    assert [point[0] for point in interests["maximum"]] == [1, 2]
    assert interests["maximum"][-1][1] == measured[OURS]["max"]["overall"].values["Recall@100"].value
    assert interests["100 candidates in all"][-1][1] == measured[OURS]["budget"]["overall"].values["Recall@100"].value
    codes, exact = found.towers.users.codebook.config.code_bytes, 4 * found.towers.vectors.shape[1]
    by_size = {point[0]: point[1] for point in size[OURS]}
    assert by_size[codes] == measured[OURS]["max"]["overall"].values["Recall@100"].value
    assert by_size[exact] == measured[f"{OURS}, exact"]["max"]["overall"].values["Recall@100"].value


def test_the_codes_are_reported(data: Path, trained: Path) -> None:
    said = benchmark.run(data, trained, "test", limit=100).as_dict()["codebook"]
    assert said["code_bytes"] == 1
    assert said["times_smaller"] == 64
    assert 0 < said["cosine_mean"] <= 1
    assert all(1 <= used <= 8 for used in said["perplexity"])


@pytest.fixture(scope="module")
def triton(embedded_settings: Settings, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Triton of the test's own that serves the checkpoint."""
    folder = tmp_path_factory.mktemp("triton")
    shutil.copytree(SHIPPED, folder / "repo", ignore=shutil.ignore_patterns("__pycache__"))
    for model in (ITEM_ENCODER, USER_INTERESTS):
        for path in (folder / "repo" / model / "1").glob("*.safetensors"):
            path.unlink()  # the shipped codebook is not of interest here
    export(trained, folder / "repo", 2, breaking=True)
    changes = {"model_repository": folder / "repo", "data_folder": folder / "server"}
    yield from serve("triton", embedded.start, embedded_settings.model_copy(update=changes))


def test_what_triton_serves_is_what_was_measured(
    data: Path, trained: Path, triton: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ask(capsys, data, trained, "--triton", triton)["results"]
    ours, served = results[OURS]["figures"], results[f"{OURS}, served"]["figures"]
    for way, groups in ours.items():
        for name, figures in groups.items():
            for figure, value in figures.items():
                assert served[way][name][figure] == pytest.approx(value, abs=1e-4), (way, name, figure)


def test_a_dataset_of_which_the_checkpoint_knows_nothing_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = populations.write(
        tmp_path / "other", [row | {"item_id": f"other {row['item_id']}"} for row in populations.events()]
    )
    assert cli.run(["evaluate", "--data", str(other), "--checkpoint", str(trained)]) == 2
    assert "knows no item of this dataset: give the one" in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_that_is_damaged_is_named(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "damaged")
    (tmp_path / "damaged" / checkpoint.TRAINING).write_bytes(b"\x9f")
    assert cli.run(["evaluate", "--data", str(data), "--checkpoint", str(tmp_path / "damaged")]) == 2
    assert "training.json is damaged: restore it" in " ".join(capsys.readouterr().err.split())


def test_a_triton_that_serves_something_else_is_no_measure_of_this_one(
    data: Path, trained: Path, triton: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.train(data, tmp_path / "other", tiny(epochs=1, seed=1))
    command = ["evaluate", "--data", str(data), "--checkpoint", str(tmp_path / "other"), "--triton", triton]
    assert cli.run(command) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "what Triton serves differs from the checkpoint by" in error


def test_where_no_triton_is_one_sentence_says_so(data: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--data", str(data), "--checkpoint", str(trained), "--triton", "127.0.0.1:1"]
    assert cli.run(command) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "--triton 127.0.0.1:1:" in error
    assert "Traceback" not in error


def test_a_checkpoint_that_is_none_or_of_another_version_is_one_sentence(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "old")
    said = checkpoint.training(trained)
    said["config"]["temperature"] = 1
    (tmp_path / "old" / checkpoint.TRAINING).write_text(json.dumps(said))
    shutil.copytree(trained, tmp_path / "damaged")
    (tmp_path / "damaged" / USER_INTERESTS / "user_tower.safetensors").write_bytes(b"no tensors")
    for name, message in (
        ("none", "is no finished checkpoint: training.json is missing"),
        ("old", "is a checkpoint of another version of Facetstream (temperature): train it anew"),
        ("damaged", "the checkpoint cannot be loaded"),
    ):
        assert cli.run(["evaluate", "--data", str(data), "--checkpoint", str(tmp_path / name)]) == 2
        out, error = capsys.readouterr()
        assert message in " ".join(error.split())
        assert (out, "Traceback" in error) == ("", False)
