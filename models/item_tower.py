"""The item tower, as it is trained and as it is served: texts and ids in, unit vectors out (PAPERS "item tower").

text -> `TextEncoder` -> state [h] ⊕ image [I] of a warm item -> `ItemVectors`, with the row of the id -> [dim]
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.errors import BadInput
from models.files import write_tensors
from models.item_index import ItemIndex
from models.item_vectors import ItemVectors, View
from models.pieces import in_pieces
from models.text_encoder import TextEncoder

LANGUAGE_MODEL = "language_model"  # subfolder: what transformers saves, with its tokenizer
FILE = "item_tower.safetensors"  # beside it: everything else but the ids


@dataclass(frozen=True)
class ItemTowerConfig:
    """What the language model's own config does not say."""

    views: tuple[View, ...] = (View(),)
    dropout: float = 0.1

    @property
    def dim(self) -> int:
        return sum(view.dim for view in self.views)

    @property
    def reads_text(self) -> bool:
        return any(view.kind != "id" for view in self.views)


class ItemTower(nn.Module):
    """`index` holds the warm items and `images` [items, I] theirs; a tower of ids alone has no text encoder."""

    images: Tensor

    def __init__(
        self,
        texts: TextEncoder | None,
        config: ItemTowerConfig,
        index: ItemIndex | None = None,
        images: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.index = ItemIndex() if index is None else index
        self.texts = texts if config.reads_text else None
        self.register_buffer("images", torch.zeros(len(self.index), 0) if images is None else images.float())
        features = (self.texts.width if self.texts else 0) + self.images.shape[1]
        if config.reads_text and not features:
            raise BadInput("a view of text needs a language model or images; take views of ids alone without either")
        self.vectors = ItemVectors(config.views, features, len(self.index), config.dropout)

    def forward(self, texts: Sequence[str], ids: Sequence[str] | None = None) -> Tensor:
        """Unit vectors [N, dim] of N texts, each the same to the last bit whatever its neighbours are. Any text
        works, even none; an id that is empty or unknown is a cold item's."""
        rows = self.rows([""] * len(texts) if ids is None else ids)
        return in_pieces(self.vectors, self.features(texts, rows), rows)

    def rows(self, ids: Sequence[str]) -> Tensor:
        """int64 [N]: the row of each id in the table, -1 of a cold one."""
        return torch.from_numpy(self.index.rows(ids)).to(self.images.device)

    def features(self, texts: Sequence[str], rows: Tensor) -> Tensor:
        """What `vectors` reads: states of the texts and images of the rows, [N, h + I]; zeros where there is none."""
        return self.with_images(self.texts(texts) if self.texts else self.images.new_zeros(len(texts), 0), rows)

    def with_images(self, states: Tensor, rows: Tensor) -> Tensor:
        """States [N, h] and the images of the `rows` [N], side by side; zeros for a cold item."""
        if not self.images.shape[1]:
            return states
        return torch.cat([states, self.images[rows.clamp_min(0)] * (rows >= 0)[:, None]], dim=1)

    def save(self, folder: Path) -> None:
        """Writes `language_model/`, `item_index.safetensors` (where there are some) and `item_tower.safetensors`."""
        if self.texts:
            self.texts.save(folder / LANGUAGE_MODEL)
        if len(self.index):
            self.index.save(folder)
        tensors = {name: t for name, t in self.state_dict().items() if ".language_model." not in name}
        metadata = {"config": json.dumps(asdict(self.config))}
        if self.texts:
            metadata["max_tokens"] = str(self.texts.max_tokens)
        write_tensors(folder / FILE, tensors, metadata)

    @classmethod
    def load(cls, folder: Path) -> "ItemTower":
        """The tower that was saved in `folder`, ready to answer."""
        with safe_open(folder / FILE, framework="pt") as file:
            stored = json.loads(file.metadata()["config"])
            max_tokens = file.metadata().get("max_tokens")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = ItemTowerConfig(**stored | {"views": tuple(View(**view) for view in stored["views"])})
        texts = TextEncoder.over(folder / LANGUAGE_MODEL, int(max_tokens)) if max_tokens else None
        tower = cls(texts, config, ItemIndex.load(folder), state["images"])
        tower.load_state_dict(state, strict=False)
        return tower.eval()
