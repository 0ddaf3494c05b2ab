"""The packed history of a user, format 1. All integers are big-endian.

    header   format u8 | code bytes u8 | codebook version u16 | profile version u32 | number of marks u16     10 bytes
    mark     scenario u2, partition u14 | log epoch u8 | offset u40                                   8 bytes each
    record   time u42 (ms since 2000), scenario u2, action u4 | pending u1, item index u39 | codes       11 + code bytes

Marks are in the order of their first two bytes: the latest offset applied of each topic partition, and the incarnation
(epoch) of that topic. Records are in the order of time, then scenario, then arrival, newest last, so that events of
several topics give the same bytes in whatever order they come in.

On its way into a history an event is an entry, one after the other without a header:

    entry    offset u40 | event-id hash 8 bytes | record                                                  13 + record

The profile version counts what is known: two for each event record ever applied, less one for each record whose codes
are still pending. So it grows with every event and with every code filled in, and is the same after any replay.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.errors import Permanent
from stream.events import OLDEST_MS
from stream.ports import Halves, HistoryTensors

FORMAT = 1
HEADER = struct.Struct(">BBHIH")
MARK_BYTES = 8
FIXED_BYTES = 11  # of a record, without its codes
PENDING = 1 << 39
HEAD_BYTES = 13  # of an entry, before its record


@dataclass(frozen=True)
class Source:
    """Where a batch of one user's events came from: a partition of a scenario's topic, in its present incarnation."""

    scenario: int
    partition: int
    epoch: int = 1

    @property
    def key(self) -> int:
        """The mark's first two bytes."""
        return self.scenario << 14 | self.partition


class Record(NamedTuple):
    """One event of a history. `codes` is None while they are pending."""

    ts: int  # ms since 1970
    scenario: int
    action: int
    item: int  # index, 39 bits
    codes: bytes | None

    @property
    def order(self) -> tuple[int, int]:
        return (self.ts, self.scenario)


@dataclass(frozen=True)
class History:
    """A decoded history."""

    code_bytes: int
    codebook_version: int
    version: int = 0
    marks: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # source key -> (epoch, offset)
    records: tuple[Record, ...] = ()

    @property
    def events_applied(self) -> int:
        """Records ever applied, whether still kept or not."""
        return (self.version + sum(r.codes is None for r in self.records)) // 2


class Entry(NamedTuple):
    """One event on its way into a history."""

    offset: int
    event: bytes  # identity.event_hash
    record: Record


def pack_record(ts: int, scenario: int, action: int, item: int, codes: bytes | None, code_bytes: int) -> bytes:
    """The fields of a `Record` in `FIXED_BYTES + code_bytes` bytes."""
    if codes is None:
        item, codes = item | PENDING, bytes(code_bytes)
    when = (ts - OLDEST_MS) << 6 | scenario << 4 | action
    return when.to_bytes(6) + item.to_bytes(5) + codes


def unpack_entries(data: bytes, code_bytes: int) -> list[Entry]:
    """The entries in `data`. They are packed in `stream.ingest`, where no object per event can be afforded."""
    size = HEAD_BYTES + FIXED_BYTES + code_bytes
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return [Entry(int.from_bytes(p[:5]), p[5:HEAD_BYTES], _record(p[HEAD_BYTES:])) for p in parts]


def encode(history: History) -> bytes:
    """The bytes of format 1."""
    header = HEADER.pack(
        FORMAT, history.code_bytes, history.codebook_version, history.version & 0xFFFFFFFF, len(history.marks)
    )
    marks = b"".join(
        key.to_bytes(2, "big") + epoch.to_bytes(1, "big") + offset.to_bytes(5, "big")
        for key, (epoch, offset) in sorted(history.marks.items())
    )
    return header + marks + b"".join(pack_record(*r, history.code_bytes) for r in history.records)


def decode(data: bytes) -> History:
    """The history in `data`. Raises `Permanent` on an unknown format or a broken length."""
    code_bytes, codebook_version, version, body = _split(data)
    marks = {
        int.from_bytes(data[i : i + 2], "big"): (data[i + 2], int.from_bytes(data[i + 3 : i + 8], "big"))
        for i in range(HEADER.size, body, MARK_BYTES)
    }
    size = FIXED_BYTES + code_bytes
    records = tuple(_record(data[i : i + size]) for i in range(body, len(data), size))
    return History(code_bytes, codebook_version, version, marks, records)


