"""The worker's own pages: alive, ready, and the counters of all workers."""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from stream.batches import BatchApp
from stream.breaker import Breaker
from stream.errors import Permanent, Transient
from stream.health import Ask, Readiness, why_not
from stream.stats import CounterStore, quantiles
from stream.stores import Backlog


def add_pages(
    app: BatchApp,
    dependencies: Mapping[str, Ask],
    counters: CounterStore,
    backlog: Callable[[], Awaitable[Backlog]],
    stall_seconds: float,
    breakers: Mapping[str, Breaker],
) -> None:
    """Serve `/livez`, `/readyz` and `/counters` on the worker's port.

    `dependencies` must name `kafka`; each raises why it cannot serve. `backlog` is of this worker's own users;
    `breakers` are its own too, by dependency.
    """
    readiness = Readiness(dependencies)

    @app.page("/livez", name="livez")  # type: ignore[untyped-decorator]
    async def livez(web: Any, _: Any) -> Any:
        stalled = app.stalled(stall_seconds)
        if stalled and (why := await why_not(dependencies["kafka"])):  # nothing can be read: a restart would not help
            for pulse in app.pulses.values():
                pulse.wait(why)
            stalled = []
        reason = {"reason": "; ".join(stalled)} if stalled else {}
        return web.json({"alive": not stalled, **reason, "waiting": _waiting(app)}, status=503 if stalled else 200)

    @app.page("/readyz", name="readyz")  # type: ignore[untyped-decorator]
    async def readyz(web: Any, _: Any) -> Any:
        standings = await readiness.look()
        ready = all(standing.ready for standing in standings.values())
        found = {
            "ready": ready,
            "dependencies": {part: standing.plain() for part, standing in standings.items()},
            "breakers": {part: breaker.plain() for part, breaker in breakers.items()},
            **_partitions(app),
            **(await _dirty(backlog) if standings["redis"].ready else {}),
        }
        return web.json(found, status=200 if ready else 503)

    @app.page("/counters", name="counters")  # type: ignore[untyped-decorator]
    async def counts(web: Any, _: Any) -> Any:
        try:
            found = await counters.read()
        except (Transient, Permanent) as error:
            return web.json({"error": str(error)}, status=503)
        p50, p95, p99 = quantiles(found)
        plain = {name: n for name, n in sorted(found.items()) if ":" not in name}
        return web.json({**plain, "freshness_ms": {"p50": p50, "p95": p95, "p99": p99}})


def _waiting(app: BatchApp) -> dict[str, Any]:
    """What the handler of each topic waits for, and for how long already."""
    now = time.monotonic()
    return {
        topic: {"for": pulse.waiting, "seconds": round(now - pulse.since, 1)}
        for topic, pulse in app.pulses.items()
        if pulse.waiting
    }


def _partitions(app: BatchApp) -> dict[str, Any]:
    lag, numbers = app.lag(), defaultdict(list)
    for tp in sorted(lag):
        numbers[tp.topic].append(tp.partition)
    return {"partitions": numbers, "lag": sum(lag.values())}


async def _dirty(backlog: Callable[[], Awaitable[Backlog]]) -> dict[str, Any]:
    """Of this worker's users; nothing when Redis has gone away since it was asked."""
    try:
        found = await backlog()
    except (Transient, Permanent):
        return {}
    oldest_ms = None if found.since_ms is None else max(0, int(time.time() * 1000) - found.since_ms)
    return {"dirty_users": found.users, "oldest_dirty_ms": oldest_ms}
