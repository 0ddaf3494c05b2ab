"""A checkpoint and the baselines that need no training, on the questions of one split: figures and a report."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import checkpoint, dataset, evaluate, metrics, ranking, report, splits
from models.baselines import Medoids, Popularity
from models.config import Training
from models.dataset import Behaviour, Ints
from models.errors import BadInput
from models.evaluate import Result, Towers
from models.objective import Objective, Shares
from models.ranking import Places
from models.report import Line, UserMap
from models.train import FEATURES, METRICS, read_catalogue

OURS = "Facetstream"
LIMIT = 100
CURVED = f"Recall@{LIMIT}"
HISTORY = 1_024  # events, as the stream keeps them
MAPPED_USERS = 4
MAP_HISTORY = 20  # events of a user that the map shows


@dataclass(frozen=True)
class Benchmark:
    """Results by recommender, on the same questions."""

    data: Behaviour
    config: Training
    questions: Ints
    towers: Towers
    codes: Tensor
    history: int  # events of a history, at most
    results: dict[str, Result]

    @property
    def split(self) -> str:
        return self.config.split

    @property
    def owners(self) -> Ints:
        """The users [Q] who are asked."""
        return self.data.owner(self.questions)

    @cached_property
    def codebook(self) -> dict[str, Any]:
        """What the codes keep of the items, and at how many bytes; the Recall@100 they keep of exact histories'."""
        said = self.towers.users.codebook.report(self.towers.items)
        through, exact = (
            self.results[name].figures["max"]["overall"].values[CURVED].value for name in (OURS, f"{OURS}, exact")
        )
        return said | {f"{CURVED} kept": through / exact if exact else None}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "split": self.split,
            "ties": "against the target; events as in the file",
            "seed": self.config.seed,
            "questions": len(self.questions),
            "items": self.data.items,
            "codebook": self.codebook,
            "results": {name: result.as_dict() for name, result in self.results.items()},
        }


def run(
    folder: Path,
    trained: Path,
    part: str,
    limit: int,
    triton: str | None = None,
    history: int = HISTORY,
    baselines: bool = True,
) -> Benchmark:
    """Ask the checkpoint in `trained`, through codes and without, the questions of the dataset in `folder`; and, where
    `triton` is an address, the one that is served there; and the `baselines` that need no training."""
    config = checkpoint.config(trained)
    data = dataset.read(folder)
    split = splits.SPLITS[config.split](data)
    questions = splits.sample(getattr(split, part), limit, config.seed)
    ours, codes = opened(trained, data, config, trained / FEATURES)
    asked: dict[str, Any] = {OURS: ours, f"{OURS}, exact": replace(ours, read=ours.vectors)}
    if triton:
        from models.served import Served

        asked[f"{OURS}, served"] = Served(triton, ours.items)
    if baselines:
        asked["medoids"] = Medoids(ours.items, ours.users.config.interests)
        asked["popularity"] = Popularity(data, split.training(data))
    results = {
        name: evaluate.evaluate(recommender, data, split, questions, codes, history)
        for name, recommender in asked.items()
    }
    if triton:
        _refuse_other_answers(asked, data, questions[: evaluate.ROWS], codes, history)
    return Benchmark(data, config, questions, ours, codes, history, results)


def opened(trained: Path, data: Behaviour, config: Training, cache: Path) -> tuple[Towers, Tensor]:
    """The checkpoint in `trained` as a recommender of the items of `data`, and the codes [N, bytes] of its texts."""
    towers = checkpoint.load(trained)
    catalogue = read_catalogue(data, towers.items, config, cache)
    if not len(catalogue.warm):
        raise BadInput(f"{trained} knows no item of this dataset: give the one that it was trained on")
    objective = Objective(towers.items.vectors, towers.users, catalogue, Shares())
    objective.eval().read_through_codes(towers.users.codebook)
    return Towers(towers.users, objective.vectors(), data.items), objective.codes


