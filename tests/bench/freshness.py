"""From an event's time of production to its user's new point being searchable: what `facetstream demo` reports."""

import json
import subprocess
import sys
import tempfile

from tests.bench.report import Figure, Section
from tests.bench.system import ROOT, environment

RUNS = ((200, 4_000), (500, 5_000))  # events a second, events
GOAL_RATE = 200  # events a second
GOALS_MS = {"p50": 200, "p99": 1_000}  # at that rate
POINTS = ("p50", "p95", "p99")
ABOUT = """\
`facetstream demo --rate R --events N --json`, servers, worker and demo on the same cores, one run each. A refresh
counts its oldest event. Ratios are to the goals for 200 events/s: p50 200 ms, p99 1 s."""


def measure() -> Section:
    return Section("Freshness", ABOUT, [figure for rate, events in RUNS for figure in _run(rate, events)])


def _run(rate: int, events: int) -> list[Figure]:
    print(f"  demo at {rate} events/s", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "stream.cli", "demo", "--rate", str(rate), "--events", str(events), "--json"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr}")
    verdict = json.loads(done.stdout.splitlines()[-1])
    found = verdict["freshness_ms"]
    return [
        *(
            Figure(f"{rate:,} events/s, {point}", "ms", [found[point]], _ratios(rate, point, found[point]))
            for point in POINTS
        ),
        Figure(f"{rate:,} events/s, start to verdict", "s", [verdict["seconds"]]),
    ]


def _ratios(rate: int, point: str, milliseconds: float) -> dict[str, float]:
    return {"goal": milliseconds / GOALS_MS[point]} if rate == GOAL_RATE and point in GOALS_MS else {}
