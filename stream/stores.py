"""What the core asks of the store of histories and items (Redis), and the records that cross."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stream.errors import Permanent
from stream.history import Source


class Append(NamedTuple):
    """One user's events of one batch, in the order of their offsets."""

    user_id: str
    source: Source
    produced_ms: int  # when the oldest of them was produced, ms since 1970
    entries: bytes  # as stream/history.py has them, of the store's code bytes


class Applied(NamedTuple):
    """What became of an `Append`."""

    version: int
    events: int
    duplicates: int  # the producer sent the event id before
    redelivered: int  # the log delivered the offset before


@dataclass(frozen=True)
class Refreshed:
    """A profile that is searchable now."""

    user_id: str
    version: int
    read_ms: int  # when its history was read, ms since 1970
    token: int  # of the shard's owner, before that


class Dirty(NamedTuple):
    """A user whose profile is older than the history, and since when (ms since 1970)."""

    user_id: str
    since_ms: int


@dataclass(frozen=True)
class Backlog:
    """The dirty users of some shards."""

    users: int
    since_ms: int | None  # of the oldest mark, ms since 1970


@dataclass(frozen=True)
class StoredItem:
    """What is known of an item index."""

    index: int
    name: str  # identity.item_key or identity.query_key
    codes: bytes | None  # None until encoded under the store's codebook


@dataclass(frozen=True)
class Codebook:
    """The residual codebook that histories are written with."""

    version: int
    code_bytes: int
    file: bytes  # safetensors, as the models ship it


class Registry(Protocol):
    """What all workers must agree on; written by `facetstream provision`."""

    async def codebook(self) -> Codebook | None: ...

    async def put_codebook(self, codebook: Codebook) -> bool:
        """Put it in force unless one is already; whether it is new."""

    async def epochs(self) -> dict[str, int]:
        """How often each topic was created: offsets of an earlier incarnation mean nothing."""

    async def count_creation(self, topics: Sequence[str]) -> None: ...

    async def beat(self, worker: str, seconds: float) -> None:
        """A worker says that it lives, and by when it will say so again."""

    async def workers(self) -> frozenset[str]:
        """The workers that live."""


class Histories(Protocol):
    """Packed histories and dirty marks; every method is safe to repeat."""

    code_bytes: int  # of a record's codes

    async def append(self, appends: Sequence[Append]) -> list[Applied | Permanent]:
        """Each atomically: de-duplicate, insert, trim, bump the version, mark dirty (laws 1 and 2). For a history that
        cannot be read, nothing is done, and the reason stands in its place."""

    async def read(self, users: Sequence[str]) -> list[bytes | None]: ...

    async def fill(self, codes: Mapping[str, Mapping[int, bytes]]) -> dict[str, bytes | None]:
        """By user, fill pending records by item index; the histories afterwards."""

    async def mark(self, dirty: Sequence[Dirty]) -> None:
        """Mark users dirty; an older mark stays."""

    async def settle(self, refreshed: Sequence[Refreshed]) -> list[bool]:
        """Clear the mark of each whose version has not moved on and whose shard has no newer owner; whether it was
        cleared."""

    async def own(self, shards: Sequence[int]) -> list[int]:
        """Become the owner of these shards; for each a token that is greater than all before, also when repeated."""

    async def owners(self, shards: Sequence[int]) -> list[int]:
        """The token in force of each shard, 0 before the first."""

    async def dirty(self, shards: Sequence[int], limit: int) -> list[Dirty]:
        """The oldest `limit` marks of each shard."""

    async def dirty_count(self) -> int:
        """How many users are dirty, over all shards."""

    def scan(self) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
        """Every user and history, in pages and in no order; one may come twice, one that is new may be missing."""

    async def backlog(self, shards: Sequence[int]) -> Backlog:
        """How many users of these shards are dirty, and since when."""


class Items(Protocol):
    """Item indexes, names and codes."""

    async def claim(self, names: Sequence[str]) -> list[StoredItem]:
        """The index of each name, made on first sight."""

    def scan(self) -> AsyncIterator[Sequence[StoredItem]]:
        """Every item, in pages and in no order; one may come twice, one that is new may be missing."""

    async def put(self, items: Sequence[StoredItem]) -> None:
        """Items at the indexes that they have in another store."""

    async def lookup(self, indexes: Sequence[int]) -> list[StoredItem | None]: ...

    async def put_codes(self, codes: Mapping[int, bytes]) -> None: ...

    async def wait(self, waiting: Sequence[tuple[int, str]]) -> None:
        """Remember that the history of a user (second) waits for the codes of an item index (first)."""

    async def waiting(self, indexes: Sequence[int]) -> list[tuple[int, str]]:
        """Everyone who waits for one of these."""

    async def release(self, waiting: Sequence[tuple[int, str]]) -> None:
        """Those wait no longer."""
