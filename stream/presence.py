"""Who is at work on a store: workers together, or one replay alone.

A worker reads the newest of the log and raises the offset marks of the histories past what a replay has still to apply.
Each says first that it is there, then looks who else is: of two that begin at once, one at least sees the other.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from stream.errors import Permanent, Transient, UserError
from stream.retry import persistently
from stream.stores import Registry

BEAT_SECONDS = 1.0  # between two signs of life
SILENT_SECONDS = 5.0  # who is silent for longer is taken for dead
REPLAY = "replay-"


@asynccontextmanager
async def at_work(registry: Registry) -> AsyncIterator[frozenset[str]]:
    """A worker, until leaving; the other workers there are. `UserError` while a replay is under way."""
    async with _present(registry, uuid.uuid4().hex) as others:
        if any(other.startswith(REPLAY) for other in others):
            raise UserError("a replay is under way on this Redis: start workers when it has ended")
        yield others


@asynccontextmanager
async def alone(registry: Registry) -> AsyncIterator[None]:
    """A replay, until leaving. `UserError` when a worker or another replay is at work."""
    async with _present(registry, REPLAY + uuid.uuid4().hex) as others:
        if others:
            kind = "another replay" if any(other.startswith(REPLAY) for other in others) else "a worker"
            raise UserError(
                f"{kind} is at work on this Redis: stop it first (one that was killed counts for another "
                f"{SILENT_SECONDS:.0f} s)"
            )
        yield


@asynccontextmanager
async def _present(registry: Registry, name: str) -> AsyncIterator[frozenset[str]]:
    await persistently(lambda: registry.beat(name, SILENT_SECONDS))
    beating = asyncio.create_task(_beat(registry, name))
    try:
        yield await persistently(registry.workers) - {name}
    finally:
        beating.cancel()
        await asyncio.wait({beating})
        with suppress(Transient, Permanent):
            await registry.beat(name, 0.0)


async def _beat(registry: Registry, name: str) -> None:
    while True:
        with suppress(Transient, Permanent):  # whoever works with the store says so
            await registry.beat(name, SILENT_SECONDS)
        await asyncio.sleep(BEAT_SECONDS)
