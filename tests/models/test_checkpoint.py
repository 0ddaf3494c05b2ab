"""The shipped checkpoint on the demo's population, which it was not trained on (another seed)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.codebook import ResidualCodebook
from models.contract import ACTIONS, ITEM_ENCODER, SCENARIOS, USER_INTERESTS
from models.evaluate import FEED, top
from models.events import Histories
from models.item_tower import ItemTower
from models.train import encode
from models.user_tower import UserTower
from stream.synthetic import Act, Population, search_burst, synthesize

REPOSITORY = Path(__file__).parents[2] / "triton_repo"
DEMO_SEED = 7
USERS = 40
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def population() -> Population:
    return synthesize(users=USERS, events=40 * USERS, items=1_000, seed=DEMO_SEED)


@pytest.fixture(scope="module")
def tower() -> ItemTower:
    return ItemTower.load(REPOSITORY / ITEM_ENCODER / "1")


@pytest.fixture(scope="module")
def codebook() -> ResidualCodebook:
    return ResidualCodebook.load(REPOSITORY / ITEM_ENCODER / "1")


@pytest.fixture(scope="module")
def items(population: Population, tower: ItemTower) -> torch.Tensor:
    return encode(tower, [item.content for item in population.catalogue.items])


@pytest.fixture(scope="module")
def users() -> UserTower:
    return UserTower.load(REPOSITORY / USER_INTERESTS / "1")


def test_decoded_codes_are_near_the_embeddings(items: torch.Tensor, codebook: ResidualCodebook) -> None:
    fidelity = codebook.fidelity(items)
    assert fidelity.mean() >= 0.95
    assert fidelity.quantile(0.01) >= 0.8


def test_both_models_hold_the_same_codebook(codebook: ResidualCodebook, users: UserTower) -> None:
    assert users.codebook.config == codebook.config
    for name, buffer in codebook.state_dict().items():
        assert torch.equal(buffer, users.codebook.state_dict()[name])


def test_the_checkpoint_is_small_and_says_how_it_was_made(users: UserTower) -> None:
    assert sum(path.stat().st_size for path in REPOSITORY.rglob("*") if path.is_file()) < 5_000_000
    assert users.config.training["command"] in (REPOSITORY / "README.md").read_text()
    assert json.dumps(users.config.training)


def test_items_of_one_subtopic_are_nearest(items: torch.Tensor, population: Population) -> None:
    subtopics = np.array([population.catalogue.subtopics[item.item_id] for item in population.catalogue.items])
    nearest = (items @ items.T).topk(6, dim=1).indices[:, 1:].numpy()
    assert (subtopics[nearest] == subtopics[:, None]).mean() > 0.8


def test_a_burst_of_searches_changes_what_the_feed_recommends(
    items: torch.Tensor, population: Population, tower: ItemTower, codebook: ResidualCodebook, users: UserTower
) -> None:
    catalogue = population.catalogue
    subtopics = np.array([catalogue.subtopics[item.item_id] for item in catalogue.items])
    texts = {item.item_id: item.content for item in catalogue.items}
    shares, fused_shares = [], []
    for user in sorted(population.interests):
        acts = [act for act in population.acts if act.record["user_id"] == user]
        topic = population.foreign_subtopic(user)
        burst = search_burst(catalogue, user, topic, acts[-1].record["ts"] + HOUR_MS, n=12)
        with torch.inference_mode():
            before, after = (users(_histories(h, texts, tower, codebook))[0][0, FEED] for h in (acts, acts + burst))
        lists = [top(interests[None], items, 10)[0] for interests in (before, after)]
        shares.append([(subtopics[found] == topic).mean() for found in lists])
        fused_shares.append((subtopics[_fused(after, items)] == topic).mean())
    mean_before, mean_after = np.mean(shares, axis=0)
    assert mean_before < 0.05
    assert mean_after > 0.3, "by the maximum over interests"
    assert np.mean(fused_shares) > 0.3
    assert (np.array(fused_shares) > 0).mean() >= 0.9, "by rank fusion nearly every user sees the new topic"


def _fused(interests: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """The top 10 by reciprocal ranks over the interests, as one Qdrant request gives it."""
    ranks = (interests @ items.T).argsort(dim=1, descending=True).argsort(dim=1)
    return (1 / (2 + ranks)).sum(dim=0).topk(10).indices


def _histories(acts: list[Act], texts: dict[str, str], tower: ItemTower, codebook: ResidualCodebook) -> Histories:
    records = [act.record for act in acts]
    said = [texts[record["item_id"]] if record.get("item_id") else record["query"] for record in records]
    return Histories(
        codes=codebook.encode(encode(tower, said))[None],
        time=torch.tensor([[record["ts"] for record in records]]),
        scenario=torch.tensor([[SCENARIOS.index(act.scenario) for act in acts]]),
        action=torch.tensor([[ACTIONS.index(record["action"]) for record in records]]),
        valid=torch.ones(1, len(acts), dtype=torch.bool),
    )
