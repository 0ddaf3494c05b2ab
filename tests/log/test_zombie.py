"""A worker that is paused in the middle of a refresh, and woken when another has its partitions."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stream.adapters.kafka import provision_topics
from stream.adapters.memory import MemoryModels
from stream.addresses import Addresses
from stream.embedded import kafka, qdrant
from stream.history import decode
from stream.identity import SHARDS, shard
from stream.services import Services, Stores, connect, producer, stores
from stream.settings import Settings
from stream.stores import Codebook

SCRIPT = Path(__file__).with_name("zombie.py")
ROOT = SCRIPT.parents[2]
USERS = [f"u{n}" for n in range(40)]
NOW_MS = int(time.time() * 1000) - 60_000  # a minute ago
PATIENCE = 90.0  # seconds


@dataclass
class Scene:
    """The services, and the workers that were started."""

    settings: Settings
    addresses: Addresses
    services: Services
    stores: Stores
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    sent: int = 0  # events of each user

    def start(self, version: str) -> subprocess.Popen[bytes]:
        """A worker with models of that version; it is held while the file `hold-VERSION` is there."""
        a = self.addresses
        arguments = [self.folder / f"hold-{version}", self.folder, a.kafka, a.redis, a.qdrant, version]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-W", "error", SCRIPT, *arguments], cwd=ROOT, env=env)
        self.processes.append(process)
        return process

    async def act(self, users: list[str]) -> None:
        """An event of each of these."""
        self.sent += 1
        async with producer(self.addresses.kafka, self.settings) as out:
            for user in users:
                event = {"event_id": f"{user}-{self.sent}", "user_id": user, "item_id": "i", "action": "click"}
                await out.send("events.feed", user.encode(), json.dumps(event | {"ts": NOW_MS + self.sent}).encode())
            await out.flush()

    async def events(self) -> list[int]:
        """How many each user's history has."""
        packed = await self.stores.histories.read(USERS)
        return [decode(data).events_applied if data else 0 for data in packed]

    async def owners(self) -> dict[str, int]:
        """The token in force, by user."""
        tokens = await self.stores.histories.owners(range(SHARDS))
        return {user: tokens[shard(user)] for user in USERS}

    async def clean(self) -> bool:
        return await self.stores.histories.dirty_count() == 0


async def until(true: Callable[[], Awaitable[object]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest.fixture
def addresses(embedded_settings: Settings, kafka_home: Path, redis_db: str, tmp_path: Path) -> Iterator[Addresses]:
    """A Kafka and a Qdrant of its own: topics and collections have fixed names."""
    own = embedded_settings.model_copy(update={"data_folder": tmp_path, "kafka_home": kafka_home})
    with ExitStack() as stack:
        started = [start(own) for start in (kafka.start, qdrant.start)]
        for server in started:
            stack.callback(server.stop)
        yield Addresses(started[0].address, redis_db, "none:1", started[1].address)


@pytest.fixture
async def scene(addresses: Addresses, settings: Callable[..., Settings], tmp_path: Path) -> AsyncIterator[Scene]:
    wanted = settings()
    await provision_topics(addresses.kafka, wanted)
    async with connect(wanted, addresses) as found:
        card = await MemoryModels().card()
        await found.registry.put_codebook(Codebook(card.codebook_version, card.code_bytes, b"none"))
        await found.vectors.provision(card)
        made = Scene(wanted, addresses, found, await stores(found, wanted), tmp_path)
        yield made
        for process in made.processes:
            process.kill()
            process.wait()


async def test_a_zombie_harms_nobody(scene: Scene) -> None:
    zombie = scene.start("0")
    await scene.act(USERS)
    await until(lambda: _all(scene, 1))
    await until(scene.clean)
    before = await scene.owners()

    hold = scene.folder / "hold-0"
    hold.touch()
    await scene.act(USERS)
    await until(lambda: _all(scene, 2))
    await until(lambda: asyncio.to_thread(hold.read_text))
    zombie.send_signal(signal.SIGSTOP)
    scene.start("1")
    await until(scene.clean)
    heirs = await scene.owners()
    assert all(heirs[user] > before[user] for user in USERS)

    hold.unlink()
    zombie.send_signal(signal.SIGCONT)
    busy = USERS[::2]
    await until(lambda: _joined(scene, busy, heirs))
    await until(lambda: _all(scene, scene.sent, busy))
    await until(scene.clean)
    assert await scene.events() == [scene.sent if user in busy else 2 for user in USERS]
    for user, data in zip(USERS, await scene.stores.histories.read(USERS), strict=True):
        profile = await scene.services.vectors.profile(user)
        assert profile is not None
        assert data is not None
        assert profile.version == decode(data).version
        if user not in busy:  # the zombie had made the same version
            assert (profile.model_version, profile.token) == ("1", heirs[user])
    assert all(process.poll() is None for process in scene.processes)


async def _all(scene: Scene, events: int, users: list[str] = USERS) -> bool:
    found = dict(zip(USERS, await scene.events(), strict=True))
    return all(found[user] == events for user in users)


async def _joined(scene: Scene, busy: list[str], heirs: dict[str, int]) -> bool:
    """Whether the zombie has got some partitions again: its next refresh there takes a token."""
    await scene.act(busy)
    await asyncio.sleep(0.5)
    return any(token > heirs[user] for user, token in (await scene.owners()).items())
