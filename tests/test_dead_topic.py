"""The records of the dead-letter topic: what a worker writes comes back as it was, and what strangers write is told
apart from it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.dead_topic import KEY_BYTES, ORIGINAL_BYTES, Letter, decode, letter_message, settlement_message
from stream.ledger import Record
from stream.ports import DeadLetter, Outcome, Place, Settlement

offsets = st.integers(0, 10**18 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
letters = st.builds(
    DeadLetter,
    texts,
    texts,
    st.integers(0, 10_000),
    offsets,
    st.none() | st.binary(max_size=200),
    st.none() | st.binary(max_size=2_000),
)
header = st.tuples(
    st.sampled_from(["reason", "topic", "partition", "offset", "null", "bytes", "settles", "outcome"]) | st.text(),
    st.none() | st.sampled_from([b"0", b"7", b"dropped", b"9" * 40, b"+1", b"\xb2"]) | st.binary(max_size=20),
)
GOOD = [("reason", b"r"), ("topic", b"events.feed"), ("partition", b"1"), ("offset", b"2")]


def written(message: Any, offset: int = 0) -> Record:
    return Record(offset, message.key, message.value, 1, message.headers)


@given(letter=letters, place=st.builds(Place, st.integers(0, 99), offsets))
def test_a_letter_comes_back_whole(letter: DeadLetter, place: Place) -> None:
    found = decode(place.partition, written(letter_message(letter), place.offset))
    assert isinstance(found, Letter)
    assert (found.place, found.original, found.malformed) == (place, letter, False)
    assert not found.was_cut("bytes")
    assert not found.was_cut("key-bytes")


@given(letter=letters, offset=offsets)
def test_no_original_passes_for_a_settlement(letter: DeadLetter, offset: int) -> None:
    forged = settlement_message(Settlement(Place(0, 0), Outcome.DROPPED))
    for key, value in [(letter.key, letter.value), (forged.key, forged.value), (None, None)]:
        message = letter_message(DeadLetter(letter.reason, letter.topic, 0, offset, key, value))
        assert isinstance(decode(0, written(message, 10**18)), Letter)


@given(outcome=st.sampled_from(Outcome), offset=offsets, later=st.integers(1, 10**6))
def test_a_settlement_comes_back(outcome: Outcome, offset: int, later: int) -> None:
    settlement = Settlement(Place(3, offset), outcome)
    assert decode(3, written(settlement_message(settlement), offset + later)) == settlement


@given(
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=20),
    headers=st.lists(header, max_size=6) | st.lists(header, max_size=3).map(lambda more: GOOD + more),
    timestamp=st.integers(-(2**63), 2**63 - 1),
)
def test_a_strangers_record_is_read_without_a_fault(
    key: bytes | None, value: bytes | None, headers: Any, timestamp: int
) -> None:
    found = decode(0, Record(5, key, value, timestamp, headers))
    if isinstance(found, Letter):
        assert found.original.reason.startswith("malformed: ") or found.original.topic
        assert found.original.value in (value, None)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([], "header reason is missing or empty"),
        (GOOD[:3], "header offset is no number"),
        ([*GOOD, GOOD[0]], "a header is there twice"),
        ([*GOOD, ("bytes", b"many")], "header bytes is no number"),
        ([*GOOD[:2], ("partition", None), GOOD[3]], "header partition is no number"),
        ([("settles", b"9"), ("outcome", b"dropped")], "header reason is missing or empty"),  # of a later record
        ([("settles", b"1"), ("outcome", b"eaten")], "header reason is missing or empty"),
    ],
)
def test_a_malformed_record_says_what_is_wrong(headers: Any, says: str) -> None:
    found = decode(0, Record(5, None, b"", 0, headers))
    assert isinstance(found, Letter)
    assert (found.malformed, found.original.reason) == (True, f"malformed: {says}")


def test_what_was_cut_says_so_and_can_be_mended() -> None:
    large = DeadLetter("ä" * 2_000, "items", 0, 0, b"k" * (KEY_BYTES + 1), b"x" * (ORIGINAL_BYTES + 1))
    letter = decode(0, written(letter_message(large)))
    assert isinstance(letter, Letter)
    assert (letter.malformed, letter.was_cut("bytes"), letter.was_cut("key-bytes")) == (False, True, True)
    mended = letter.mended(b"whole")
    assert (mended.original.value, mended.was_cut("bytes"), mended.was_cut("key-bytes")) == (b"whole", False, True)
