"""Kafka as the log is written: events and items out of files, dead letters and announcements by a worker, and what
becomes of dead letters."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaProducer, TopicPartition

from stream.adapters.kafka_admin import Lag, lag, missing_topics, provision_topics
from stream.adapters.kafka_connection import connection, translated
from stream.admission import BACKFILL
from stream.dead_topic import letter_message, settlement_message
from stream.errors import Permanent, Transient
from stream.ports import DeadLetter, Settlement, Update
from stream.settings import Settings
from stream.topics import DEAD, EVENT_TOPICS, ITEMS, UPDATED

__all__ = ["KafkaLog", "Producer", "lag", "missing_topics", "provision_topics"]

REQUEST_BYTES = 4 << 20  # a dead letter holds an original of up to 1 MiB and its headers
BATCH_BYTES = 256 << 10  # of one partition under way at once
LINGER_MS = 5
ROOM_BYTES = 2_500_000  # half of what the in-memory broker keeps of a partition, read or not
ROOM_RECORDS = 50_000  # likewise
CLOSE_SECONDS = 10.0  # for a broker that is gone; `flush` has said before what arrived
LOOK_BYTES = 500_000  # sent between two looks at the lag
LOOK_SECONDS = 0.1  # between two looks while there is no room

T = TypeVar("T")


class Producer:
    """Sends records and counts on all replicas to have them: `async with Producer(bootstrap, settings) as producer`.

    Events and items wait while the consumer group of the settings is far behind, on a broker that forgets what was not
    read in time: the in-memory one, known by having no controller.
    """

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._failure: BaseException | None = None
        self.sent = self.acknowledged = 0  # records
        self._records, self._bytes, self._unlooked = Counter[str](), Counter[str](), 0
        self._lag: Lag | None = None

    async def __aenter__(self) -> Self:
        with translated(self._bootstrap):
            async with AsyncExitStack() as stack:
                self._kafka = _client(self._bootstrap, self._settings)
                stack.push_async_callback(self._kafka.stop)
                await self._kafka.start()
                self._closing = stack.pop_all()
        self.forgets = self._kafka.client.cluster.controller is None
        return self

    async def __aexit__(self, *_: object) -> None:
        with translated(self._bootstrap):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._closing.aclose()

    async def send_event(self, scenario: str, user_id: str, value: bytes) -> None:
        """Queue an event of a recorded past, which is never late; `flush` says whether it arrived."""
        await self.send_patiently(EVENT_TOPICS[scenario], user_id.encode(), value, [BACKFILL])

    async def send_item(self, item_id: str, value: bytes) -> None:
        """Queue an item; `flush` says whether it arrived."""
        await self.send_patiently(ITEMS, item_id.encode(), value)

    async def send_patiently(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> asyncio.Future[Any]:
        """Queue a record of a topic of events or items; `flush`, or what is returned, says whether it arrived."""
        acknowledgement = await self.send(topic, key, value, headers)
        size = len(key or b"") + len(value or b"")
        self._records[topic] += 1
        self._bytes[topic] += size
        self._unlooked += size
        if self.forgets and self._unlooked > LOOK_BYTES:
            await self._wait_for_room()
            self._unlooked = 0
        return acknowledgement

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        """Queue any record, at once; `flush`, or what is returned, says whether it arrived. The partition is the
        key's unless it is given."""
        if key is None and value is None:
            raise Permanent(f"Kafka at {self._bootstrap}: a record needs a key or a value")  # aiokafka's own rule
        with translated(self._bootstrap):
            acknowledgement: asyncio.Future[Any] = await self._kafka.send(
                topic, value, key, partition, headers=list(headers)
            )
        self.sent += 1
        acknowledgement.add_done_callback(self._note)
        return acknowledgement

    async def deliver(self, acknowledgements: Sequence[asyncio.Future[Any]]) -> None:
        """Return when the broker has acknowledged these; raise the first failure among them."""
        with translated(self._bootstrap):
            await asyncio.gather(*acknowledgements)

    async def check_ready(self) -> None:
        """Raise `Transient` when no broker answers."""
        with translated(self._bootstrap):
            answered = await self._kafka.client.force_metadata_update()
        if not answered:
            raise Transient(f"Kafka at {self._bootstrap} does not answer")

    async def flush(self) -> None:
        """Return when the broker has acknowledged everything sent; raise the first failure since the last flush."""
        with translated(self._bootstrap):
            await self._kafka.flush()
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def _note(self, acknowledgement: asyncio.Future[Any]) -> None:
        if not acknowledgement.cancelled():
            failure = acknowledgement.exception()
            self._failure = self._failure or failure
            self.acknowledged += failure is None

    async def _wait_for_room(self) -> None:
        await self.flush()
        if self._lag is None:
            self._lag = await self._closing.enter_async_context(Lag(self._bootstrap, self._settings))
        while not self._room(await self._lag.read()):  # noqa: ASYNC110  Kafka tells nobody of a commit
            await asyncio.sleep(LOOK_SECONDS)

    def _room(self, lag: Mapping[TopicPartition, int]) -> bool:
        return all(
            behind < ROOM_RECORDS and behind * self._bytes[tp.topic] < ROOM_BYTES * max(1, self._records[tp.topic])
            for tp, behind in lag.items()
        )


def _client(bootstrap: str, settings: Settings) -> Any:
    return AIOKafkaProducer(
        acks="all",
        max_request_size=REQUEST_BYTES,
        max_batch_size=BATCH_BYTES,
        linger_ms=LINGER_MS,
        **connection(bootstrap, settings),
    )


class KafkaLog:
    """`stream.ports.Log` and `Returns` over a producer."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """As `stream.dead_topic` lays them out."""
        await self._producer.deliver([await self._producer.send(DEAD, *letter_message(each)) for each in letters])

    async def announce(self, updates: Sequence[Update]) -> None:
        await self._producer.deliver(
            [
                await self._producer.send(UPDATED, update.user_id.encode(), json.dumps(asdict(update)).encode())
                for update in updates
            ]
        )

    async def send_back(self, originals: Sequence[DeadLetter]) -> list[Permanent | None]:
        """On a broker that forgets, it waits for room, as events and items do."""
        send = partial(self._producer.send_patiently, headers=[BACKFILL])
        queued = [await _or_refusal(send(o.topic, o.key, o.value)) for o in originals]
        return [q if isinstance(q, Permanent) else await _or_refusal(self._producer.deliver([q])) for q in queued]

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._producer.deliver(
            [await self._producer.send(DEAD, *settlement_message(each), each.place.partition) for each in settlements]
        )


async def _or_refusal(call: Awaitable[T]) -> T | Permanent:
    try:
        return await call
    except Permanent as error:
        return error
