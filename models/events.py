"""A history as the user tower reads it, and the encoding of its events (RED-Rec, PAPERS "scenario parts")."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from models.contract import ACTIONS, SCENARIOS

HOUR_MS = 3_600_000
GAP_BUCKETS = 32  # powers of two of seconds: 2**31 s are 68 years


@dataclass(frozen=True)
class Histories:
    """A batch of histories, oldest event first. A row that is not valid (padding, codes pending) says nothing."""

    codes: Tensor  # uint8 [B, L, code_bytes]
    time: Tensor  # int64 [B, L], ms since 1970, never falling along valid rows
    scenario: Tensor  # int64 [B, L]
    action: Tensor  # int64 [B, L]
    valid: Tensor  # bool [B, L]

    def to(self, device: torch.device | str) -> "Histories":
        return Histories(*(getattr(self, field.name).to(device) for field in fields(self)))

    def at(self, rows: Tensor, valid: Tensor) -> "Histories":
        """The events in `rows` [B, R], those `valid` [B, R] of them."""
        codes = self.codes.gather(1, rows[..., None].expand(-1, -1, self.codes.shape[-1]))
        time, scenario, action = (column.gather(1, rows) for column in (self.time, self.scenario, self.action))
        return Histories(codes, time, scenario, action, valid)

    def rows(self, chosen: Tensor) -> "Histories":
        """Those of the batch that are `chosen`, bool [B]."""
        return Histories(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def compact(self) -> "Histories":
        """The valid rows alone, in order, from the start; as long as the longest, the rest of a shorter one invalid."""
        longest = int(self.valid.sum(dim=1).max()) if self.valid.numel() else 0
        rows = (~self.valid).long().argsort(dim=1, stable=True)[:, :longest]
        return self.at(rows, self.valid.gather(1, rows))


def rank_from_newest(valid: Tensor) -> Tensor:
    """How many valid rows [B, L] stand at or behind each row: 1 for the newest valid one."""
    return valid.long().flip(1).cumsum(1).flip(1)


class EventEncoder(nn.Module):
    """Item vector + encodings of scenario, action, hour (UTC) and time since the event before.

    Nothing looks ahead or at the clock, so the encoding of an event never changes; its position is left to the rotary
    attention of both branches. The sum, as in a position embedding, and the buckets are our reading (inferred).
    """

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.item = nn.Linear(dim, width)
        self.scenario = nn.Embedding(len(SCENARIOS), width)
        self.action = nn.Embedding(len(ACTIONS), width)
        self.hour = nn.Embedding(24, width)
        self.gap = nn.Embedding(GAP_BUCKETS, width)
        self.dropout = nn.Dropout(dropout)
        for table in (self.scenario, self.action, self.hour, self.gap):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.eye_(self.item.weight)  # see `ProjectionHead.pass_through`
        nn.init.zeros_(self.item.bias)
        self.lengthen = dim**0.5  # of unit vectors, to the length of a normalised state

    def forward(self, items: Tensor, events: Histories) -> Tensor:
        """Encodings [B, L, width] of compact `events` with item vectors `items` [B, L, dim]."""
        gap = events.time.diff(dim=1, prepend=events.time[:, :1]) // 1000
        encoded: Tensor = self.dropout(
            self.item(items * self.lengthen)
            + self.scenario(events.scenario)
            + self.action(events.action)
            + self.hour(events.time // HOUR_MS % 24)
            + self.gap(_octave(gap))
        )
        return encoded


def _octave(seconds: Tensor) -> Tensor:
    """floor(log2(1 + seconds)), at most the last bucket; negative counts are taken as 0."""
    return (1 + seconds.clamp_min(0)).double().log2().long().clamp_max(GAP_BUCKETS - 1)
