"""Training in miniature: what it leaves, that it can be repeated and cut short, on which data and settings it runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaModel, Qwen2Config, Qwen2Model

from models import benchmark, checkpoint, dataset, evaluate, splits, train
from models.codebook import CodebookConfig
from models.config import PRESETS, Training
from models.contract import SCENARIOS
from models.errors import BadInput
from models.files import held
from models.objective import Losses, Objective
from models.sequences import Sequences
from models.tiny import llama_config, train_tokenizer
from tests.models import descent, populations
from tests.models.populations import as_settings, tiny

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from stream.cli import main; main(sys.argv[1:])"
TWO_ROUNDS = tiny(epochs=1, rounds=2)  # of one epoch and of two
STEADY = {"dropout": 0.0, "hidden_ids": 0.0}  # nothing random but what is drawn


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without texts: quick."""
    return populations.write(tmp_path_factory.mktemp("bare"), populations.events())


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenarios."""
    rows = populations.events(scenarios=("feed", "discovery"))
    return populations.write(tmp_path_factory.mktemp("several"), rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenarios, queries, texts of most items, images."""
    rows = populations.events(scenarios=SCENARIOS, queries=True)
    return populations.write(tmp_path_factory.mktemp("whole"), rows, populations.items(images=3))


@pytest.fixture(scope="module")
def once(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once") / "out"
    train.train(bare, out, tiny())
    return out


@pytest.fixture(scope="module")
def two_rounds(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two_rounds") / "out"
    train.train(bare, out, TWO_ROUNDS)
    return out


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """accelerate keeps that of the first run in a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = ("item_encoder/item_tower", "item_encoder/codebook", "user_interests/user_tower")
    return {f"{f} {name}": t for f in files for name, t in load_file(out / f"{f}.safetensors").items()}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / train.METRICS).read_text().splitlines()]


def must_be_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (one / train.METRICS).read_text() == (other / train.METRICS).read_text()
    assert (one / checkpoint.TRAINING).read_text() == (other / checkpoint.TRAINING).read_text()


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


class Killed(BaseException):
    pass


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


def killed(run: train.Run) -> None:
    raise Killed


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


DATASETS: dict[str, dict[str, Any]] = {
    "texts": {"scenarios": ("search", "feed"), "queries": True},
    "texts of queries alone": {"scenarios": ("search", "feed"), "queries": True, "items": None},
    "no texts": {"items": None},
    "images alone": {"texts": False, "images": 3},
    "three scenarios": {"scenarios": SCENARIOS},
    "few items": {"count": 3},
}


@pytest.mark.parametrize("name", DATASETS)
def test_any_dataset_can_be_trained_on(tmp_path: Path, name: str) -> None:
    about = {"items": True, "texts": True, "images": 0, "count": 24, "scenarios": ("feed",), "queries": False}
    about |= DATASETS[name]
    rows = populations.events(items=about["count"], scenarios=about["scenarios"], queries=about["queries"])
    items = populations.items(about["count"], about["images"]) if about["items"] else []
    items = items if about["texts"] else [row | {"title": "", "category": ""} for row in items]
    populations.write(tmp_path / "data", rows, items)
    figures = train.train(tmp_path / "data", tmp_path / "out", tiny(epochs=1))
    assert figures["HR@100"] == 1.0
    towers = checkpoint.load(tmp_path / "out")
    described = any(row["title"] for row in items) or about["queries"] or about["images"]
    assert towers.items.config.reads_text == bool(described)
    if about["count"] == 3:
        assert towers.users.codebook.config.codewords == 2


def test_items_that_nothing_is_known_of_take_no_codewords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their one vector, as often as there are such items, would be half of what the codebook is fitted on. Here after a
    run that was cut short when it had been."""
    rows = populations.events(items=24)
    more = [{"item_id": f"later {number}", "title": "", "category": ""} for number in range(200)]
    data = populations.write(tmp_path / "data", rows, populations.items(24) + more)
    config = tiny(epochs=1, llm_view="none", codewords=64)
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "calibrate", killed)
        with pytest.raises(Killed):
            train.train(data, tmp_path / "out", config)
    train.train(data, tmp_path / "out", config)
    towers = checkpoint.load(tmp_path / "out")
    assert towers.users.codebook.config.codewords == CodebookConfig().for_items(24).codewords


VARIANTS: dict[str, dict[str, Any]] = {
    **{name: values for name, values in PRESETS.items() if name != "quick"},
    "text alone": {"light_view": "text", "llm_view": "text"},
    "one interest": {"interests": 1},
    "bf16": {"precision": "bf16"},
    "no second phase": {"code_epochs": 0},
    "no warm-up": {"warmup": 0.0},
    "no window": {"share_window": 0.0, "share_weights": 0.0},
    "scales": {"scale_bits": 2},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_part_can_be_left_out_or_changed(whole: Path, tmp_path: Path, name: str) -> None:
    config = tiny(**{"epochs": 1, "text_steps": 0} | VARIANTS[name])
    figures = train.train(whole, tmp_path, config)
    assert figures["HR@100"] == 1.0
    users = checkpoint.load(tmp_path).users
    assert (users.config.light_dim, users.config.llm_dim) == (
        config.dim * (config.light_view != "none"),
        config.dim * (config.llm_view != "none"),
    )
    assert users.config.interests == config.interests


def test_a_scenario_that_training_never_met_is_answered_as_the_most_frequent(tmp_path: Path) -> None:
    """Discovery begins after the split, and search holds queries alone: nothing is asked there."""
    rows = populations.events(users=20, queries=True)
    rows = [row | ({"scenario": "search"} if "query" in row else {}) for row in rows]
    late = sorted(row["ts"] for row in rows)[int(len(rows) * 0.85)]
    rows = [row | ({"scenario": "discovery"} if row["ts"] > late and "query" not in row else {}) for row in rows]
    populations.write(tmp_path / "data", rows)
    train.train(tmp_path / "data", tmp_path / "out", tiny(split="time", epochs=1))
    data, users = dataset.read(tmp_path / "data"), checkpoint.load(tmp_path / "out").users
    assert users.config.scenarios == (SCENARIOS.index("feed"),)
    codes = torch.randint(256, (len(data.texts), users.codebook.config.code_bytes)).to(torch.uint8)
    _, histories = dataset.history(data, codes, data.first[1:], np.arange(data.users), 12)
    interests, shares = users(histories)
    assert interests.shape[:2] == (20, 3)
    for code in range(3):
        torch.testing.assert_close(interests[:, code], interests[:, 1])
        torch.testing.assert_close(shares[:, code], shares[:, 1])


def save_model(folder: Path, kind: str) -> Path:
    tokenizer = train_tokenizer(populations.ADJECTIVES + populations.NOUNS, vocabulary=300)
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(5)
    model = {
        "bert": lambda: BertModel(BertConfig(**size, intermediate_size=16)),
        "qwen2": lambda: Qwen2Model(Qwen2Config(**size, intermediate_size=16, num_key_value_heads=1)),
        "llama": lambda: LlamaModel(llama_config(len(tokenizer), 16, 1, 2)),
    }[kind]()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_texts_are_read_by_a_model_of_the_users_choice(whole: Path, tmp_path: Path, kind: str) -> None:
    model = save_model(tmp_path / kind, kind)
    train.train(whole, tmp_path / "out", tiny(epochs=1, text_model=str(model)))
    assert checkpoint.load(tmp_path / "out").items.texts.language_model.config.model_type == kind


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_llm_may_be_one_of_the_users_choice(bare: Path, tmp_path: Path, kind: str) -> None:
    model = save_model(tmp_path / kind, kind)
    data = dataset.read(bare)
    tower = train.user_tower(data, splits.leave_one_out(data), tiny(llm=str(model)), len(data.texts))
    theirs = load_file(model / "model.safetensors")
    for name, weight in tower.refiner.llm.state_dict().items():
        assert torch.equal(weight, theirs[name])
    train.train(bare, tmp_path / "out", tiny(epochs=1, llm=str(model)))
    assert checkpoint.load(tmp_path / "out").users.config.llm["model_type"] == kind
