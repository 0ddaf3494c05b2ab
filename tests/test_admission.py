"""The lateness bound: where it lies, what is exempt, and that the record alone decides, whoever asks."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.adapters.memory import MemoryReader
from stream.admission import BACKFILL, HOUR_MS, Admission
from stream.dump import Dumped, dump_events
from stream.errors import Permanent
from stream.events import Scenario
from stream.ledger import Batch, Record
from tests.path.rig import NOW_MS, Rig, event

BOUND = Admission(max_bytes=65_536, lateness_hours=720)
BOUND_MS = 720 * HOUR_MS
NEVER = Admission(max_bytes=65_536, lateness_hours=0)


def record(number: int = 0, age_ms: int = 0, produced_ms: int = NOW_MS, headers: Sequence[Any] = ()) -> Record:
    """Of an event that was so old when it was produced."""
    value = json.dumps(event(number, ts=produced_ms - age_ms)).encode()
    return Record(number, b"u", value, produced_ms, headers)


def is_late(admission: Admission, made: Record) -> bool:
    try:
        admission.event("feed", made)
    except Permanent as error:
        return str(error).startswith("late: ")
    return False


@pytest.mark.parametrize(("age_ms", "late"), [(-1, False), (0, False), (BOUND_MS, False), (BOUND_MS + 1, True)])
def test_an_event_is_late_beyond_the_bound(age_ms: int, late: bool) -> None:
    assert is_late(BOUND, record(age_ms=age_ms)) is late
    assert not is_late(NEVER, record(age_ms=age_ms))


def test_the_reason_says_what_the_bound_is() -> None:
    with pytest.raises(Permanent, match=r"^late: ts is more than 720 hours before the record's timestamp$"):
        BOUND.event("feed", record(age_ms=BOUND_MS + 1))


@pytest.mark.parametrize(
    ("headers", "late"),
    [
        ([BACKFILL], False),
        ([("other", b"1"), ("backfill", b"yes")], False),
        ([("backfill", None)], False),
        ([("Backfill", b""), ("back", b"backfill")], True),
    ],
)
def test_a_header_exempts(headers: Sequence[Any], late: bool) -> None:
    assert is_late(BOUND, record(age_ms=2 * BOUND_MS, headers=headers)) is late


@pytest.mark.parametrize("timestamp", [-1, 0])
def test_a_record_without_a_timestamp_is_never_late(timestamp: int) -> None:
    assert not is_late(BOUND, record(age_ms=2 * BOUND_MS)._replace(timestamp=timestamp))


def test_a_header_exempts_from_nothing_else() -> None:
    with pytest.raises(Permanent, match=r"^ts: must not be more than 5 minutes ahead"):
        BOUND.event("feed", record(age_ms=-600_000, headers=[BACKFILL]))


records = st.builds(
    record,
    number=st.integers(0, 1 << 20),
    age_ms=st.one_of(st.integers(0, 3 * BOUND_MS), st.integers(BOUND_MS - 2, BOUND_MS + 2)),
    produced_ms=st.integers(NOW_MS, NOW_MS + 3 * BOUND_MS),
    headers=st.sampled_from([(), (BACKFILL,), (("trace", b"1"),)]),
)


@settings(max_examples=50, deadline=None)
@given(made=st.lists(records, min_size=1, max_size=20, unique_by=lambda r: r.offset), cut=st.integers(0, 20))
def test_ingest_dump_and_a_replay_agree_on_each_record_whatever_is_around_it(made: list[Record], cut: int) -> None:
    made.sort(key=lambda r: r.offset)
    late = [r.offset for r in made if is_late(BOUND, r)]
    assert asyncio.run(_refused(made)) == late
    assert asyncio.run(_refused(made[:cut], made[cut:])) == late
    assert asyncio.run(_left_out(made)) == len(late)


async def _refused(*batches: list[Record]) -> list[int]:
    """By an ingest, or a replay, that gets the records so."""
    rig = Rig(lateness_hours=BOUND.lateness_hours)
    for each in filter(None, batches):
        await rig.ingest.handle(Batch("events.feed", 0, tuple(each)), Scenario.feed)
    assert all(letter.reason.startswith("late: ") for letter in rig.log.letters)
    assert rig.stats.counts["events_applied"] == sum(map(len, batches)) - len(rig.log.letters)
    return [letter.offset for letter in rig.log.letters]


async def _left_out(made: list[Record]) -> int:
    done = Dumped()
    with TemporaryDirectory() as folder:
        reader = MemoryReader([Batch("events.feed", 0, tuple(made))])
        await dump_events(reader, Path(folder), BOUND, lambda _: None, done)
    assert all(reason.startswith("events.feed: late: ") for reason in done.left_out)
    return done.left_out.total()
