"""Batch delivery in Faust: an agent gets one raw batch per partition and fetch, and acknowledges it as a whole.

Stock Faust spends two tasks and an acknowledgement on every event, and acknowledges even when an agent raises. Here the
message that Faust passes around holds a `Batch`, and a `Ledger` per partition says what is committed. Delivery is at
least once, in order per partition; after a rebalance, what was not yet committed is delivered again to the new owner.
"""

import asyncio
import logging
import os
import signal
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

import faust
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.utils.futures import notify
from yarl import URL

from stream import header_names
from stream.errors import Transient
from stream.ledger import Batch, Ledger, Record
from stream.pulse import Pulse, watch
from stream.retry import persistently
from stream.settings import Settings

BATCHES_UNDER_WAY = 2  # per partition: one in the agent's hands, one waiting; the rest stays in Kafka
FULL_POLL_SECONDS = 0.02  # how soon a partition that was full is asked again
FETCH_WAIT_MS = 100  # the in-memory broker answers an empty fetch only after this long, whatever arrives meanwhile
FETCH_BYTES = 2 << 20  # of one partition; Kafka's default limit for one record is 1 MiB
COMMIT_SECONDS = 0.5
SESSION_SECONDS = 10.0  # a killed worker's partitions are taken over after this long
HEARTBEAT_SECONDS = 2.0
REBALANCE_SECONDS = 30.0
STOP_SECONDS = 20.0  # after SIGTERM
NEVER_SECONDS = 7 * 86_400.0  # no poll while all is full is no death: the heartbeats of the session tell
DRAIN_SECONDS = 5.0  # what the batches in the agents' hands are given to end, on a rebalance and on stopping

__all__ = ["Batch", "BatchApp", "Record", "application", "consume", "run", "terminated"]

T = TypeVar("T")
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


class BatchConsumer(driver.Consumer):
    """Faust's Kafka consumer, counting in batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ledgers: defaultdict[TP, Ledger] = defaultdict(Ledger)
        self._astray = False  # records were fetched that no agent will see: the position in the log is past them
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

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
        """Faust has gone back to what is committed and then emptied the agents' queues. Where it had not suspended the
        flow, as in a worker that had no partitions, there was in them what has been read in between."""
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
        """Whether it is the batch's turn. Not when it will be delivered again; if one before it has been lost on the
        way, both are from now on: applied out of order, its marks would have the other taken for a redelivery."""
        ledger = self._ledgers[message.tp]
        due = ledger.first is message.value
        self._astray |= not due and message.value in ledger
        return due

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
        await super().on_partitions_revoked(revoked)  # stops the flow, then `wait_empty`
        self._ledgers.clear()  # all of them: what aiokafka tells may be the assignment before the last

    async def wait_empty(self) -> None:
        """Let the batches in the agents' hands end, but not for ever, and commit."""
        deadline = self.loop.time() + DRAIN_SECONDS
        while self._unacked_messages and not self._hopeless() and self.loop.time() < deadline:
            await self._wait_for_ack(timeout=1)
        if not self.crashed:  # else the thread that commits is ending by itself
            await self.commit_and_end_transactions()

    def _hopeless(self) -> bool:
        return bool(self.should_stop or self.app.failure.done())

    def lag(self) -> dict[TP, int]:
        """Records of each partition of this worker that are not dealt with, as far as the broker has told."""
        return {tp: self._ledgers[tp].records + self._thread.unread(tp) for tp in self.assignment()}

    async def confirmed(self) -> bool:
        return bool(await self._thread.confirmed())

    async def verify_all_partitions_active(self) -> None:
        """Nothing: Faust's warnings of slow partitions are no sign of life; lag that shrinks is."""


class BatchTransport(driver.Transport):
    """Faust's Kafka transport with that consumer."""

    Consumer = BatchConsumer


