"""Both ends of a system, wherever it runs: events go in, and what the stores hold and the log has left is looked at."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stream import history
from stream.adapters.kafka import lag
from stream.addresses import Addresses
from stream.errors import Transient
from stream.identity import shard
from stream.services import Services, Stores, producer
from stream.settings import Settings
from tests.faults.truth import Message

PATIENCE = 60.0  # seconds without progress
LOOK_SECONDS = 0.2


class Stuck(Exception):
    """The system does not do what it should, nor anything that leads there."""


@dataclass
class Ends:
    """As a service outside of the system has them."""

    settings: Settings
    addresses: Addresses
    services: Services
    opened: Stores

    async def send(self, messages: Sequence[Message]) -> None:
        """Return when Kafka has them all."""
        async with producer(self.addresses.kafka, self.settings) as kafka:
            for message in messages:
                await kafka.send(message.topic, message.key, message.value)
            await kafka.flush()

    async def unacknowledged(self) -> int:
        """Records that the workers have not acknowledged to Kafka."""
        return await lag(self.addresses.kafka, self.settings)

    async def applied(self, users: Sequence[str]) -> int:
        """Events in the histories of these users."""
        packed = await self.opened.histories.read(users)
        return sum(history.decode(data).events_applied for data in packed if data is not None)

    async def settled(self, users: Sequence[str]) -> None:
        """Return when everything is acknowledged and then none of these users is dirty. Raises `Stuck`."""
        shards = sorted({shard(user) for user in users})
        await self.until(self.unacknowledged, 0)
        await self.until(lambda: self.opened.histories.dirty(shards, len(users)), [])

    async def until(self, look: Callable[[], Awaitable[Any]], goal: Any) -> None:
        """Return when `look` answers `goal`. Raises `Stuck`."""
        last, moved = None, time.monotonic()
        while True:
            await self.supervise()
            if (now := await _tried(look)) == goal:
                return
            if now != last:
                last, moved = now, time.monotonic()
            if time.monotonic() - moved > PATIENCE:
                raise Stuck(f"stuck at {now}, not {goal}, for {PATIENCE:g} s")
            await asyncio.sleep(LOOK_SECONDS)

    async def supervise(self) -> None:
        """Called while waiting. Raises `Stuck` where that is in vain."""


async def _tried(look: Callable[[], Awaitable[Any]]) -> Any:
    """What `look` answers; None when a server is only just coming back."""
    try:
        return await look()
    except Transient:
        return None
