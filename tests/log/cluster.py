"""A real broker with new topics, and what a consumer group has committed of them."""

import asyncio
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

PARTITIONS = 4
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Cluster:
    address: str
    topics: tuple[str, ...]
    count: int  # of partitions, of each
    producer: AIOKafkaProducer

    @property
    def partitions(self) -> list[TopicPartition]:
        return [TopicPartition(topic, partition) for topic in self.topics for partition in range(self.count)]

    async def fill(self, count: int) -> None:
        """`count` records, evenly over the topics, of 97 users."""
        for i in range(count):
            await self.producer.send(self.topics[i % len(self.topics)], b"%d" % i, key=b"user-%d" % (i % 97))
        await self.producer.flush()

    async def offsets(self, group: str) -> dict[TopicPartition, tuple[int, int]]:
        """The committed and the end offset of every partition."""
        async with AIOKafkaConsumer(bootstrap_servers=self.address, group_id=group) as consumer:
            ends = await consumer.end_offsets(self.partitions)
            return {tp: (await consumer.committed(tp) or 0, end) for tp, end in ends.items()}

    async def drained(self, group: str) -> None:
        """Return when everything is committed."""
        while True:
            if all(committed == end for committed, end in (await self.offsets(group)).values()):
                return
            await asyncio.sleep(POLL_SECONDS)
