"""The containers of docker-compose.yml beside this file, seen from this host, and ways to hurt them."""

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from stream.adapters.kafka_admin import admin_client
from stream.adapters.redis_connection import nodes
from stream.addresses import Addresses
from stream.services import connect, stores
from stream.settings import load
from tests.compose.stack import Stack
from tests.conftest import ROOT
from tests.faults.ends import Ends

FILE = "tests/cluster/docker-compose.yml"
BROKERS = ("kafka-1", "kafka-2", "kafka-3")
PORTS = ("KAFKA_1_PORT", "KAFKA_2_PORT", "KAFKA_3_PORT", "FACETSTREAM_TRITON_PORT", "FACETSTREAM_QDRANT_PORT")
SUBNET = "FACETSTREAM_TEST_SUBNET"
ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"  # as docker inspect tells it
REPLICAS = "FACETSTREAM_REDIS_REPLICAS"

Mend = Callable[[], Awaitable[object]]


@dataclass
class Machines(Ends):
    """A machine is a container, by its name."""

    stack: Stack

    async def kill(self, machine: str) -> Mend:
        """SIGKILL; how it is brought back."""
        await docker("kill", machine)
        return partial(docker, "start", machine)

    async def stop(self, machine: str) -> Mend:
        """SIGTERM, and the time it needs; how it is brought back."""
        await docker("stop", "--time", "30", machine)
        return partial(docker, "start", machine)

    async def cut(self, machine: str) -> Mend:
        """Off the network, all of a sudden and in both directions; how it comes back."""
        alias = machine.removeprefix(f"{self.stack.project}-").rpartition("-")[0]
        network, place = f"{self.stack.project}_default", await address(machine)
        await docker("network", "disconnect", network, machine)
        return partial(docker, "network", "connect", "--ip", place, "--alias", alias, network, machine)

    async def machines(self, service: str) -> list[str]:
        listed = await asyncio.to_thread(self.stack.compose, "ps", "--all", "--format", "{{.Name}}", service)
        return sorted(listed.split())

    async def reader(self) -> str:
        """The worker with most partitions: of three workers and four partitions, one may have none."""
        async with admin_client(self.addresses.kafka, self.settings) as admin:
            (answer,) = await admin.describe_consumer_groups([self.settings.consumer_group])
        ((*_, members),) = answer.groups
        sizes = {host.lstrip("/"): len(assignment) for _, _, host, _, assignment in members}
        found = {await address(machine): machine for machine in await self.machines("worker")}
        return found[max(sizes, key=sizes.__getitem__)]

    async def pair(self) -> tuple[str, str]:
        """A primary of the Redis Cluster, and its replica."""
        (primary, *_) = await nodes(self.services.redis)
        _, _, (replica, *_) = await primary.execute_command("ROLE")
        places = [primary.connection_pool.connection_kwargs["host"], replica[0].decode()]
        found = {await address(machine): machine for machine in await self.machines("redis")}
        return found[places[0]], found[places[1]]

    async def promoted(self, machine: str) -> bool:
        """Whether it is a primary."""
        return (await docker("exec", machine, "redis-cli", "role")).startswith("master")

    async def paired(self) -> bool:
        """Whether every primary has a replica."""
        roles = [await node.execute_command("ROLE") for node in await nodes(self.services.redis)]
        return len(roles) == 3 and all(role == b"master" and replicas for role, _, replicas in roles)

    async def restarts(self) -> int:
        """How often a worker had to be started again because it ended by itself."""
        counts = await docker("inspect", "--format", "{{.RestartCount}}", *await self.machines("worker"))
        return sum(map(int, counts.split()))

    async def wait_for_replicas(self, replicas: int) -> None:
        """Have all workers do so from now on."""
        self.stack.variables[REPLICAS] = replicas
        await asyncio.to_thread(self.stack.start, "worker", recreate=True)


async def docker(*words: str) -> str:
    process = await asyncio.create_subprocess_exec("docker", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    assert process.returncode == 0, f"docker {' '.join(words)}: {err.decode()}"
    return out.decode()


async def address(machine: str) -> str:
    """Its IP address; empty while it has none."""
    return (await docker("inspect", "--format", ADDRESS, machine)).strip()


@asynccontextmanager
async def running() -> AsyncIterator[Machines]:
    """All of them, provisioned, with workers that wait for one replica of Redis; removed afterwards."""
    stack = Stack.new(PORTS, FILE)
    stack.variables.update({REPLICAS: 1, SUBNET: random.randrange(256)})
    try:
        await asyncio.to_thread(stack.up)
        ports = stack.variables
        redis = await address(f"{stack.project}-redis-1")
        places = Addresses(
            kafka=",".join(f"127.0.0.1:{ports[name]}" for name in PORTS[:3]),
            redis=f"redis+cluster://{redis}:6379",
            triton=f"127.0.0.1:{ports['FACETSTREAM_TRITON_PORT']}",
            qdrant=f"http://127.0.0.1:{ports['FACETSTREAM_QDRANT_PORT']}",
        )
        settings = load(replication=3, model_repository=ROOT / "triton_repo")
        async with connect(settings, places) as services:
            yield Machines(settings, places, services, await stores(services, settings), stack)
    finally:
        await asyncio.to_thread(stack.down)
