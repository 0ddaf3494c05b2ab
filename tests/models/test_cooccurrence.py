"""Where id vectors begin: counted as by hand, of training alone, neighbours together."""

from collections import Counter
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.sparse import csr_matrix

from models.contract import ACTIONS
from models.cooccurrence import LENGTH, NOISE, REACH, directions, id_vectors, information, pair_counts, worlds
from models.dataset import Behaviour
from tests.models.populations import behaviour

ITEMS = 6
SKIP = ACTIONS.index("skip")
CLICK = ACTIONS.index("click")
HISTORIES = st.lists(
    st.lists(
        st.tuples(st.integers(0, ITEMS + 1), st.integers(0, 2), st.sampled_from([CLICK, SKIP])), min_size=1, max_size=12
    ),
    min_size=1,
    max_size=5,
)


def rows(data: Behaviour) -> np.ndarray:
    """Every item is in the table, no query is."""
    return np.where(np.arange(len(data.texts)) < data.items, np.arange(len(data.texts)), -1)


def everything(data: Behaviour) -> np.ndarray:
    return np.ones(len(data.text), dtype=bool)


@given(histories=HISTORIES)
@settings(max_examples=100, deadline=None)
def test_pairs_are_counted_as_by_hand(histories: list[list[tuple[int, int, int]]]) -> None:
    data = behaviour(histories, items=ITEMS, queries=2)
    by_hand: Counter[tuple[int, int]] = Counter()
    for history in histories:
        for asked in range(3):
            met = [i for i, scenario, action in history if i < ITEMS and action != SKIP and scenario == asked]
            for (i, a), (j, b) in product(enumerate(met), repeat=2):
                if a != b and 0 < abs(i - j) <= REACH:
                    by_hand[a, b] += 1 / abs(i - j)
    found = pair_counts(data, everything(data), rows(data), ITEMS).toarray()
    expected = np.zeros((ITEMS, ITEMS))
    for pair, count in by_hand.items():
        expected[pair] = count
    np.testing.assert_allclose(found, expected)


def test_information_is_that_of_the_formula() -> None:
    counts = np.array([[0.0, 4.0, 1.0], [4.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    total = counts.sum(axis=1)
    common = total**0.75
    with np.errstate(divide="ignore"):
        expected = np.log(counts * common.sum() / np.outer(total, common)).clip(min=0)
    np.testing.assert_allclose(information(csr_matrix(counts)).toarray(), expected)


def test_directions_are_the_largest_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.normal(size=(150, 150)))[0] for _ in range(2))
    strength = 0.8 ** np.arange(150)
    expected = left[:, :4] * np.sqrt(strength[:4])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = directions(csr_matrix(left * strength @ right.T), 4, rng)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


@given(pairs=st.integers(1, 120), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_equal_singular_values_do_no_harm(pairs: int, seed: int) -> None:
    """As many pairs of items that nothing else joins have."""
    known = csr_matrix(np.kron(np.eye(pairs), [[0.0, 2.0], [2.0, 0.0]]))
    found = directions(known, 64, np.random.default_rng(seed))
    assert found.shape == (2 * pairs, min(64, 2 * pairs - 1))
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, axis=1).max() == pytest.approx(1)


def two_groups(users: int = 40) -> Behaviour:
    """Items 0 to 4 are met together, and 5 to 9; item 10 never."""
    rng = np.random.default_rng(1)
    histories = [[(5 * (user % 2) + int(rng.integers(5)), 0, CLICK) for _ in range(8)] for user in range(users)]
    return behaviour(histories, items=11)


def test_items_met_together_begin_together() -> None:
    data = two_groups()
    vectors = torch.nn.functional.normalize(id_vectors(data, everything(data), rows(data), 8, seed=0)[:10], dim=-1)
    cosines = vectors @ vectors.T
    group = torch.arange(10) // 5
    same = group[:, None] == group
    apart = cosines[~same].max()
    assert cosines[same].mean() > apart + 0.3
    assert (id_vectors(data, everything(data), rows(data), 8, seed=0)[10].norm() < 3 * NOISE * LENGTH).all()


def test_only_training_decides_and_the_seed_repeats_it() -> None:
    data = two_groups()
    training = np.arange(len(data.text)) % 8 < 5
    vectors = id_vectors(data, training, rows(data), 8, seed=3)
    torch.testing.assert_close(vectors, id_vectors(data, training, rows(data), 8, seed=3), rtol=0, atol=0)
    data.text[~training] = 10  # what comes later is something else
    torch.testing.assert_close(vectors, id_vectors(data, training, rows(data), 8, seed=3), rtol=0, atol=0)


def test_worlds_apart_have_all_components_each() -> None:
    blocks = np.zeros((9, 9))
    blocks[:4, :4] = blocks[4:7, 4:7] = 1
    blocks[7, 8] = blocks[8, 7] = 1
    known = csr_matrix(blocks - np.eye(9) * blocks)
    assert [group.tolist() for group in worlds(known, least=2)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    assert [group.tolist() for group in worlds(known, least=3)] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    assert [group.tolist() for group in worlds(known, least=9)] == [list(range(9))]


@pytest.mark.parametrize("items", [0, 1, 2, 3, 9])
def test_any_number_of_items_will_do(items: int) -> None:
    data = behaviour([[(item % max(items, 1), 0, CLICK) for item in range(6)]], items=max(items, 1))
    table = rows(data) if items else np.array([-1])
    vectors = id_vectors(data, everything(data), table, 8, seed=0)
    assert vectors.shape == (items, 8)
    assert vectors.isfinite().all()
