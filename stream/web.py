"""The worker's own pages: alive, ready, and the counters of all workers."""

from typing import Any

import faust

from stream.errors import Permanent, Transient
from stream.services import Producer, Services
from stream.stats import quantiles


def add_pages(app: faust.App, services: Services, kafka: Producer) -> None:
    """Serve `/livez`, `/readyz` and `/counters` on the worker's port."""

    @app.page("/livez", name="livez")  # type: ignore[untyped-decorator]
    async def livez(web: Any, _: Any) -> Any:
        return web.json({"alive": True})

    @app.page("/readyz", name="readyz")  # type: ignore[untyped-decorator]
    async def readyz(web: Any, _: Any) -> Any:
        state = await dependencies(services, kafka)
        return web.json(state, status=200 if all(state.values()) else 503)

    @app.page("/counters", name="counters")  # type: ignore[untyped-decorator]
    async def counters(web: Any, _: Any) -> Any:
        try:
            counts = await services.counters.read()
        except (Transient, Permanent) as error:
            return web.json({"error": str(error)}, status=503)
        p50, p95, p99 = quantiles(counts)
        plain = {name: n for name, n in sorted(counts.items()) if ":" not in name}
        return web.json({**plain, "freshness_ms": {"p50": p50, "p95": p95, "p99": p99}})


async def dependencies(services: Services, kafka: Producer) -> dict[str, bool]:
    """Which of the services that a worker needs can serve now."""
    return {
        "kafka": await kafka.ready(),
        "redis": await _redis(services),
        "triton": await services.models.ready(),
        "qdrant": await services.vectors.ready(),
    }


async def _redis(services: Services) -> bool:
    try:
        return await services.registry.codebook() is not None
    except (Transient, Permanent):
        return False
