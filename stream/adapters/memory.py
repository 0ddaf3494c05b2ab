"""In-memory twins of `Models`, `Vectors` and `Log`, for tests and for trying things out: no server, no network."""

import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient

from models.contract import DIM, SCENARIOS
from stream.adapters.qdrant import QdrantVectors
from stream.dead_topic import Message, letter_message, settlement_message
from stream.errors import Permanent
from stream.ledger import Batch, Record
from stream.points import ITEMS, USERS
from stream.ports import DeadLetter, Encoded, Floats, Halves, HistoryTensors, Interests, ModelCard, Settlement, Update


class MemoryVectors(QdrantVectors):
    """The real adapter over Qdrant's official local engine, in memory."""

    def __init__(self, users: str = USERS, items: str = ITEMS) -> None:
        super().__init__(AsyncQdrantClient(":memory:"), users, items)

    async def _index(self, name: str, fields: Mapping[str, Any]) -> None:
        """The local engine scans payloads and warns of any index."""


class MemoryModels:
    """Models without learning: an item's codes are a hash of its text, or of its id where it is one of the `warm`, and
    its embedding a vector drawn from the codes; interest k of a scenario is the mean of the known items whose codes
    fall into class k, the scenario's own events counted twice. The same input gives the same output anywhere, whatever
    the padding."""

    def __init__(
        self, interests: int = 4, code_bytes: int = 4, dim: int = DIM, warm: frozenset[str] = frozenset()
    ) -> None:
        self._card = ModelCard(dim, interests, code_bytes, codebook_version=1, model_version="1")
        self._warm = warm

    async def close(self) -> None:
        pass

    async def card(self) -> ModelCard:
        return self._card

    async def encode(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> Encoded:
        ids = item_ids or [""] * len(texts)
        names = [item if item in self._warm else text for text, item in zip(texts, ids, strict=True)]
        codes = [blake2b(name.encode(), digest_size=self._card.code_bytes).digest() for name in names]
        return Encoded(
            np.stack([_drawn(code, self._card.dim) for code in codes]),
            np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), -1),
            np.ones(len(codes), np.float32),
        )

    async def interests(self, histories: HistoryTensors) -> Interests:
        shape = (len(histories.valid), len(SCENARIOS), self._card.interests)
        vectors = np.broadcast_to(self._priors(), (*shape, self._card.dim)).copy()
        weights = np.ones(shape, np.float32)
        for row, event in zip(*np.nonzero(histories.valid), strict=True):
            code = histories.codes[row, event].tobytes()
            counts = np.where(np.arange(len(SCENARIOS)) == histories.scenario[row, event], 2.0, 1.0)
            k = code[0] % self._card.interests
            vectors[row, :, k] += counts[:, None] * _drawn(code, self._card.dim)
            weights[row, :, k] += counts
        coarse = self._coarse(histories)
        weights[:, :, 0] += coarse[:, None, 0]  # so that one can tell what was known before
        return Interests(_unit(vectors), weights / weights.sum(-1, keepdims=True), self._card.model_version, coarse)

    def _coarse(self, histories: HistoryTensors) -> Halves:
        """How many events there are, or were when that was looked at: [N, 2]."""
        events = histories.valid.sum(axis=1, keepdims=True).astype(np.float16).repeat(2, axis=1)
        known = np.full((len(events), 1), np.nan, np.float16) if histories.coarse is None else histories.coarse
        return np.where(np.isnan(known).any(axis=1, keepdims=True), events, known)

    def _priors(self) -> Floats:
        """What a user without history is taken for: [scenario, K, dim], faint."""
        names = [[f"{scenario}_{k}".encode() for k in range(self._card.interests)] for scenario in SCENARIOS]
        return np.stack([[_drawn(name, self._card.dim) for name in row] for row in names]) * np.float32(1e-3)


@dataclass
class MemoryLog:
    """What was written, in order; `dead` is the dead-letter topic, of one partition."""

    letters: list[DeadLetter] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    sent_back: list[DeadLetter] = field(default_factory=list)
    dead: list[Record] = field(default_factory=list)

    async def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        self.letters += letters
        self._write(map(letter_message, letters))

    async def announce(self, updates: Sequence[Update]) -> None:
        self.updates += updates

    async def send_back(self, originals: Sequence[DeadLetter]) -> list[Permanent | None]:
        self.sent_back += originals
        return [None] * len(originals)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self._write(map(settlement_message, settlements))

    def _write(self, messages: Iterable[Message]) -> None:
        for key, value, headers in messages:
            self.dead.append(Record(len(self.dead), key, value, int(time.time() * 1000), headers))


class MemoryReader:
    """What it was given."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self.total = sum(len(batch.records) for batch in batches)
        firsts = {(batch.topic, batch.partition): batch.first for batch in reversed(batches)}
        self.skipped = sum(firsts.values())

    async def batches(self) -> AsyncIterator[Batch]:
        for batch in self._batches:
            yield batch


@lru_cache(maxsize=100_000)
def _drawn(code: bytes, dim: int) -> Floats:
    """A unit vector [dim] that is a function of `code`."""
    seed = int.from_bytes(blake2b(code, digest_size=8).digest(), "big")
    return _unit(np.random.default_rng(seed).standard_normal(dim).astype(np.float32))


def _unit(vectors: Floats) -> Floats:
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return unit
