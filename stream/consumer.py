"""Faust's consumer, delivering batches: an agent gets one per partition and fetch, and acknowledges it as a whole.

Stock Faust spends two tasks and an acknowledgement on every event, and acknowledges even when an agent raises. Here the
message that Faust passes around holds a `Batch`, and a `Ledger` per partition says what is committed. What must hold:

1. a batch is handled only when all before it in its partition are, by whoever had them, or when it had been before: the
   marks of histories take what comes after a gap for the newest there is, and what was in the gap for a redelivery
2. what is committed has been acknowledged, and everything before it
3. what is not committed is delivered again, here or to the partition's next owner
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import faust
from aiokafka.errors import IllegalStateError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.utils.futures import notify

from stream import header_names
from stream.ledger import Batch, Ledger, Record
from stream.settings import Delivery

BATCHES_UNDER_WAY = 2  # per partition: one in the agent's hands, one waiting; the rest stays in Kafka
FULL_POLL_SECONDS = 0.02  # how soon a partition that was full is asked again
FETCH_WAIT_MS = 100  # the in-memory broker answers an empty fetch only after this long, whatever arrives meanwhile
DRAIN_SECONDS = 5.0  # what the batches in the agents' hands are given to end, on a rebalance and on stopping

log = logging.getLogger(__name__)


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        header_names.allow()
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # Faust fixes it at 1.5 s
        return consumer

    def unread(self, tp: TP) -> int:
        """Records of the log that were not fetched yet, as far as the broker has told. A committed offset would not do:
        behind it may be nothing, where records have expired or a transaction left its marks."""
        assigned = self._ensure_consumer()._subscription.subscription.assignment
        state = assigned and assigned.state_value(tp)
        if not state or state.highwater is None or not state.has_valid_position:
            return 0
        return max(0, int(state.highwater - state.position))

    def topic_partitions(self, topic: str) -> int | None:
        """Of the cluster's metadata; Faust asks a snapshot that only the group's leader has."""
        return len(self._ensure_consumer()._client.cluster.partitions_for_topic(topic) or ()) or None

    async def confirmed(self) -> bool:
        """Whether the group's coordinator, asked now, knows this member and its generation."""
        beat = asyncio.run_coroutine_threadsafe(self._beat(), self.thread_loop)
        return await asyncio.wrap_future(beat)

    async def _beat(self) -> bool:
        coordinator = self._ensure_consumer()._coordinator
        try:
            return coordinator.generation > 0 and bool(await coordinator._do_heartbeat())
        except KafkaError as error:
            log.warning("the group's coordinator: %s", error)
            return False


class _Consumer(driver.Consumer):
    """Faust's Kafka consumer, as the rest of the worker needs it."""

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def batch(self, message: ConsumerMessage) -> Batch:
        """What an agent is to deal with."""
        raise NotImplementedError

    def due(self, message: ConsumerMessage) -> bool:
        """Whether it is to deal with it now."""
        raise NotImplementedError

    def lag(self) -> dict[TP, int]:
        """Records of each partition of this worker that are not dealt with, as far as the broker has told."""
        return {tp: self._in_hand(tp) + self._thread.unread(tp) for tp in self.assignment()}

    def _in_hand(self, tp: TP) -> int:
        raise NotImplementedError

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Faust suspends the flow, but not where there was nothing to revoke: then it would read while it goes back to
        what is committed of what comes next, and empty the agents' queues of that."""
        self.stop_flow()
        self.app.flow_control.suspend()
        await super().on_partitions_revoked(revoked)  # and `wait_empty`

    async def wait_empty(self) -> None:
        """Let the batches in the agents' hands end, but not for ever, and commit."""
        deadline = self.loop.time() + DRAIN_SECONDS
        while self._unacked_messages and not self._hopeless() and self.loop.time() < deadline:
            await self._wait_for_ack(timeout=1)
        if not self.crashed:  # else the thread that commits is ending by itself
            await self.commit_and_end_transactions()

    def _hopeless(self) -> bool:
        return bool(self.should_stop or self.app.failure.done())

    async def confirmed(self) -> bool:
        return bool(await self._thread.confirmed())

    async def verify_all_partitions_active(self) -> None:
        """Nothing: Faust's warnings of slow partitions are no sign of life; lag that shrinks is."""


