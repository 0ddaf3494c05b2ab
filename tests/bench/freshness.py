"""From an event's time of production to its user's new point being searchable, at shares of what a worker can do."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import count

from stream.stats import quantiles
from tests.bench.load import Line, line, worker
from tests.bench.report import ROUNDS, Figure, Section, tell
from tests.bench.system import System

USERS, EVENTS = 5_000, 100_000  # of the population; as many are sent before anything is measured
SECONDS = 10.0  # that a rate is held
FIRST, GROWTH = 100.0, 1.2  # rates of the ramp, events a second
BOUND_MS = 1_000.0
SHARES = (0.25, 0.5, 0.8)
POINTS = ("p50", "p95", "p99")
GOAL_SHARE, GOAL, GOAL_MS = 0.5, "p99", 500.0
ABOUT = f"""\
One worker, all servers and the producer on the same cores; {USERS:,} users, whose histories have {EVENTS // USERS}
events on average before the clock starts. Each event is of another user than the last ones: hardly two share a refresh.
From a producer's time of the oldest event that a refresh serves until the user's new point is searchable.
Saturation is found by a ramp, from {FIRST:,.0f} events/s by {GROWTH - 1:.0%} a step of {SECONDS:.0f} s: the highest
rate at whose end no event, read or unread, had waited for {BOUND_MS / 1000:.0f} s; a rate that fails is tried twice.
It is what ingest and refresh can do together. Fewer users with more events each would raise it, as one refresh serves
all events that wait. Asked is a p99 under {GOAL_MS:.0f} ms at {GOAL_SHARE:.0%} of it: the ratio is to that."""


def measure(system: System) -> Section:
    system.empty()
    system = system.of_another_group()
    with worker(system):
        return Section("Freshness", ABOUT, asyncio.run(_figures(system)))


async def _figures(system: System) -> list[Figure]:
    async with line(system, USERS, EVENTS) as under_load:
        await under_load.send(EVENTS)
        await under_load.searchable()
        saturation = await _saturation(under_load)
        found: defaultdict[float, list[Counter[str]]] = defaultdict(list)
        for _ in range(ROUNDS):
            for share in SHARES:
                found[share].append(await _counted(under_load, share * saturation))
                tell(f"{share:.0%} of {saturation:,.0f} events/s: {quantiles(found[share][-1])} ms")
    figures = [Figure("saturation", "events/s", [saturation])]
    for share, rounds in found.items():
        figures += _of_share(share, [dict(zip(POINTS, quantiles(counts), strict=True)) for counts in rounds])
        saved = [100 * counts["inferences_saved"] / counts["events_applied"] for counts in rounds]
        figures.append(Figure(f"at {share:.0%}: events that shared a refresh", "%", saved))
    return figures


async def _saturation(under_load: Line) -> float:
    """Events a second."""
    held = 0.0
    for step in count():
        rate = FIRST * GROWTH**step
        if not (await _bears(under_load, rate) or await _bears(under_load, rate)):
            break
        held = rate
    if not held:
        raise RuntimeError(f"not even {FIRST:,.0f} events/s are borne")
    return held


async def _bears(under_load: Line, rate: float) -> bool:
    await under_load.send(int(rate * SECONDS), rate)
    age_ms = await under_load.age_ms(rate)
    tell(f"{rate:,.0f} events/s: the oldest event waits for {age_ms:,.0f} ms")
    await under_load.searchable()
    return age_ms < BOUND_MS


async def _counted(under_load: Line, rate: float) -> Counter[str]:
    before = await under_load.searchable()
    await under_load.send(int(rate * SECONDS), rate)
    return await under_load.searchable() - before


def _of_share(share: float, rounds: list[Mapping[str, float | None]]) -> list[Figure]:
    figures = [Figure(f"at {share:.0%}: {point}", "ms", [found[point] or 0.0 for found in rounds]) for point in POINTS]
    return [
        Figure(f.name, f.unit, f.rounds, {"goal": f.median / GOAL_MS})
        if share == GOAL_SHARE and f.name.endswith(GOAL)
        else f
        for f in figures
    ]