def version_of(data: bytes) -> int:
    """The profile version, read from the header alone."""
    return _split(data)[2]


def records_in(data: bytes) -> int:
    """How many records are kept."""
    code_bytes, _, _, body = _split(data)
    return (len(data) - body) // (FIXED_BYTES + code_bytes)


def _split(data: bytes) -> tuple[int, int, int, int]:
    """Code bytes, codebook version, profile version, and where the records begin."""
    if len(data) < HEADER.size or data[0] != FORMAT:
        raise Permanent(f"history: format {data[0] if data else 'none'} is unknown, this program reads {FORMAT}")
    _, code_bytes, codebook_version, version, marks = HEADER.unpack_from(data)
    body = HEADER.size + MARK_BYTES * marks
    if len(data) < body or (len(data) - body) % (FIXED_BYTES + code_bytes):
        raise Permanent(f"history: {len(data)} bytes do not fit the header's {marks} marks and {code_bytes} code bytes")
    return code_bytes, codebook_version, version, body


def _record(data: bytes) -> Record:
    when, item = int.from_bytes(data[:6], "big"), int.from_bytes(data[6:11], "big")
    return Record(
        ts=(when >> 6) + OLDEST_MS,
        scenario=when >> 4 & 3,
        action=when & 15,
        item=item & ~PENDING,
        codes=None if item & PENDING else data[11:],
    )


@dataclass(frozen=True)
class _Columns:
    """The records of one history as arrays, without a Python object per record."""

    when: NDArray[Any]  # [L] int64
    item: NDArray[Any]  # [L] int64, with the pending bit
    codes: NDArray[Any]  # [L, code bytes] uint8


def _columns(data: bytes) -> _Columns:
    code_bytes, _, _, body = _split(data)
    rows = np.frombuffer(data, np.uint8, offset=body).reshape(-1, FIXED_BYTES + code_bytes)
    return _Columns(_integers(rows[:, :6]), _integers(rows[:, 6:11]), rows[:, FIXED_BYTES:])


def _integers(digits: NDArray[np.uint8]) -> NDArray[np.int64]:
    powers = 256 ** np.arange(digits.shape[1] - 1, -1, -1, dtype=np.int64)
    return np.asarray(digits.astype(np.int64) @ powers)


def pending_items(data: bytes) -> list[int]:
    """Indexes of the items whose codes are still missing, each once, oldest first."""
    items = _columns(data).item
    return list(dict.fromkeys((items[items & PENDING != 0] & ~PENDING).tolist()))


def events_applied(data: bytes) -> int:
    """Records ever applied, whether still kept or not."""
    return (version_of(data) + int(np.count_nonzero(_columns(data).item & PENDING))) // 2


def newest_ts(data: bytes) -> int:
    """Time of the newest event, ms since 1970; 0 for an empty history."""
    when = _columns(data).when
    return int(when[-1] >> 6) + OLDEST_MS if len(when) else 0


def tensors(batch: Sequence[bytes], coarse: Halves | None = None) -> HistoryTensors:
    """The inputs of user_interests for packed histories of one codebook, padded at the end to the longest."""
    columns = [_columns(data) for data in batch]
    length = max([1, *(len(c.when) for c in columns)])
    shape = (len(columns), length)
    out = HistoryTensors(
        codes=np.zeros((*shape, columns[0].codes.shape[1]), np.uint8),
        time=np.zeros(shape, np.int64),
        scenario=np.zeros(shape, np.uint8),
        action=np.zeros(shape, np.uint8),
        valid=np.zeros(shape, np.uint8),
        coarse=coarse,
    )
    for row, c in enumerate(columns):
        n = len(c.when)
        out.codes[row, :n] = c.codes
        out.time[row, :n] = (c.when >> 6) + OLDEST_MS
        out.scenario[row, :n] = c.when >> 4 & 3
        out.action[row, :n] = c.when & 15
        out.valid[row, :n] = c.item & PENDING == 0
    return out
