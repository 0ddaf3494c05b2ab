"""`python -m tests.bench [MEASURE ...] [--json FILE] [--write]`."""

import argparse
import json
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from stream.settings import load
from tests.bench import endurance, freshness, ingest, memory, peers, refresh, users, workers
from tests.bench.report import Section, machine, markdown
from tests.bench.system import running

MEASURES = {
    "ingest": ingest.measure,
    "refresh": refresh.measure,
    "freshness": freshness.measure,
    "memory": memory.measure,
    "endurance": endurance.measure,
    "workers": workers.measure,
    "users": users.measure,
}
RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    chosen = _arguments()
    wanted = chosen.measures or list(MEASURES)
    where = machine("Apache Kafka" if load().kafka_home else "librdkafka's in-memory broker")
    where |= {"peers": ", ".join(f"{name} {version}" for name, version in peers.versions().items()) or "not installed"}
    with running() as system:
        sections = [_section(name, partial(MEASURES[name], system)) for name in wanted]
    text = markdown(where, sections)
    print(text)
    if chosen.json:
        found = {"machine": where, "sections": [asdict(section) for section in sections]}
        chosen.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if chosen.write:
        command = " ".join(["python -m tests.bench", *chosen.measures, "--write"])
        RESULTS.write_text(f"# Benchmarks\n\nWritten by `{command}`.\n\n{text}")


def _section(name: str, measure: Callable[[], Section]) -> Section:
    """What was found; a measure that fails is told of, and the others go on."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return Section(name.capitalize(), f"Not measured: {error}", [])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"{', '.join(MEASURES)}; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, each round, as JSON")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} in this package")
    chosen = parser.parse_args()
    if unknown := set(chosen.measures) - set(MEASURES):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    return chosen


if __name__ == "__main__":
    main()
