"""Text -> language model -> hidden state (RED-Rec and HyMiRec, PAPERS "item tower").

A decoder reads the text and one learnable token appended to it, whose last hidden state is the text's (both papers).
Of an encoder the masked mean of the last hidden states is taken (ours: the papers use decoders only).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from models.errors import BadInput
from models.pieces import in_pieces, rounded_up


class TextEncoder(nn.Module):
    """Any Hugging Face encoder or decoder; `width` is that of its hidden states.

    The learnable token begins as the embedding of the model's end-of-text token (ours): used as it is, this is what
    embedding models made of decoders do; trained end to end, it starts from there.
    """

    def __init__(self, language_model: Any, tokenizer: Any, max_tokens: int = 96) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.language_model = language_model
        self.decoder = is_decoder(language_model.config)
        self.width: int = language_model.config.hidden_size
        self.max_tokens = min(max_tokens, _positions(language_model.config, tokenizer) - self.decoder)
        self.token = nn.Parameter(_end_of_text(language_model, tokenizer))

    @classmethod
    def over(cls, source: str | Path, max_tokens: int = 96, dtype: torch.dtype | None = None) -> "TextEncoder":
        """The language model and tokenizer in the folder `source`, or of that name on the hub; `dtype` None is the
        one it was saved in. Raises `BadInput` where there is none."""
        with refused(f"{source} is no language model", "the folder of one, with its tokenizer"):
            model = AutoModel.from_pretrained(source, dtype=dtype or "auto")
            tokenizer = AutoTokenizer.from_pretrained(source)
        return cls(model.eval(), tokenizer, max_tokens)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Float32 states [N, width] of N texts, zeros for a blank text. Each is the same to the last bit whatever its
        neighbours are: those padded to one length are encoded together (`pieces`)."""
        states = self.token.new_zeros(len(texts), self.width)
        if not texts:
            return states
        ids, mask = self.tokenize(texts)
        lengths = [rounded_up(tokens, self.max_tokens) for tokens in mask.sum(dim=1).tolist()]
        for length in set(lengths):
            rows = [row for row, own in enumerate(lengths) if own == length]
            padding = (0, length - ids.shape[1])  # where it is negative, it cuts
            states[rows] = in_pieces(self.encode, pad(ids[rows], padding), pad(mask[rows], padding))
        return states

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [N, T] of N ≥ 1 texts, padded at the end, T ≥ 1. A blank text has no token."""
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        rows = [row if text.strip() else [] for row, text in zip(rows, texts, strict=True)]
        ids = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = 1
        return ids.to(self.token.device), mask.to(self.token.device)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States [N, width] of tokens [N, T] padded at the end."""
        states = self._of_token(ids, mask) if self.decoder else self._mean(ids, mask)
        return states.float() * mask.any(dim=1, keepdim=True)

    def _of_token(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last hidden state [N, width] of the learnable token, put right behind each text's last token."""
        lengths, rows = mask.sum(dim=1), torch.arange(len(ids), device=ids.device)
        embedded = self.language_model.get_input_embeddings()(ids)
        embedded = torch.cat([embedded, embedded.new_zeros(len(ids), 1, embedded.shape[-1])], dim=1)
        embedded[rows, lengths] = self.token.to(embedded.dtype)
        mask = torch.arange(embedded.shape[1], device=ids.device) <= lengths[:, None]
        states = self.language_model(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state
        return torch.as_tensor(states[rows, lengths])

    def _mean(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mean [N, width] of the last hidden states of each text's tokens."""
        mask = torch.cat([mask[:, :1] | ~mask.any(dim=1, keepdim=True), mask[:, 1:]], dim=1)  # attention needs a token
        states = self.language_model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return torch.as_tensor((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))

    def save(self, folder: Path) -> None:
        """Writes model and tokenizer in `folder`, all but the learnable token."""
        self.language_model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@contextmanager
def refused(what: str, wanted: str) -> Iterator[None]:
    """Whatever the hub's client, a file or a model's own code raises becomes `BadInput`."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(
            f"{what} that transformers can load ({reason}); give {wanted}, or its name on the Hugging Face hub where "
            "there is a network"
        ) from error


def is_decoder(config: Any) -> bool:
    """Whether a transformers config is of a model that reads in one direction; `BadInput` where it has two parts."""
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(f"{config.model_type} has an encoder and a decoder; take a model with one of them")
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(getattr(config, "is_decoder", False) or (causal and not masked))


def _positions(config: Any, tokenizer: Any) -> int:
    """How many tokens the model can tell apart by position; a tokenizer knows what an offset takes off (RoBERTa)."""
    return min(getattr(config, "max_position_embeddings", None) or 2**31, int(tokenizer.model_max_length))


def _end_of_text(language_model: Any, tokenizer: Any) -> Tensor:
    embeddings: Tensor = language_model.get_input_embeddings().weight.detach().float()
    end = tokenizer.eos_token_id
    return embeddings.mean(dim=0) if end is None else embeddings[end].clone()
