"""Header names that are no UTF-8, which aiokafka (0.14) cannot read: one such record would stop every reader for good.

`allow()` has aiokafka read a fetch once more, leniently, when a name in it is at fault; the name then shows its bytes
as `\\xff`. All else is read as before.
"""

from collections.abc import Iterator
from typing import Any, Self

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy


def allow() -> None:
    """Read such records in this process from now on."""
    fetcher.MemoryRecords, fetcher.PartitionRecords = _MemoryRecordsPy, _PartitionRecords


class _PartitionRecords(fetcher.PartitionRecords):
    def _unpack_records(self) -> Iterator[Any]:
        try:
            yield from super()._unpack_records()
        except UnicodeDecodeError:
            self._records: Any = _LenientRecords(self._records._buffer)  # from its beginning; what was read is skipped
            yield from super()._unpack_records()


class _LenientRecords(_MemoryRecordsPy):
    def next_batch(self) -> Any:
        data, batch = self._next_slice, super().next_batch()
        return _LenientBatch(data) if batch.magic >= 2 else batch  # older formats have no headers


class _LenientBatch(_DefaultRecordBatchPy):
    def __iter__(self) -> Self:
        super().__iter__()  # uncompresses
        self._buffer: Any = _LenientText(self._buffer)
        return self


class _LenientText(bytearray):
    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _LenientText(found) if isinstance(index, slice) else found

    def decode(self, *_: Any) -> str:
        return bytes(self).decode(errors="backslashreplace")
