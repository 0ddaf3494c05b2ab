"""Item ids to rows."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from models import item_index
from models.errors import BadInput
from models.item_index import UNKNOWN, ItemIndex

IDS = st.lists(st.text(st.characters(exclude_categories=()), min_size=1), unique=True)


@given(ids=IDS, others=IDS)
@settings(max_examples=50, deadline=None)
def test_every_id_has_its_row_and_no_other_has_one(ids: list[str], others: list[str]) -> None:
    index = ItemIndex(ids)
    assert index.rows(ids).tolist() == list(range(len(ids)))
    assert index.ids() == ids
    assert len(index) == len(ids)
    assert index.rows([*others, ""]).tolist() == [*(ids.index(o) if o in ids else UNKNOWN for o in others), UNKNOWN]


def test_ids_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_index, "_hash", lambda name: len(name) % 2)
    ids = ["a", "b", "cc", "dd", "e"]
    assert ItemIndex(ids).rows([*ids, "f", "ff"]).tolist() == [0, 1, 2, 3, 4, UNKNOWN, UNKNOWN]


def test_a_saved_index_is_the_same_and_an_absent_one_is_empty(tmp_path: Path) -> None:
    assert ItemIndex.load(tmp_path).rows(["a"]).tolist() == [UNKNOWN]
    ids = [f"item-{number}" for number in np.random.default_rng(0).permutation(5_000)]
    ItemIndex(ids).save(tmp_path)
    loaded = ItemIndex.load(tmp_path)
    assert loaded.rows(ids).tolist() == list(range(5_000))
    assert loaded.ids() == ids
    assert [path.name for path in tmp_path.iterdir()] == [item_index.FILE]


def test_an_empty_or_repeated_id_is_refused() -> None:
    with pytest.raises(BadInput, match="item 1 of the id table has an empty id"):
        ItemIndex(["a", ""])
    with pytest.raises(BadInput, match="'b' is there twice"):
        ItemIndex(["a", "b", "c", "b"])
