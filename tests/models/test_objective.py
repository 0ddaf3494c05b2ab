"""What is minimised: which targets count, what each loss teaches and what it leaves alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.codebook import ResidualCodebook
from models.contract import SCENARIOS
from models.item_vectors import ItemVectors, View
from models.light import States
from models.objective import Catalogue, Objective, Shares
from models.sequences import NONE, Sampler, Sequences
from tests.models.populations import random_behaviour
from tests.models.test_user_tower import make_tower

ITEMS, QUERIES, COLD = 9, 3, 2
LIGHT, LLM = "next light", "next llm"


def make(hidden: float = 0.0, **changes: int) -> tuple[Objective, Sequences, torch.Tensor]:
    """An objective over 9 items, the last two of them cold, and 3 queries; a batch; all items that may be drawn."""
    torch.manual_seed(0)
    tower = make_tower(dropout=0.0, **changes)
    views = [View(kind, dim) for kind, dim in (("id", tower.config.light_dim), ("both", tower.config.llm_dim)) if dim]
    rows = torch.cat([torch.arange(ITEMS - COLD), torch.full((COLD + QUERIES,), -1)])
    features = torch.randn(ITEMS + QUERIES, 5)
    features[[1, 4]] = 0  # items without a text
    items = ItemVectors(views, 5, ITEMS - COLD, dropout=0.0)
    rng = np.random.default_rng(0)
    data = random_behaviour(rng, users=8, most=12, items=ITEMS - COLD, queries=0)
    sampler = Sampler(data, np.ones(len(data.text), dtype=bool), length=8, cuts=2, window=3)
    objective = Objective(items, tower, Catalogue(features, rows, hidden), Shares())
    return objective, sampler.draw(sampler.users, rng), objective.catalogue.warm


def reached(objective: Objective, names: set[str]) -> set[str]:
    """The parameters that the losses of these `names` change."""
    objective.zero_grad()
    made, batch, draws = objective, *make()[1:]
    losses = made(batch, draws, False)
    torch.stack([loss for name, (loss, _) in losses.items() if name in names]).sum().backward()
    return {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-4}


def test_each_loss_counts_its_targets() -> None:
    objective, batch, draws = make()
    losses = objective(batch, draws, False)
    behind = batch.target[:, 1:] != NONE
    window = batch.window[batch.window[..., 0] != NONE]
    assert losses[LIGHT][1] == losses[LLM][1] == behind.sum(), "the LLM reads all of so short a history"
    assert losses["refined"][1] == losses["weights"][1] == len(window)
    assert losses["window"][1] == (window != NONE).sum()
    assert all(loss.isfinite() and loss > 0 for loss, _ in losses.values())


@pytest.mark.parametrize("apart", [False, True])
def test_the_next_items_loss_is_the_cross_entropy_over_all_warm_items_at_every_event(apart: bool) -> None:
    objective, batch, draws = make()
    users, vectors = objective.users, objective.vectors()
    loss, count = objective(batch, draws, apart)[LIGHT]
    group = users.slot[batch.histories.scenario] if apart else torch.zeros_like(batch.rows)
    states = users.light(users.encoder(vectors[batch.rows][..., :8], batch.histories), group)
    views = F.normalize(vectors[: ITEMS - COLD, :8], dim=-1)
    total = torch.zeros(())
    for row, place in (batch.target[:, 1:] != NONE).nonzero().tolist():
        target, scenario = batch.target[row, place + 1], batch.target_scenario[row, place + 1, None]
        state, known = States(*(part[row : row + 1] for part in states)), torch.tensor([[place + 1]])
        wanted = scenario[None]
        asked = users.light.asked(state, known, wanted if apart else torch.zeros_like(known), wanted)
        interests = users.coarse.of(asked[0], scenario)[0]
        scores = users.scales()[0] * interests @ views.T
        total += scores.flatten().logsumexp(0) - scores[:, target].logsumexp(0)
    torch.testing.assert_close(loss / count, total / count, atol=0.02, rtol=0.01)


def test_the_branches_are_trained_apart() -> None:
    objective = make()[0]
    light, llm = reached(objective, {LIGHT}), reached(objective, {LLM, "refined"})
    assert light & llm == {"users.log_scale"}, "a number for each"
    assert any(name.startswith("users.light.") for name in light)
    assert any(name.startswith("users.refiner.") for name in llm)
    assert "items.parts.0.table.weight" in light
    assert "items.parts.1.table.weight" in llm
    objective.zero_grad()
    objective(*make()[1:], False)[LIGHT][0].backward()
    assert (objective.users.log_scale.grad != 0).tolist() == [True, False]


def test_the_window_trains_both_and_weights_only_what_makes_weights() -> None:
    objective = make()[0]
    both = reached(objective, {"window"})
    assert {"items.parts.0.table.weight", "items.parts.1.table.weight", "users.refiner.queries"} <= both
    weights = reached(objective, {"weights"})
    assert {"users.weigh.weight", "users.refiner.weigh.weight"} <= weights
    assert not any("coarse.head" in name or "refiner.head" in name for name in weights)


def test_once_read_through_codes_items_stay_as_they_are() -> None:
    objective, batch, draws = make(hidden=0.5)
    objective.items.parts[1].head.dropout.p = 0.5
    before = objective.vectors()
    with torch.no_grad():
        book = ResidualCodebook.fit(before, objective.users.codebook.config.for_items(len(before)))
    objective.users.codebook = ResidualCodebook(book.config)
    objective.read_through_codes(book)
    objective.train()
    losses = objective(batch, draws, False)
    objective.total(losses, [n for _, n in losses.values()]).backward()
    assert [name for name, p in objective.items.named_parameters() if p.grad is not None] == []
    assert objective.users.refiner.queries.grad.any()
    again = objective(batch, draws, False)
    assert losses["window"][0] != 0
    for name in losses:
        torch.testing.assert_close(losses[name][0], again[name][0], msg=f"{name}: nothing hidden, no dropout on items")
    assert torch.equal(objective.vectors(), before)
    with torch.no_grad():
        objective.codes = objective.codes.flip(0)
    assert objective(batch, draws, False)[LIGHT][0] != losses[LIGHT][0], "histories are read through codes"


def test_ids_are_hidden_in_training_where_a_text_can_stand_in() -> None:
    objective = make(hidden=0.5)[0]
    catalogue, items = objective.catalogue, objective.items
    wanted = torch.arange(ITEMS + QUERIES)
    plain = catalogue.vectors(items.eval(), wanted)
    cold = items(catalogue.features, catalogue.rows, catalogue.features.any(dim=1))
    ids = slice(objective.users.config.light_dim)  # of the view of ids alone
    torch.testing.assert_close(cold[:, ids], plain[:, ids])
    items.train()
    hidden = torch.zeros(len(wanted))
    for _ in range(200):
        vectors = catalogue.vectors(items, wanted)
        as_cold, as_warm = (torch.isclose(vectors, given, atol=1e-6).all(dim=1) for given in (cold, plain))
        assert (as_cold | as_warm).all()
        hidden += as_cold & ~as_warm
    texts = catalogue.features.any(dim=1) & (catalogue.rows >= 0)
    assert (hidden[~texts] == 0).all()
    assert ((hidden[texts] > 60) & (hidden[texts] < 140)).all()
    assert torch.equal(objective.vectors(), plain)
    assert items.training, "as it was"


def test_the_whole_is_the_weighted_sum_of_means() -> None:
    objective, batch, draws = make()
    objective.shares = Shares(next=1.0, refined=2.0, window=3.0, weights=4.0)
    losses = objective(batch, draws, False)
    share = {LIGHT: 1, LLM: 1, "refined": 2, "window": 3, "weights": 4}
    expected = sum(share[name] * loss / n for name, (loss, n) in losses.items())
    torch.testing.assert_close(objective.total(losses, [n for _, n in losses.values()]), expected)


@pytest.mark.parametrize("left_out", ["light_dim", "llm_dim"])
def test_a_branch_that_is_left_out_has_no_loss_and_no_say(left_out: str) -> None:
    objective, batch, draws = make(**{left_out: 0})
    losses = objective(batch, draws, False)
    names = {LIGHT, "window", "weights"} if left_out == "llm_dim" else {LLM, "refined", "window", "weights"}
    assert set(losses) == names
    objective.total(losses, [n for _, n in losses.values()]).backward()
    assert objective.users.log_scale.grad[int(left_out == "llm_dim")] == 0


def test_a_batch_without_any_target_is_a_loss_of_nothing() -> None:
    objective, batch, draws = make()
    nothing = {"target": torch.full_like(batch.target, NONE), "window": torch.full_like(batch.window, NONE)}
    losses = objective(Sequences(**vars(batch) | nothing), draws, False)
    assert all(loss == 0 and n == 0 for loss, n in losses.values())
    objective.total(losses, [0] * len(losses)).backward()
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert grads
    assert not any(grad.any() for grad in grads)


def test_targets_of_scenarios_that_training_does_not_know_are_of_the_most_frequent() -> None:
    objective, batch, draws = make(scenarios=(1,))
    losses = objective(batch, draws, False)
    assert losses[LIGHT][1] == (batch.target[:, 1:] != NONE).sum()
    assert losses["refined"][1] == (batch.window[:, :, SCENARIOS.index("feed"), 0] != NONE).sum()
