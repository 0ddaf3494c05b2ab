"""Writes that count as done only when replicas have them, so that a fail-over takes nothing that was acknowledged."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio import client as asyncio_client
from redis.commands import READ_COMMANDS
from redis.exceptions import ResponseError

FENCE = b"fs:{%04d}:fence"  # of a shard
FENCE_MS = 1  # how long such a key lives


class Replicated(Redis):
    """A client whose pipelines wait for replicas. A command that is sent alone does not."""

    replicas = 1
    wait_ms = 1_000

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "Pipeline":
        return Pipeline(self, transaction, shard_hint)


class Pipeline(asyncio_client.Pipeline):
    """`fences` are keys in slots of the server: several, as nothing new can be written to one that is moving."""

    fences: Sequence[bytes] = (FENCE % 0,)

    def __init__(self, client: Replicated, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._replicas, self._wait_ms = client.replicas, client.wait_ms

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """WAIT is about what this connection has written. But a script that finds its work done writes nothing, and who
        did the work may never have seen it replicated: so a write of our own, the fence, goes behind all of it."""
        commands = list(self.command_stack)
        if all(args[0] in READ_COMMANDS for args, _ in commands):
            return await super().execute(raise_on_error)
        for key in self.fences:
            self.execute_command("SET", key, b"", "PX", FENCE_MS)
        self.execute_command("WAIT", self._replicas, self._wait_ms)
        *replies, confirmed = await super().execute(raise_on_error=False)
        replies, fenced = replies[: len(commands)], replies[len(commands) :]
        if raise_on_error:
            self.raise_first_error(commands, replies)
        if all(isinstance(reply, Exception) for reply in fenced):
            raise next(iter(fenced), ResponseError("TRYAGAIN the server has no slot yet"))
        if isinstance(confirmed, Exception) or confirmed < self._replicas:
            raise ResponseError(f"NOREPLICAS {confirmed} of {self._replicas} replicas have what was written")
        return replies
