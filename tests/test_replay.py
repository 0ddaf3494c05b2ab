"""Law 5 from the command line, on a real Kafka and a real Redis: what came in online, in whatever order, comes out of a
replay the same, byte for byte."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import click
import pytest

from stream import cli
from stream.adapters import redis_connection
from stream.adapters.kafka import Producer, provision_topics
from stream.adapters.kafka_reader import KafkaReader
from stream.adapters.redis import RedisHistories, RedisItems, RedisRegistry, history_key
from stream.commands.replay import Start, StartType
from stream.digest import digest
from stream.events import Scenario
from stream.history import decode, pending_items
from stream.ledger import Batch
from stream.presence import alone, at_work
from stream.replay import Reread, apply_events, apply_items, refresh_dirty
from stream.settings import Settings, load, variable
from stream.stores import Codebook, Dirty
from stream.topics import EVENT_TOPICS, ITEMS, SCENARIO_OF
from tests.path.rig import Rig, event, item

LENGTH, WINDOW = 6, 4
TOPICS = list(EVENT_TOPICS.values())
BEGINNING = ["replay", "--from", "beginning"]
Output = pytest.CaptureFixture[str]


@dataclass
class Online:
    """A log that is there, a Redis that belongs to it, and a worker's parts over both, with twins for the models."""

    kafka: str
    url: str
    settings: Settings
    redis: Any
    rig: Rig

    @property
    def other(self) -> str:
        """Another, empty database of the same Redis."""
        return f"{self.url}/1"

    async def batches(self, *topics: str) -> dict[tuple[str, int], list[Batch]]:
        """All that is there, cut small, by partition."""
        found = defaultdict(list)
        async with KafkaReader(self.kafka, self.settings, topics) as reader:
            async for b in reader.batches():
                for at in range(0, len(b.records), 50):
                    found[b.topic, b.partition].append(Batch(b.topic, b.partition, b.records[at : at + 50]))
        return dict(found)

    async def work(self, rng: random.Random, share: float = 1.0) -> None:
        """As workers might: partitions interleaved, batches delivered twice, items late, profiles refreshed between."""
        left = await self.batches(*TOPICS, ITEMS)
        until = sum(map(len, left.values())) * (1 - share)
        while sum(map(len, left.values())) > until:
            place = rng.choice([place for place, some in left.items() if some])
            batch = left[place].pop(0)
            for _ in range(rng.randint(1, 2)):
                if batch.topic == ITEMS:
                    await self.rig.catalog.handle(batch)
                else:
                    await self.rig.ingest.handle(batch, Scenario[SCENARIO_OF[batch.topic]])
            if rng.random() < 0.2:
                await self.rig.refresh()
        while await self.rig.refresh():
            pass

    async def snapshot(self) -> dict[bytes, bytes]:
        return {key: await self.redis.dump(key) async for key in self.redis.scan_iter()}

    async def restore(self, snapshot: dict[bytes, bytes]) -> None:
        await self.redis.flushdb()
        for key, value in snapshot.items():
            await self.redis.restore(key, 0, value)

    async def differences(self) -> dict[bytes, tuple[Any, Any]]:
        """Histories that are others in the other database, both decoded."""
        other = redis_connection.connect(self.other, self.settings)
        try:
            keys = [key async for key in self.redis.scan_iter("fs:{*}:h:*")]
            pairs = {key: (await self.redis.get(key), await other.get(key)) for key in keys}
        finally:
            await other.aclose()
        return {k: (decode(a), b and decode(b)) for k, (a, b) in pairs.items() if a != b}

    async def lose_histories(self) -> None:
        """What a lost Redis is after it was provisioned, and the items loaded."""
        async for key in self.redis.scan_iter("fs:{*"):
            await self.redis.delete(key)


