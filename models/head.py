"""The projection head of both towers (RED-Rec, arXiv:2510.14788, PAPERS "item tower")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """p = Linear(h → d);  y = LayerNorm(p + Dropout(Linear(GELU(p))));  y / |y|.

    Each tower has its own weights: "shared" is read as the same form, since the towers' widths may differ (inferred).
    """

    def __init__(self, hidden: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(hidden, dim)
        self.mix = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    @torch.no_grad()
    def pass_through(self) -> "ProjectionHead":
        """Start as y = LayerNorm(h): a user's state then begins in the space of the items that it is made of, as with
        SASRec's tied embeddings; learning that costs many epochs (ours)."""
        nn.init.eye_(self.project.weight)
        for parameter in (self.project.bias, self.mix.weight, self.mix.bias):
            nn.init.zeros_(parameter)
        return self

    def forward(self, states: Tensor) -> Tensor:
        """Unit vectors [..., d] from hidden states [..., h]."""
        p = self.project(states)
        return F.normalize(self.norm(p + self.dropout(self.mix(F.gelu(p)))), dim=-1)
