"""What may be committed, over any order of deliveries, acknowledgements, rewinds and revocations."""

import pytest
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from intervaltree import IntervalTree

from stream.ledger import Batch, Ledger, Record


def batch(first: int, last: int) -> Batch:
    return Batch("events", 0, tuple(Record(offset, None, b"", -1) for offset in range(first, last + 1)))


class Delivery(RuleBasedStateMachine):
    """A partition read by one ledger after the other; the log is gone back to whenever a consumer would."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.delivered: list[Batch] = []  # by any ledger, ever
        self.current: list[Batch] = []  # since the last rewind or revocation
        self.acknowledged: set[Batch] = set()
        self.done: set[int] = set()  # offsets acknowledged, ever
        self.position = self.committed = 0

    @rule(size=st.integers(1, 5), compacted=st.integers(0, 3))
    def deliver(self, size: int, compacted: int) -> None:
        start = self.position + compacted
        self.done.update(range(self.position, start))  # nothing is there
        delivered = batch(start, start + size - 1)
        self.ledger.deliver(delivered)
        self.delivered.append(delivered)
        self.current.append(delivered)
        self.position = delivered.end

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        if self.delivered:
            some = data.draw(st.sampled_from(self.delivered))
            known = self.ledger.acknowledge(some)
            assert known <= (some in self.current)
            self.acknowledged.add(some)
            self.done.update(record.offset for record in some.records)

    @rule()
    def commit(self) -> None:
        self.committed = max(self.committed, self.ledger.committable or 0)

    @rule()
    def rewind(self) -> None:
        """Nobody tells the ledger: it has to notice by the next batch."""
        if self.position > self.committed:
            self.position = self.committed
            self.deliver(size=2, compacted=0)
            self.current = self.current[-1:]

    @rule()
    def revoke(self) -> None:
        self.ledger.forget()
        self.current.clear()
        self.position = self.committed

    @invariant()
    def nothing_under_way_is_committed(self) -> None:
        assert self.done.issuperset(range(self.ledger.committable or 0))
        assert all(
            each.first >= (self.ledger.committable or 0) for each in self.current if each not in self.acknowledged
        )

    def teardown(self) -> None:
        for each in self.current:
            self.ledger.acknowledge(each)
        if self.current:
            assert self.ledger.committable == self.current[-1].end
            assert len(self.ledger) == 0


TestDelivery = Delivery.TestCase


def test_a_late_acknowledgement_does_not_count_for_the_same_records_delivered_again() -> None:
    ledger, early, again = Ledger(), batch(0, 9), batch(0, 9)
    ledger.deliver(early)
    ledger.forget()
    ledger.deliver(again)
    assert not ledger.acknowledge(early)
    assert ledger.committable is None
    assert ledger.acknowledge(again)
    assert ledger.committable == 10


def test_batches_count_as_under_way_until_all_before_them_are_acknowledged() -> None:
    ledger, first, second = Ledger(), batch(0, 4), batch(5, 9)
    ledger.deliver(first)
    ledger.deliver(second)
    ledger.acknowledge(second)
    assert len(ledger) == 2
    ledger.acknowledge(first)
    assert len(ledger) == 0


@pytest.fixture
def stock() -> Consumer:
    """Faust's own book-keeping, with offset 2585 committed (so to be read next) and still under way."""
    consumer = object.__new__(Consumer)
    consumer._acked = {TP("events", 0): [2586, 2587, 2588, 2589]}
    consumer._acked_index = {TP("events", 0): {2586, 2587, 2588, 2589}}
    consumer._gap = {TP("events", 0): IntervalTree()}
    consumer._committed_offset = {TP("events", 0): 2585}
    return consumer


def test_stock_faust_commits_past_a_message_under_way(stock: Consumer) -> None:
    """faust-streaming issue 606. When this fails the defect is gone, and a reason for the ledger with it."""
    assert stock._new_offset(TP("events", 0)) == 2590


def test_the_ledger_does_not() -> None:
    ledger, slow, quick = Ledger(), batch(2585, 2585), batch(2586, 2589)
    ledger.deliver(slow)
    ledger.deliver(quick)
    ledger.acknowledge(quick)
    assert ledger.committable is None
    ledger.acknowledge(slow)
    assert ledger.committable == 2590
