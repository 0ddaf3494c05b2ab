"""The embedded default as a user has it: all four servers, provisioned, with one worker process."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from stream import settings
from stream.addresses import Addresses
from stream.embedded.process import Server, folder_of, spawn
from stream.embedded.stack import Stack
from stream.errors import UserError
from stream.provision import provision
from stream.services import Services, Stores, connect, stores
from stream.settings import Settings, variable
from tests.conftest import ROOT, need

T = TypeVar("T")
PATIENCE = 120.0  # seconds without progress


@dataclass
class System:
    """What runs, and ways to use it from a test."""

    settings: Settings
    addresses: Addresses
    worker: Server
    servers: dict[str, Server]  # by part

    def ask(self, question: Callable[[Services, Stores], Awaitable[T]]) -> T:
        """The answer of a coroutine over the services, in an event loop of its own."""

        async def run() -> T:
            async with connect(self.settings, self.addresses) as services:
                return await question(services, await stores(services, self.settings))

        return asyncio.run(run())

    def facetstream(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """The command line, told nothing but the data folder."""
        hidden = {variable(f"{part}_url") for part in asdict(self.addresses)}
        env = {k: v for k, v in os.environ.items() if k not in hidden}
        env[variable("data_folder")] = str(self.settings.data_folder)
        command = [sys.executable, "-m", "stream.cli", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)

    def counted(self, name: str) -> int:
        """A counter of all workers."""

        async def read(services: Services, _: Stores) -> int:
            return (await services.counters.read())[name]

        return self.ask(read)

    def until(self, reached: Callable[[], int], goal: int) -> None:
        """Wait until a number has grown to `goal` and nobody is dirty; fail when it stops growing."""
        last, moved = -1, time.monotonic()
        while (now := reached()) < goal or self.ask(lambda _, s: s.histories.dirty_count()):
            assert self.worker.alive, self.worker.last_words()
            if now != last:
                last, moved = now, time.monotonic()
            assert time.monotonic() - moved < PATIENCE, f"stuck at {now} of {goal}\n{self.worker.last_words()}"
            time.sleep(0.2)


def start_worker(wanted: Settings, found: Addresses, **changed: object) -> Server:
    """`changed`: settings that are the worker's own."""
    env = {variable(f"{part}_url"): url for part, url in asdict(found).items()}
    env |= {variable(name): str(value) for name, value in changed.items()}
    command = [sys.executable, "-W", "error", "-m", "stream.cli", "worker"]
    return spawn("worker", "", folder_of(wanted, "worker"), command, env=env)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    unset = dict.fromkeys(("kafka_url", "redis_url", "triton_url", "qdrant_url"))
    folder: Path = tmp_path_factory.mktemp("system")
    wanted = settings.load(data_folder=folder, model_repository=ROOT / "triton_repo", start_timeout=120.0, **unset)
    stack = Stack(wanted)
    try:
        found = stack.start()
    except UserError as error:
        if " here: " not in str(error):
            raise
        need("triton", str(error))
    asyncio.run(_provision(wanted, found))
    running = System(wanted, found, start_worker(wanted, found), stack.servers)
    yield running
    running.worker.stop()
    stack.stop()


async def _provision(wanted: Settings, found: Addresses) -> None:
    async with connect(wanted, found) as services:
        await provision(wanted, found, services)
