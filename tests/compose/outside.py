"""Services outside of the system: one sends events through Kafka, one looks at what Redis and Qdrant hold of them."""

import asyncio
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import redis
from aiokafka import AIOKafkaProducer
from qdrant_client import QdrantClient
from stack import Stack

from stream import history
from stream.adapters.redis import history_key, stored_item_key
from stream.events import Scenario
from stream.identity import item_key, query_key
from stream.points import USERS, user_point

DAY_MS = 86_400_000
Message = tuple[str, str, dict[str, Any]]  # topic, key, value


async def _produce(url: str, messages: Sequence[Message]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=url, enable_idempotence=True) as producer:
        pending = [await producer.send(t, json.dumps(v).encode(), key=k.encode()) for t, k, v in messages]
        await asyncio.gather(*pending)


class Outside:
    """Remembers what every user did, and tells what the system does not know of it yet."""

    def __init__(self, stack: Stack, users: int = 12, items: int = 30) -> None:
        self._stack = stack
        self.users = [f"outside-{i}" for i in range(users)]
        self._items = [f"outside-item-{i}" for i in range(items)]
        self._clock = itertools.count(int(time.time() * 1000) - DAY_MS)
        self._done: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)  # user -> time, scenario, name

    def send_catalogue(self) -> None:
        words = ("red", "blue", "wooden", "electric", "small")
        titles = [f"{words[i % len(words)]} thing number {i}" for i in range(len(self._items))]
        self._send([("items", i, {"item_id": i, "title": t}) for i, t in zip(self._items, titles, strict=True)])

    def send_wave(self) -> None:
        """One event of every user in every scenario."""
        self._send([self._event(user, scenario) for user in self.users for scenario in Scenario])

    def _event(self, user: str, scenario: Scenario) -> Message:
        """A query typed, or a click on an item."""
        ts = next(self._clock)
        item, query = self._items[ts % len(self._items)], f"thing {ts % 7}"
        searched = scenario.name == "search"
        act = {"action": "search", "query": query} if searched else {"action": "click", "item_id": item}
        self._done[user].append((ts, scenario, query_key(query) if searched else item_key(item)))
        return f"events.{scenario.name}", user, {"event_id": f"e-{ts}", "user_id": user, "ts": ts, **act}

    def _send(self, messages: Sequence[Message]) -> None:
        asyncio.run(_produce(self._stack.addresses["FACETSTREAM_KAFKA_URL"], messages))

    def missing(self) -> dict[str, str]:
        """By user: what is wrong with the history, or with the point in Qdrant."""
        with redis.Redis.from_url(self._stack.addresses["FACETSTREAM_REDIS_URL"]) as client:
            packed = {user: client.get(history_key(user)) for user in self.users}
            known = {u: history.decode(data) for u, data in packed.items() if data}
            indexes = {record.item for found in known.values() for record in found.records}
            names = {i: (client.hget(stored_item_key(i), "name") or b"?").decode() for i in indexes}
        points = self._point_versions()
        wrong = {}
        for user in self.users:
            found = known.get(user)
            done = [(r.ts, r.scenario, names[r.item]) for r in found.records] if found else []
            if done != self._done[user]:
                wrong[user] = f"the history has {len(done)} records, not the {len(self._done[user])} sent, in order"
            elif found and points.get(user) != found.version:
                wrong[user] = f"the point has version {points.get(user)}, the history {found.version}"
        return wrong

    def _point_versions(self) -> dict[str, int]:
        client = QdrantClient(url=self._stack.addresses["FACETSTREAM_QDRANT_URL"], check_compatibility=False)
        try:
            points = client.retrieve(USERS, [user_point(user) for user in self.users], with_payload=True)
        finally:
            client.close()
        return {point.payload["user_id"]: point.payload["version"] for point in points if point.payload}

    def wait_complete(self, seconds: float = 90) -> None:
        """Until nothing is missing."""
        end = time.monotonic() + seconds
        while (wrong := self.missing()) and time.monotonic() < end:
            time.sleep(0.5)
        assert wrong == {}
