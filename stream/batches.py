"""Batch delivery in Faust: records reach an agent as one raw batch per partition and fetch, acknowledged as a whole.

Stock Faust spends two tasks and an acknowledgement on every event, acknowledges when an agent raises, and may commit past
an event still under way. Here the message that Faust passes around is a `Batch`, and a `Ledger` per partition decides what
is committed: the end of the longest run of acknowledged batches. Delivery is at least once, in order per partition.
"""

import asyncio
import logging
import signal
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import faust
from aiokafka import ConsumerRecord
from aiokafka.errors import IllegalStateError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode import CrashingSupervisor
from yarl import URL

from stream.errors import Transient
from stream.settings import Settings

BATCHES_UNDER_WAY = 2  # per partition: one in the agent's hands, one waiting; the rest stays in Kafka
FULL_POLL_SECONDS = 0.02  # how soon a partition that was full is fetched again
FETCH_WAIT_MS = 100  # the in-memory broker answers an empty fetch only after this long, whatever arrives meanwhile
FETCH_BYTES = 2 << 20  # of one partition; above Kafka's default limit of 1 MiB for one record
COMMIT_SECONDS = 0.5
SESSION_SECONDS = 10.0  # a killed worker's partitions are taken over after this long
HEARTBEAT_SECONDS = 2.0
REBALANCE_SECONDS = 30.0
DRAIN_SECONDS = 5.0  # what batches under way are given to end, on a rebalance and on stopping
RETRY_SECONDS = 0.5

Record = ConsumerRecord  # offset, key, value (bytes or None), timestamp (ms since 1970), headers
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive records of one partition, at least one. Two deliveries of the same records are two batches."""

    topic: str
    partition: int
    records: tuple[Record, ...]

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def end(self) -> int:
        """Offset after the last record: what a commit of this batch says."""
        return int(self.records[-1].offset) + 1


class Ledger:
    """The batches of one partition that are under way, and what they allow to commit."""

    def __init__(self) -> None:
        self.committable: int | None = None  # the end of the longest run of acknowledged batches
        self._under_way: dict[Batch, bool] = {}  # in order of delivery; True: acknowledged, behind one that is not
        self._end = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def deliver(self, batch: Batch) -> None:
        """Note a batch. One that starts before the last one's end says that the log was rewound: all is forgotten."""
        if batch.first < self._end:
            self.forget()
        self._under_way[batch] = False
        self._end = batch.end

    def acknowledge(self, batch: Batch) -> bool:
        """Note that a batch is dealt with; False, and no effect, when it is not under way (any more)."""
        if batch not in self._under_way:
            return False
        self._under_way[batch] = True
        while self._under_way and (oldest := next(iter(self._under_way))) and self._under_way[oldest]:
            del self._under_way[oldest]
            self.committable = oldest.end
        return True

    def forget(self) -> None:
        """The partition is lost or rewound: whatever is under way will be delivered again, here or elsewhere."""
        self.committable = None
        self._under_way.clear()
        self._end = 0


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # Faust fixes it at 1.5 s
        return consumer


class BatchConsumer(driver.Consumer):
    """Faust's Kafka consumer, counting in batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ledgers: defaultdict[TP, Ledger] = defaultdict(Ledger)
        self._astray = False  # records were fetched and not delivered: the position in Kafka is past them
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """One message per partition that has records; its value is the batch."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        if self._astray and not await self._reread():
            return
        self._astray = True
        fetched = await self._fetch(timeout)
        for tp, records in fetched.items():
            if not self.flow_active or self.should_stop:
                return
            yield tp, self._deliver(tp, records)
        self._astray = not self.flow_active

    async def _fetch(self, timeout: float) -> dict[TP, list[Record]]:
        active = self._get_active_partitions()
        ready = {tp for tp in active if len(self._ledgers[tp]) < BATCHES_UNDER_WAY}
        if not ready:  # to the driver, none means all
            await self.sleep(FULL_POLL_SECONDS)
            return {}
        fetched: dict[TP, list[Record]] = await self._getmany(
            active_partitions=ready, timeout=timeout if len(ready) == len(active) else FULL_POLL_SECONDS
        )
        return fetched

    def _deliver(self, tp: TP, records: list[Record]) -> ConsumerMessage:
        batch = Batch(tp.topic, tp.partition, tuple(records))
        self._ledgers[tp].deliver(batch)
        self._read_offset[tp] = batch.end - 2  # one before the message's offset, or Faust suspects a gap
        self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        message = self._to_message(tp, records[-1])
        message.key, message.value, message.headers = None, batch, None
        return message

    async def _reread(self) -> bool:
        """Go back to what is committed; False when a rebalance comes in between, which does the same."""
        try:
            committed = await self._thread.seek_to_committed()
            if fresh := [tp for tp, offset in committed.items() if not offset]:
                await self._thread.seek_to_beginning(*fresh)
        except (IllegalStateError, AssertionError) as error:
            log.info("Cannot go back to the committed offsets now: %s", error)
            await self.sleep(FULL_POLL_SECONDS)
            return False
        return True

    def ack(self, message: ConsumerMessage) -> bool:
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        return self._ledgers[message.tp].acknowledge(message.value)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return iter([tp for tp in self._ledgers if topics is None or tp in topics or tp.topic in topics])

    def _new_offset(self, tp: TP) -> int | None:
        return self._ledgers[tp].committable

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)  # waits for what is under way, and commits
        for tp in revoked:
            self._ledgers.pop(tp, None)

    async def wait_empty(self) -> None:
        """Let the batches in the agents' hands end, but not for ever, and commit."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._unacked_messages and not self.should_stop:
                    await asyncio.sleep(FULL_POLL_SECONDS)
        await self.commit_and_end_transactions()

    async def verify_all_partitions_active(self) -> None:
        """Nothing: Faust's warnings about slow partitions mean little here; liveness is lag that shrinks."""


