"""The packed history: any history survives the round trip, and the bytes of format 1 never change."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import Permanent
from stream.events import OLDEST_MS
from stream.history import (
    FIXED_BYTES,
    HEADER,
    MARK_BYTES,
    History,
    Record,
    decode,
    encode,
    newest_ts,
    pending_items,
    tensors,
    version_of,
)

GOLDEN = Path(__file__).parent / "golden"


@st.composite
def histories(draw: st.DrawFn) -> History:
    code_bytes = draw(st.integers(1, 8))
    records = st.builds(
        Record,
        ts=st.integers(OLDEST_MS, OLDEST_MS + (1 << 42) - 1),
        scenario=st.integers(0, 3),
        action=st.integers(0, 15),
        item=st.integers(0, (1 << 39) - 1),
        codes=st.none() | st.binary(min_size=code_bytes, max_size=code_bytes),
    )
    return History(
        code_bytes=code_bytes,
        codebook_version=draw(st.integers(0, 65_535)),
        version=draw(st.integers(0, (1 << 32) - 1)),
        marks=draw(
            st.dictionaries(
                st.integers(0, 65_535), st.tuples(st.integers(0, 255), st.integers(0, (1 << 40) - 1)), max_size=5
            )
        ),
        records=tuple(draw(st.lists(records, max_size=20))),
    )


@given(histories())
def test_decode_inverts_encode(history: History) -> None:
    data = encode(history)
    assert decode(data) == history
    assert version_of(data) == history.version
    assert len(data) == HEADER.size + MARK_BYTES * len(history.marks) + len(history.records) * (
        FIXED_BYTES + history.code_bytes
    )


@given(st.lists(histories(), min_size=1, max_size=4).filter(lambda hs: len({h.code_bytes for h in hs}) == 1))
def test_tensors_say_what_the_records_say(batch: list[History]) -> None:
    out = tensors([encode(h) for h in batch])
    for row, history in enumerate(batch):
        n = len(history.records)
        assert out.time[row, :n].tolist() == [r.ts for r in history.records]
        assert out.scenario[row, :n].tolist() == [r.scenario for r in history.records]
        assert out.action[row, :n].tolist() == [r.action for r in history.records]
        assert out.valid[row].tolist() == [int(r.codes is not None) for r in history.records] + [0] * (
            out.valid.shape[1] - n
        )
        for i, r in enumerate(history.records):
            assert r.codes is None or out.codes[row, i].tobytes() == r.codes


@given(histories())
def test_pending_items_and_the_newest_time_are_read_from_the_bytes(history: History) -> None:
    data = encode(history)
    assert pending_items(data) == list(dict.fromkeys(r.item for r in history.records if r.codes is None))
    assert newest_ts(data) == (history.records[-1].ts if history.records else 0)


@given(st.binary(max_size=64))
def test_no_bytes_crash_the_decoder(data: bytes) -> None:
    with suppress(Permanent):
        history = decode(data)
        assert encode(history) == data or len(history.marks) < data[8] * 256 + data[9]


GOLDEN_HISTORY = History(
    code_bytes=3,
    codebook_version=1,
    version=5,
    marks={0 << 14 | 3: (1, 41), 1 << 14 | 3: (2, 1_234_567_890_123 % (1 << 40))},
    records=(
        Record(ts=1_700_000_000_001, scenario=0, action=15, item=0x12_3456_789A, codes=None),
        Record(ts=1_700_000_000_002, scenario=1, action=1, item=7, codes=b"\x00\xff\x80"),
        Record(ts=1_700_000_000_002, scenario=2, action=8, item=(1 << 39) - 1, codes=b"abc"),
    ),
)


def test_the_golden_file_of_format_1_still_decodes() -> None:
    data = bytes.fromhex((GOLDEN / "history-v1.hex").read_text())
    assert decode(data) == GOLDEN_HISTORY
    assert encode(GOLDEN_HISTORY) == data


def test_at_forty_events_a_stored_event_costs_less_than_sixteen_bytes() -> None:
    record = Record(ts=1_700_000_000_001, scenario=0, action=1, item=7, codes=b"abc")
    history = History(3, 1, 80, {0: (1, 1), 1 << 14: (1, 1), 2 << 14: (1, 1)}, (record,) * 40)
    assert len(encode(history)) / 40 <= 16


@pytest.mark.parametrize("data", [b"", b"\x02" + bytes(20), encode(GOLDEN_HISTORY)[:-1]])
def test_an_unknown_format_or_a_broken_length_is_refused(data: bytes) -> None:
    with pytest.raises(Permanent, match="history:"):
        decode(data)


def test_padding_is_all_zero() -> None:
    out = tensors([encode(GOLDEN_HISTORY), encode(History(3, 1))])
    assert not any(np.any(a[1]) for a in (out.codes, out.time, out.scenario, out.action, out.valid))
