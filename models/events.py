"""A history as the user tower reads it, and the encoding of its events (RED-Rec, PAPERS "scenario parts").

Nothing here depends on how many rows are invalid or where they stand: times and ranks are counted over valid rows only.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from models.contract import ACTIONS, SCENARIOS

HOUR_MS = 3_600_000
TIME_BUCKETS = 32  # powers of two of seconds: 2**31 s are 68 years
RANK_BUCKETS = 64  # quarters of powers of two of the rank from the newest: up to 2**16 events


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

    def newest(self, length: int) -> "Histories":
        """The last `length` rows."""
        return Histories(*(getattr(self, field.name)[:, -length:] for field in fields(self)))


def rank_from_newest(valid: Tensor) -> Tensor:
    """How many valid rows [B, L] stand at or behind each row: 1 for the newest valid one."""
    return valid.long().flip(1).cumsum(1).flip(1)


class EventEncoder(nn.Module):
    """Item vector + encodings of scenario, action, hour (UTC), age, gap to the event before, and place from the newest.

    Age is measured from the newest valid event, never from the clock: the same history always gives the same answer.
    The sum of the parts, as in a position embedding, is our reading (inferred); so are the logarithmic buckets.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.item = nn.Linear(dim, width)
        self.scenario = nn.Embedding(len(SCENARIOS), width)
        self.action = nn.Embedding(len(ACTIONS), width)
        self.hour = nn.Embedding(24, width)
        self.age = nn.Embedding(TIME_BUCKETS, width)
        self.gap = nn.Embedding(TIME_BUCKETS, width)
        self.place = nn.Embedding(RANK_BUCKETS, width)
        self.norm = nn.LayerNorm(width)
        for table in (self.scenario, self.action, self.hour, self.age, self.gap, self.place):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, items: Tensor, events: Histories) -> Tensor:
        """Encodings [B, L, width] of `events` with item vectors `items` [B, L, dim]; of invalid rows, anything."""
        time, valid = events.time, events.valid
        upto = time.masked_fill(~valid, torch.iinfo(torch.int64).min).cummax(dim=1).values
        before = torch.cat([time[:, :1], upto[:, :-1]], dim=1)
        before = torch.where(before == torch.iinfo(torch.int64).min, time, before)
        encoded = (
            self.item(items)
            + self.scenario(events.scenario)
            + self.action(events.action)
            + self.hour(time // HOUR_MS % 24)
            + self.age(_bucket((upto[:, -1:] - time) // 1000, 1, TIME_BUCKETS))
            + self.gap(_bucket((time - before) // 1000, 1, TIME_BUCKETS))
            + self.place(_bucket(rank_from_newest(valid), 4, RANK_BUCKETS))
        )
        normed: Tensor = self.norm(encoded)
        return normed


def _bucket(counts: Tensor, per_octave: int, buckets: int) -> Tensor:
    """floor(per_octave * log2(1 + count)), at most the last bucket; negative counts are taken as 0."""
    return ((1 + counts.clamp_min(0)).double().log2() * per_octave).long().clamp_max(buckets - 1)