class BatchConsumer(_Consumer):
    """Delivers batches: a message's value is one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ledgers: defaultdict[TP, Ledger] = defaultdict(Ledger)
        self._astray = False  # records were fetched that no agent will see: the position in the log is past them
        super().__init__(*args, **kwargs)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """One message per partition that has records; its value is the batch."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        if self._astray and not await self._reread():
            return
        for tp, records in (await self._fetch(timeout)).items():
            if self._astray or not self.flow_active or self.should_stop:
                return
            yield tp, self._deliver(tp, records)

    def resume_flow(self) -> None:
        """Faust has emptied the agents' queues. Should it have read anything since it went back to what is committed,
        as when a rebalance follows another and the end of the first falls into the second, that is lost."""
        self._astray = True
        super().resume_flow()

    async def _fetch(self, timeout: float) -> dict[TP, list[Any]]:
        active = self._get_active_partitions()
        ready = {tp for tp in active if len(self._ledgers[tp]) < BATCHES_UNDER_WAY}
        if not ready:  # the driver would take it for all
            await self.sleep(FULL_POLL_SECONDS)
            return {}
        patience = timeout if len(ready) == len(active) else FULL_POLL_SECONDS
        fetched: dict[TP, list[Any]] = await self._getmany(active_partitions=ready, timeout=patience)
        return fetched

    def _deliver(self, tp: TP, records: list[Any]) -> ConsumerMessage:
        batch = Batch(tp.topic, tp.partition, tuple(records))  # aiokafka's records have all that ours have
        self._ledgers[tp].deliver(batch)
        self._read_offset[tp] = batch.end - 2  # one before the message's own, or Faust suspects a gap
        self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        message = self._to_message(tp, records[-1])
        message.key, message.value, message.headers = None, batch, None
        return message

    async def _reread(self) -> bool:
        """Go back to what is committed: all under way will come again. False when a rebalance comes in between."""
        self._astray = False
        try:
            committed = await self._thread.seek_to_committed()
            if new := [tp for tp, offset in committed.items() if not offset]:
                await self._thread.seek_to_beginning(*new)
        except (IllegalStateError, AssertionError) as error:
            self._astray = True
            log.info("cannot go back to the committed offsets now: %s", error)
            await self.sleep(FULL_POLL_SECONDS)
            return False
        self._ledgers.clear()
        return True

    def due(self, message: ConsumerMessage) -> bool:
        """Not when it will be delivered again. If one before it has been lost on the way, both will be: applied out of
        order, its marks would have the other taken for a redelivery."""
        ledger = self._ledgers[message.tp]
        due = ledger.first is message.value
        self._astray |= not due and message.value in ledger
        return due

    def batch(self, message: ConsumerMessage) -> Batch:
        batch: Batch = message.value
        return batch

    def ack(self, message: ConsumerMessage) -> bool:
        """Note that a batch is dealt with; one of an earlier assignment of its partition is ignored."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return self._ledgers[message.tp].acknowledge(message.value)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return iter([tp for tp in self._ledgers if topics is None or tp in topics or tp.topic in topics])

    def _new_offset(self, tp: TP) -> int | None:
        return self._ledgers[tp].committable

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)
        self._ledgers.clear()  # all of them: what aiokafka tells may be the assignment before the last

    def _in_hand(self, tp: TP) -> int:
        return self._ledgers[tp].records


class StockConsumer(_Consumer):
    """Delivers record by record, and commits, as Faust does of itself."""

    def batch(self, message: ConsumerMessage) -> Batch:
        timestamp_ms = round(message.timestamp * 1000)
        record = Record(message.offset, message.key, message.value, timestamp_ms, message.headers or ())
        return Batch(message.topic, message.partition, (record,))

    def due(self, message: ConsumerMessage) -> bool:  # noqa: ARG002
        return True

    def _in_hand(self, tp: TP) -> int:
        """Those read and not committed; Faust counts none before an agent has it."""
        read, committed = self._read_offset.get(tp), self._committed_offset.get(tp)
        return 0 if read is None else max(0, read + 1 - (committed or 0))


def transport(app: faust.App, delivery: Delivery) -> driver.Transport:
    """Faust's Kafka transport with the consumer of that kind of delivery."""
    made = driver.Transport(app.conf.broker_consumer, app)
    made.Consumer = {"batch": BatchConsumer, "stock": StockConsumer}[delivery]
    return made
