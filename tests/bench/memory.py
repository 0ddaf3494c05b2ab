"""Bytes of Redis that a user's history takes, against the same events as JSON and as embeddings."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from models.contract import DIM
from stream.services import Services, Stores
from stream.synthetic import Act, synthesize
from tests.bench.report import Figure, Section, compared
from tests.bench.system import System, apply, know, names_of

USERS = {10: 1_000, 100: 300, 1_000: 50}  # by the events of each
JSON, UNIT = "JSON list", "bytes/event"
ABOUT = f"""\
Redis's own MEMORY USAGE of every key of a user, divided by the user's events; users of the synthetic population:
{", ".join(f"{users:,} with {length:,} events each" for length, users in USERS.items())}. The product keeps the packed
history and a window of the latest 64 event ids in each scenario. "All of Redis" is by how much its used_memory grows
with them, dirty marks and hash tables included, when it has had the items. Baselines: the events as they came in a
Redis list, and one string of float32 embeddings of {DIM} components, nothing else. Ratios are to the JSON list."""


def measure(system: System) -> Section:
    figures: list[Figure] = []
    for length in USERS:
        system.empty()
        figures += system.use(partial(_figures, system, length))
    return Section("Memory", ABOUT, figures)


async def _figures(system: System, length: int, services: Services, opened: Stores) -> list[Figure]:
    users = {f"u{number:06d}": _acts(f"u{number:06d}", length, number) for number in range(USERS[length])}
    everything = [act for acts in users.values() for act in acts]
    await know(opened, names_of(everything))
    before = await _used(services)
    await apply(system, services, opened, everything)
    whole = await _used(services) - before
    for user, acts in users.items():
        await services.redis.rpush(f"json:{user}", *(json.dumps(act.record) for act in acts))
        await services.redis.set(f"float:{user}", bytes(4 * DIM * length))
    bytes_of = partial(_usage, services, list(users), length)
    found = {
        JSON: await bytes_of("json:"),
        "float32 embeddings": await bytes_of("float:"),
        "Facetstream, all of Redis": [whole / len(everything)],
        "Facetstream, all keys": await bytes_of("fs:*:"),
        "Facetstream, history alone": await bytes_of("fs:*:h:"),
        "Facetstream, packed bytes": [len(data or b"") / length for data in await opened.histories.read(list(users))],
    }
    figures = [
        *compared(found, UNIT, {JSON: JSON}),
        Figure("Facetstream, all of Redis", "bytes/user", [whole / len(users)]),
    ]
    return [replace(figure, name=f"{length:,} events a user: {figure.name}") for figure in figures]


async def _used(services: Services) -> int:
    return int((await services.redis.info("memory"))["used_memory"])


async def _usage(services: Services, users: Sequence[str], length: int, prefix: str) -> list[float]:
    """Of each user's keys, per event."""
    keys = [key.decode() async for key in services.redis.scan_iter(f"{prefix}*u0*", count=10_000)]
    sizes = Counter[str]()
    for key in keys:
        sizes[key.rpartition(":")[2]] += await services.redis.memory_usage(key, samples=0)
    return [sizes[user] / length for user in users]


def _acts(user: str, length: int, seed: int) -> list[Act]:
    """One user's events, from a population of that user alone."""
    acts = synthesize(1, length, seed=seed).acts
    return [replace(act, record=act.record | {"user_id": user}) for act in acts]
