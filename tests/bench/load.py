"""A worker of its own process, and the events that are sent to it."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.app import FLUSH_SECONDS
from stream.identity import SHARDS
from stream.produce import Outgoing, paced
from stream.services import Producer, Services, Stores, connect, producer, stores
from stream.synthetic import synthesize
from stream.topics import EVENT_TOPICS
from tests.bench.system import ROOT, System, know, names_of

PATIENCE = 120.0  # seconds for everything sent to be searchable
POLL = 0.25  # seconds
STOP_SECONDS = 30.0


@contextmanager
def worker(system: System, **changed: object) -> Iterator[subprocess.Popen[bytes]]:
    """`facetstream worker` on the servers, with other settings changed, until the end of the block. What lies in Kafka
    already is not its business; its consumer group must be new."""
    asyncio.run(read_all(system))
    command = [sys.executable, "-m", "stream.cli", "worker"]
    with subprocess.Popen(command, cwd=ROOT, env=system.environment(**changed)) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


async def read_all(system: System) -> None:
    """Have the consumer group begin at the end of the log."""
    group = system.settings.consumer_group
    async with AIOKafkaConsumer(
        bootstrap_servers=system.addresses.kafka, group_id=group, enable_auto_commit=False
    ) as kafka:
        partitions = [
            TopicPartition(topic, partition)
            for topic in EVENT_TOPICS.values()
            for partition in range(system.settings.partitions)
        ]
        kafka.assign(partitions)
        await kafka.commit(await kafka.end_offsets(partitions))


def traffic(users: int, events: int) -> Iterator[Outgoing]:
    """The events of a population again and again, each time with other ids, dated when it is asked for. They are
    shuffled: as in life, a user's next event comes long after many of others, and hardly two share a refresh."""
    acts = synthesize(users, events).acts
    random.Random(7).shuffle(acts)
    lap = 0
    while True:
        lap += 1
        for number, act in enumerate(acts):
            now_ms = int(time.time() * 1000)
            record = act.record | {"event_id": f"{lap}-{number}", "ts": now_ms}
            yield Outgoing(now_ms, act.scenario, record["user_id"], json.dumps(record).encode())


@dataclass
class Line:
    """From the producer to the profiles, with a worker in between."""

    services: Services
    opened: Stores
    kafka: Producer
    events: Iterator[Outgoing]
    sent: int = 0

    async def send(self, count: int, rate: float | None = None) -> None:
        """So many events, at a rate or at once; on return Kafka has them."""
        async for event in paced(islice(self.events, count), rate):
            await self.kafka.send_event(event.scenario, event.user_id, event.value)
        await self.kafka.flush()
        self.sent += count

    async def unread(self) -> int:
        """Events sent that are in no history yet, as far as the worker has counted."""
        return self.sent - (await self.services.counters.read())["events_applied"]

    async def age_ms(self, rate: float) -> float:
        """Of the oldest event that is not searchable yet, when they come at that rate."""
        backlog = await self.opened.histories.backlog(range(SHARDS))
        unread = await self.unread() / rate - FLUSH_SECONDS  # seconds; a count may be that old
        since_ms = backlog.since_ms or time.time() * 1000
        return max(0.0, unread * 1000, time.time() * 1000 - since_ms)

    async def read(self) -> None:
        """Wait until every event is in a history, and counted."""
        while await self.unread():  # noqa: ASYNC110  Redis tells nobody of a count
            await asyncio.sleep(POLL)

    async def searchable(self) -> Counter[str]:
        """Wait until every event is, and counted; what the workers have counted."""
        async with asyncio.timeout(PATIENCE):
            await self.read()
            while await self.opened.histories.dirty_count():  # noqa: ASYNC110  likewise
                await asyncio.sleep(POLL)
        await asyncio.sleep(2 * FLUSH_SECONDS)
        return await self.services.counters.read()


@asynccontextmanager
async def line(system: System, users: int, events: int) -> AsyncIterator[Line]:
    """On empty stores that know the items, but no query."""
    async with (
        connect(system.settings, system.addresses) as services,
        producer(system.addresses.kafka, system.settings) as kafka,
    ):
        opened = await stores(services, system.settings)
        acts = [act for act in synthesize(users, events).acts if act.record["action"] != "search"]
        await know(opened, names_of(acts))
        yield Line(services, opened, kafka, traffic(users, events))
