"""The item tower over small encoders and decoders made on the spot."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, Qwen2Config, Qwen2Model, T5Config, T5Model

from models.item_tower import ItemTower, ItemTowerConfig
from models.tiny import llama, train_tokenizer

TEXTS = ["trail running shoes", "espresso machine", "", "日本語 \U0001f600 ß \x00", "running " * 500]


def _language_model(kind: str, vocabulary: int):
    small = {"vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "bert":
        return BertModel(BertConfig(**small, intermediate_size=32, pad_token_id=0))
    if kind == "qwen2":
        return Qwen2Model(Qwen2Config(**small, intermediate_size=32, num_key_value_heads=1))
    if kind == "gpt2":
        return GPT2Model(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2))
    return llama(vocabulary, 16, 2, heads=2)


@pytest.fixture(scope="module", params=["bert", "llama", "qwen2", "gpt2"])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ItemTower:
    """A tower over a model and tokenizer that lie in a folder, as any downloaded one does."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    _language_model(request.param, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ItemTower.over(folder, ItemTowerConfig(dim=8, max_tokens=40)).eval()


@torch.inference_mode()
def test_any_text_gives_a_unit_vector_whatever_its_neighbours(tower: ItemTower) -> None:
    together = tower(TEXTS)
    assert together.shape == (len(TEXTS), 8)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(TEXTS)))
    torch.testing.assert_close(together, torch.cat([tower([text]) for text in TEXTS]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_different_texts_differ_and_no_text_is_no_row(tower: ItemTower) -> None:
    first, second = tower(TEXTS[:2])
    assert (first - second).abs().max() > 1e-4
    assert tower([]).shape == (0, 8)


@torch.inference_mode()
def test_a_saved_tower_answers_the_same(tower: ItemTower, tmp_path: Path) -> None:
    tower.save(tmp_path)
    torch.testing.assert_close(ItemTower.load(tmp_path)(TEXTS), tower(TEXTS))


def test_the_learnable_token_and_the_head_are_trained(tower: ItemTower) -> None:
    tower(TEXTS)[:, 0].sum().backward()
    assert tower.head.project.weight.grad.abs().sum() > 0
    if tower.decoder:
        assert tower.token.grad.abs().sum() > 0


def test_decoders_read_the_token_and_encoders_the_mean() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    kinds = {kind: ItemTower(_language_model(kind, 300), tokenizer, ItemTowerConfig()) for kind in ("bert", "llama")}
    assert {kind: tower.decoder for kind, tower in kinds.items()} == {"bert": False, "llama": True}


def test_an_encoder_decoder_is_refused() -> None:
    t5 = T5Model(T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="has an encoder and a decoder"):
        ItemTower(t5, train_tokenizer(TEXTS, vocabulary=300), ItemTowerConfig())


def test_the_tokenizer_keeps_every_byte() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    text = "zürich \U0001f600 £5"
    assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text
