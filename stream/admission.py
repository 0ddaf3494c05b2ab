"""Which records are events: decided by the record alone, so that a replay and a dump decide as ingest did.

An event may be sent late, but not without a bound: what is older than that when it is produced is most often a producer
gone wrong. A recorded past is sent with the header `backfill`, and is never late.
"""

from dataclasses import dataclass

from stream.errors import Permanent
from stream.events import Event, parse_event
from stream.ledger import Record

BACKFILL = ("backfill", b"")  # a header; its name is what counts
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Admission:
    """The limits put on a record of an event topic."""

    max_bytes: int  # of its value
    lateness_hours: int  # from an event's `ts` to its record's timestamp; 0: no bound

    def event(self, scenario: str, record: Record) -> Event:
        """The event in `record`. Raises `Permanent` with `field: what is wrong`, or `late: …`."""
        value, produced_ms = record.value, record.timestamp
        if not value or len(value) > self.max_bytes:
            value = payload(record, self.max_bytes)
        event = parse_event(scenario, value, produced_ms if produced_ms > 0 else None)
        if 0 < self.lateness_hours * HOUR_MS < produced_ms - event.ts and not _is_backfill(record):
            raise Permanent(f"late: ts is more than {self.lateness_hours} hours before the record's timestamp")
        return event


def payload(record: Record, limit: int) -> bytes:
    """The bytes to parse, `limit` at most. Raises `Permanent` where there are none, or too many."""
    if record.value is None:
        raise Permanent("value: is null (a tombstone)")
    if not record.value:
        raise Permanent("value: is empty")
    if len(record.value) > limit:
        raise Permanent(f"value: has {len(record.value)} bytes, the limit is {limit}")
    return record.value


def _is_backfill(record: Record) -> bool:
    return any(name == BACKFILL[0] for name, _ in record.headers)
