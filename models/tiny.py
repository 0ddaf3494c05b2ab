"""The small language models of the shipped checkpoint, made from transformers configs and trained from scratch."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

END = "<|end|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4_096) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: whole words where `texts` repeat them, down to bytes for any other text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def llama(vocabulary: int, hidden: int, layers: int, heads: int = 4) -> Any:
    """A Llama of `hidden` width; its answer has `last_hidden_state`."""
    return LlamaModel(llama_config(vocabulary, hidden, layers, heads))


def llama_config(vocabulary: int, hidden: int, layers: int, heads: int = 4) -> LlamaConfig:
    """No token is special: what is read are vectors, and padding is masked."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2_048,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
    )
