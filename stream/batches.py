"""Faust apps whose agents handle raw batches, at least once and in order per partition; `stream.consumer` delivers."""

import asyncio
import logging
import os
import signal
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import faust
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from yarl import URL

from stream.consumer import transport
from stream.errors import Transient
from stream.ledger import Batch, Record
from stream.pulse import Pulse, watch
from stream.retry import persistently
from stream.settings import Delivery, Settings

FETCH_BYTES = 2 << 20  # of one partition; Kafka's default limit for one record is 1 MiB
COMMIT_SECONDS = 0.5
SESSION_SECONDS = 10.0  # a killed worker's partitions are taken over after this long
HEARTBEAT_SECONDS = 2.0
REBALANCE_SECONDS = 30.0
STOP_SECONDS = 20.0  # after SIGTERM
NEVER_SECONDS = 7 * 86_400.0  # no poll while all is full is no death: the heartbeats of the session tell

__all__ = ["Batch", "BatchApp", "Record", "application", "consume", "run", "terminated"]

T = TypeVar("T")
log = logging.getLogger(__name__)


class BatchApp(faust.App):
    """A Faust app that delivers batches. It belongs to the event loop that is running when it is made."""

    def __init__(self, *args: Any, delivery: Delivery, **kwargs: Any) -> None:
        self._delivery = delivery
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

    def _new_transport(self) -> Any:
        return transport(self, self._delivery)


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
        delivery=settings.delivery,
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
                await handle(consumer.batch(event.message))
            except asyncio.CancelledError:
                _fail(app, RuntimeError(f"{topic}: the handler was cancelled"))  # Faust would begin another agent
                raise
            except Exception as error:
                _fail(app, error)
                return
            event.ack()
            pulse.move()

    app.agent(app.topic(topic, schema=_Untouched()), name=topic)(agent)


def _fail(app: BatchApp, error: Exception) -> None:
    if not app.failure.done() and not app.should_stop:
        app.failure.set_exception(error)


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
