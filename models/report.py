"""A report as Markdown, with plots beside it. Every function takes plain data, as JSON holds it, and gives Markdown.

Plots need matplotlib (`pip install 'facetstream[report]'`); without it a line says so where the plot would be.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Figures = Mapping[str, Any]  # `metrics.Figures.as_dict()`: name -> [value, low, high]
Line = Sequence[Sequence[Any]]  # points (x, y) or (x, y, low, high); x is a number or a name
Draw = Callable[[Any], None]  # on matplotlib's axes

FILE = "report.md"
SHOWN = ("HR@10", "NDCG@10", "Recall@100")
CELL = 60  # characters of a name in a table, at most
CLOUD = 2_000  # items drawn behind an interest map, at most
PANEL_INCHES = (4.8, 3.6)


@dataclass(frozen=True)
class UserMap:
    """What the interest map shows of one user."""

    name: str
    history: list[int]  # items
    interests: Tensor  # [K, D]
    weights: Tensor  # [K], 0 where absent
    targets: list[int]  # items wanted afterwards


def write(folder: Path, title: str, sections: Mapping[str, str]) -> Path:
    """`report.md` in `folder`: headings and their text; written aside, then renamed."""
    text = "\n\n".join([f"# {title}", *(f"## {heading}\n\n{body.strip()}" for heading, body in sections.items())])
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{FILE}.writing"
    aside.write_text(text + "\n", encoding="utf-8")
    return aside.replace(folder / FILE)


def facts(known: Mapping[str, object]) -> str:
    """A list: what figures were measured with (seed, split, tie order, command)."""
    return "\n".join(f"- {name}: {value}" for name, value in known.items())


def table(head: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text; the others stand right."""
    ruler = [":--"] * texts + ["--:"] * (len(head) - texts)
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (head, ruler, *rows))


def figures_table(results: Mapping[str, Figures], names: Sequence[str] = SHOWN) -> str:
    """One row for each result (a model, a baseline, a group), one column for each figure, with its 95 % interval,
    or count (`questions`, `users`)."""
    rows = ([label, *(_interval(found.get(name)) for name in names)] for label, found in results.items())
    return table(["", *names], rows)


def road(steps: Mapping[str, Figures], names: Sequence[str] = SHOWN) -> str:
    """Each part added alone to the first row, and what it gave of the first figure."""
    base = next(iter(steps.values()), {}).get(names[0])
    rows = (
        [label, *(_value(found.get(name)) for name in names), _change(base, found.get(names[0]))]
        for label, found in steps.items()
    )
    return table(["", *names, f"change of {names[0]}"], rows)


def curves(path: Path, lines: Mapping[str, Line], x: str, y: str, log: bool = False) -> str:
    """Figures over something (K, history length, bytes per event), as an image at `path` (PNG)."""
    return _drawn(path, [lambda axes: _plot(axes, lines, x, y, log)])


def over_history(groups: Mapping[str, Figures], name: str = "Recall@100") -> Line:
    """The line of a figure over history length, from the figures of `metrics.groups`."""
    prefix = "history "
    return [(group.removeprefix(prefix), *found[name]) for group, found in groups.items() if group.startswith(prefix)]


def training_curves(path: Path, log: Path) -> str:
    """Losses and figures over steps, from the JSON lines of a training's `log`: `step`, names with `loss` or `@`."""
    lines = training_lines(log)
    if not lines:
        return f"{log.name} holds no training curve."
    kinds = {"loss": "loss", "validation": "@"}
    panels = {y: {name: line for name, line in lines.items() if mark in name} for y, mark in kinds.items()}
    return _drawn(path, [_panel(found, "step", y) for y, found in panels.items() if found])


