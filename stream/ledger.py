"""Records as Kafka delivers them, in batches of one partition, and the ledger of what may be committed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Record(NamedTuple):
    """One Kafka record, bytes untouched; a tombstone's value is None, an empty message's is b''."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int  # ms since 1970, by the producer or the broker; -1 in logs of old
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """Records of one partition in the order of offsets, at least one. Delivered twice, they are two batches."""

    topic: str
    partition: int
    records: tuple[Record, ...]

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return self.records[0].offset

    @property
    def end(self) -> int:
        """Offset after the last record: what is committed for this batch."""
        return self.records[-1].offset + 1


class Ledger:
    """The batches of one partition that are under way, and what they allow to commit.

    Acknowledgements come in any order; only the end of the longest run of acknowledged batches is committable. Faust
    itself (0.15.3, `Consumer._new_offset`) may commit past a message still under way: faust-streaming issue 606.
    """

    def __init__(self) -> None:
        self.committable: int | None = None  # offset
        self._under_way: dict[Batch, bool] = {}  # in order of delivery; True: acknowledged, behind one that is not
        self._end = 0  # offset after what was delivered

    def __len__(self) -> int:
        """Batches under way."""
        return len(self._under_way)

    def __contains__(self, batch: Batch) -> bool:
        """Whether it is under way."""
        return batch in self._under_way

    @property
    def first(self) -> Batch | None:
        """The first one that is not acknowledged."""
        return next((batch for batch, acknowledged in self._under_way.items() if not acknowledged), None)

    @property
    def records(self) -> int:
        """Records in the batches under way."""
        return sum(len(batch.records) for batch in self._under_way)

    def deliver(self, batch: Batch) -> None:
        """Note a batch. One that starts before the last one's end means the log was rewound: all else is forgotten."""
        if batch.first < self._end:
            self.forget()
        self._under_way[batch] = False
        self._end = batch.end

    def acknowledge(self, batch: Batch) -> bool:
        """Note that a batch is dealt with. False, and nothing noted, when it is not, or no longer, under way."""
        if batch not in self._under_way:
            return False
        self._under_way[batch] = True
        while self._under_way and self._under_way[oldest := next(iter(self._under_way))]:
            del self._under_way[oldest]
            self.committable = oldest.end
        return True

    def forget(self) -> None:
        """The partition is lost or rewound: what is under way will be delivered again, here or elsewhere."""
        self.committable = None
        self._under_way.clear()
        self._end = 0