class BatchApp(faust.App):
    """A Faust app that delivers batches. It belongs to the event loop that is running when it is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pulses: dict[str, Pulse] = {}  # by topic

    def lag(self) -> dict[TP, int]:
        """Records of each partition of this worker that are not dealt with; none has it before it has started."""
        consumer: Any = self.consumer
        try:
            lag: dict[TP, int] = consumer.lag()
        except driver.ConsumerNotStarted:
            return {}
        return lag

    async def confirmed(self) -> bool:
        """Whether the group takes this worker for the owner of its partitions now."""
        consumer: Any = self.consumer
        try:
            return bool(await consumer.confirmed())
        except driver.ConsumerNotStarted:
            return False

    def stalled(self, seconds: float) -> list[str]:
        """One sentence for each topic of which records are left while nothing has moved for longer than that, neither
        its handler nor a dependency that this waits for. To be called often: it notes where nothing is left to do."""
        lag, now = Counter[str](), time.monotonic()
        for tp, records in self.lag().items():
            lag[tp.topic] += records
        for topic in self.pulses.keys() - (+lag).keys():
            self.pulses[topic].move()
        return [
            f"{topic}: {lag[topic]} records are left, and nothing has moved for {now - pulse.moved:.0f} s"
            for topic, pulse in self.pulses.items()
            if now - pulse.moved > seconds
        ]

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)


class _Untouched(faust.Schema):
    def compile(self, app: faust.App, **_: Any) -> Callable[..., Awaitable[Any]]:
        async def decode(message: ConsumerMessage, **_: Any) -> Any:
            return app.create_event(None, message.value, None, message)

        return decode


def application(settings: Settings, bootstrap: str) -> BatchApp:
    """An app without agents (see `consume`) that reads from the servers `host:port[,host:port]`.

    It keeps its few files in the data folder, creates no topics, and serves HTTP only when `web_port` is set.
    """
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    return BatchApp(
        settings.consumer_group,
        broker=[URL(f"kafka://{server.strip()}") for server in bootstrap.split(",")],
        broker_credentials=_credentials(settings),
        broker_max_poll_records=settings.ingest_batch,
        broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=HEARTBEAT_SECONDS,
        broker_rebalance_timeout=REBALANCE_SECONDS,
        broker_max_poll_interval=NEVER_SECONDS,
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


def consume(app: BatchApp, topic: str, handle: Callable[[Batch], Awaitable[None]]) -> None:
    """Have `handle` called with each batch of `topic`, one after the other; when it returns, the batch is acknowledged.

    What it raises ends `run`, and the batch is delivered again after a restart. With one agent per topic, order per
    partition needs no care, and while one topic waits for a service the others go on.
    """
    pulse = app.pulses[topic] = Pulse()

    async def agent(stream: Any) -> None:
        watch(pulse)
        consumer: Any = app.consumer
        async for event in stream.noack().events():
            if not consumer.due(event.message):
                continue
            try:
                await handle(event.value)
            except Exception as error:
                if not app.failure.done():
                    app.failure.set_exception(error)
                return
            event.ack()
            pulse.move()

    app.agent(app.topic(topic, schema=_Untouched()), name=topic)(agent)


async def run(app: BatchApp, main: Coroutine[Any, Any, T]) -> T:
    """Run `app` for as long as `main` takes, then stop it: what is acknowledged is committed and the group is left.

    Returns what `main` returns. When a handler fails or Faust crashes, `main` is cancelled and the cause is raised.
    `main` is under way while Kafka is waited for.
    """
    body = asyncio.ensure_future(main)
    kafka = asyncio.ensure_future(persistently(partial(_answers, app)))
    try:
        await asyncio.wait({body, kafka}, return_when=asyncio.FIRST_COMPLETED)
        if kafka.done():  # an app that failed to start cannot be started again
            kafka.result()
            await app.start()
            crash = asyncio.ensure_future(app.wait_until_stopped())
            await asyncio.wait({body, app.failure, crash}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (body, kafka):
            task.cancel()
        await asyncio.wait({body, kafka})
        await app.stop()
    if app.failure.done():
        app.failure.result()
    if app.crash_reason is not None:
        raise app.crash_reason
    return body.result()


async def _answers(app: BatchApp) -> None:
    servers = driver.server_list(app.conf.broker_consumer, driver.Transport.default_port)
    auth = driver.credentials_to_aiokafka_auth(app.conf.broker_credentials, app.conf.ssl_context)
    client = AIOKafkaClient(bootstrap_servers=servers, **auth)
    try:
        await client.bootstrap()
    except KafkaConnectionError:
        raise Transient(f"Kafka at {','.join(servers)} does not answer") from None
    finally:
        await client.close()


async def terminated() -> None:
    """Return on SIGTERM or SIGINT: `asyncio.run(run(app, terminated()))` is a worker process.

    A second signal ends the process at once, and so does a stop that takes longer than `STOP_SECONDS`: what is not
    acknowledged is delivered again.
    """
    asked, loop = asyncio.Event(), asyncio.get_running_loop()

    def ask() -> None:
        if asked.is_set():
            os._exit(1)
        asked.set()
        loop.call_later(STOP_SECONDS, os._exit, 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    await asked.wait()