@pytest.fixture
async def online(real_kafka_url: str, redis_db: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Online]:
    monkeypatch.setenv(variable("history_length"), str(LENGTH))
    monkeypatch.setenv(variable("event_id_window"), str(WINDOW))
    monkeypatch.setenv(variable("kafka_url"), real_kafka_url)
    monkeypatch.setenv(variable("redis_url"), redis_db)
    settings = load()
    await provision_topics(real_kafka_url, settings)
    await produce(real_kafka_url, settings, uuid4().hex[:8], random.Random(5))
    client = redis_connection.connect(redis_db, settings)
    other = redis_connection.connect(f"{redis_db}/1", settings)
    await other.flushdb()
    registry = RedisRegistry(client)
    await registry.put_codebook(Codebook(1, 4, b"file"))
    await registry.count_creation(TOPICS * 2)
    rig = Rig(
        histories=RedisHistories(client, code_bytes=4, codebook_version=1, length=LENGTH, window=WINDOW),
        items=RedisItems(client, codebook_version=1),
        registry=registry,
    )
    yield Online(real_kafka_url, redis_db, settings, client, await rig.provision())
    await other.flushdb()
    await other.aclose()
    await client.aclose()


async def produce(url: str, settings: Settings, run: str, rng: random.Random) -> None:
    """1,500 events of 40 users, late and repeated ones among them, of 40 items of which ten never come, and queries."""
    async with Producer(url, settings) as kafka:
        for number in range(1_500):
            user, scenario = f"{run}-{rng.randrange(40)}", rng.choice(list(Scenario)).name
            kind: dict[str, Any] = {"item_id": f"{run}-{rng.randrange(40)}"}
            if scenario == "search" and rng.random() < 0.5:
                kind = {"action": "search", "query": f"{run} {rng.randrange(10)}"}
            made = event(rng.randrange(500), None, user, event_id=f"{rng.randrange(max(1, number - 50), number + 2)}")
            await kafka.send_event(scenario, user, json.dumps(made | kind).encode())
        for number in range(30):
            made = item(f"{run}-{number}")
            await kafka.send_item(made["item_id"], json.dumps(made).encode())
        await kafka.send("events.feed", b"key", b"no event")
        await kafka.flush()


async def facetstream(*arguments: str) -> int:
    return await asyncio.to_thread(cli.run, arguments)


@pytest.mark.parametrize("seed", [1, 2])
async def test_into_an_empty_redis(online: Online, capsys: Output, seed: int) -> None:
    await online.work(random.Random(seed))
    histories = [data async for page in online.rig.histories.scan() for _, data in page]
    assert any(pending_items(data) for data in histories)  # of items that never came
    assert all(len(decode(data).records) <= LENGTH for data in histories)
    code, told = await facetstream(*BEGINNING, "--into", online.other), capsys.readouterr().out
    assert await online.differences() == {}, told
    assert (code, told.endswith("\nequal\n")) == (0, True)
    assert (await digest(online.rig.histories)).hash in told
    assert f"{online.rig.stats.counts['events_applied']:,} events applied" in told
    assert await facetstream(*BEGINNING, "--into", online.other) == 2
    assert "it holds histories already, name an empty Redis" in capsys.readouterr().err
    assert await facetstream(*BEGINNING, "--into", online.url) == 2


async def test_one_byte_that_is_different_is_found(online: Online, capsys: Output) -> None:
    await online.work(random.Random(3))
    ((user, data), *_), *_ = [page async for page in online.rig.histories.scan()]
    await online.redis.set(history_key(user), data[:-1] + bytes([data[-1] ^ 1]))
    assert await facetstream(*BEGINNING, "--into", online.other) == 1
    assert capsys.readouterr().out.endswith("\nDIFFERENT\n")


async def test_users_that_the_log_does_not_know_are_told(online: Online, capsys: Output) -> None:
    """As after two demos: the broker in memory forgets, Redis does not."""
    await online.work(random.Random(3))
    ((_, data), *_), *_ = [page async for page in online.rig.histories.scan()]
    for stranger in ("of before", "of long before"):
        await online.redis.set(history_key(stranger), data)
    assert await facetstream(*BEGINNING, "--into", online.other) == 1
    assert capsys.readouterr().out.endswith("\nDIFFERENT: of 2 users in force the log holds no event\n")


