"""The records of `events.dead`: dead letters, and settlements that say what became of them.

A letter has the key and value of the original, and in headers why and where from: `reason`, `topic`, `partition`,
`offset`. A null value is an empty one with a header `null`. What is larger than Kafka takes unless it was told
otherwise is cut, and a header `bytes` or `key-bytes` says how long it was.

A settlement comes after its letter on the same partition: no key, no value, and the headers `settles` (the letter's
offset) and `outcome` alone. The headers of an original are not kept, so nothing a worker refuses can pass for one.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from stream.ledger import Record
from stream.ports import DeadLetter, Outcome, Place, Settlement

ORIGINAL_BYTES = 2_500_000  # of a letter's value: below the topic's limit with key and headers
KEY_BYTES = 65_536  # likewise of its key
REASON_BYTES = 2_000  # of the header

Headers = Sequence[tuple[str, bytes]]


class Message(NamedTuple):
    """What is written to the topic."""

    key: bytes | None
    value: bytes
    headers: Headers


@dataclass(frozen=True)
class Letter:
    """A record of the topic that is no settlement."""

    place: Place
    sent_ms: int  # ms since 1970, by whoever wrote it; -1 unknown
    headers: Headers  # as they are; a value may be null
    original: DeadLetter  # of a malformed record without a topic, and the reason says what is wrong with it

    @property
    def malformed(self) -> bool:
        """Whether it is nothing that a worker writes."""
        return not self.original.topic

    def was_cut(self, header: str) -> bool:
        """Whether the value (`bytes`) or the key (`key-bytes`) is not all there."""
        return any(name == header for name, _ in self.headers)

    def mended(self, value: bytes) -> "Letter":
        """With another value for the original's."""
        headers = [(name, said) for name, said in self.headers if name != "bytes"]
        return replace(self, headers=headers, original=replace(self.original, value=value))


def letter_message(letter: DeadLetter) -> Message:
    """A dead letter as it is written."""
    headers = [
        ("reason", letter.reason.encode(errors="replace")[:REASON_BYTES]),
        ("topic", letter.topic.encode()),
        ("partition", b"%d" % letter.partition),
        ("offset", b"%d" % letter.offset),
    ]
    headers += [("null", b"1")] * (letter.value is None)
    for name, field, size in (("key-bytes", letter.key, KEY_BYTES), ("bytes", letter.value, ORIGINAL_BYTES)):
        headers += [(name, b"%d" % len(field or b""))] * (len(field or b"") > size)
    key = None if letter.key is None else letter.key[:KEY_BYTES]
    return Message(key, (letter.value or b"")[:ORIGINAL_BYTES], headers)


def settlement_message(settlement: Settlement) -> Message:
    """A settlement as it is written, to the partition of its letter."""
    headers = [("settles", b"%d" % settlement.place.offset), ("outcome", settlement.outcome.encode())]
    return Message(None, b"", headers)


def decode(partition: int, record: Record) -> Letter | Settlement:
    """What a record is, whoever wrote it. Nothing is refused: what makes no sense is a letter, and malformed."""
    if (settlement := _settlement(partition, record)) is not None:
        return settlement
    try:
        original = _original(record)
    except ValueError as error:
        original = DeadLetter(f"malformed: {error}", "", -1, -1, record.key, record.value)
    return Letter(Place(partition, record.offset), record.timestamp, record.headers, original)


def _settlement(partition: int, record: Record) -> Settlement | None:
    headers = dict(record.headers)
    if record.key is not None or record.value or len(record.headers) != 2 or headers.keys() != {"settles", "outcome"}:
        return None
    with suppress(ValueError):
        place = Place(partition, _number(headers, "settles"))
        if place.offset < record.offset:
            return Settlement(place, Outcome(_text(headers, "outcome")))
    return None


def _original(record: Record) -> DeadLetter:
    headers = dict(record.headers)
    if len(headers) < len(record.headers):
        raise ValueError("a header is there twice")
    for name in headers.keys() & {"bytes", "key-bytes"}:
        _number(headers, name)
    return DeadLetter(
        reason=_text(headers, "reason"),
        topic=_text(headers, "topic"),
        partition=_number(headers, "partition"),
        offset=_number(headers, "offset"),
        key=record.key,
        value=None if "null" in headers and not record.value else record.value,
    )


def _text(headers: Mapping[str, bytes | None], name: str) -> str:
    if not (value := headers.get(name)):
        raise ValueError(f"header {name} is missing or empty")
    return value.decode(errors="replace")  # a reason may have been cut within a character


def _number(headers: Mapping[str, bytes | None], name: str) -> int:
    if not re.fullmatch(rb"\d{1,18}", headers.get(name) or b""):
        raise ValueError(f"header {name} is no number")
    return int(headers[name] or b"")
