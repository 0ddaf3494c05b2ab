"""A Redis Cluster behind the face of one Redis: each command goes to the primary that has its key's slot.

redis-py's own client for clusters is not used. When a primary is gone, its pipelines either never ask for the new one
(no retries) or close every connection, also those that others are using (retries); and ASKING may travel by another
connection than the command it is for.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import CommandStackT, CommandT, Pipeline
from redis.asyncio.connection import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, ConnectionError, MovedError, RedisError, TimeoutError

from stream.adapters import redis_replicas
from stream.identity import SHARDS

SLOTS = 16_384
KEY_PLACES = {"EVALSHA": 3, "SCRIPT LOAD": None}  # in a command; of all others it is the first argument
FENCES = 2  # slots move one at a time
REDIRECTS = 4  # of one command: moved and asked, and once more of each
ASKING: CommandT = (("ASKING",), {})


class Cluster(Redis):
    """Of a redis-py client it has the commands on keys, and pipelines of them over any slots.

    `opened` makes a client of a node, `host:port`. A command without a key goes to all primaries.
    """

    def __init__(self, seeds: Sequence[str], opened: Callable[[str], Redis]) -> None:
        self.connection = None  # as a client without one of its own
        self._seeds, self._opened = seeds, opened
        self._nodes = {seed: opened(seed) for seed in seeds}
        self._silent: set[str] = set()  # did not answer last time
        self._owners: list[str] = []  # by slot; empty when it has to be asked for
        self._fences: dict[str, list[bytes]] = {}
        self._learning = asyncio.Lock()

    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> Pipeline:
        assert not transaction
        assert shard_hint is None
        return _Pipeline(self)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        (reply,) = await self.send([(args, options)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def primaries(self) -> list[Redis]:
        return [self._nodes[name] for name in dict.fromkeys(await self._slots())]

    async def send(self, commands: CommandStackT) -> list[Any]:
        """The replies; some may be errors. Raises when a node gives none: then any command may have been run."""
        replies: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        for _ in range(REDIRECTS):
            await self._send(commands, left, replies)
            if any(isinstance(replies[i], MovedError | ClusterDownError) for i in left):
                self._owners = []
            left = [i for i in left if isinstance(replies[i], AskError)]
            if not left:
                break
        return replies

    async def _send(self, commands: CommandStackT, chosen: Sequence[int], replies: list[Any]) -> None:
        """Those commands, all nodes at once; `replies` has what was said of them before, and then what is said now."""
        parts = defaultdict[str, list[tuple[int, CommandT]]](list)
        owners = await self._slots()
        for i in chosen:
            if type(replies[i]) is AskError:
                parts[self._node(replies[i].host, replies[i].port)] += [(i, ASKING), (i, commands[i])]
            elif (key := key_of(commands[i][0])) is not None:
                parts[owners[key_slot(key)]].append((i, commands[i]))
            else:
                for name in dict.fromkeys(owners):
                    parts[name].append((i, commands[i]))
        answers = await asyncio.gather(
            *(self._ask(name, self._nodes[name], [command for _, command in part]) for name, part in parts.items()),
            return_exceptions=True,
        )
        for part, answer in zip(parts.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for (i, _), reply in zip(part, answer, strict=True):
                replies[i] = reply

    async def _ask(self, name: str, node: Redis, commands: CommandStackT) -> list[Any]:
        pipeline = node.pipeline(transaction=False)
        pipeline.command_stack = commands
        if isinstance(pipeline, redis_replicas.Pipeline):
            pipeline.fences = self._fences.get(name, [])
        try:
            return await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            self._owners = []
            if isinstance(error, ConnectionError | TimeoutError | OSError):
                self._silent.add(name)
            raise

    async def _slots(self) -> list[str]:
        async with self._learning:
            if not self._owners:
                self._owners = await self._learnt()
            return self._owners

    async def _learnt(self) -> list[str]:
        """From one node, by chance: who is cut off from the others may still tell the past."""
        known = sorted(random.sample(list(self._nodes), len(self._nodes)), key=lambda name: name in self._silent)
        failure: Exception | None = None
        for name in known:
            try:
                ranges = await self._nodes[name].cluster("SLOTS")
            except (ConnectionError, TimeoutError, OSError) as error:
                self._silent.add(name)
                failure = error
                continue
            self._silent.discard(name)
            return await self._drawn(ranges, name.rpartition(":")[0])
        raise failure or ConnectionError("no node is known")

    async def _drawn(self, ranges: Sequence[Any], asked: str) -> list[str]:
        """The owner of each slot; forgets the nodes that are gone. A node that does not know its own host has ours."""
        owners = [""] * SLOTS
        present = set(self._seeds)
        for first, last, *nodes in ranges:
            names = [self._node((host or asked.encode()).decode(), port) for host, port, *_ in nodes]
            owners[first : last + 1] = names[:1] * (last + 1 - first)
            present.update(names)
        for name in self._nodes.keys() - present:
            await self._nodes.pop(name).aclose()
        if "" in owners:
            raise ClusterDownError(f"nobody serves slot {owners.index('')}")
        self._fences = _fences(owners)
        return owners

    def _node(self, host: str, port: int) -> str:
        """Its name; it is known from now on."""
        name = f"[{host}]:{port}" if ":" in host.strip("[]") and not host.startswith("[") else f"{host}:{port}"
        if name not in self._nodes:
            self._nodes[name] = self._opened(name)
        return name

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002
        for client in self._nodes.values():
            await client.aclose()


class _Pipeline(Pipeline):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(ConnectionPool(), response_callbacks={}, transaction=False, shard_hint=None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self.command_stack = self.command_stack, []
        replies = await self._cluster.send(commands)
        if raise_on_error:
            self.raise_first_error(commands, replies)
        return replies


def key_of(args: tuple[Any, ...]) -> bytes | None:
    """What a command's slot goes by; None for one that is about a server, not a key."""
    place = KEY_PLACES.get(args[0], 1)
    if place is None:
        return None
    key = args[place]
    return key if isinstance(key, bytes) else str(key).encode()


def _fences(owners: Sequence[str]) -> dict[str, list[bytes]]:
    """Keys in slots of each node."""
    found = defaultdict[str, list[bytes]](list)
    for key in (redis_replicas.FENCE % number for number in range(SHARDS)):
        if len(theirs := found[owners[key_slot(key)]]) < FENCES:
            theirs.append(key)
    return found
