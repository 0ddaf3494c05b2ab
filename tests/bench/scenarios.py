"""One model over all scenarios against a model of each alone, on a dataset folder split by time, over seeds.

    python -m tests.bench.scenarios --data DIR --out DIR [--seeds 0 1 2] [--set NAME=VALUE ...]

All are trained by `facetstream train` with the same settings. A scenario's own model learns from the events of that
scenario alone and reads no others in a history. The cuts in time, the questions, the candidates (every item of the set)
and what is masked are the same for all. Medians of Recall and NDCG over seeds, read through codes, by the maximum over
interests; written to scenarios.md in --out, beside a JSON file for every run, which is not run again.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from torch import Tensor

from models import benchmark, dataset, evaluate, report, splits
from models.config import Training, configured
from models.contract import SCENARIOS
from models.dataset import Behaviour
from models.evaluate import Recommender
from models.events import Histories
from models.train import FEATURES, train

JOINT = "all scenarios"
SHOWN = ("HR@10", "NDCG@10", "Recall@100")


@dataclass(frozen=True)
class Alone:
    """A recommender that reads the events of one scenario."""

    towers: Recommender
    code: int

    @property
    def items(self) -> Tensor:
        return self.towers.items

    def answer(self, rows: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:
        mine = histories.valid & (histories.scenario == self.code)
        return self.towers.answer(rows, replace(histories, valid=mine))


def main() -> None:
    args = _arguments()
    data = dataset.read(args.data)
    names = [name for name, count in data.summary().per_scenario.items() if count]
    splits.SPLITS["time"] = partial(splits.at, cuts=splits.cuts(data))  # for each scenario's events those of all
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for name in (JOINT, *names):
            path = args.out / f"{name.replace(' ', '-')}-{seed}.json"
            if not path.exists():
                _run(name, path, data, args, configured("default", ("split=time", *args.set), seed=seed))
            found.setdefault(name, []).append(json.loads(path.read_text()))
    text = _table(found, names)
    (args.out / "scenarios.md").write_text(text + "\n")
    print(text)


def _run(name: str, path: Path, data: Behaviour, args: argparse.Namespace, config: Training) -> None:
    out = path.with_suffix("")
    folder = args.data if name == JOINT else _alone(args.data, name, data, args.out / f"only-{name}")
    print(f"{name}, seed {config.seed}", flush=True)
    if not (out / "training.json").exists():
        train(folder, out, config)
    towers, codes = benchmark.opened(out, data, config, out / FEATURES)
    recommender: Recommender = towers if name == JOINT else Alone(towers, SCENARIOS.index(name))
    split = splits.by_time(data)
    result = evaluate.evaluate(recommender, data, split, split.test, codes, benchmark.HISTORY)
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(result.as_dict()))
    aside.replace(path)


def _alone(folder: Path, name: str, data: Behaviour, out: Path) -> Path:
    """The events of one scenario, with all items in the same order (their texts; images are not taken along)."""
    out.mkdir(parents=True, exist_ok=True)
    events = parquet.read_table(folder / "events.parquet")
    parquet.write_table(
        events.filter(compute.equal(events["scenario"].cast(pa.string()), name)), out / "events.parquet"
    )
    items = pa.table({"item_id": data.item_ids, "text": data.texts[: data.items]})
    parquet.write_table(items, out / "items.parquet")
    return out


def _table(found: dict[str, list[dict[str, Any]]], names: list[str]) -> str:
    seeds = len(found[JOINT])
    rows = []
    for asked in names:
        medians = {name: [_median(runs, asked, figure) for figure in SHOWN] for name, runs in found.items()}
        best = np.array([medians[name] for name in names]).max(axis=0)
        for name, values in medians.items():
            ratios = [f"{value / other:.2f}" for value, other in zip(values, best, strict=True)]
            cells = [f"{value:.4f} ({ratio})" for value, ratio in zip(values, ratios, strict=True)]
            rows.append([f"asked in {asked}", f"trained on {name}", *cells])
    head = ["", f"median of {seeds} seeds (ratio to the better single model)", *SHOWN]
    return report.table(head, rows, texts=2)


def _median(runs: list[dict[str, Any]], asked: str, figure: str) -> float:
    return statistics.median(run["figures"]["max"][f"scenario {asked}"][figure][0] for run in runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scenarios", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="for every run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
