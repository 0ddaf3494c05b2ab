"""The shipped checkpoint on the demo's population, which it was not trained on (another seed)."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from models import repository
from models.commands.train import command as train
from models.config import Training, configured
from models.contract import ACTIONS, ITEM_ENCODER, SCENARIOS, USER_INTERESTS
from models.events import Histories
from models.repository import Towers
from stream.synthetic import CATEGORY, Act, Population, search_burst, synthesize

REPOSITORY = Path(__file__).parents[2] / "triton_repo"
DEMO_SEED = 7
USERS = 40
BURST_EVENTS = 8
HOUR_MS = 3_600_000
FEED = SCENARIOS.index("feed")


@pytest.fixture(scope="module")
def towers() -> Towers:
    return repository.load(REPOSITORY / ITEM_ENCODER / "1", REPOSITORY / USER_INTERESTS / "1")


@pytest.fixture(scope="module")
def population() -> Population:
    return synthesize(users=USERS, events=40 * USERS, items=1_000, seed=DEMO_SEED)


@pytest.fixture(scope="module")
def subtopics(population: Population) -> np.ndarray:
    return np.array([population.catalogue.subtopics[item.item_id] for item in population.catalogue.items])


@pytest.fixture(scope="module")
def items(population: Population, towers: Towers) -> torch.Tensor:
    return encode(towers, [item.content for item in population.catalogue.items])


@torch.inference_mode()
def encode(towers: Towers, texts: Sequence[str]) -> torch.Tensor:
    return torch.cat([towers.items(texts[start : start + 256]) for start in range(0, len(texts), 256)])


def test_decoded_codes_are_near_the_embeddings(items: torch.Tensor, towers: Towers) -> None:
    fidelity = towers.codebook.fidelity(items)
    assert fidelity.mean() >= 0.99
    assert fidelity.quantile(0.01) >= 0.95


def test_the_readme_says_how_the_checkpoint_was_made(towers: Towers) -> None:
    readme = (REPOSITORY / "README.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ +facetstream train (.*)$", readme, re.MULTILINE)
    given = train.make_context("train", shlex.split(line)).params
    told = asdict(configured(given["preset"], given["settings"], seed=given["seed"]))
    usual = asdict(Training())
    settings = {name: value for name, value in told.items() if value != usual[name]}
    assert settings.items() <= towers.users.config.training["config"].items()


def test_the_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in REPOSITORY.rglob("*") if path.is_file()) < 5_000_000


def test_items_of_one_subtopic_are_nearest(items: torch.Tensor, subtopics: np.ndarray) -> None:
    nearest = (items @ items.T).topk(6, dim=1).indices[:, 1:].numpy()
    assert (subtopics[nearest] == subtopics[:, None]).mean() > 0.95


def test_a_burst_of_searches_changes_what_the_feed_recommends(
    items: torch.Tensor, subtopics: np.ndarray, population: Population, towers: Towers
) -> None:
    """Its category's share of the top 10, as one Qdrant request would give it."""
    categories = np.array([CATEGORY[name] for name in subtopics])
    shares = []
    for user in sorted(population.interests):
        acts = [act for act in population.acts if act.record["user_id"] == user]
        topic = population.foreign_subtopic(user)
        burst = search_burst(population.catalogue, user, topic, acts[-1].record["ts"] + HOUR_MS, n=BURST_EVENTS)
        lists = [fused(interests(towers, population, some), items) for some in (acts, acts + burst)]
        shares.append([(categories[found] == CATEGORY[topic]).mean() for found in lists])
    before, after = np.array(shares).T
    assert before.mean() < 0.05
    assert after.mean() > 0.8
    assert (after > 0).mean() >= 0.95, "nearly every user sees the new category"


def fused(vectors: torch.Tensor, items: torch.Tensor) -> np.ndarray:
    """The top 10 by reciprocal ranks over the interests."""
    ranks = (vectors @ items.T).argsort(dim=1, descending=True).argsort(dim=1)
    found: np.ndarray = (1 / (2 + ranks)).sum(dim=0).topk(10).indices.numpy()
    return found


@torch.inference_mode()
def interests(towers: Towers, population: Population, acts: list[Act]) -> torch.Tensor:
    """The feed's, [K, dim], of a history of `acts`."""
    texts = {item.item_id: item.content for item in population.catalogue.items}
    records = [act.record for act in acts]
    said = [texts[record["item_id"]] if record.get("item_id") else record["query"] for record in records]
    history = Histories(
        codes=towers.codebook.encode(encode(towers, said))[None],
        time=torch.tensor([[record["ts"] for record in records]]),
        scenario=torch.tensor([[SCENARIOS.index(act.scenario) for act in acts]]),
        action=torch.tensor([[ACTIONS.index(record["action"]) for record in records]]),
        valid=torch.ones(1, len(acts), dtype=torch.bool),
    )
    return towers.users(history)[0][0, FEED]
