"""The two models behind a real tritonserver: the served answer is the offline answer, and bad requests stand alone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from models.codebook import ResidualCodebook
from models.contract import (
    ACTIONS,
    DIM,
    INPUTS,
    ITEM_ENCODER,
    OUTPUTS,
    SCENARIOS,
    USER_INTERESTS,
    Tensor,
)
from models.item_tower import ItemTower
from models.serving import join
from models.user_tower import UserTower

REPOSITORY = Path(__file__).parents[2] / "triton_repo"
TOLERANCE = 1e-4

Columns = dict[str, np.ndarray]


@pytest.fixture
async def triton(triton_url: str) -> AsyncIterator[grpc.InferenceServerClient]:
    async with grpc.InferenceServerClient(triton_url) as client:
        yield client


@pytest.fixture(scope="module")
def tower() -> UserTower:
    return UserTower.load(REPOSITORY / USER_INTERESTS / "1")


async def infer(client: grpc.InferenceServerClient, model: str, columns: Columns) -> Columns:
    inputs = []
    for tensor in INPUTS[model]:
        column = grpc.InferInput(tensor.name, list(columns[tensor.name].shape), tensor.dtype)
        inputs.append(column.set_data_from_numpy(columns[tensor.name]))
    result = await client.infer(model, inputs)
    return {tensor.name: result.as_numpy(tensor.name) for tensor in OUTPUTS[model]}


def texts(*rows: str | bytes) -> Columns:
    """Of no item."""
    encoded = [[row if isinstance(row, bytes) else row.encode()] for row in rows]
    return {"TEXT": np.array(encoded, dtype=np.object_), "ITEM_ID": np.array([[b""] for _ in rows], dtype=np.object_)}


def histories(users: int, events: int, seed: int, code_bytes: int) -> Columns:
    """Random histories, the last quarter of whose rows is padding in every second user."""
    rng = np.random.default_rng(seed)
    valid = np.ones((users, events), dtype=np.uint8)
    valid[::2, events * 3 // 4 :] = 0
    return {
        "CODES": rng.integers(0, 256, (users, events, code_bytes), dtype=np.uint8),
        "TIME": 1_700_000_000_000 + rng.integers(0, 10**7, (users, events)).cumsum(axis=1),
        "SCENARIO": rng.integers(0, len(SCENARIOS), (users, events), dtype=np.uint8),
        "ACTION": rng.integers(0, len(ACTIONS), (users, events), dtype=np.uint8),
        "VALID": valid,
        "KNOWN_COARSE": np.full((users, 1), np.nan, np.float16),
    }


@torch.inference_mode()
def offline(tower: UserTower, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """The tower's answer for each history alone."""
    rows = [{name: column[row] for name, column in columns.items()} for row in range(len(columns["TIME"]))]
    answers = [tower(join([row])) for row in rows]
    return torch.cat([vectors for vectors, _ in answers]), torch.cat([weights for _, weights in answers])


async def executions(client: grpc.InferenceServerClient, model: str) -> int:
    statistics = await client.get_inference_statistics(model)
    return int(statistics.model_stats[0].execution_count)


async def test_item_encoder_serves_the_offline_answer(triton: grpc.InferenceServerClient) -> None:
    folder = REPOSITORY / ITEM_ENCODER / "1"
    tower, codebook = ItemTower.load(folder), ResidualCodebook.load(folder)
    rows = ["Fjord slim trail runners Sports", "", "日本語 \U0001f600", "espresso " * 300, "running shoes", "a"]
    requests = [rows[:1], rows[1:4], rows[4:], rows, *[[row] for row in rows]]
    before = await executions(triton, ITEM_ENCODER)
    answers = await asyncio.gather(*(infer(triton, ITEM_ENCODER, texts(*request)) for request in requests))
    assert await executions(triton, ITEM_ENCODER) - before < len(requests), "requests were batched"
    for request, answer in zip(requests, answers, strict=True):
        with torch.inference_mode():
            vectors = tower(request)
        np.testing.assert_allclose(answer["EMBEDDING"], vectors, atol=TOLERANCE)
        np.testing.assert_array_equal(answer["CODES"], codebook.encode(torch.tensor(answer["EMBEDDING"])))
        alike = [answers[4 + rows.index(text)] for text in request]  # each alone: a replay meets other neighbours
        np.testing.assert_array_equal(answer["EMBEDDING"], np.concatenate([one["EMBEDDING"] for one in alike]))
        np.testing.assert_array_equal(answer["CODES"], np.concatenate([one["CODES"] for one in alike]))
        np.testing.assert_allclose(answer["FIDELITY"][:, 0], codebook.fidelity(vectors), atol=TOLERANCE)