def training_lines(log: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of every number in `log`, by name; a line that training was still writing is passed over."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for text in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            record = json.loads(text)
        except ValueError:
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                lines.setdefault(name, []).append((record["step"], value))
    return lines


def interest_map(
    path: Path, items: Tensor, users: Sequence[UserMap], names: Sequence[str], categories: Sequence[str]
) -> str:
    """A map of `items` [V, D] (their first two principal components) with history, interests and targets of a few
    users, and a table of what lies nearest to each interest."""
    plane = principal_plane(items)
    image = _drawn(path, [_map(plane, items, user) for user in users])
    tables = (f"**{_cell(user.name)}**\n\n{nearest_table(items, user, names, categories)}" for user in users)
    return "\n\n".join([image, *tables])


def nearest_table(items: Tensor, user: UserMap, names: Sequence[str], categories: Sequence[str], limit: int = 3) -> str:
    """Every interest, heaviest first: its weight, its nearest items, and the categories of those."""
    found = (user.interests @ items.T).topk(min(limit, len(items)), dim=1).indices.tolist()
    rows = []
    for k in user.weights.argsort(descending=True, stable=True).tolist():
        if user.weights[k] > 0:
            kinds = dict.fromkeys(categories[item] for item in found[k] if categories[item])
            nearest = "; ".join(_short(names[item]) for item in found[k])
            rows.append([f"interest {k}", nearest, ", ".join(kinds), f"{user.weights[k]:.2f}"])
    return table(["", "nearest items", "categories", "weight"], rows, texts=3)


def principal_plane(items: Tensor) -> Tensor:
    """The two directions [D, 2] in which unit `items` [V, D] vary most; one and zeros when D is 1."""
    units = F.normalize(items.double(), dim=-1)
    centred = units - units.mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :2]
    return F.pad(directions, (0, 2 - directions.shape[1]))


def _map(plane: Tensor, items: Tensor, user: UserMap) -> Draw:
    def at(vectors: Tensor) -> Any:
        return (F.normalize(vectors.double(), dim=-1) @ plane).T.numpy()

    def draw(axes: Any) -> None:
        cloud = torch.linspace(0, len(items) - 1, min(CLOUD, len(items))).long()
        here = user.weights > 0
        axes.scatter(*at(items[cloud]), s=2, color="0.85", label="items")
        axes.scatter(*at(items[user.history]), s=14, color="tab:blue", label="history")
        sizes = (40 + 260 * user.weights[here]).numpy()
        axes.scatter(*at(user.interests[here]), s=sizes, marker="*", color="tab:orange", label="interests")
        axes.scatter(*at(items[user.targets]), s=50, marker="x", color="tab:red", label="targets")
        axes.set_title(user.name)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(fontsize="x-small")

    return draw


def _panel(lines: Mapping[str, Line], x: str, y: str) -> Draw:
    return lambda axes: _plot(axes, lines, x, y, log=False)


def _plot(axes: Any, lines: Mapping[str, Line], x: str, y: str, log: bool) -> None:
    for name, points in lines.items():
        places, values = [point[0] for point in points], [point[1] for point in points]
        drawn = axes.plot(places, values, marker="o", markersize=3, label=name)[0]
        if points and len(points[0]) == 4:
            low, high = np.array([point[2:] for point in points], dtype=float).T
            axes.fill_between(places, low, high, color=drawn.get_color(), alpha=0.15)
    if log:
        axes.set_xscale("log", base=2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize="x-small")


def _drawn(path: Path, panels: Sequence[Draw]) -> str:
    """The image at `path` with one panel beside the other, written aside and renamed; without global state, so that
    no display is ever asked for."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return f"No plot {path.name}: `pip install 'facetstream[report]'` brings matplotlib."
    width, height = PANEL_INCHES
    with rc_context({"text.parse_math": False}):  # an id may hold a $
        figure = Figure(figsize=(width * len(panels), height), layout="constrained")
        for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".writing")
        figure.savefig(aside, format="png", dpi=120)
    aside.replace(path)
    return f"![{path.stem}]({path.name})"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _short(name: str) -> str:
    return name if len(name) <= CELL else name[: CELL - 1] + "…"


def _value(found: Any) -> str:
    if isinstance(found, int):  # a count
        return f"{found:,}"
    return "" if found is None else f"{_mean(found):.4f}"


def _interval(found: Any) -> str:
    if found is None or isinstance(found, int | float):
        return _value(found)
    return "{:.4f} ({:.4f}–{:.4f})".format(*found)


def _mean(found: Any) -> float:
    return float(found if isinstance(found, int | float) else found[0])


def _change(base: Any, found: Any) -> str:
    return "" if base is None or found is None or not _mean(base) else f"{_mean(found) / _mean(base) - 1:+.1%}"
