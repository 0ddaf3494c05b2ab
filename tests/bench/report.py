"""Figures: rounds, medians, ratios, and how they are written."""

import gc
import os
import platform
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ROUNDS = 5
PACKAGES = (
    "faust-streaming",
    "aiokafka",
    "confluent-kafka",
    "pydantic",
    "redis",
    "torch",
    "tritonclient",
    "nvidia-pytriton",
    "qdrant-client",
)


@dataclass(frozen=True)
class Figure:
    """The median of several rounds, and its ratios to the medians of baselines. Without rounds it was not measured."""

    name: str
    unit: str
    rounds: Sequence[float]
    ratios: Mapping[str, float] = field(default_factory=dict)  # by baseline

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Section:
    """What one measure found; `about` says how it was measured and what the ratios are to."""

    title: str
    about: str
    figures: Sequence[Figure]


def interleaved(lanes: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Each lane's results: every round runs all lanes, every other round backwards, so that drift hits all alike. One
    that fails is told of, has no results, and is not run again."""
    found: dict[str, list[float]] = {name: [] for name in lanes}
    running = dict(lanes)
    for number in range(rounds):
        for name in list(running)[:: -1 if number % 2 else 1]:
            gc.collect()
            gc.freeze()  # what earlier lanes have left on the heap is no cost of this one
            try:
                found[name].append(running[name]())
            except Exception:
                traceback.print_exc()
                del running[name], found[name][:]
                continue
            tell(f"round {number + 1}: {name}: {found[name][-1]:,.0f}")
    return found


def tell(progress: str) -> None:
    print(f"  {progress}", file=sys.stderr, flush=True)


def compared(found: Mapping[str, Sequence[float]], unit: str, baselines: Mapping[str, str]) -> list[Figure]:
    """Medians, and their ratios to some of the lanes; `baselines` is from the column's name to the lane."""
    base = {name: statistics.median(found[lane]) for name, lane in baselines.items() if found.get(lane)}
    return [
        Figure(lane, unit, rounds, {name: statistics.median(rounds) / value for name, value in base.items()})
        if rounds
        else Figure(lane, unit, rounds)
        for lane, rounds in found.items()
    ]


def machine(kafka: str) -> dict[str, object]:
    """Where and with what it was measured."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "load average before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "kafka": kafka,
        **{name: version(name) for name in PACKAGES},
    }


def markdown(where: Mapping[str, object], sections: Sequence[Section]) -> str:
    """Tables."""
    lines = [f"- {name}: {value}" for name, value in where.items()]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.about, "", *_table(section.figures)]
    return "\n".join(lines) + "\n"


def _table(figures: Sequence[Figure]) -> list[str]:
    baselines = list(dict.fromkeys(name for figure in figures for name in figure.ratios))
    head = ["what", "median", "range", "unit", *(f"× {name}" for name in baselines)]
    rows = [head, ["---", "---:", "---:", "---", *("---:" for _ in baselines)]]
    rows += [_row(figure, baselines) for figure in figures]
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(figure: Figure, baselines: Sequence[str]) -> list[str]:
    if not figure.rounds:
        return [figure.name, "not measured", "", figure.unit, *("" for _ in baselines)]
    spread = f"{_short(min(figure.rounds))} – {_short(max(figure.rounds))}" if len(figure.rounds) > 1 else ""
    ratios = [_ratio(figure.ratios[name]) if name in figure.ratios else "" for name in baselines]
    return [figure.name, _short(figure.median), spread, figure.unit, *ratios]


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.3g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
