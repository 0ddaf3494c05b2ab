"""The user tower: shapes, and that nothing but the valid events decides; each branch alone and both together."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from models import repository
from models.codebook import CodebookConfig, ResidualCodebook
from models.errors import BadInput
from models.events import Histories
from models.item_index import ItemIndex
from models.item_tower import ItemTower, ItemTowerConfig
from models.item_vectors import View
from models.light import LightRecommender, SelfAttentive, rotate
from models.tiny import llama_config
from models.user_tower import UserTower, UserTowerConfig

TOWERS: dict[str, dict[str, Any]] = {
    "both": {},
    "both, comirec": {"light": "comirec"},
    "both, apart": {"apart": True},
    "light": {"llm_dim": 0},
    "light, apart": {"llm_dim": 0, "apart": True},
    "comirec": {"llm_dim": 0, "light": "comirec"},
    "llm": {"light_dim": 0},
}
CODE_BYTES = 2


def make_tower(**changes: Any) -> UserTower:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"light_dim": 8, "llm_dim": 12, "interests": 3, "width": 16, "quotas": (4, 4, 4)} | changes
    book = CodebookConfig(dim=sizes["light_dim"] + sizes["llm_dim"], levels=2, codewords=256)
    config = UserTowerConfig(llama_config(1, 16, 1, heads=2).to_dict(), codebook=asdict(book), **sizes)
    tower = UserTower(config).eval()
    tower.codebook.codewords.copy_(F.normalize(torch.randn_like(tower.codebook.codewords), dim=-1))
    for parameter in tower.parameters():  # what begins as zero or as the identity hides mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return tower


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest) -> UserTower:
    return make_tower(**TOWERS[request.param])


def random_histories(batch: int, length: int, seed: int = 0) -> Histories:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *more: int) -> Tensor:
        return torch.randint(low, high, (batch, length, *more), generator=generator)

    return Histories(
        codes=draw(0, 256, CODE_BYTES).to(torch.uint8),
        time=1_700_000_000_000 + draw(0, 10**7).cumsum(dim=1),
        scenario=draw(0, 3),
        action=draw(0, 16),
        valid=torch.ones(batch, length, dtype=torch.bool),
    )


def insert_garbage(histories: Histories, places: list[int], seed: int) -> Histories:
    """The same histories with invalid rows of random content at `places`, kept in order."""
    garbage = random_histories(len(histories.valid), len(places), seed)
    garbage = replace(garbage, valid=torch.zeros_like(garbage.valid))
    length = histories.valid.shape[1]
    order = torch.tensor([*range(length), *places], dtype=torch.double)
    order[length:] -= 0.5
    order = order.argsort(stable=True)
    both = zip(vars(histories).values(), vars(garbage).values(), strict=True)
    return Histories(*(torch.cat(pair, dim=1)[:, order] for pair in both))


def must_agree(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_shapes_units_and_weights(tower: UserTower) -> None:
    vectors, weights = tower(random_histories(4, 20))
    assert vectors.shape == (4, 3, 3, tower.config.dim)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4, 3, 3))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 3))
    assert (weights > 0).all()
    assert (vectors[:, :, 0] - vectors[:, :, 1]).abs().max() > 1e-3, "interests differ"
    assert (vectors[:, 0] - vectors[:, 1]).abs().max() > 1e-3, "scenarios differ"


@given(length=st.integers(1, 30), places=st.lists(st.integers(0, 30), max_size=40), seed=st.integers(0, 1_000))
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_padding_and_pending_events_never_matter(tower: UserTower, length: int, places: list[int], seed: int) -> None:
    histories = random_histories(1, length, seed)
    must_agree(tower(histories), tower(insert_garbage(histories, [min(place, length) for place in places], seed + 1)))


@torch.inference_mode()
def test_neighbours_in_the_batch_never_matter(tower: UserTower) -> None:
    short, long = random_histories(2, 5, 1), random_histories(3, 40, 2)
    padded = insert_garbage(short, [5] * 35, 3)
    both = Histories(*(torch.cat(pair) for pair in zip(vars(padded).values(), vars(long).values(), strict=True)))
    must_agree(tower(both), tuple(torch.cat(pair) for pair in zip(tower(short), tower(long), strict=True)))


@torch.inference_mode()
def test_an_empty_history_has_one_finite_answer(tower: UserTower) -> None:
    nothing = random_histories(2, 7)
    nothing = replace(nothing, valid=torch.zeros_like(nothing.valid))
    vectors, weights = tower(nothing)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 3, 3))
    assert weights.isfinite().all()
    must_agree((vectors[0], weights[0]), (vectors[1], weights[1]))
    must_agree((vectors, weights), tower(random_histories(2, 0)))


@torch.inference_mode()
def test_several_cuts_in_one_pass_are_the_histories_cut_there(tower: UserTower) -> None:
    """As long as the LLM reads all events; of a longer history it reads the same recent ones for every cut."""
    length, cuts = 10, torch.tensor([[1, 4, 10], [7, 7, 0]])
    histories = random_histories(2, length)
    items = tower.codebook.decode(histories.codes)
    found = tower.interests(items, histories, cuts, tower.config.apart)
    fused, weights = tower.fuse(found.light, found.refined), found.weights.softmax(dim=-1)
    for row in range(2):
        for number, cut in enumerate(cuts[row].tolist()):
            alone = tower(Histories(*(column[row : row + 1, :cut] for column in vars(histories).values())))
            must_agree((fused[row, number], weights[row, number]), (alone[0][0], alone[1][0]))


@torch.inference_mode()
def test_nothing_is_known_of_what_comes_after_a_cut(tower: UserTower) -> None:
    histories, cuts = random_histories(2, 12), torch.tensor([[6], [9]])
    other = random_histories(2, 12, seed=9)
    after = torch.arange(12) >= cuts
    columns = zip(vars(histories).values(), vars(other).values(), strict=True)
    changed = Histories(*(torch.where(after[..., None] if a.dim() == 3 else after, b, a) for a, b in columns))
    changed = replace(changed, valid=histories.valid)
    apart, decode = tower.config.apart, tower.codebook.decode
    one, two = (tower.interests(decode(some.codes), some, cuts, apart) for some in (histories, changed))
    must_agree(one[:3], two[:3])
    for row, cut in enumerate(cuts[:, 0].tolist()):
        must_agree((one.light_states.values[row, : cut + 1],), (two.light_states.values[row, : cut + 1],))
        must_agree((one.llm_states[row, :cut],), (two.llm_states[row, :cut],))


@torch.inference_mode()
def test_a_scenario_that_is_missing_is_masked_and_not_zeroed(tower: UserTower) -> None:
    """Who was never seen in search: a history of the others alone, of which the LLM reads more."""
    histories = random_histories(1, 30)
    histories = replace(histories, scenario=1 + histories.scenario % 2)
    searched = replace(random_histories(1, 4), scenario=torch.zeros(1, 4).long(), valid=torch.zeros(1, 4).bool())
    joined = zip(vars(searched).values(), vars(histories).values(), strict=True)
    must_agree(tower(histories), tower(Histories(*(torch.cat(pair, dim=1) for pair in joined))))
    assert tower(histories)[0][:, 0].isfinite().all()
    if tower.config.llm_dim:
        cuts = torch.tensor([[30]])
        read = tower.interests(tower.codebook.decode(histories.codes), histories, cuts, tower.config.apart).llm_events
        assert sorted(read[0].tolist()) == sorted(read[0].unique().tolist())
        assert (read >= 0).all()
        assert read.shape == (1, sum(tower.config.quotas))


@torch.inference_mode()
def test_order_scenario_action_and_time_matter(tower: UserTower) -> None:
    histories = random_histories(1, 12)
    changed = {
        "codes": histories.codes.flip(1),
        "scenario": (histories.scenario + 1) % 3,
        "action": (histories.action + 1) % 16,
        "time": histories.time + torch.arange(12) * 3_600_000,
    }
    for name, value in changed.items():
        assert (tower(replace(histories, **{name: value}))[0] - tower(histories)[0]).abs().max() > 1e-4, name


@torch.inference_mode()
def test_the_year_does_not_matter(tower: UserTower) -> None:
    histories = random_histories(2, 12)
    later = replace(histories, time=histories.time + 86_400_000 * 365)  # the same hours of the day
    must_agree(tower(later), tower(histories))


@pytest.mark.parametrize("name", ["both", "both, comirec", "light", "comirec"])
@torch.inference_mode()
def test_old_events_reach_the_interests_through_the_light_recommender(name: str) -> None:
    tower, histories = make_tower(**TOWERS[name]), random_histories(1, 1_024)
    codes = histories.codes.clone()
    codes[:, :900] = codes[:, :1]
    assert (tower(replace(histories, codes=codes))[0] - tower(histories)[0]).abs().max() > 1e-5


@torch.inference_mode()
def test_one_dot_product_adds_the_logits_of_both_branches() -> None:
    tower = make_tower()
    tower.log_scale.copy_(torch.tensor([3.0, 2.0]))
    light, refined = (F.normalize(torch.randn(5, dim), dim=-1) for dim in (8, 12))
    item = F.normalize(torch.randn(20), dim=-1)
    logits = tower.scales()[0] * light @ item[:8] + tower.scales()[1] * refined @ item[8:]
    torch.testing.assert_close(tower.fuse(light, refined) @ item * tower.scales().norm(), logits)
    assert make_tower().scales().tolist() == pytest.approx([20, 20], rel=0.5)


@torch.inference_mode()
def test_a_scenario_that_training_did_not_know_answers_as_the_most_frequent() -> None:
    tower = make_tower(scenarios=(2, 0))
    vectors, weights = tower(random_histories(2, 9))
    must_agree((vectors[:, 1], weights[:, 1]), (vectors[:, 2], weights[:, 2]))
    assert (vectors[:, 0] - vectors[:, 2]).abs().max() > 1e-3


@torch.inference_mode()
def test_a_temperature_divides_the_logits_of_the_weights(tower: UserTower) -> None:
    other = UserTower(tower.config).eval()
    other.load_state_dict(tower.state_dict())
    other.temper(4.0)
    histories = random_histories(2, 6)
    expected = (tower(histories)[1].log() / 4).softmax(dim=-1)
    must_agree((tower(histories)[0], expected), other(histories))


@torch.inference_mode()
def test_a_saved_tower_answers_the_same_and_describes_itself(tower: UserTower, tmp_path: Path) -> None:
    tower.save(tmp_path)
    loaded = UserTower.load(tmp_path)
    lists = {"quotas": tower.config.quotas, "scenarios": tower.config.scenarios}
    assert asdict(loaded.config) == json.loads(json.dumps(asdict(tower.config))) | lists
    for one, other in zip(loaded(random_histories(2, 9)), tower(random_histories(2, 9)), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["user_tower.safetensors"]


@pytest.mark.parametrize(
    "change", [{"colour": 1}, {"llm": {"model_type": "no such"}}, {"llm": {}}, {"width": 12.5}, {}]
)
def test_a_tower_of_another_version_is_one_sentence(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = make_tower()
    tower.codebook.save(tmp_path)
    item_tower = ItemTower(None, ItemTowerConfig((View("id", 8), View("id", 12))), ItemIndex(["a", "b"]))
    item_tower.save(tmp_path)
    stored = asdict(tower.config) | change
    if not change:
        del stored["light_dim"], stored["llm"]
    monkeypatch.setattr("models.user_tower.asdict", lambda _: stored)
    tower.save(tmp_path)
    with pytest.raises(BadInput, match=r"the checkpoint cannot be loaded .*train it anew") as refused:
        repository.load(tmp_path, tmp_path)
    assert "\n" not in str(refused.value)


def test_the_codebook_in_the_tower_is_the_one_it_was_given() -> None:
    config = CodebookConfig(dim=20, levels=2, codewords=16, version=7)
    tower = make_tower()
    tower = UserTower(replace(tower.config, codebook=asdict(config)))
    assert isinstance(tower.codebook, ResidualCodebook)
    assert tower.codebook.config == config


@torch.inference_mode()
def test_apart_the_light_branch_answers_for_a_scenario_by_its_events_alone() -> None:
    """Scenarios 2 and 0 are known; the first also has the events of scenario 1, which training never met."""
    tower = make_tower(llm_dim=0, scenarios=(2, 0), apart=True)
    histories = random_histories(3, 12)
    one = tower(histories)[0]
    for changed, moved in ((0, [0]), (1, [1, 2]), (2, [1, 2])):
        others = torch.where((histories.scenario == changed)[..., None], histories.codes ^ 255, histories.codes)
        two = tower(replace(histories, codes=others))[0]
        for scenario in range(3):
            assert torch.equal(one[:, scenario], two[:, scenario]) == (scenario not in moved), (changed, scenario)


def test_the_light_recommender_is_causal_and_reads_an_explicit_sink() -> None:
    torch.manual_seed(0)
    for light in (LightRecommender(8, 2, 2, 0.0, scenarios=3), SelfAttentive(8, 3, 0.0)):
        light.sink.data.normal_()
        events = torch.randn(2, 6, 8)
        answers = asked(light, events)
        assert answers.shape == (2, 7, 1 if isinstance(light, LightRecommender) else 3, 8)
        for length in range(6):
            torch.testing.assert_close(asked(light, events[:, :length]), answers[:, : length + 1], atol=1e-5, rtol=0)
        light.sink.data.normal_()
        assert (asked(light, events)[:, -1] - answers[:, -1]).abs().max() > 1e-3


def asked(
    light: LightRecommender | SelfAttentive, events: torch.Tensor, scenario: int = 0, group: torch.Tensor | None = None
) -> torch.Tensor:
    """What all states say of a scenario, whose events are those of the `group` of its number."""
    places = torch.arange(events.shape[1] + 1).expand(len(events), -1)
    wanted = torch.full_like(places, scenario)
    states = light(events, torch.full(events.shape[:2], scenario) if group is None else group)
    return light.asked(states, places, wanted, wanted)


def test_the_light_recommender_is_asked_for_a_scenario_wherever_it_stands() -> None:
    torch.manual_seed(0)
    light, events = LightRecommender(8, 2, 2, 0.0, scenarios=3), torch.randn(2, 6, 8)
    one, two = asked(light, events, 0), asked(light, events, 1)
    assert (one - two).abs().amin(dim=1).max() > 1e-3
    place, scenario = torch.tensor([[6, 2, 6], [0, 5, 5]]), torch.tensor([[1, 0, 0], [1, 1, 0]])
    none = torch.zeros(2, 6).long()
    some = light.asked(light(events, none), place, torch.zeros_like(place), scenario)
    for row, column in np.ndindex(2, 3):
        whole = (one, two)[int(scenario[row, column])]
        torch.testing.assert_close(some[row, column], whole[row, place[row, column]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["sasrec", "comirec"])
@given(group=st.lists(st.integers(0, 2), min_size=1, max_size=12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_events_of_a_group_are_read_as_if_there_were_no_others(kind: str, group: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    light = LightRecommender(8, 3, 2, 0.0, scenarios=3) if kind == "sasrec" else SelfAttentive(8, 3, 0.0)
    for parameter in light.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    light.eval()
    events, groups = torch.randn(1, len(group), 8), torch.tensor([group])
    for number in range(3):
        mine = groups[0] == number
        together, alone = asked(light, events, number, groups), asked(light, events[:, mine], number)
        known = F.pad(mine, (1, 0)).cumsum(0)
        torch.testing.assert_close(together, alone[:, known], atol=1e-5, rtol=0)


def test_self_attentive_interests_are_comirecs_formula() -> None:
    torch.manual_seed(0)
    light, events = SelfAttentive(8, 3, 0.0), torch.randn(1, 5, 8)
    H = torch.cat([light.sink[None], events[0]])
    A = (torch.tanh(H @ light.w1.weight.T + light.w1.bias) @ light.w2.weight.T + light.w2.bias).T.softmax(dim=-1)
    torch.testing.assert_close(asked(light, events)[0, -1], light.norm(A @ H))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 50))
@settings(deadline=None)
def test_rotary_products_depend_on_the_distance_alone(i: int, j: int, shift: int) -> None:
    x = torch.randn(8, generator=torch.Generator().manual_seed(i)).expand(100, 8)
    y = torch.randn(8, generator=torch.Generator().manual_seed(j)).expand(100, 8)
    place = torch.arange(100)[:, None]
    torch.testing.assert_close(
        rotate(x, place)[i] @ rotate(y, place)[j],
        rotate(x, place)[i + shift] @ rotate(y, place)[j + shift],
        atol=1e-3,
        rtol=1e-3,
    )
