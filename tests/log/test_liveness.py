"""`/livez` over a real broker: a handler that hangs is stuck, one that waits for a dependency is not."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from cluster import Cluster

from stream.adapters.kafka import Producer
from stream.adapters.memory_stores import MemoryCounters, MemoryHistories
from stream.batches import Batch, application, consume, run
from stream.embedded.process import Server, resident_bytes
from stream.errors import Transient
from stream.retry import persistently
from stream.settings import Settings
from stream.web import add_pages

MakeSettings = Callable[..., Settings]
Ask = Callable[[], Awaitable[tuple[int, Any]]]
PATIENCE = 60.0  # seconds
STALL_SECONDS = 1.5


@asynccontextmanager
async def working(
    settings: MakeSettings, address: str, topic: str, handle: Callable[[Batch], Awaitable[None]]
) -> AsyncIterator[Callable[[Callable[[Ask], Awaitable[None]]], Awaitable[None]]]:
    """Runs a story beside a worker of one topic; the story is given a way to ask `/livez`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = settings(
        web_port=port, redis_timeout=1.0, triton_timeout=1.0, qdrant_timeout=1.0, stall_seconds=STALL_SECONDS
    )
    app = application(config, address)
    consume(app, topic, handle)

    async def backlog() -> Any:
        return await MemoryHistories(4, 1).backlog([])

    async with Producer(address, config) as producer, httpx.AsyncClient(timeout=PATIENCE) as http:
        add_pages(app, {"kafka": producer.check_ready}, MemoryCounters(), backlog, STALL_SECONDS, {})

        @app.task
        async def tick() -> None:
            while True:  # as a worker does
                app.stalled(STALL_SECONDS)
                await asyncio.sleep(0.1)

        async def ask() -> tuple[int, Any]:
            answer = await http.get(f"http://127.0.0.1:{port}/livez")
            return answer.status_code, answer.json()

        async def beside(story: Callable[[Ask], Awaitable[None]]) -> None:
            async def when_up() -> None:
                while not await _answers(port):  # noqa: ASYNC110  nor is a port
                    await asyncio.sleep(0.05)
                await story(ask)

            async with asyncio.timeout(PATIENCE):
                await run(app, when_up())

        yield beside


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def until(ask: Ask, status: int) -> Any:
    """What `/livez` says as soon as it answers with the status."""
    while (answer := await ask())[0] != status:  # noqa: ASYNC110  a page is not an event
        await asyncio.sleep(0.1)
    return answer[1]


async def test_a_handler_that_hangs_is_stuck(cluster: Cluster, settings: MakeSettings) -> None:
    topic, taken, go = cluster.topics[0], asyncio.Event(), asyncio.Event()
    await cluster.producer.send_and_wait(topic, b"v", partition=0)

    async def hang(batch: Batch) -> None:
        taken.set()
        await go.wait()

    async def story(ask: Ask) -> None:
        await taken.wait()
        assert await ask() == (200, {"alive": True, "waiting": {}})
        said = await until(ask, 503)
        assert said["alive"] is False
        assert said["reason"].startswith(f"{topic}: 1 records are left, and nothing has moved for ")
        go.set()
        await until(ask, 200)

    async with working(settings, cluster.address, topic, hang) as beside:
        await beside(story)


async def test_a_handler_that_waits_for_a_dependency_is_alive_and_says_so(
    cluster: Cluster, settings: MakeSettings
) -> None:
    topic, away, done = cluster.topics[0], True, asyncio.Event()
    await cluster.producer.send_and_wait(topic, b"v", partition=0)

    async def call() -> None:
        if away:
            raise Transient("Redis does not answer")

    async def handle(batch: Batch) -> None:
        await persistently(call)
        done.set()

    async def story(ask: Ask) -> None:
        nonlocal away
        waited = 0.0
        while waited < 3 * STALL_SECONDS:
            status, said = await ask()
            assert status == 200
            for waiting in said["waiting"].values():
                assert waiting["for"] == "Redis does not answer"
                waited = waiting["seconds"]
            await asyncio.sleep(0.1)
        away = False
        await done.wait()
        assert await ask() == (200, {"alive": True, "waiting": {}})

    async with working(settings, cluster.address, topic, handle) as beside:
        await beside(story)


async def test_a_worker_at_rest_is_alive(cluster: Cluster, settings: MakeSettings) -> None:
    topic, rested = cluster.topics[0], asyncio.Event()

    async def handle(batch: Batch) -> None:
        rested.set()

    async def story(ask: Ask) -> None:
        for _ in range(int(2 * STALL_SECONDS / 0.1)):
            assert (await ask())[0] == 200
            await asyncio.sleep(0.1)
        await cluster.producer.send_and_wait(topic, b"v", partition=0)
        await rested.wait()
        assert (await ask())[0] == 200

    async with working(settings, cluster.address, topic, handle) as beside:
        await beside(story)


async def fill(broker: Server, topic: str) -> None:
    """One record more."""
    async with AIOKafkaProducer(bootstrap_servers=broker.address) as producer:
        await producer.send_and_wait(topic, b"v")


@pytest.fixture
async def topic(broker: Server) -> str:
    """With one record."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    await admin.create_topics([NewTopic("events.feed", 1, 1)])
    await admin.close()
    await fill(broker, "events.feed")
    return "events.feed"


@contextmanager
def frozen(broker: Server) -> Iterator[None]:
    java = max(broker.pids(), key=resident_bytes)
    os.kill(java, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(java, signal.SIGCONT)


async def test_a_worker_reads_on_after_kafka_was_frozen(broker: Server, topic: str, settings: MakeSettings) -> None:
    offsets: list[int] = []
    news = asyncio.Event()

    async def handle(batch: Batch) -> None:
        offsets.extend(record.offset for record in batch.records)
        news.set()

    async def story(ask: Ask) -> None:
        await news.wait()
        with frozen(broker):
            for _ in range(int(3 * STALL_SECONDS / 0.1)):
                assert (await ask())[0] == 200
                await asyncio.sleep(0.1)
        news.clear()
        await fill(broker, topic)
        await news.wait()
        assert offsets == [0, 1]
        assert (await ask())[0] == 200

    async with working(settings, broker.address, topic, handle) as beside:
        await beside(story)


async def test_while_kafka_is_frozen_nothing_is_stuck(broker: Server, topic: str, settings: MakeSettings) -> None:
    """With a handler that hangs, to be sure: once Kafka is back, it is found out."""
    taken = asyncio.Event()

    async def hang(batch: Batch) -> None:
        taken.set()
        await asyncio.Event().wait()

    async def story(ask: Ask) -> None:
        await taken.wait()
        with frozen(broker):
            waited = 0.0
            while waited < 2 * STALL_SECONDS:
                status, said = await ask()
                assert status == 200
                for waiting in said["waiting"].values():
                    assert waiting["for"] == "gives no answer within 2 s"
                    waited = waiting["seconds"]
                await asyncio.sleep(0.1)
        await until(ask, 503)

    async with working(settings, broker.address, topic, hang) as beside:
        await beside(story)
