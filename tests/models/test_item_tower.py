"""The item tower: texts and ids to unit vectors, in every view."""

from pathlib import Path

import pytest
import torch

from models.errors import BadInput
from models.item_index import ItemIndex
from models.item_tower import ItemTower, ItemTowerConfig
from models.item_vectors import View
from models.text_encoder import TextEncoder
from models.tiny import llama, train_tokenizer

TEXTS = ["trail running shoes", "espresso machine", "", "日本語 \U0001f600 ß \x00", "running " * 500]
IDS = ["shoes", "", "nothing", "japan", "running"]
WARM = ItemIndex(["running", "shoes", "nothing"])
VIEWS = {
    "text": (View("text", 8),),
    "id": (View("id", 8),),
    "both": (View("both", 8),),
    "id | text": (View("id", 6, share=2), View("text", 8)),
}


def tower_of(views: tuple[View, ...], images: torch.Tensor | None = None) -> ItemTower:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    texts = TextEncoder(llama(len(tokenizer), 16, 2, heads=2), tokenizer, max_tokens=40)
    return ItemTower(texts, ItemTowerConfig(views), WARM, images).eval()


@pytest.fixture(scope="module", params=VIEWS)
def tower(request: pytest.FixtureRequest) -> ItemTower:
    return tower_of(VIEWS[request.param], torch.eye(3) if request.param == "both" else None)


@torch.inference_mode()
def test_any_text_and_id_give_a_unit_vector_whatever_their_neighbours_are(tower: ItemTower) -> None:
    together = tower(TEXTS, IDS)
    assert together.shape == (len(TEXTS), tower.config.dim)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(TEXTS)))
    alone = [tower([text], [name]) for text, name in zip(TEXTS, IDS, strict=True)]
    assert torch.equal(together, torch.cat(alone)), "or a replay would give an item other codes"
    assert tower([]).shape == (0, tower.config.dim)
    torch.testing.assert_close(tower(TEXTS), tower(TEXTS, ["cold"] * len(TEXTS)), msg="no id is an unknown id")


@torch.inference_mode()
def test_a_saved_tower_answers_the_same(tower: ItemTower, tmp_path: Path) -> None:
    tower.save(tmp_path)
    loaded = ItemTower.load(tmp_path)
    assert loaded.config == tower.config
    torch.testing.assert_close(loaded(TEXTS, IDS), tower(TEXTS, IDS))


@torch.inference_mode()
def test_served_is_trained_the_second_stage_over_cached_features_is_the_tower(tower: ItemTower) -> None:
    rows = tower.rows(IDS)
    assert rows.tolist() == [1, -1, 2, -1, 0]
    features = tower.features(TEXTS, rows)
    torch.testing.assert_close(tower.vectors(features, rows), tower(TEXTS, IDS))


@torch.inference_mode()
def test_a_warm_item_has_a_residual_of_its_own_and_a_cold_one_is_its_text() -> None:
    tower = tower_of(VIEWS["both"])
    part = tower.vectors.parts[0]
    text = part.head(tower.texts(TEXTS[:2]))
    torch.testing.assert_close(tower(TEXTS[:2]), text)
    own = torch.nn.functional.normalize(text[:1] + part.table.weight[2], dim=-1)  # "shoes" is row 1, behind the padding
    torch.testing.assert_close(tower(TEXTS[:1], ["shoes"]), own)


@torch.inference_mode()
def test_the_dot_product_of_two_views_is_the_mean_of_their_cosines_by_share() -> None:
    tower = tower_of(VIEWS["id | text"])
    texts = [TEXTS[0], TEXTS[4]]
    rows = tower.rows(["shoes", "running"])
    whole = tower.vectors(tower.features(texts, rows), rows)
    ids, heads = (part(tower.texts(texts), rows) / part.length for part in tower.vectors.parts)
    torch.testing.assert_close(whole[0] @ whole[1], (2 * ids[0] @ ids[1] + heads[0] @ heads[1]) / 3)


@torch.inference_mode()
def test_a_view_that_knows_nothing_leaves_the_vector_to_the_others() -> None:
    tower = tower_of(VIEWS["id | text"])
    cold, blank, nothing = tower(["espresso machine", " ", ""], ["new", "shoes", ""])
    assert cold[:6].abs().max() == 0
    assert blank[6:].abs().max() == 0
    torch.testing.assert_close(nothing, torch.nn.functional.normalize(tower.vectors.unknown, dim=0))


@torch.inference_mode()
def test_images_belong_to_warm_items() -> None:
    first, second = tower_of(VIEWS["text"], torch.eye(3)), tower_of(VIEWS["text"], 2 * torch.eye(3))
    texts = ["espresso machine", ""]
    assert (first(texts, ["shoes", "nothing"]) - second(texts, ["shoes", "nothing"])).abs().amax(dim=1).min() > 1e-4
    torch.testing.assert_close(first(texts, ["new", ""])[0], second(texts, ["new", ""])[0])


def test_everything_is_trained_but_what_is_hidden() -> None:
    tower = tower_of(VIEWS["both"])
    tower(TEXTS, IDS).square()[:, 0].sum().backward()
    part = tower.vectors.parts[0]
    for parameter in (part.head.project.weight, tower.texts.token, tower.texts.language_model.layers[0].mlp.up_proj):
        grad = parameter.grad if isinstance(parameter, torch.nn.Parameter) else parameter.weight.grad
        assert grad.abs().sum() > 0
    assert (part.table.weight.grad.abs().sum(dim=1) > 0).tolist() == [False, True, True, True]


def test_a_view_of_text_needs_something_to_read() -> None:
    with pytest.raises(BadInput, match="take views of ids alone"):
        ItemTower(None, ItemTowerConfig(), WARM)
    assert ItemTower(None, ItemTowerConfig(VIEWS["id"]), WARM).texts is None
    assert ItemTower(None, ItemTowerConfig(VIEWS["both"]), WARM, torch.eye(3))(["", ""], ["shoes", "x"]).shape == (2, 8)
