"""Language models made on the spot: their states of texts, and those states kept on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5Model,
)

from models import text_features as features_module
from models.errors import BadInput
from models.text_encoder import TextEncoder
from models.text_features import fingerprint, text_features
from models.tiny import llama, train_tokenizer
from models.untrained import causal_llm

TEXTS = ["trail running shoes", "espresso machine", "", "日本語 \U0001f600 ß \x00", "running " * 500, "running"]
WIDTH = 16


def _language_model(kind: str, vocabulary: int):
    small = {"vocab_size": vocabulary, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "bert":
        return BertModel(BertConfig(**small, intermediate_size=32, pad_token_id=0, max_position_embeddings=48))
    if kind == "qwen2":
        return Qwen2Model(Qwen2Config(**small, intermediate_size=32, num_key_value_heads=1))
    if kind == "gpt2":
        return GPT2Model(GPT2Config(vocab_size=vocabulary, n_positions=48, n_embd=WIDTH, n_layer=2, n_head=2))
    return llama(vocabulary, WIDTH, 2, heads=2)


@pytest.fixture(scope="module", params=["bert", "llama", "qwen2", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer, as any downloaded one lies in a folder."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    torch.manual_seed(0)
    _language_model(request.param, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder() -> TextEncoder:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    torch.manual_seed(0)
    return TextEncoder(llama(len(tokenizer), WIDTH, 2, heads=2), tokenizer, max_tokens=12)


@torch.inference_mode()
def test_a_text_has_the_same_state_whatever_its_neighbours_are_and_a_blank_one_none(folder: Path) -> None:
    encoder = TextEncoder.over(folder)
    together = encoder(TEXTS)
    assert together.shape == (len(TEXTS), WIDTH)
    assert torch.equal(together, torch.cat([encoder([text]) for text in TEXTS]))
    assert together.any(dim=1).tolist() == [bool(text.strip()) for text in TEXTS]
    assert encoder([]).shape == (0, WIDTH)


@torch.inference_mode()
def test_half_precision_gives_about_the_same_in_float32(folder: Path) -> None:
    exact, half = TextEncoder.over(folder)(TEXTS), TextEncoder.over(folder, dtype=torch.bfloat16)(TEXTS)
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(exact, half)[exact.any(dim=1)].min() > 0.98


def test_a_text_is_cut_to_what_the_model_can_read(folder: Path) -> None:
    encoder = TextEncoder.over(folder, max_tokens=10_000)
    assert encoder.tokenize(["running " * 30_000])[0].shape[1] <= 10_000
    assert encoder(["running " * 30_000]).isfinite().all()


def test_decoders_read_a_learnable_token_that_begins_as_the_end_of_text(encoder: TextEncoder) -> None:
    assert encoder.decoder
    embeddings = encoder.language_model.get_input_embeddings().weight
    torch.testing.assert_close(encoder.token, embeddings[encoder.tokenizer.eos_token_id])
    encoder(TEXTS)[:, 0].sum().backward()
    assert encoder.token.grad.abs().sum() > 0
    before = encoder(TEXTS).detach()
    with torch.no_grad():
        encoder.token.add_(1.0)
    assert ((encoder(TEXTS) - before).abs().amax(dim=1) > 1e-4).tolist() == [bool(text) for text in TEXTS]


def test_encoders_read_the_mean() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    encoder = TextEncoder(_language_model("bert", 300), tokenizer).eval()
    assert not encoder.decoder
    ids, mask = encoder.tokenize(["running shoes"])
    torch.testing.assert_close(
        encoder(["running shoes"])[0], encoder.language_model(ids, attention_mask=mask).last_hidden_state[0].mean(dim=0)
    )


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    t5 = T5Model(T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(BadInput, match="has an encoder and a decoder"):
        TextEncoder(t5, train_tokenizer(TEXTS, vocabulary=300))
    with pytest.raises(BadInput, match=r"is no language model that transformers can load .*; give the folder of one"):
        TextEncoder.over(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("the client has been closed"), KeyError()])
def test_whatever_goes_wrong_on_the_way_to_a_hub_is_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AutoModel, "from_pretrained", fails)
    told = str(error) or type(error).__name__
    with pytest.raises(BadInput, match=rf"^owner/name is no language model .*\({told}\).* where there is a network$"):
        TextEncoder.over("owner/name")
    with pytest.raises(BadInput, match=rf"^llm=owner/name is no causal LLM .*\({told}\); give the folder of one"):
        causal_llm("owner/name")


def test_a_lack_of_memory_is_not_blamed_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AutoModel, "from_pretrained", fails)
    with pytest.raises(MemoryError):
        causal_llm("owner/name")


def test_features_are_the_states_and_are_encoded_once(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = text_features(encoder, TEXTS, tmp_path / "cache")
    with torch.inference_mode():
        np.testing.assert_allclose(found, encoder(TEXTS), atol=1e-5)
    monkeypatch.setattr(encoder, "forward", None)
    np.testing.assert_array_equal(text_features(encoder, TEXTS, tmp_path / "cache"), found)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert text_features(encoder, [], tmp_path).shape == (0, WIDTH)


def test_another_model_text_order_or_limit_is_another_file(encoder: TextEncoder) -> None:
    seen = [fingerprint(encoder, TEXTS), fingerprint(encoder, TEXTS[::-1]), fingerprint(encoder, ["ab", "c"])]
    seen += [fingerprint(encoder, ["a", "bc"])]
    assert fingerprint(encoder, TEXTS) == seen[0]
    encoder.max_tokens = 11
    seen += [fingerprint(encoder, TEXTS)]
    with torch.no_grad():
        encoder.token[0] += 1
    assert len({*seen, fingerprint(encoder, TEXTS)}) == 6


def test_a_saved_encoder_finds_the_features_of_the_one_it_was(encoder: TextEncoder, tmp_path: Path) -> None:
    before = fingerprint(encoder, TEXTS)
    encoder.save(tmp_path)
    assert fingerprint(TextEncoder.over(tmp_path, encoder.max_tokens), TEXTS) == before


def test_a_run_that_was_stopped_goes_on(encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "BATCH_ROWS", 2)
    monkeypatch.setattr(features_module, "SAVE_ROWS", 4)
    texts = [f"shoes {'run ' * (number % 5)}{number}" for number in range(11)]
    forward, seen = encoder.forward, []

    def stops(batch: list[str]) -> torch.Tensor:
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.extend(batch)
        return forward(batch)

    monkeypatch.setattr(encoder, "forward", stops)
    with pytest.raises(KeyboardInterrupt):
        text_features(encoder, texts, tmp_path)
    again: list[str] = []
    monkeypatch.setattr(encoder, "forward", lambda batch: again.extend(batch) or forward(batch))
    found = text_features(encoder, texts, tmp_path)
    assert seen + again == sorted(texts, key=len)
    with torch.inference_mode():
        np.testing.assert_allclose(found, forward(texts), atol=1e-5)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
