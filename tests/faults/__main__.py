"""`python -m tests.faults ['WORDS' ...] [--write]`: all cells, or those with all words of an argument in their names.

`python -m tests.faults 'worker kill' append` are a worker's deaths, and whatever happens before and after appending.
"""

import argparse
import asyncio
import logging
import os
import shlex
import sys
import tempfile
from pathlib import Path

from tests.bench.report import machine
from tests.faults.cells import MATRIX, Cell, run
from tests.faults.laws import Verdict
from tests.faults.system import running

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = "process | kind | point | events in | applied | duplicated | lost | stale | dead letters | recovered, s | laws"
ABOUT = """\
Each row is one fault: the process is killed (SIGKILL) or frozen (SIGSTOP) when a worker stands at the point, and is
brought back. A frozen worker is frozen for longer than its session, while a second one takes over; then it goes on
where it was. "At random" is four faults at random times. Then everything that was produced is compared with what the
stores, the dead letters and the announcements hold, and with a replay of the log (`tests/faults/laws.py`).

"Dead letters" are found / expected, each distinct; seconds are from the moment the process was brought back, its start
included, until everything is acknowledged and every profile fresh.
"""


def main() -> None:
    logging.basicConfig(level=logging.ERROR)  # a replay warns of each dead letter again
    chosen = _arguments()
    wanted = [set(words.split()) for words in chosen.words or [""]]
    cells = [cell for cell in MATRIX if any(words <= set(str(cell).split()) for words in wanted)]
    where = machine("Apache Kafka")
    rows = asyncio.run(_all(cells, chosen.kafka_home))
    text = "\n".join([*(f"- {name}: {value}" for name, value in where.items()), "", ABOUT, *table(rows)]) + "\n"
    if chosen.write:
        command = shlex.join(["python", "-m", "tests.faults", *chosen.words, "--write"])
        _, mark, others = RESULTS.read_text().partition("\n## ")  # written by others
        RESULTS.write_text(f"# Crash matrix\n\nWritten by `{command}`.\n\n{text}{mark}{others}")
    print(text)
    sys.exit(any(verdict.broken for _, verdict in rows))


async def _all(cells: list[Cell], kafka_home: Path) -> list[tuple[Cell, Verdict]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), kafka_home) as system:
            for number, cell in enumerate(cells, 1):
                rows.append((cell, await run(system, cell)))
                print(f"{number}/{len(cells)} {row(*rows[-1])}", file=sys.stderr, flush=True)
                for law in rows[-1][1].broken:
                    print(f"  {law}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[tuple[Cell, Verdict]]) -> list[str]:
    """Markdown."""
    rule = "| --- | --- | --- |" + " ---: |" * 7 + " --- |"
    return [f"| {HEAD} |", rule, *(row(cell, verdict) for cell, verdict in rows)]


def row(cell: Cell, verdict: Verdict) -> str:
    v = verdict
    counts = [v.events, v.applied, v.duplicated, v.lost, v.stale, f"{v.found} / {v.letters}", f"{v.seconds:.1f}"]
    kept = "; ".join(sorted({law.split(":")[0] for law in v.broken})) or "kept"
    return f"| {' | '.join(map(str, [cell.process, cell.kind, cell.point or 'at random', *counts, kept]))} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("words", nargs="*", metavar="WORDS", help="'worker kill', 'kafka before append', random, …")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} in this package")
    chosen = parser.parse_args()
    if not os.environ.get("KAFKA_HOME"):
        parser.error("the in-memory broker does not survive: set KAFKA_HOME to an unpacked Apache Kafka")
    chosen.kafka_home = Path(os.environ["KAFKA_HOME"])
    return chosen


if __name__ == "__main__":
    main()
