"""Many handlers over a real redis-server that freezes, or is killed and started again: each event counts once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stream.adapters import redis as adapter
from stream.adapters.redis import RedisHistories, RedisItems
from stream.adapters.redis_connection import connect
from stream.breaker import Breaker, guarded
from stream.embedded import redis as embedded
from stream.embedded.process import Server
from stream.errors import Transient
from stream.history import decode
from stream.settings import Settings
from tests.path.rig import Rig, event

HANDLERS = 8
PATIENCE = 60.0  # seconds


@dataclass
class Redis:
    """A server that a test may stop, and a client of it."""

    settings: Settings
    server: Server
    client: Any

    def freeze(self) -> Callable[[], None]:
        """How it is thawed."""
        (pid,) = [pid for pid in self.server.pids() if "redis" in Path(f"/proc/{pid}/comm").read_text()]
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    def kill(self) -> Callable[[], None]:
        """How it is started again, on the same port and with what it has on disk."""
        for pid in self.server.pids():
            os.kill(pid, signal.SIGKILL)
        self.server.stop()
        return self._start

    def _start(self) -> None:
        port = int(self.server.address.rsplit(":", 1)[1].partition("/")[0])
        self.server = embedded.start(self.settings.model_copy(update={"redis_port": port}))


@pytest.fixture
async def redis(embedded_settings: Settings, tmp_path: Path) -> AsyncIterator[Redis]:
    settings = embedded_settings.model_copy(update={"data_folder": tmp_path, "redis_timeout": 0.5})
    server = embedded.start(settings)
    made = Redis(settings, server, connect(server.address, settings))
    yield made
    await made.client.aclose()
    made.server.stop()


@pytest.mark.parametrize(("size", "where"), [(1, "reading from"), (32 * 2**20, "writing to")])  # more than sockets hold
async def test_a_redis_that_does_not_move_is_given_up(redis: Redis, size: int, where: str) -> None:
    def calls(value: bytes) -> Callable[[Any], object]:
        return lambda pipeline: [pipeline.set("key", value) for _ in range(3)]

    await adapter._pipelined(redis.client, calls(b"before"))
    thaw = redis.freeze()
    try:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(Transient, match=f"Timeout {where}"):
                await adapter._pipelined(redis.client, calls(bytes(size)))
    finally:
        thaw()
    await adapter._pipelined(redis.client, calls(b"after"))


@pytest.mark.parametrize("outage", [Redis.freeze, Redis.kill])
async def test_handlers_wait_together_and_every_event_counts_once(
    redis: Redis, outage: Callable[[Redis], Callable[[], None]]
) -> None:
    breaker, over, fed = Breaker(), asyncio.Event(), [0] * HANDLERS
    histories = RedisHistories(redis.client, code_bytes=4, codebook_version=1, length=10_000, window=64)
    rig = Rig(
        histories=guarded(histories, breaker),
        items=guarded(RedisItems(redis.client, codebook_version=1), breaker),
    )

    async def handler(number: int) -> None:
        while not over.is_set():
            await rig.feed(event(fed[number], f"i{fed[number]}", f"u{number}"), first=fed[number])
            fed[number] += 1

    async def until(reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not reached():  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for number in range(HANDLERS):
            group.create_task(handler(number))
        await until(lambda: min(fed) > 3)
        end = outage(redis)
        await until(lambda: bool(breaker.why) and breaker.plain()["waiting"] in (HANDLERS - 1, HANDLERS))
        before = list(fed)
        await asyncio.to_thread(end)
        await until(lambda: all(now > then for now, then in zip(fed, before, strict=True)))
        over.set()
    assert breaker.plain() == {"open": False, "waiting": 0}
    packed = await histories.read([f"u{number}" for number in range(HANDLERS)])
    assert [decode(data or b"").events_applied for data in packed] == fed
