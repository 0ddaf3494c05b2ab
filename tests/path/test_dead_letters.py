"""Dead letters over the in-memory twin: which are chosen, what becomes of them, and that the counts add up."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.adapters.memory import MemoryLog, MemoryReader
from stream.dead_letters import OPEN, DeadLetters, Settled, Wanted, drop, replay
from stream.dead_topic import settlement_message
from stream.errors import Transient, UserError
from stream.ledger import Batch, Record
from stream.ports import DeadLetter, Outcome, Place, Settlement
from stream.topics import DEAD

REASONS = ["ts: is null", "item_id: Field required", "value: of events", "Invalid JSON: no"]


def letter(number: int, topic: str = "events.feed") -> DeadLetter:
    return DeadLetter(REASONS[number % len(REASONS)], topic, 0, number, b"u%d" % number, b"%d" % number)


def reader(*records: Record) -> MemoryReader:
    return MemoryReader([Batch(DEAD, 0, records)] if records else [])


async def chosen(log: MemoryLog, wanted: Wanted, settled: bool = False) -> list[int]:
    """Offsets on the dead-letter topic."""
    with DeadLetters(wanted) as letters:
        await letters.read(reader(*log.dead))
        return [found.place.offset for found, _ in letters.chosen(settled)]


async def act(log: MemoryLog, wanted: Wanted, how: Any) -> tuple[Settled, dict[str, int]]:
    """What was done, and the counts afterwards."""
    with DeadLetters(wanted, originals=True) as letters:
        await letters.read(reader(*log.dead))
        done = await how(letters=(found for found, _ in letters.chosen()), log=log)
    with DeadLetters(Wanted()) as letters:
        await letters.read(reader(*log.dead))
        return done, letters.counts()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), [0, 1, 2, 3, 4, 5]),
        (Wanted(reason="ts:"), [0, 4]),
        (Wanted(reason="ts"), [0, 2, 4]),  # "events"
        (Wanted(reason="required"), [1, 5]),
        (Wanted(reason="Required"), []),
        (Wanted(topic="items"), [5]),
        (Wanted(topic="items", reason="ts"), []),
        (Wanted(since_ms=102), [2, 3, 4, 5]),
        (Wanted(since_ms=102, until_ms=104), [2, 3]),
        (Wanted(limit=2), [0, 1]),
        (Wanted(names=frozenset([Place(0, 4), Place(0, 1)])), [1, 4]),
    ],
)
async def test_which_letters_are_wanted(wanted: Wanted, found: list[int]) -> None:
    log = MemoryLog()
    await log.dead_letter([*map(letter, range(5)), letter(5, "items")])
    log.dead = [record._replace(timestamp=100 + record.offset) for record in log.dead]
    assert await chosen(log, wanted) == found


async def test_the_oldest_come_first_whatever_their_partition() -> None:
    log = MemoryLog()
    await log.dead_letter([letter(0), letter(1), letter(2)])
    batches = [Batch(DEAD, 2 - r.offset, (r._replace(timestamp=50 - r.offset),)) for r in log.dead]
    with DeadLetters(Wanted()) as letters:
        await letters.read(MemoryReader(batches))
        assert [str(found.place) for found, _ in letters.chosen()] == ["0:2", "1:1", "2:0"]


async def test_reasons_are_counted() -> None:
    log = MemoryLog()
    await log.dead_letter([letter(0), letter(0), letter(1)])
    with DeadLetters(Wanted()) as letters:
        await letters.read(reader(*log.dead))
        assert list(letters.reasons(settled=False)) == [(REASONS[0], 2), (REASONS[1], 1)]


async def test_an_unknown_or_settled_name_is_a_mistake() -> None:
    log = MemoryLog()
    await log.dead_letter([letter(0)])
    with pytest.raises(UserError, match="there is no dead letter 0:7: see facetstream dead list --all"):
        await chosen(log, Wanted(names=frozenset([Place(0, 7)])))
    await log.settle([Settlement(Place(0, 0), Outcome.DROPPED)])
    with pytest.raises(UserError, match="there is no dead letter 0:1"):  # a settlement is no letter
        await chosen(log, Wanted(names=frozenset([Place(0, 1)])))
    with DeadLetters(Wanted(names=frozenset([Place(0, 0)]))) as letters:
        await letters.read(reader(*log.dead))
        with pytest.raises(UserError, match="dead letter 0:0 was dropped before"):
            letters.check_open()


async def test_the_first_settlement_counts_and_one_of_nothing_does_not() -> None:
    log = MemoryLog()
    await log.dead_letter([letter(0), letter(1)])
    for offset, outcome in [(0, Outcome.DROPPED), (0, Outcome.REPLAYED), (2, Outcome.DROPPED)]:
        await log.settle([Settlement(Place(0, offset), outcome)])
    assert await chosen(log, Wanted()) == [1]
    assert await chosen(log, Wanted(), settled=True) == [0, 1]


async def test_settlements_whose_letters_retention_took_are_nothing() -> None:
    log = MemoryLog()
    await log.dead_letter([letter(0), letter(1)])
    await log.settle([Settlement(Place(0, 0), Outcome.DROPPED)])
    log.dead = log.dead[1:]
    assert await chosen(log, Wanted(), settled=True) == [1]


async def test_what_cannot_be_replayed_is_refused_and_stays_open() -> None:
    log = MemoryLog()
    await log.dead_letter(
        [
            letter(0),
            letter(1, "profiles.updated"),
            letter(2, DEAD),
            DeadLetter("r", "items", 0, 0, b"k" * 70_000, b""),
            DeadLetter("r", "items", 0, 0, b"k", b"x" * 2_600_000),
        ]
    )
    log.dead.append(Record(5, b"k", b"v", 0))
    done, counts = await act(log, Wanted(), replay)
    assert (done.count, done.refused.total()) == (1, 5)
    assert counts == {OPEN: 5, "replayed": 1}
    assert [original.offset for original in log.sent_back] == [0]

    def sending(value: bytes) -> Any:
        async def sent(**arguments: Any) -> Settled:
            return await replay(value=value, **arguments)

        return sent

    done, counts = await act(log, Wanted(reason="r", topic="items"), sending(b""))
    assert (done.count, done.refused.total()) == (0, 2)
    whole = b'{"item_id": "k", "title": "whole"}'
    done, counts = await act(log, Wanted(reason="r", topic="items"), sending(whole))
    assert (done.count, done.refused) == (1, {"its key was cut": 1})
    assert log.sent_back[1].value == whole
    done, counts = await act(log, Wanted(), drop)
    assert counts == {"replayed": 2, "dropped": 4}


async def test_a_letter_is_settled_only_after_its_original_is_back() -> None:
    class Torn(MemoryLog):
        async def send_back(self, originals: Any) -> Any:
            raise Transient("Kafka is away")

    log = Torn()
    await log.dead_letter([letter(0)])
    with pytest.raises(Transient):
        await act(log, Wanted(), replay)
    assert await chosen(log, Wanted()) == [0]


steps = st.lists(
    st.tuples(
        st.sampled_from(["refuse", "replay", "drop", "stranger", "forge"]),
        st.integers(1, 130),
        st.sampled_from([None, "ts:", "JSON", "malformed"]),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_counts_add_up_after_anything(steps: list[tuple[str, int, str | None]]) -> None:
    asyncio.run(_counts_add_up(steps))


async def _counts_add_up(steps: list[tuple[str, int, str | None]]) -> None:
    log, total, done = MemoryLog(), 0, {"replayed": 0, "dropped": 0}
    for step, number, reason in steps:
        if step == "refuse":
            await log.dead_letter([letter(n) for n in range(number)])
            total += number
        elif step == "stranger":
            log.dead.append(Record(len(log.dead), None, b"what?", -1))
            total += 1
        elif step == "forge":
            message = settlement_message(Settlement(Place(0, len(log.dead) + number), Outcome.DROPPED))
            log.dead.append(Record(len(log.dead), None, message.value, -1, message.headers))
            total += 1  # of what is not there yet: malformed
        else:
            outcome, how = ("replayed", replay) if step == "replay" else ("dropped", drop)
            settled, _ = await act(log, Wanted(reason=reason, limit=number), how)
            done[outcome] += settled.count
    _, counts = await act(log, Wanted(topic="none"), drop)
    assert counts.get("replayed", 0) == done["replayed"] == len(log.sent_back)
    assert counts.get("dropped", 0) == done["dropped"]
    assert sum(counts.values()) == total
