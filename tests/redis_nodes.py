"""A Redis Cluster of processes on this machine: three primaries, and a replica of each."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from stream.embedded.process import Server, spawn
from stream.embedded.redis import executable

HOST = "127.0.0.1"
PRIMARIES = 3
SLOTS = 16_384
PORTS = range(11_000, 20_000)  # each with another, 10,000 higher, for the bus: below those that the kernel gives away
OPTIONS = {
    "bind": HOST,
    "cluster-enabled": "yes",
    "cluster-node-timeout": "1000",  # ms after which a node is taken for dead
    "cluster-replica-validity-factor": "0",  # a replica that was away for long may be promoted, too
    "repl-diskless-sync-delay": "0",
    "appendonly": "yes",
    "appendfsync": "always",
}
PATIENCE = 30.0  # seconds
LOOK_SECONDS = 0.05


class Nodes:
    """The first three ports are the primaries' at first, the others their replicas', in the same order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = _free_ports(2 * PRIMARIES)
        self._servers: dict[int, Server] = {}

    @property
    def url(self) -> str:
        return f"redis+cluster://{HOST}:{self.ports[0]},{HOST}:{self.ports[-1]}"

    def up(self) -> None:
        """Start all nodes and make a cluster of them."""
        for number, port in enumerate(self.ports, 1):
            self.start(port)
            self.ask(port, "CLUSTER SET-CONFIG-EPOCH", number)
            self.ask(self.ports[0], "CLUSTER MEET", HOST, port)
        for number, port in enumerate(self.ports[:PRIMARIES]):
            self.ask(port, "CLUSTER ADDSLOTS", *range(number * SLOTS // PRIMARIES, (number + 1) * SLOTS // PRIMARIES))
        self._until(lambda: all(len(self.ask(port, "CLUSTER NODES")) == len(self.ports) for port in self.ports))
        for primary, replica in zip(self.ports, self.ports[PRIMARIES:], strict=False):
            self.ask(replica, "CLUSTER REPLICATE", self.ask(primary, "CLUSTER MYID").decode())
        self.settled()

    def settled(self, primary: int | None = None) -> None:
        """Return when all nodes agree on three primaries, this one among them, each with a replica that has all."""
        self._until(lambda: all(self._well(port, primary) for port in self.ports))

    def promoted(self, port: int) -> None:
        """Return when this one is a primary."""
        self._until(lambda: self.ask(port, "INFO")["role"] == "master")

    def owned(self, key: str, primary: int) -> None:
        """Return when all nodes know that this one has the key."""
        self._until(lambda: all(self.of(key, port)[0] == primary for port in self.ports))

    def empty(self) -> None:
        """Without keys and scripts."""
        for port in self.ports:
            if self.ask(port, "INFO")["role"] == "master":
                self.ask(port, "FLUSHALL")
            self.ask(port, "SCRIPT FLUSH")

    def start(self, port: int) -> None:
        """On the folder that it had."""
        folder = self._folder / str(port)
        folder.mkdir(exist_ok=True)
        words = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
        command = [executable(), "--port", str(port), "--dir", str(folder), *words]
        self._servers[port] = spawn("Redis", f"{HOST}:{port}", folder, command)
        self._until(lambda: self._answers(port))

    def kill(self, port: int) -> None:
        """SIGKILL."""
        self.signal(port, signal.SIGKILL)
        self._servers[port].stop()

    def signal(self, port: int, number: signal.Signals) -> None:
        for pid in self._servers[port].pids():
            if os.getsid(pid) != pid:  # its guard
                os.kill(pid, number)

    def down(self) -> None:
        for server in self._servers.values():
            server.stop()

    def ask(self, port: int, *command: Any) -> Any:
        with redis.Redis(HOST, port, socket_timeout=PATIENCE) as client:
            return client.execute_command(*command)

    def of(self, key: str, asked: int | None = None) -> tuple[int, int]:
        """The ports of the primary that has this key, and of its replica, as a node says."""
        asked = asked or self.ports[0]
        slot = self.ask(asked, "CLUSTER KEYSLOT", key)
        ((_, primary, *_), (_, replica, *_)) = next(
            nodes for first, last, *nodes in self.ask(asked, "CLUSTER SLOTS") if first <= slot <= last
        )
        return primary, replica

    def _well(self, port: int, primary: int | None) -> bool:
        if not self._answers(port) or self.ask(port, "CLUSTER INFO")["cluster_state"] != "ok":
            return False
        info = self.ask(port, "INFO")
        linked = info["role"] == "master" or info["master_link_status"] == "up"
        slots = self.ask(port, "CLUSTER SLOTS")
        return (
            linked and len({primary[1] for _, _, primary, *_ in slots}) == PRIMARIES and all(len(s) == 4 for s in slots)
        )

    def _answers(self, port: int) -> bool:
        try:
            return bool(self.ask(port, "PING"))
        except redis.RedisError:
            return False

    def _until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, "\n".join(server.last_words() for server in self._servers.values())
            time.sleep(LOOK_SECONDS)


def _free_ports(count: int) -> list[int]:
    free = [port for port in random.sample(PORTS, 10 * count) if _free(port) and _free(port + 10_000)]
    return free[:count]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0