async def test_what_was_not_read_is_said(online: Online, capsys: Output) -> None:
    await online.work(random.Random(3))
    await online.rig.histories.mark([Dirty("u", 1)])
    assert await facetstream("replay", "--from", "7", "--into", online.other) == 1
    told = capsys.readouterr().out
    assert "records of the log are gone, or before --from; 1 users wait for a worker" in told


async def test_after_a_backup_was_restored(online: Online) -> None:
    """Half of the log is in the backup; items that have come since are encoded again."""
    rng, rig = random.Random(4), online.rig
    await online.work(rng, share=0.5)
    backup = await online.snapshot()
    await online.work(rng)
    expected, letters = await digest(rig.histories), len(rig.log.letters)
    await online.restore(backup)
    rig.cache.forget(list(rig.cache._known))
    assert await digest(rig.histories) != expected
    rig.ingest._log = rig.catalog._log = Reread(rig.log)
    async with KafkaReader(online.kafka, online.settings, [ITEMS]) as items:
        await apply_items(items, rig.catalog, lambda n: None)
    async with KafkaReader(online.kafka, online.settings, TOPICS) as events:
        await apply_events(events, rig.ingest, lambda n: None)
    await refresh_dirty(rig.refresher, rig.histories, lambda n: None)
    assert await digest(rig.histories) == expected
    assert len(rig.log.letters) == letters


async def test_killed_and_run_again(online: Online, capsys: Output) -> None:
    await online.work(random.Random(6))
    expected = await digest(online.rig.histories)
    await online.lose_histories()
    command = [sys.executable, "-W", "error", "-m", "stream.cli", *BEGINNING, "--no-refresh"]
    slowly = os.environ | {variable("ingest_batch"): "1"}
    process = await asyncio.create_subprocess_exec(*command, env=slowly, stderr=subprocess.DEVNULL)
    while process.returncode is None and (await digest(online.rig.histories)).events < 100:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert (await digest(online.rig.histories)).events < expected.events
    assert await facetstream(*BEGINNING, "--no-refresh") == 2
    assert "another replay is at work on this Redis: stop it first (one that was killed" in capsys.readouterr().err
    while await online.rig.registry.workers():  # noqa: ASYNC110  Redis tells nobody that time has passed
        await asyncio.sleep(0.1)
    assert await facetstream(*BEGINNING, "--no-refresh") == 0
    assert await digest(online.rig.histories) == expected
    assert await online.rig.registry.workers() == frozenset()


async def test_refused_while_a_worker_is_at_work(online: Online, capsys: Output) -> None:
    async with at_work(online.rig.registry):
        assert await facetstream(*BEGINNING, "--no-refresh") == 2
        assert "a worker is at work on this Redis: stop it first" in capsys.readouterr().err
        assert (await digest(online.rig.histories)).users == 0
        assert await facetstream(*BEGINNING, "--into", online.other) == 1  # reads, and writes elsewhere


async def test_no_worker_begins_meanwhile(online: Online) -> None:
    elsewhere = {variable("triton_url"): "127.0.0.1:1", variable("qdrant_url"): "http://127.0.0.1:1"}
    async with alone(online.rig.registry):
        command = [sys.executable, "-m", "stream.cli", "worker"]
        worker = await asyncio.create_subprocess_exec(*command, env=os.environ | elsewhere, stderr=subprocess.PIPE)
        _, told = await worker.communicate()
    assert worker.returncode == 2
    assert told == b"facetstream: a replay is under way on this Redis: start workers when it has ended\n"


def test_where_it_begins() -> None:
    convert = StartType().convert
    assert convert("beginning", None, None) == Start()
    assert convert("42", None, None) == Start(offset=42)
    assert convert("1970-01-02", None, None) == Start(since_ms=86_400_000)
    assert convert("1h", None, None).since_ms == pytest.approx((time.time() - 3_600) * 1000, abs=5_000)
    with pytest.raises(click.UsageError, match=r"'-1' is no time: .*; or beginning, or an offset"):
        convert("-1", None, None)
