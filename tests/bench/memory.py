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
from tests.bench.system import System, apply

LENGTHS = (10, 100, 1_000)  # events of a user
USERS = 20
JSON, UNIT = "JSON list", "bytes/event"
ABOUT = f"""\
Redis's own MEMORY USAGE of every key of a user, divided by the user's events; {USERS} users of the synthetic population
each. The product keeps the packed history and a window of the latest 64 event ids in each scenario. Baselines: the
events as they came in a Redis list, and one string of float32 embeddings of {DIM} components, nothing else. Ratios
are to the JSON list."""


def measure(system: System) -> Section:
    figures: list[Figure] = []
    for length in LENGTHS:
        system.empty()
        figures += system.use(partial(_figures, system, length))
    return Section("Memory", ABOUT, figures)


async def _figures(system: System, length: int, services: Services, opened: Stores) -> list[Figure]:
    users = {f"u{number:06d}": _acts(f"u{number:06d}", length, number) for number in range(USERS)}
    await apply(system, services, opened, [act for acts in users.values() for act in acts])
    for user, acts in users.items():
        await services.redis.rpush(f"json:{user}", *(json.dumps(act.record) for act in acts))
        await services.redis.set(f"float:{user}", bytes(4 * DIM * length))
    bytes_of = partial(_usage, services, list(users), length)
    found = {
        JSON: await bytes_of("json:"),
        "float32 embeddings": await bytes_of("float:"),
        "Facetstream, all keys": await bytes_of("fs:*:"),
        "Facetstream, history alone": await bytes_of("fs:*:h:"),
        "Facetstream, packed bytes": [len(data or b"") / length for data in await opened.histories.read(list(users))],
    }
    return [
        replace(figure, name=f"{length:,} events a user: {figure.name}")
        for figure in compared(found, UNIT, {JSON: JSON})
    ]


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
