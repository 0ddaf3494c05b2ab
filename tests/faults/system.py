"""The four servers and the workers, each a process of its own that can be killed, frozen and brought back."""

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from stream.embedded import kafka
from stream.embedded.process import Server
from stream.embedded.stack import STARTERS, Stack
from stream.provision import provision
from stream.services import connect, stores
from stream.settings import Settings, load, variable
from tests.conftest import ROOT, START_TIMEOUT
from tests.faults.ends import Ends, Stuck
from tests.faults.gate import Gate
from tests.faults.worker import SESSION_SECONDS, Worker

PORTS = range(20_000, 32_000)  # below those that the kernel gives to clients: a server that is away finds its own free
KNOBS: dict[str, Any] = {  # a worker shall meet time-outs, and several batches a burst
    "redis_timeout": 1.0,
    "triton_timeout": 2.0,
    "qdrant_timeout": 2.0,
    "sweep_interval": 1.0,
    "refresh_batch": 16,
}


@dataclass
class System(Ends):
    """What runs, and ways to hurt it. `workers` are those that should be alive, the oldest first."""

    gate: Gate
    servers: dict[str, Server]
    workers: list[Worker] = field(default_factory=list)
    _started: int = 0

    async def kill(self, name: str) -> None:
        """SIGKILL, at once; `start` brings it back."""
        if name == "worker":
            self.workers.pop(0).kill()
        else:
            server = self.servers.pop(name)
            _signal(server, signal.SIGKILL)
            await asyncio.to_thread(server.stop)

    async def start(self, name: str) -> None:
        """Start a server on its old port and folder, or another worker."""
        if name == "worker":
            self._start_worker()
        else:
            self.servers[name] = await asyncio.to_thread(STARTERS[name], self.settings)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._signal(name, signal.SIGCONT)

    async def retire(self) -> None:
        """SIGTERM the youngest worker; it must leave in order."""
        worker = self.workers.pop()
        if code := await asyncio.to_thread(worker.stop):
            raise Stuck(f"a worker that was told to end returned {code}: {worker.last_words()}")

    async def renew(self) -> None:
        """One worker, a new one, whatever became of the others."""
        while self.workers:
            await self.kill("worker")
        self._start_worker()

    async def supervise(self) -> None:
        """A worker must not end by itself. A server may: Triton's Python backend (2.51) aborts now and then when it was
        frozen (boost's lock_exception); whoever runs it would start it again."""
        for worker in self.workers:
            if not worker.alive:
                raise Stuck(f"a worker has ended by itself: {worker.last_words()}")
        for name in [name for name, server in self.servers.items() if not server.alive]:
            print(f"{name} has ended by itself and is started again", file=sys.stderr, flush=True)
            await asyncio.to_thread(self.servers[name].stop)
            await self.start(name)

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name == "worker":
            self.workers[0].signal(number)
        else:
            _signal(self.servers[name], number)

    def _start_worker(self) -> None:
        urls = {f"{part}_url": address for part, address in vars(self.addresses).items()}
        wanted = KNOBS | urls | {"data_folder": self.settings.data_folder}
        env = {variable(name): str(value) for name, value in wanted.items()}
        log = self.settings.data_folder / f"worker-{self._started}.log"
        self.workers.append(Worker(self.gate.path, log, env))
        self._started += 1


@asynccontextmanager
async def running(folder: Path, kafka_home: Path) -> AsyncIterator[System]:
    """All of it, provisioned, with one worker, in this folder."""
    settings = _settings(folder, kafka_home)
    stack = Stack(settings)
    try:
        with patch.object(kafka, "_properties", _impatient(kafka._properties)):
            addresses = await asyncio.to_thread(stack.start)
            async with Gate(folder / "gate") as gate, connect(settings, addresses) as services:
                await provision(settings, addresses, services)
                opened = await stores(services, settings)
                system = System(settings, addresses, services, opened, gate, stack.servers)
                await system.start("worker")
                try:
                    yield system
                    while system.workers:
                        await system.retire()
                finally:
                    while system.workers:
                        await system.kill("worker")
    finally:
        await asyncio.to_thread(stack.stop)


def _settings(folder: Path, kafka_home: Path) -> Settings:
    ports = iter(_ports(6))
    named = {f"{name}_port": next(ports) for name in ("kafka", "redis", "triton", "triton_http", "triton_metrics")}
    return load(
        data_folder=folder,
        model_repository=ROOT / "triton_repo",
        start_timeout=START_TIMEOUT,
        KAFKA_HOME=kafka_home,
        qdrant_port=next(ports),
        **named,
        **KNOBS,
        **dict.fromkeys(("kafka_url", "redis_url", "triton_url", "qdrant_url")),
    )


def _ports(number: int) -> list[int]:
    free = [port for port in random.sample(PORTS, 10 * number) if _free(port)]
    return free[:number]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _impatient(properties: Callable[..., str]) -> Callable[..., str]:
    """Kafka's settings; but members, and a broker that comes back, are taken for dead sooner."""
    session = int(SESSION_SECONDS * 1000)
    more = {
        "group.min.session.timeout.ms": session,
        "broker.session.timeout.ms": session,
        "broker.heartbeat.interval.ms": session // 4,
    }
    return lambda *args: properties(*args) + "".join(f"{name}={value}\n" for name, value in more.items())


def _signal(server: Server, number: signal.Signals) -> None:
    """To all processes of a server but its guard, who sees to it that a successor finds nothing left."""
    for pid in server.pids():
        if os.getsid(pid) != pid:
            os.kill(pid, number)
