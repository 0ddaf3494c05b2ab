"""Training from a dataset folder to a model repository, in miniature; the figures it reports; its mistakes."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from models import dataset, evaluate, repository, train
from models.contract import ITEM_ENCODER, SCENARIOS, USER_INTERESTS
from models.user_tower import UserTower
from stream.synthetic import synthesize

REPOSITORY = Path(__file__).parents[2] / "triton_repo"
ITEM_COLUMNS = ("item_id", "title", "category", "text")
EVENT_COLUMNS = ("user_id", "item_id", "ts", "scenario", "action", "query")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    population = synthesize(users=60, events=2_000, items=200, seed=3)
    events = [act.record | {"scenario": act.scenario} for act in population.acts]
    items = [item.model_dump() for item in population.catalogue.items]
    for name, rows, columns in (("events", events, EVENT_COLUMNS), ("items", items, ITEM_COLUMNS)):
        table = pa.table({column: [row.get(column) for row in rows] for column in columns})
        parquet.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture
def empty_repository(tmp_path: Path) -> Path:
    """Our model repository without weights."""
    for model in (ITEM_ENCODER, USER_INTERESTS):
        for name in ("config.pbtxt", "1/model.py"):
            (tmp_path / model / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / model / name, tmp_path / model / name)
    return tmp_path


def test_trains_and_fills_a_model_repository(folder: Path, empty_repository: Path, capsys) -> None:
    sizes = ["--levels", "2", "--codewords", "16", "--scale-bits", "4", "--codebook-version", "9", "--interests", "2"]
    steps = ["--item-steps", "2", "--user-steps", "2"]
    train.main(["--data", str(folder), "--out", str(empty_repository), *steps, *sizes])
    assert "burst" in capsys.readouterr().out
    tower = UserTower.load(empty_repository / USER_INTERESTS / "1")
    assert (tower.codebook.config.code_bytes, tower.config.interests) == (2, 2)
    assert tower.config.training["seed"] == 0
    config = (empty_repository / USER_INTERESTS / "config.pbtxt").read_text()
    for key, value in (("codebook_version", 9), ("code_bytes", 2), ("interests", 2)):
        assert f'key: "{key}" value {{ string_value: "{value}" }}' in config
    assert sorted(path.name for path in (empty_repository / ITEM_ENCODER).iterdir()) == ["1", "config.pbtxt"]


def test_mistakes_are_one_sentence(folder: Path, empty_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no events\.parquet"):
        train.main(["--data", str(tmp_path), "--out", str(empty_repository)])
    with pytest.raises(SystemExit, match="is no model repository of ours: item_encoder/config"):
        train.main(["--data", str(folder), "--out", str(folder)])
    with pytest.raises(SystemExit, match="codewords must be a power of two, not 100"):
        train.main(["--data", str(folder), "--out", str(empty_repository), "--codewords", "100"])
    with pytest.raises(SystemExit, match="1024 items and queries are needed"):
        train.main(["--data", str(folder), "--out", str(empty_repository), "--codewords", "1024"])
    with pytest.raises(ValueError, match="0 parameters colour"):
        repository.set_parameters("", {"colour": 1})


def test_examples_split_at_the_cut_and_follow_one_user(folder: Path) -> None:
    data = dataset.read(folder)
    codes = torch.zeros(len(data.texts), 3, dtype=torch.uint8)
    owner = np.repeat(np.arange(data.users), np.diff(data.first))
    cuts = np.arange(len(data.text))
    seen = dataset.examples(data, codes, cuts, owner, length=16, window=3)
    for cut in range(0, len(cuts), 37):
        first, end = data.first[owner[cut]], data.first[owner[cut] + 1]
        history = seen.rows[cut][seen.histories.valid[cut]].tolist()
        assert history == data.text[max(first, cut - 16) : cut].tolist()
        for scenario in range(len(SCENARIOS)):
            ahead = np.arange(cut, min(cut + 48, end))
            wanted = ahead[(data.scenario[ahead] == scenario) & data.wanted[ahead]][:3]
            mine = seen.present[cut] & (seen.target_scenario[cut] == scenario)
            assert seen.targets[cut][mine].tolist() == data.text[wanted].tolist()


def test_recall_counts_new_items_only() -> None:
    test = evaluate.Heldout(np.array([0]), np.array([0]), future=[{1, 2}], met=[{0}])
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.5]])
    assert evaluate.recall(scores, test, 1) == 0.5
    assert evaluate.recall(scores, test, 3) == 1.0
