"""Made-up behaviour in miniature: as dataset folders, as arrays, and the settings that train on it in a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from models.config import Training
from models.contract import ACTIONS, SCENARIOS
from models.dataset import Behaviour

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
ADJECTIVES, NOUNS = ("red", "fast", "quiet", "old", "warm"), ("shoes", "kettle", "lamp", "tent", "piano", "rope")

TINY: dict[str, Any] = {
    "length": 12,
    "questions": 20,
    "dim": 8,
    "levels": 2,
    "codewords": 8,
    "interests": 2,
    "width": 8,
    "layers": 1,
    "llm_hidden": 16,
    "llm_layers": 1,
    "llm_heads": 2,
    "recent": 12,
    "window": 3,
    "draws": 24,
    "epochs": 2,
    "rounds": 1,
    "least_steps": 1,
    "code_epochs": 1,
    "tokens": 48,
    "text_steps": 2,
}


def tiny(**changes: Any) -> Training:
    return Training(**TINY | changes)


def as_settings(**changes: Any) -> list[str]:
    """`--set name=value` for each of TINY and the changes."""
    return [word for name, value in (TINY | changes).items() for word in ("--set", f"{name}={value}")]


def write(folder: Path, events: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]] = ()) -> Path:
    """A dataset folder of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("user_id", "item_id", "ts", "scenario", "action", "query")
    kinds = {"ts": pa.int64()}
    columns = {name: pa.array([row.get(name) for row in events], kinds.get(name, pa.string())) for name in names}
    parquet.write_table(pa.table(columns), folder / "events.parquet")
    if items:
        columns = {name: [row[name] for row in items] for name in items[0]}
        parquet.write_table(pa.table(columns), folder / "items.parquet")
    return folder


def events(
    users: int = 14,
    items: int = 24,
    length: int = 14,
    scenarios: Sequence[str] = ("feed",),
    queries: bool = False,
    seed: int = 0,
    pace_ms: int = MINUTE_MS,
) -> list[dict[str, Any]]:
    """Users with about `length` events, a minute or `pace_ms` apart, each drawn to a third of the items."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        taste, ts = int(rng.integers(3)), START_MS + int(rng.integers(pace_ms))
        for _ in range(int(rng.integers(max(3, length - 4), length + 5))):
            ts += int(rng.integers(1, 2 * pace_ms))
            row = {"user_id": f"u{user:02d}", "ts": ts, "scenario": str(rng.choice(scenarios)), "action": "click"}
            if queries and rng.random() < 0.2:
                row |= {"query": " ".join((rng.choice(ADJECTIVES), rng.choice(NOUNS))), "action": "search"}
            else:
                third = max(1, items // 3)
                number = taste * third + int(rng.integers(third)) if rng.random() < 0.8 else int(rng.integers(items))
                row |= {"item_id": f"i{number % items:03d}", "action": str(rng.choice(["click", "click", "skip"]))}
            rows.append(row)
    return rows


def items(count: int = 24, images: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Items with texts, every seventh without one, and, when asked, with images of that many numbers."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        text = "" if number % 7 == 6 else f"{rng.choice(ADJECTIVES)} {NOUNS[number % len(NOUNS)]}"
        row = {"item_id": f"i{number:03d}", "title": text, "category": NOUNS[number % len(NOUNS)] if text else ""}
        rows.append(row | ({"image": rng.normal(size=images).tolist()} if images else {}))
    return rows


def behaviour(histories: Sequence[Sequence[tuple[int, int, int]]], items: int, queries: int = 0) -> Behaviour:
    """Of each user the events (text, scenario, action) in order; texts from `items` on are queries."""
    flat = [event for history in histories for event in history]
    text, scenario, action = (np.array([event[n] for event in flat], dtype=np.int64) for n in range(3))
    names = [f"i{number}" for number in range(items)]
    return Behaviour(
        user_ids=[f"u{number}" for number in range(len(histories))],
        item_ids=names,
        texts=names + [f"q{number}" for number in range(queries)],
        items=items,
        categories=[""] * items,
        images=None,
        first=np.cumsum([0, *map(len, histories)]),
        text=text,
        time=START_MS + MINUTE_MS * np.arange(len(flat)),
        scenario=scenario,
        action=action,
    )


def random_behaviour(rng: np.random.Generator, users: int, most: int, items: int = 9, queries: int = 3) -> Behaviour:
    """Users with 1 to `most` events of any kind."""
    return behaviour(
        [
            [
                (int(rng.integers(items + queries)), int(rng.integers(len(SCENARIOS))), int(rng.integers(len(ACTIONS))))
                for _ in range(rng.integers(1, most + 1))
            ]
            for _ in range(users)
        ],
        items,
        queries,
    )
