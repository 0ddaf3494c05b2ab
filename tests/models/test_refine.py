"""The LLM branch: who may look at whom, for every kind of LLM."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from transformers import GPT2Config, MistralConfig, Qwen2Config

from models.events import Histories
from models.refine import Refiner, layout
from models.tiny import llama_config

SMALL = {"vocab_size": 1, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LLMS: dict[str, dict[str, Any]] = {
    "llama": llama_config(1, 16, 2, heads=2).to_dict(),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=1).to_dict(),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=4).to_dict(),
    "gpt2": GPT2Config(vocab_size=1, n_embd=16, n_layer=2, n_head=2).to_dict(),
}
QUOTAS = (6, 6, 6)


def refiner(llm: str = "llama", coarse_dim: int = 4, quotas: tuple[int, ...] = QUOTAS) -> Refiner:
    torch.manual_seed(0)
    return Refiner(LLMS[llm], 8, coarse_dim, (3, 2), quotas, 0.0).eval()


def inputs(batch: int, length: int, cuts: int, coarse_dim: int = 4) -> tuple[torch.Tensor, Histories, torch.Tensor]:
    """Item vectors, histories and coarse interests."""
    generator = torch.Generator().manual_seed(length)

    def draw(high: int) -> torch.Tensor:
        return torch.randint(high, (batch, length), generator=generator)

    time = draw(10**7).cumsum(dim=1)
    events = Histories(draw(1)[..., None].byte(), time, draw(3), draw(16), torch.ones(batch, length, dtype=torch.bool))
    coarse = F.normalize(torch.randn(batch, cuts, 3, 2, coarse_dim, generator=generator), dim=-1)
    return F.normalize(torch.randn(batch, length, 8, generator=generator), dim=-1), events, coarse


def until(events: Histories, length: int) -> Histories:
    return Histories(*(column[:, :length] for column in vars(events).values()))


@given(events=st.integers(0, 6), known=st.lists(st.integers(0, 6), min_size=1, max_size=4), group=st.integers(1, 4))
@settings(deadline=None)
def test_every_token_sees_what_it_would_see_alone(events: int, known: list[int], group: int) -> None:
    known = [min(count, events) for count in known]
    mask, position = layout(events, torch.tensor([known]), group)
    assert mask.shape == (1, 1, events + len(known) * group, events + len(known) * group)
    for token in range(events):
        assert mask[0, 0, token].nonzero()[:, 0].tolist() == list(range(token + 1))
        assert position[0, token] == token
    for number, count in enumerate(known):
        first = events + number * group
        for place in range(group):
            seen = [*range(count), *range(first, first + place + 1)]
            assert mask[0, 0, first + place].nonzero()[:, 0].tolist() == seen
            assert position[0, first + place] == count + place, "as if it stood right behind the events"


@pytest.mark.parametrize("llm", LLMS)
@torch.inference_mode()
def test_several_cuts_in_one_pass_are_the_histories_cut_there(llm: str) -> None:
    model, length = refiner(llm), 9
    cuts = torch.tensor([[0, 1, 5, 9], [3, 3, 8, 2]])
    items, events, coarse = inputs(2, length, 4)
    together, weights, states, mixed = model(items, events, coarse, cuts)
    assert mixed.rows.tolist() == [list(range(length))] * 2
    for row in range(2):
        for number, cut in enumerate(cuts[row].tolist()):
            one = until(Histories(*(column[row : row + 1] for column in vars(events).values())), cut)
            given = (
                items[row : row + 1, :cut],
                one,
                coarse[row : row + 1, number : number + 1],
                cuts[row, number][None, None],
            )
            alone, weight, state, _ = model(*given)
            torch.testing.assert_close(together[row, number], alone[0, 0], atol=1e-5, rtol=0)
            torch.testing.assert_close(weights[row, number], weight[0, 0], atol=1e-5, rtol=0)
            torch.testing.assert_close(states[row, :cut], state[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("llm", LLMS)
@torch.inference_mode()
def test_nothing_is_known_of_what_comes_after_a_cut(llm: str) -> None:
    model, cut = refiner(llm, quotas=(3, 3, 3)), torch.tensor([[8]])
    items, events, coarse = inputs(1, 12, 1)
    changed = items.clone()
    changed[:, 8:] = items[:, 8:].flip(1)
    before, after = model(items, events, coarse, cut), model(changed, events, coarse, cut)
    for one, other in zip(before[:2], after[:2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    known = (before[3].rows < 8) & before[3].picked
    torch.testing.assert_close(before[2][known], after[2][known], atol=1e-6, rtol=0)
    assert (before[2] - after[2])[~known].abs().max() > 1e-3


@torch.inference_mode()
def test_coarse_interests_of_the_cut_alone_are_read() -> None:
    model, cuts = refiner(), torch.tensor([[3, 6]])
    items, events, coarse = inputs(1, 6, 2)
    changed = coarse.clone()
    changed[:, 1] = coarse[:, 1].flip(-1)
    before, after = model(items, events, coarse, cuts)[0], model(items, events, changed, cuts)[0]
    torch.testing.assert_close(before[:, 0], after[:, 0], atol=1e-6, rtol=0)
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-4


@torch.inference_mode()
def test_without_a_light_branch_there_are_no_coarse_tokens() -> None:
    items, events, coarse = inputs(2, 5, 1, coarse_dim=0)
    interests = refiner(coarse_dim=0)(items, events, coarse, torch.tensor([[5], [2]]))[0]
    torch.testing.assert_close(interests.norm(dim=-1), torch.ones(2, 1, 3, 2))


def test_dropout_falls_on_every_block_in_training_alone() -> None:
    torch.manual_seed(0)
    model = Refiner(LLMS["llama"], 8, 4, (3, 2), QUOTAS, 0.5)
    model.encoder.dropout.p = model.head.dropout.p = 0.0
    items, events, coarse = inputs(1, 5, 1)
    one, other = (model(items, events, coarse, torch.tensor([[5]]))[2] for _ in range(2))
    assert (one - other).abs().max() > 1e-3
    model.eval()
    one, other = (model(items, events, coarse, torch.tensor([[5]]))[2] for _ in range(2))
    assert torch.equal(one, other)
