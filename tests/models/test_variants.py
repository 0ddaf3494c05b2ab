"""Training on any dataset, with any part left out or changed, and with language models of the user's choice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, LlamaModel, Qwen2Config, Qwen2Model

from models import checkpoint, dataset, splits, train, untrained
from models.codebook import CodebookConfig
from models.config import PRESETS
from models.contract import SCENARIOS
from models.tiny import llama_config, train_tokenizer
from tests.models import populations
from tests.models.populations import tiny
from tests.models.runs import Killed, killed

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
    tower = untrained.user_tower(data, splits.leave_one_out(data), tiny(llm=str(model)), len(data.texts))
    theirs = load_file(model / "model.safetensors")
    for name, weight in tower.refiner.llm.state_dict().items():
        assert torch.equal(weight, theirs[name])
    train.train(bare, tmp_path / "out", tiny(epochs=1, llm=str(model)))
    assert checkpoint.load(tmp_path / "out").users.config.llm["model_type"] == kind