async def test_user_interests_serves_the_offline_answer_for_ragged_requests(
    triton: grpc.InferenceServerClient, tower: UserTower
) -> None:
    sizes = [(1, 1), (3, 17), (2, 64), (1, 300), (5, 40), (1, 1_024), (8, 8), (1, 5), (2, 0), (1, 33)]
    width = tower.codebook.config.code_bytes
    requests = [histories(users, events, seed, width) for seed, (users, events) in enumerate(sizes)]
    before = await executions(triton, USER_INTERESTS)
    answers = await asyncio.gather(*(infer(triton, USER_INTERESTS, request) for request in requests))
    assert await executions(triton, USER_INTERESTS) - before < len(requests), "requests were batched"
    for request, answer in zip(requests, answers, strict=True):
        vectors, weights = offline(tower, request)
        np.testing.assert_allclose(answer["INTERESTS"], vectors, atol=TOLERANCE)
        np.testing.assert_allclose(answer["WEIGHTS"], weights, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: c | {"CODES": c["CODES"][:, :, :-1].copy()}, "CODES: has 2 bytes per event; this codebook has 3"),
        (lambda c: c | {"SCENARIO": c["SCENARIO"] + 3}, "SCENARIO: holds"),
        (lambda c: c | {"ACTION": c["ACTION"] + 200}, "ACTION: holds"),
        (lambda c: c | {"VALID": c["VALID"][:, 1:].copy()}, "VALID: is for 2 histories of 8 events where TIME"),
    ],
)
async def test_a_bad_history_is_refused_and_its_neighbours_are_served(
    triton: grpc.InferenceServerClient, tower: UserTower, spoil: Any, reason: str
) -> None:
    good = histories(2, 9, 0, tower.codebook.config.code_bytes)
    calls = [infer(triton, USER_INTERESTS, columns) for columns in (good, spoil(good), good)]
    first, refused, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, InferenceServerException)
    assert refused.status() == "StatusCode.INVALID_ARGUMENT"
    assert reason in refused.message()
    for answer in (first, last):
        np.testing.assert_allclose(answer["INTERESTS"], offline(tower, good)[0], atol=TOLERANCE)


async def test_text_that_is_not_utf8_is_refused_and_its_neighbours_are_served(
    triton: grpc.InferenceServerClient,
) -> None:
    calls = [infer(triton, ITEM_ENCODER, texts(row)) for row in ("running", b"run\xff\xfening", "shoes")]
    first, refused, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, InferenceServerException)
    assert refused.status() == "StatusCode.INVALID_ARGUMENT"
    assert "TEXT: is not valid UTF-8" in refused.message()
    assert first["EMBEDDING"].shape == last["EMBEDDING"].shape == (1, DIM)


@pytest.mark.parametrize("model", [ITEM_ENCODER, USER_INTERESTS])
async def test_the_served_config_keeps_the_contract(triton: grpc.InferenceServerClient, model: str) -> None:
    config = (await triton.get_model_config(model)).config
    for promised, served in ((INPUTS[model], config.input), (OUTPUTS[model], config.output)):
        assert [_tensor(tensor) for tensor in served] == list(promised)
    queue = config.dynamic_batching.default_queue_policy
    assert queue.max_queue_size > 0
    assert config.model_warmup


async def test_the_parameters_are_those_of_the_weights(triton: grpc.InferenceServerClient, tower: UserTower) -> None:
    config = (await triton.get_model_config(USER_INTERESTS)).config
    stated = {name: int(value.string_value) for name, value in config.parameters.items()}
    book = tower.codebook.config
    assert stated == {
        "codebook_version": book.version,
        "code_bytes": book.code_bytes,
        "dim": DIM,
        "interests": tower.config.interests,
    }
    answer = await infer(triton, USER_INTERESTS, histories(1, 4, 0, book.code_bytes))
    assert answer["INTERESTS"].shape == (1, len(SCENARIOS), stated["interests"], stated["dim"])


def _tensor(served: Any) -> Tensor:
    dtype = grpc.model_config_pb2.DataType.Name(served.data_type).removeprefix("TYPE_")
    return Tensor(served.name, "BYTES" if dtype == "STRING" else dtype, tuple(served.dims))