class BatchTransport(driver.Transport):
    """What makes a Faust app deliver batches: `app.transport = BatchTransport(urls, app)`."""

    Consumer = BatchConsumer


class _Untouched(faust.Schema):
    def compile(self, app: faust.App, **_: Any) -> Callable[..., Awaitable[Any]]:
        async def decode(message: ConsumerMessage, *, propagate: bool = False) -> Any:
            return app.create_event(None, message.value, None, message)

        return decode


def application(settings: Settings, bootstrap: str) -> faust.App:
    """A Faust app, to be made inside the event loop that runs it, whose agents are added by `consume`."""
    brokers = [URL(f"kafka://{server.strip()}") for server in bootstrap.split(",")]
    app = faust.App(
        settings.consumer_group,
        broker=brokers,
        broker_credentials=_credentials(settings),
        broker_max_poll_records=settings.ingest_batch,
        broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=HEARTBEAT_SECONDS,
        broker_rebalance_timeout=REBALANCE_SECONDS,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES,
        stream_wait_empty=True,
        topic_allow_declare=False,
        topic_disable_leader=True,
        datadir=settings.data_folder / "faust",
        web_enabled=settings.web_port is not None,
        web_bind=settings.web_host,
        web_host=settings.web_host,
        web_port=settings.web_port or 6066,
    )
    app.transport = BatchTransport(brokers, app)
    return app


def _credentials(settings: Settings) -> Any:
    if settings.kafka_security == "PLAINTEXT":
        return None
    context = None if settings.kafka_security == "SASL_PLAINTEXT" else ssl.create_default_context()
    if settings.kafka_security == "SSL":
        return faust.SSLCredentials(context)
    return faust.SASLCredentials(
        username=settings.kafka_username,
        password=settings.kafka_password.get_secret_value() if settings.kafka_password else None,
        mechanism=settings.kafka_sasl_mechanism,
        ssl_context=context,
    )


def consume(app: faust.App, topic: str, handle: Callable[[Batch], Awaitable[None]]) -> None:
    """Have `handle` called with each batch of `topic`, one after the other; a batch is acknowledged when it returns.

    `Transient` has it called again with the same batch after a pause; whatever else it raises crashes the app, and the
    batch is delivered again after a restart. One agent per topic: order per partition needs no further care, and topics
    do not wait for each other.
    """

    @app.agent(app.topic(topic, schema=_Untouched()), name=topic, supervisor_strategy=CrashingSupervisor)
    async def agent(stream: Any) -> None:
        async for event in stream.noack().events():
            while not (done := await _succeeds(handle, event.value)):
                await asyncio.sleep(RETRY_SECONDS)
                if event.message.generation_id != app.consumer_generation_id:
                    break  # a rebalance: the batch is delivered again, to whoever has the partition now
            if done:
                event.ack()


async def _succeeds(handle: Callable[[Batch], Awaitable[None]], batch: Batch) -> bool:
    try:
        await handle(batch)
    except Transient as error:
        log.warning("%s/%d waits at offset %d: %s", batch.topic, batch.partition, batch.first, error)
        return False
    return True


async def run(app: faust.App, main: Coroutine[Any, Any, T]) -> T:
    """Run `app` for as long as `main` takes, then stop it: what is acknowledged is committed and the group is left.

    Returns what `main` returns. When the app crashes, `main` is cancelled and the cause is raised.
    """
    body = asyncio.ensure_future(main)
    try:
        await app.start()
        ended = asyncio.ensure_future(app.wait_until_stopped())
        await asyncio.wait({body, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
    finally:
        body.cancel()
        await app.stop()
    if app.crash_reason is not None:
        raise app.crash_reason
    return await body


async def terminated() -> None:
    """Return on SIGTERM or SIGINT: `asyncio.run(run(app, terminated()))` is a worker process."""
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()
