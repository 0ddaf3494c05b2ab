"""The user tower: shapes, and that nothing but the valid events decides."""

import json
from dataclasses import asdict, replace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from transformers import GPT2Config, Qwen2Config

from models.codebook import CodebookConfig, ResidualCodebook
from models.events import Histories
from models.light import LightRecommender
from models.loss import InfoNCE, interest_loss, near_duplicates, nearest_query
from models.tiny import llama_config
from models.user_tower import UserTower, UserTowerConfig

LLMS = {
    "llama": llama_config(1, 32, 2),
    "qwen2": Qwen2Config(
        vocab_size=1,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "gpt2": GPT2Config(vocab_size=1, n_embd=32, n_layer=1, n_head=2),
}


def make_tower(llm: str = "llama", **sizes: int) -> UserTower:
    torch.manual_seed(0)
    tower = UserTower(UserTowerConfig(LLMS[llm].to_dict(), quotas=(4, 4, 4), **sizes)).eval()
    tower.codebook.codewords.copy_(F.normalize(torch.randn_like(tower.codebook.codewords), dim=-1))
    return tower


@pytest.fixture(scope="module")
def tower() -> UserTower:
    return make_tower()


def random_histories(batch: int, length: int, seed: int = 0) -> Histories:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *more: int) -> torch.Tensor:
        return torch.randint(low, high, (batch, length, *more), generator=generator)

    return Histories(
        codes=draw(0, 256, 3).to(torch.uint8),
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


@pytest.mark.parametrize("llm", LLMS)
@torch.inference_mode()
def test_shapes_units_and_weights(llm: str) -> None:
    vectors, weights = make_tower(llm, interests=5)(random_histories(3, 20))
    assert vectors.shape == (3, 3, 5, 64)
    assert weights.shape == (3, 3, 5)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3, 3, 5))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 3))
    assert (weights > 0).all()


@given(length=st.integers(1, 30), places=st.lists(st.integers(0, 30), max_size=40), seed=st.integers(0, 1_000))
@settings(max_examples=40, deadline=None)
@torch.inference_mode()
def test_padding_and_pending_events_never_matter(tower: UserTower, length: int, places: list[int], seed: int) -> None:
    histories = random_histories(1, length, seed)
    padded = insert_garbage(histories, [min(place, length) for place in places], seed + 1)
    for one, other in zip(tower(histories), tower(padded), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_neighbours_in_the_batch_never_matter(tower: UserTower) -> None:
    short, long = random_histories(2, 5, 1), random_histories(3, 40, 2)
    padded = insert_garbage(short, [5] * 35, 3)
    together = tower(
        Histories(*(torch.cat(pair) for pair in zip(vars(padded).values(), vars(long).values(), strict=True)))
    )
    alone = [torch.cat(pair) for pair in zip(tower(short), tower(long), strict=True)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_an_empty_history_has_one_finite_answer(tower: UserTower) -> None:
    nothing = random_histories(2, 7)
    nothing = replace(nothing, valid=torch.zeros_like(nothing.valid))
    vectors, weights = tower(nothing)
    assert vectors.isfinite().all()
    assert weights.isfinite().all()
    shorter = nothing.newest(1)
    torch.testing.assert_close(vectors[0], tower(shorter)[0][0], atol=2e-5, rtol=0)


@torch.inference_mode()
def test_time_counts_from_the_newest_event(tower: UserTower) -> None:
    histories = random_histories(2, 20)
    later = replace(histories, time=histories.time + 86_400_000 * 365)  # the same hours of the day, a year on
    torch.testing.assert_close(tower(later)[0], tower(histories)[0])


@torch.inference_mode()
def test_order_scenario_and_action_matter(tower: UserTower) -> None:
    histories = random_histories(1, 20)
    changed = {
        "codes": histories.codes.flip(1),
        "scenario": (histories.scenario + 1) % 3,
        "action": (histories.action + 1) % 16,
        "time": histories.time + torch.arange(20) * 3_600_000,
    }
    for name, value in changed.items():
        other = replace(histories, **{name: value})
        assert (tower(other)[0] - tower(histories)[0]).abs().max() > 1e-4, name


@torch.inference_mode()
def test_old_events_reach_the_interests_through_the_light_recommender(tower: UserTower) -> None:
    histories = random_histories(1, 1_024)
    codes = histories.codes.clone()
    codes[:, :900] = codes[:, :1]
    assert (tower(replace(histories, codes=codes))[0] - tower(histories)[0]).abs().max() > 1e-4


def test_light_recommender_is_comirec_attention() -> None:
    light = LightRecommender(8, 2)
    events, valid = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    H = torch.cat([light.sink[None], events[0]])
    A = (torch.tanh(H @ light.w1.weight.T + light.w1.bias) @ light.w2.weight.T + light.w2.bias).T.softmax(dim=-1)
    torch.testing.assert_close(light(events, valid)[0], A @ H)


def test_info_nce_is_the_cross_entropy_of_the_target_without_near_duplicates() -> None:
    loss = InfoNCE()
    query, target, negatives = (F.normalize(torch.randn(n, 8), dim=-1) for n in (1, 1, 6))
    negatives = torch.cat([negatives, target])
    masked = near_duplicates(target, negatives)
    assert masked.tolist() == [[False] * 6 + [True]]
    logits = query @ torch.cat([target, negatives[:6]]).T / 0.07
    expected = F.cross_entropy(logits, torch.tensor([0]))
    torch.testing.assert_close(loss(query[:, None], target, negatives, masked)[0, 0], expected)


def test_each_target_trains_its_query_most() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    interest_loss(losses, torch.zeros(2, 2), torch.tensor([0, 1])).backward()
    assert losses.grad[0, 0] > 10 * losses.grad[0, 1] > 0
    assert losses.grad[1, 1] > 10 * losses.grad[1, 0] > 0


def test_no_query_gets_all_targets_and_the_likeliest_still_get_theirs() -> None:
    similarity = torch.rand(60, 4) * 0.1
    similarity[:, 2] += 0.5
    similarity[:15, 0] += 0.3
    scenario = torch.arange(60) % 3
    chosen = nearest_query(similarity, scenario)
    for code in range(3):
        assert chosen[scenario == code].bincount(minlength=4).min() >= 2
    assert (chosen[:15] == 0).float().mean() > 0.8


@torch.inference_mode()
def test_a_saved_tower_answers_the_same_and_describes_itself(tower: UserTower, tmp_path) -> None:
    tower.save(tmp_path)
    loaded = UserTower.load(tmp_path)
    assert asdict(loaded.config) == json.loads(json.dumps(asdict(tower.config))) | {"quotas": tower.config.quotas}
    torch.testing.assert_close(loaded(random_histories(2, 9))[0], tower(random_histories(2, 9))[0])


def test_the_codebook_in_the_tower_is_the_one_it_was_given() -> None:
    config = CodebookConfig(levels=2, codewords=16, version=7)
    tower = UserTower(UserTowerConfig(LLMS["llama"].to_dict(), codebook=vars(config)))
    assert isinstance(tower.codebook, ResidualCodebook)
    assert tower.codebook.config == config