def write_report(found: Benchmark, folder: Path, trained: Path) -> None:
    """report.md and its plots in `folder`."""
    ours = found.results[OURS].figures
    overall = {name: result.figures["max"]["overall"].values for name, result in found.results.items()}
    ways = {way: groups["overall"].values for way, groups in ours.items()}
    groups = {name: figures.values for name, figures in ours["max"].items()}
    length = {OURS: report.over_history(groups)}
    sections = {
        "What was measured": report.facts(
            {
                "split": f"{found.split}; histories hold the user's newest {found.history:,} earlier events",
                "questions": f"{len(found.questions):,}",
                "candidates": f"all {found.data.items:,} items, without those of the history but the one wanted",
                "ties": "count against the wanted item; events as in the file",
                "seed": found.config.seed,
            }
        ),
        "Against baselines (maximum over interests)": report.figures_table(overall),
        "Ways of merging": report.figures_table(ways),
        "Groups of questions": report.figures_table(groups),
        "Over the length of the history": report.curves(folder / "history.png", length, "events before", "Recall@100"),
        "Over the number of interests": report.curves(
            folder / "interests.png", over_interests(found), "interests asked, heaviest first", CURVED
        ),
        "Over the bytes of an event's codes": report.curves(
            folder / "bytes.png", over_bytes(found), "bytes (the last: exact float32)", CURVED, log=True
        ),
        "Codebook": report.facts(found.codebook),
        "Training": report.training_curves(folder / "training.png", trained / METRICS),
        "A few users": _map(found, folder),
    }
    report.write(folder, "Evaluation", sections)


def over_interests(found: Benchmark) -> Mapping[str, Line]:
    """Recall when only the 1, 2, … K heaviest interests are asked: by the maximum, and at an equal budget."""
    interests, weights = _together(found, found.towers)
    heavier = weights.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # how many are heavier
    lines: dict[str, list[tuple[float, ...]]] = {"maximum": [], f"{LIMIT} candidates in all": []}
    for k in range(1, weights.shape[1] + 1):
        places = _places(found, interests, weights.where(heavier < k, 0))
        for line, way in zip(lines.values(), (places.max, places.budget), strict=True):
            line.append((k, *metrics.figures(way, found.owners, (LIMIT,)).values[CURVED]))
    return lines


def over_bytes(found: Benchmark) -> dict[str, Line]:
    """Recall (maximum) when histories are read through the first 1, 2, … levels of the codebook, and exactly."""
    ours, vectors = found.towers, found.towers.vectors
    books = [ours.users.codebook.shortened(levels + 1) for levels in range(ours.users.codebook.config.levels)]
    read = {book.config.code_bytes: book.decode(book.encode(vectors)) for book in books} | {
        vectors.shape[1] * vectors.element_size(): vectors
    }
    line = []
    for size, known in read.items():
        places = _places(found, *_together(found, replace(ours, read=known))).max
        line.append((size, *metrics.figures(places, found.owners, (LIMIT,)).values[CURVED]))
    return {OURS: line}


def _together(found: Benchmark, towers: Towers) -> tuple[Tensor, Tensor]:
    return evaluate.together(towers, found.data, found.questions, found.codes, found.history)


def _places(found: Benchmark, interests: Tensor, weights: Tensor) -> Places:
    target = torch.from_numpy(found.data.text[found.questions])
    seen = splits.seen(found.data, found.questions)
    return ranking.places(interests, weights, found.towers.items.cpu(), target, seen, (LIMIT,))


def _map(found: Benchmark, folder: Path) -> str:
    data, some = found.data, found.questions[:: max(1, len(found.questions) // MAPPED_USERS)][:MAPPED_USERS]
    interests, weights = evaluate.together(found.towers, data, some, found.codes, found.history)
    items = found.towers.items
    users = []
    for row, question in enumerate(some.tolist()):
        owner = int(data.owner(some[row : row + 1])[0])
        before = data.text[max(int(data.first[owner]), question - MAP_HISTORY) : question]
        history = [item for item in before.tolist() if item < data.items]
        users.append(UserMap(data.user_ids[owner], history, interests[row], weights[row], [int(data.text[question])]))
    return report.interest_map(folder / "map.png", items, users, data.texts[: data.items], data.categories)


def _refuse_other_answers(asked: dict[str, Any], data: Behaviour, questions: Ints, codes: Tensor, length: int) -> None:
    """What is served must be what was measured."""
    names = (OURS, f"{OURS}, served")
    offline, served = (evaluate.together(asked[name], data, questions, codes, length) for name in names)
    gap = max(float((a - b).abs().max()) for a, b in zip(offline, served, strict=True))
    if not gap <= 1e-4:
        raise BadInput(f"what Triton serves differs from the checkpoint by {gap:.1e}; export and load it first")
