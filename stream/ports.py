"""What the core asks of Kafka, Triton and Qdrant, and the records that cross; nothing here knows a client.

Every method raises `Transient` when the service cannot serve now and `Permanent` when asking again is pointless.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.errors import Permanent
from stream.events import Item
from stream.ledger import Batch

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]


@dataclass(frozen=True)
class ModelCard:
    """What the served models are: everything the stream must know of them."""

    dim: int  # components of an embedding
    interests: int  # K, per scenario
    code_bytes: int  # packed residual codes of one item
    codebook_version: int  # 1..65535
    model_version: str  # of user_interests


@dataclass(frozen=True)
class Encoded:
    """A batch of texts through the item tower."""

    embeddings: Floats  # [N, dim], unit
    codes: NDArray[np.uint8]  # [N, code_bytes]
    fidelity: Floats  # [N], cos(embedding, decoded codes)


@dataclass(frozen=True)
class HistoryTensors:
    """A batch of histories as user_interests reads them: oldest first, padded at the end. L is the longest's length."""

    codes: NDArray[np.uint8]  # [N, L, code_bytes]
    time: NDArray[np.int64]  # [N, L], ms since 1970
    scenario: NDArray[np.uint8]  # [N, L]
    action: NDArray[np.uint8]  # [N, L]
    valid: NDArray[np.uint8]  # [N, L], 0 = padding or codes pending
    coarse: Halves | None = None  # [N, size], from earlier answers of the same version; NaN in rows not known


@dataclass(frozen=True)
class Interests:
    """A batch of answers of user_interests."""

    vectors: Floats  # [N, scenario, K, dim], unit
    weights: Floats  # [N, scenario, K], positive, sum to one per scenario
    model_version: str  # that answered; a swap under traffic shows here
    coarse: Halves | None = None  # [N, size], to be given again with a little more of the same histories


@dataclass(frozen=True)
class Profile:
    """One user's point in Qdrant's `users`."""

    user_id: str
    version: int
    model_version: str
    codebook_version: int
    event_ts: int  # ms since 1970, of the newest event
    token: int  # of the worker that made it (stream.ownership)
    vectors: Floats  # [scenario, K, dim], unit
    weights: Floats  # [scenario, K]


@dataclass(frozen=True)
class CatalogueEntry:
    """One item's point in Qdrant's `items`."""

    item: Item
    embedding: Floats  # [dim], unit
    fidelity: float


@dataclass(frozen=True)
class Hit:
    """One recommended item."""

    item_id: str
    score: float
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DeadLetter:
    """A record that cannot be applied, as it was, where it was, and why."""

    reason: str  # `field: what is wrong`
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


class Place(NamedTuple):
    """Where a dead letter lies on the dead-letter topic, which is its name: `PARTITION:OFFSET`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class Outcome(StrEnum):
    """What may become of a dead letter."""

    REPLAYED = "replayed"
    DROPPED = "dropped"


@dataclass(frozen=True)
class Settlement:
    """Word of what became of a dead letter. The first one counts."""

    place: Place
    outcome: Outcome


@dataclass(frozen=True)
class Update:
    """A profile that is searchable, announced on `profiles.updated`."""

    user_id: str
    version: int
    model_version: str
    codebook_version: int
    event_ts: int  # ms since 1970, of the newest event


class Log(Protocol):
    """What a worker writes to Kafka; each method returns once the broker has acknowledged everything."""

    async def dead_letter(self, letters: Sequence[DeadLetter]) -> None: ...
    async def announce(self, updates: Sequence[Update]) -> None: ...


class Returns(Protocol):
    """What a person has done about dead letters, likewise acknowledged."""

    async def send_back(self, originals: Sequence[DeadLetter]) -> Sequence[Permanent | None]:
        """Put keys and values onto the topics they came from, in order, with the header `backfill`: that an event may
        be late has been decided. For each why it was refused, or None."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Note on the dead-letter topic what became of letters."""


class Reader(Protocol):
    """The log read back: what some topics hold at one moment."""

    total: int  # records, or a little more
    skipped: int  # records of the same partitions before those, whether they are gone or were not asked for

    def batches(self) -> AsyncIterator[Batch]:
        """Every record once, those of a partition in order."""


class Models(Protocol):
    """Triton, as the core sees it."""

    async def card(self) -> ModelCard: ...
    async def encode(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> Encoded:
        """`item_ids` are the items' whose texts they are; None where they are no items' (queries). What the model has
        learnt of an item by its id may matter more to it than the text."""

    async def interests(self, histories: HistoryTensors) -> Interests: ...


class Vectors(Protocol):
    """Qdrant, as the core sees it."""

    async def provision(self, card: ModelCard) -> None:
        """Create `users` and `items` with their payload indexes; nothing when they are there. A collection of another
        shape is `Permanent`."""

    async def check(self, card: ModelCard) -> None:
        """`Permanent` when a collection is not of the models' shape, `Transient` when it is not there."""

    async def put_items(self, entries: Sequence[CatalogueEntry]) -> None:
        """Upsert, searchable on return."""

    async def put_profiles(self, profiles: Sequence[Profile]) -> None:
        """Upsert each only over a version that is not newer (law 3), nor the same with a newer token; searchable on
        return."""

    async def profile(self, user_id: str) -> Profile | None: ...
