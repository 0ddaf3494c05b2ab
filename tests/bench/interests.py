"""The road to the served model, on a dataset folder: each part alone, over seeds, with the figures of the test split.

    python -m tests.bench.interests --data DIR --out DIR [--text-model DIR] [--seeds 0 1 2] [--only NAME ...]

Every run trains and evaluates as `facetstream train` and `facetstream evaluate` do, and leaves a JSON file in --out;
what is there is not run again. At the end the table of medians is printed and written to road.md. Settings were chosen
on validation; the test split is looked at here, once per run.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from models import benchmark, report
from models.config import configured
from models.train import train

ROAD: dict[str, tuple[str, tuple[str, ...]]] = {  # name: preset and settings
    "SASRec": ("sasrec", ()),
    "ComiRec-SA": ("comirec", ()),
    "SASRec, K interests": ("light", ("share_window=0", "share_weights=0")),
    "light: K interests, window matched": ("light", ()),
    "light: title and id": ("light", ("light_view=both",)),
    "LLM: title and id": ("llm", ()),
    "LLM: title": ("llm", ("llm_view=text",)),
    "light + LLM": ("default", ()),
    "light + LLM, no window": ("default", ("share_window=0",)),
    "light + LLM, one interest": ("default", ("interests=1", "share_window=0", "share_weights=0")),
}
SHOWN = ("HR@10", "NDCG@10", "Recall@100")
WAYS = ("max", "rrf", "budget")


def main() -> None:
    args = _arguments()
    for seed in args.seeds:
        for name in args.only or ROAD:
            path = args.out / f"{_slug(name)}-{seed}.json"
            if not path.exists():
                _run(name, seed, path, args)
    rows = [row for name in ROAD if (row := _row(name, args.out))]
    text = report.table(["", "seeds", *(f"{figure}, {way}" for way in WAYS for figure in SHOWN)], rows)
    (args.out / "road.md").write_text(text + "\n")
    print(text)


def _run(name: str, seed: int, path: Path, args: argparse.Namespace) -> None:
    preset, settings = ROAD[name]
    if args.text_model:
        settings = (*settings, f"text_model={args.text_model}")
    out = path.with_suffix("")
    print(f"{name}, seed {seed}", flush=True)
    if not (out / "training.json").exists():
        train(args.data, out, configured(preset, (*settings, *args.set), seed=seed))
    found = benchmark.run(args.data, out, "test", limit=1_000_000).as_dict()
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(found))
    aside.replace(path)


def _row(name: str, out: Path) -> list[Any]:
    found = [json.loads(path.read_text()) for path in sorted(out.glob(f"{_slug(name)}-[0-9]*.json"))]
    results = [run["results"]["Facetstream"]["figures"] for run in found]
    if not results:
        return []
    cells = (_median(results, way, figure) for way in WAYS for figure in SHOWN)
    return [name, len(results), *cells]


def _median(results: list[dict[str, Any]], way: str, figure: str) -> str:
    values = [result[way]["overall"][figure][0] for result in results if figure in result[way]["overall"]]
    return f"{statistics.median(values):.4f}" if values else ""


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.interests", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text-model", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ROAD), metavar="NAME")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="for every run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
