"""`python -m tests.cluster ['WORDS' ...]`: all cells, or those with all words of an argument in their names."""

import argparse
import asyncio
import logging
import sys

from tests.cluster.cells import MATRIX, Cell, run
from tests.cluster.machines import running
from tests.faults.laws import Verdict

SHOWN = 20  # sentences of what is broken
HEAD = "machine | fault | replicas waited for | events in | applied | duplicated | lost | stale | recovered, s | laws"


def main() -> None:
    logging.basicConfig(level=logging.ERROR)  # a replay warns of each dead letter again
    parser = argparse.ArgumentParser(prog="python -m tests.cluster")
    parser.add_argument("words", nargs="*", metavar="WORDS", help="'kafka-1 kill', redis, …")
    words = [set(each.split()) for each in parser.parse_args().words or [""]]
    chosen = [cell for cell in MATRIX if any(each <= set(str(cell).replace(",", "").split()) for each in words)]
    print(f"| {HEAD} |", "| --- | --- |" + " ---: |" * 7 + " --- |", sep="\n", flush=True)
    sys.exit(asyncio.run(_all(chosen)))


async def _all(cells: list[Cell]) -> bool:
    """Whether a law was broken where replicas were waited for."""
    broken, replicas = False, 1
    async with running() as machines:
        for cell in cells:
            if cell.replicas != replicas:
                replicas = cell.replicas
                await machines.wait_for_replicas(replicas)
            verdict = await run(machines, cell)
            print(row(cell, verdict), flush=True)
            for law in verdict.broken[:SHOWN]:
                print(f"  {law}", file=sys.stderr, flush=True)
            broken |= bool(verdict.broken and cell.replicas)
    return broken


def row(cell: Cell, verdict: Verdict) -> str:
    """Markdown."""
    v = verdict
    counts = [cell.replicas, v.events, v.applied, v.duplicated, v.lost, v.stale, f"{v.seconds:.1f}"]
    kept = "; ".join(sorted({law.split(":")[0] for law in v.broken})) or "kept"
    return f"| {' | '.join(map(str, [cell.service, cell.fault, *counts, kept]))} |"


if __name__ == "__main__":
    main()
