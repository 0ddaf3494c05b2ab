"""The item tower: text -> language model -> projection head -> unit vector (RED-Rec and HyMiRec, PAPERS "item tower").

A decoder reads the text and one learnable token appended to it, whose last hidden state is the item (both papers). Of
an encoder the masked mean of the last hidden states is taken (ours: the papers use decoders only).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from models.contract import DIM
from models.files import write_tensors
from models.head import ProjectionHead

LANGUAGE_MODEL = "language_model"  # subfolder: what transformers saves, with its tokenizer
FILE = "item_tower.safetensors"  # beside it: the learnable token and the head


@dataclass(frozen=True)
class ItemTowerConfig:
    """What the language model's own config does not say."""

    dim: int = DIM
    max_tokens: int = 96  # of a text; the rest is cut off
    dropout: float = 0.1


class ItemTower(nn.Module):
    """Any Hugging Face encoder or decoder with a projection head."""

    def __init__(self, language_model: Any, tokenizer: Any, config: ItemTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.language_model = language_model
        self.decoder = _is_decoder(language_model.config)
        hidden = language_model.config.hidden_size
        self.token = nn.Parameter(torch.randn(hidden) * 0.02)
        self.head = ProjectionHead(hidden, config.dim, config.dropout)

    @classmethod
    def over(cls, folder: str | Path, config: ItemTowerConfig | None = None) -> "ItemTower":
        """A tower with a new head over the language model and tokenizer in `folder` (or named on the hub)."""
        model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        return cls(model, tokenizer, config or ItemTowerConfig())

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, dim] of N texts, each the same whatever its neighbours are. Any text works, even none."""
        if not texts:
            return self.token.new_zeros(0, self.config.dim)
        return self.encode(*self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [N, T] of N ≥ 1 texts, padded at the end, T ≥ 1."""
        limits = {"truncation": True, "max_length": self.config.max_tokens}
        rows = self.tokenizer(list(texts), **limits)["input_ids"]
        ids = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = 1
        return ids.to(self.token.device), mask.to(self.token.device)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors [N, dim] of tokens [N, T] padded at the end."""
        pooled = self._last_of_token(ids, mask) if self.decoder else self._mean(ids, mask)
        vectors: Tensor = self.head(pooled)
        return vectors

    def _last_of_token(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last hidden state [N, h] of the learnable token, put right behind each text's last token."""
        lengths, rows = mask.sum(dim=1), torch.arange(len(ids), device=ids.device)
        embedded = self.language_model.get_input_embeddings()(ids)
        embedded = torch.cat([embedded, embedded.new_zeros(len(ids), 1, embedded.shape[-1])], dim=1)
        embedded[rows, lengths] = self.token
        mask = torch.arange(embedded.shape[1], device=ids.device) <= lengths[:, None]
        states = self.language_model(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state
        return torch.as_tensor(states[rows, lengths])

    def _mean(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mean [N, h] of the last hidden states of each text's tokens."""
        states = self.language_model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(states.dtype)
        return torch.as_tensor((states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1))

    def save(self, folder: Path) -> None:
        """Writes `language_model/` and `item_tower.safetensors` in `folder`."""
        self.language_model.save_pretrained(folder / LANGUAGE_MODEL)
        self.tokenizer.save_pretrained(folder / LANGUAGE_MODEL)
        tensors = {name: t for name, t in self.state_dict().items() if not name.startswith("language_model.")}
        write_tensors(folder / FILE, tensors, {"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, folder: Path) -> "ItemTower":
        """The tower that was saved in `folder`, ready to answer."""
        with safe_open(folder / FILE, framework="pt") as file:
            tower = cls.over(folder / LANGUAGE_MODEL, ItemTowerConfig(**json.loads(file.metadata()["config"])))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tower.load_state_dict(state, strict=False)
        return tower.eval()


def _is_decoder(config: Any) -> bool:
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} has an encoder and a decoder; take a model with one of them")
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(getattr(config, "is_decoder", False) or (causal and not masked))
