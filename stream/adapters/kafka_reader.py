"""Kafka as a whole is read back: what topics hold now, by nobody's consumer group."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream import header_names
from stream.adapters.kafka_admin import partitions
from stream.adapters.kafka_connection import connection, translated
from stream.errors import Transient, UserError
from stream.ledger import Batch, Record
from stream.settings import Settings

FETCH_BYTES = 2 << 20  # of one partition
POLL_MS = 1_000
PATIENCE = 30.0  # seconds without progress: aiokafka itself waits for a broker for ever


class KafkaReader:
    """`stream.ports.Reader`: `async with KafkaReader(...) as reader`.

    What is there is decided on entering: the records of each partition from `offset` on, and from the first one sent at
    `since_ms` or later (ms since 1970; None: the oldest), to the last one there is, without those sent at `until_ms` or
    later.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        topics: Sequence[str],
        since_ms: int | None = None,
        until_ms: int | None = None,
        offset: int = 0,
    ) -> None:
        self._bootstrap, self._settings, self._topics = bootstrap, settings, topics
        self._since = since_ms
        self._until = until_ms
        self._offset = offset
        self.total = self.skipped = 0

    async def __aenter__(self) -> Self:
        counts = await partitions(self._bootstrap, self._settings)
        if missing := [topic for topic in self._topics if topic not in counts]:
            raise UserError(f"Kafka at {self._bootstrap} has no topic {missing[0]}: run facetstream provision first")
        tps = [TopicPartition(topic, number) for topic in self._topics for number in range(counts[topic])]
        with translated(self._bootstrap):
            async with AsyncExitStack() as stack:
                self._kafka = _client(self._bootstrap, self._settings)
                stack.push_async_callback(self._kafka._client.close)  # also when `stop` fails
                stack.push_async_callback(self._kafka.stop)
                await self._kafka.start()
                await self._find(tps)
                self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        closing = asyncio.ensure_future(self._closing.aclose())
        await asyncio.wait({closing})
        if not closing.cancelled():  # as aiokafka says of itself when a broker is gone
            closing.exception()  # has been looked at: what was to be read is read

    async def batches(self) -> AsyncIterator[Batch]:
        """Every record, those of a partition in order. `Transient` when Kafka gives nothing for `PATIENCE` seconds."""
        moved = time.monotonic()
        while left := await self._unread():
            with translated(self._bootstrap):
                fetched = await self._kafka.getmany(*left, timeout_ms=POLL_MS, max_records=self._settings.ingest_batch)
            for tp, found in fetched.items():
                if records := tuple(self._wanted(tp, found)):
                    yield Batch(tp.topic, tp.partition, records)
            moved = time.monotonic() if fetched else moved
            if time.monotonic() - moved > PATIENCE:
                waited = f"nothing came of {left[0].topic} for {PATIENCE:.0f} s"
                raise Transient(f"Kafka at {self._bootstrap}: {waited}; try again")

    async def _find(self, tps: Sequence[TopicPartition]) -> None:
        """Where to begin and to end; only partitions with something between are read."""
        starts, self._ends = await self._kafka.beginning_offsets(tps), await self._kafka.end_offsets(tps)
        starts = {tp: max(start, min(self._offset, self._ends[tp])) for tp, start in starts.items()}
        knows_times = self._kafka._client.cluster.controller is not None  # the in-memory broker does not
        if self._since is not None and knows_times:
            found = await self._kafka.offsets_for_times(dict.fromkeys(tps, self._since))
            starts |= {tp: max(starts[tp], at.offset) if at else self._ends[tp] for tp, at in found.items()}
        wanted = {tp: starts[tp] for tp in tps if starts[tp] < self._ends[tp]}
        self._kafka.assign(list(wanted))
        for tp, offset in wanted.items():
            self._kafka.seek(tp, offset)
        self._early = set() if knows_times or self._since is None else set(wanted)
        self.total = sum(self._ends[tp] - offset for tp, offset in wanted.items())
        self.skipped = sum(starts.values())

    async def _unread(self) -> list[TopicPartition]:
        return [tp for tp in self._kafka.assignment() if await self._kafka.position(tp) < self._ends[tp]]

    def _wanted(self, tp: TopicPartition, found: Iterable[Any]) -> Iterable[Record]:
        for r in found:
            if tp in self._early and r.timestamp < self._since:
                continue
            self._early.discard(tp)
            late = self._until is not None and r.timestamp >= self._until
            if r.offset < self._ends[tp] and not late:
                yield Record(r.offset, r.key, r.value, r.timestamp, r.headers)


def _client(bootstrap: str, settings: Settings) -> Any:
    header_names.allow()
    return AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # where retention, or the in-memory broker, has been quicker
        max_partition_fetch_bytes=FETCH_BYTES,
        **connection(bootstrap, settings),
    )
