"""From what is known of an item, its text's state, its image and its row of the id table, to one unit vector.

The second stage of the item tower. With frozen features, training uses this stage alone, over a cached matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contract import DIM
from models.head import ProjectionHead

ID_STD = 0.02  # of a new row (PAPERS, "the baseline to beat")


@dataclass(frozen=True)
class View:
    """One part of an item's vector. "text": the head over the features; "id": a learned vector per warm item;
    "both": normalise(head + id residual) of a warm item, the head alone of a cold one."""

    kind: Literal["text", "id", "both"] = "text"
    dim: int = DIM
    share: float = 1.0  # of the whole vector's squared length, relative to the other views'


class ItemVectors(nn.Module):
    """The views, each a unit vector times sqrt(share), side by side; the whole is normalised.

    So the dot product of two items is the mean of the views' cosines, by share: views that were trained apart are fused
    by one index. A view that knows nothing of an item (blank text, cold id) is zero and the others make up the whole.
    Where none knows anything, the item is `unknown`: a random direction, nobody's neighbour, unless training learns it
    by hiding some items.
    """

    def __init__(self, views: Sequence[View], features: int, items: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_Part(view, features, items, dropout) for view in views)
        self.unknown = nn.Parameter(torch.randn(sum(view.dim for view in views)) * ID_STD)

    @torch.no_grad()
    def begin_ids(self, vectors: Tensor) -> None:
        """Begin every table of ids at `vectors` [items, dim of a view]."""
        for part in self.parts:
            if isinstance(table := part.table, nn.Embedding):
                table.weight[1:] = vectors

    def forward(self, features: Tensor, rows: Tensor, hide: Tensor | None = None) -> Tensor:
        """Unit vectors [N, dim] of `features` [N, F] (all zero: nothing is known) and `rows` [N] of the id table (-1:
        a cold item). Where `hide` [N], ids are not added to texts; a view of ids alone has nothing else to learn."""
        added = rows if hide is None else rows.masked_fill(hide, -1)
        whole = torch.cat([part(features, rows if part.head is None else added) for part in self.parts], dim=-1)
        known = whole.any(dim=-1, keepdim=True)
        return F.normalize(torch.where(known, whole, self.unknown), dim=-1)


class _Part(nn.Module):
    """One view: [N, dim] of length sqrt(share), or zero."""

    def __init__(self, view: View, features: int, items: int, dropout: float) -> None:
        super().__init__()
        self.length = view.share**0.5
        self.head = None if view.kind == "id" else ProjectionHead(features, view.dim, dropout)
        self.table = None if view.kind == "text" else nn.Embedding(items + 1, view.dim, padding_idx=0)
        if self.table is not None:
            nn.init.normal_(self.table.weight[1:], std=ID_STD)

    def forward(self, features: Tensor, rows: Tensor) -> Tensor:
        total = features.new_zeros(())
        if self.head is not None:
            total = total + self.head(features) * features.any(dim=-1, keepdim=True)
        if self.table is not None:
            total = total + self.table(rows + 1)  # row -1 is the padding, which stays zero
        return torch.mul(F.normalize(total, dim=-1), self.length)
