"""The road to the served model, on a dataset folder: each part alone, over seeds, with the figures of the test split.

    python -m tests.bench.interests --data DIR --out DIR [--table long] [--text-model DIR] [--seeds 0 1] [--only NAME]

Every run trains and evaluates as `facetstream train` and `facetstream evaluate` do, and leaves a JSON file in --out;
what is there is not run again. At the end the table of medians is printed and written to road.md. Settings were chosen
on validation; the test split is looked at here, once per run.

The table `long` asks what the long branch brings to users of long histories, and what it costs: the LLM's tokens are
the same with it and without.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from models import benchmark, evaluate, report
from models.benchmark import Benchmark
from models.config import configured
from models.train import train

Rows = dict[str, tuple[str, tuple[str, ...]]]  # name: preset and settings
SERVED: tuple[str, tuple[str, ...]] = ("default", ())
ROAD: Rows = {
    "SASRec, ids begin at random": ("sasrec", ("id_start=random", "epochs=30", "warmup=0.2")),
    "SASRec": ("sasrec", ()),
    "ComiRec-SA": ("comirec", ()),
    "light: K interests": ("light", ("share_window=0", "share_weights=0")),
    "light: K interests, window matched": ("light", ()),
    "light: title and id": ("light", ("light_view=both",)),
    "LLM: title and id": ("llm", ()),
    "LLM: title": ("llm", ("llm_view=text",)),
    "light + LLM": SERVED,
    "light + LLM, ids begin at random": ("default", ("id_start=random",)),
    "light + LLM, no window": ("default", ("share_window=0",)),
    "light + LLM, one interest": ("default", ("interests=1", "share_window=0", "share_weights=0")),
}
LONG: Rows = {  # 72 tokens of the LLM in each: coarse interests, events and queries
    "LLM over the newest 68 events": ("llm", ("recent=68",)),
    "light over 64 events + LLM over 64": ("default", ("length=64",)),
    "light over 1,024 events + LLM over 64": ("default", ("length=1024",)),
}
TABLES = {"road": ROAD, "long": LONG}
ASKED = 1_000  # users of one timing
SHOWN = ("HR@10", "NDCG@10", "Recall@100")
WAYS = ("max", "rrf", "budget")
LENGTHS = ("overall", "history 21 to 50", "history 51 to 200", "history over 200")


def main() -> None:
    args = _arguments()
    table = TABLES[args.table]
    if unknown := set(args.only or ()) - set(table):
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are {', '.join(table)}")
    for seed in args.seeds:
        for name in args.only or table:
            path = args.out / f"{_slug(name)}-{seed}.json"
            if not path.exists():
                _run(name, seed, path, args)
    text = _road(args.out) if table is ROAD else _long(args.out)
    (args.out / f"{args.table}.md").write_text(text + "\n")
    print(text)


def _run(name: str, seed: int, path: Path, args: argparse.Namespace) -> None:
    preset, settings = TABLES[args.table][name]
    if args.text_model:
        settings = (*settings, f"text_model={args.text_model}")
    out = path.with_suffix("")
    print(f"{name}, seed {seed}", flush=True)
    if not (out / "training.json").exists():
        train(args.data, out, configured(preset, (*settings, *args.set), seed=seed))
    config = configured(preset, (*settings, *args.set), seed=seed)
    length = config.length if name in LONG else benchmark.HISTORY
    measured = benchmark.run(
        args.data, out, "test", limit=1_000_000, history=length, baselines=ROAD.get(name) == SERVED
    )
    found = measured.as_dict() | {"milliseconds a user": _milliseconds(measured)}
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(found))
    aside.replace(path)


def _milliseconds(found: Benchmark) -> float:
    """Of one core, for the interests of a user: the median of three rounds."""
    some, seconds = found.questions[:ASKED], []
    for _ in range(3):
        start = time.perf_counter()
        evaluate.together(found.towers, found.data, some, found.codes, found.history)
        seconds.append(time.perf_counter() - start)
    return 1_000 * statistics.median(seconds) / len(some)


def _road(out: Path) -> str:
    """Medians over seeds, through codes; and Recall@100 of exact histories, which codes are to keep."""
    rows = []
    for name in ROAD:
        if runs := _found(name, out):
            cells = [_median(runs, "Facetstream", way, "overall", figure) for way in WAYS for figure in SHOWN]
            exact = [_median(runs, "Facetstream, exact", "max", "overall", figure) for figure in SHOWN]
            rows.append([name, len(runs), *cells, *exact])
        for other in ("medoids", "popularity") if ROAD[name] == SERVED and runs else ():
            rows.append([other, len(runs), *(_median(runs, other, way, "overall", f) for way in WAYS for f in SHOWN)])
    head = [*(f"{figure}, {way}" for way in WAYS for figure in SHOWN), *(f"{figure}, exact" for figure in SHOWN)]
    return report.table(["", "seeds", *head], rows)


def _long(out: Path) -> str:
    rows = []
    for name in LONG:
        if runs := _found(name, out):
            groups = [_median(runs, "Facetstream", "max", group, figure) for group in LENGTHS for figure in SHOWN]
            cost = statistics.median(run["milliseconds a user"] for run in runs)
            rows.append([name, len(runs), *groups, f"{cost:.2f}"])
    head = [f"{figure}, {group}" for group in LENGTHS for figure in SHOWN]
    return report.table(["", "seeds", *head, "ms a user"], rows)


def _found(name: str, out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"{_slug(name)}-[0-9]*.json"))]


def _median(runs: list[dict[str, Any]], recommender: str, way: str, group: str, figure: str) -> str:
    found = [run["results"][recommender]["figures"][way].get(group, {}) for run in runs]
    values = [figures[figure][0] for figures in found if figure in figures]
    return f"{statistics.median(values):.4f}" if values else ""


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.interests", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text-model", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--table", choices=list(TABLES), default="road")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="for every run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
