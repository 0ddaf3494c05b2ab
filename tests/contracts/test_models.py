"""One contract for `Models`: the in-memory twin and a tritonserver. How the adapter meets servers that are wrong, late
or gone is tried on a gRPC server that speaks Triton's protocol and says what the test wants."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from models.contract import ACTIONS, DIM, ITEM_ENCODER, SCENARIOS, USER_INTERESTS
from stream.adapters.memory import MemoryModels
from stream.adapters.triton import TritonModels
from stream.errors import Permanent, Transient
from stream.health import why_not
from stream.ports import HistoryTensors, ModelCard, Models

TIMEOUT = 30.0  # seconds; the machine may be busy
TEXTS = ["running shoes", "moka pot", "a", "Ωμέγα 🦉 \u202e", "word " * 800, "running shoes"]


@pytest.fixture(params=["twin", "triton"])
async def models(request: Any) -> AsyncIterator[Models]:
    if request.param == "twin":
        yield MemoryModels()
        return
    served = TritonModels(request.getfixturevalue("triton_url"), TIMEOUT)
    await served.check_ready()
    yield served
    await served.close()


def histories(card: ModelCard, lengths: list[int], padding: int = 0) -> HistoryTensors:
    """Row i holds `lengths[i]` events, the same ones whatever else is in the batch."""
    shape = (len(lengths), max(lengths, default=0) + padding)
    codes, time = np.zeros((*shape, card.code_bytes), np.uint8), np.zeros(shape, np.int64)
    scenario, action, valid = (np.zeros(shape, np.uint8) for _ in range(3))
    for row, length in enumerate(lengths):
        draw = np.random.default_rng(length)
        codes[row, :length] = draw.integers(0, 256, (length, card.code_bytes))
        time[row, :length] = 1_700_000_000_000 + np.sort(draw.integers(0, 30 * 86_400_000, length))
        scenario[row, :length] = draw.integers(0, len(SCENARIOS), length)
        action[row, :length] = draw.integers(0, len(ACTIONS), length)
        valid[row, :length] = 1
    return HistoryTensors(codes, time, scenario, action, valid)


async def test_the_card_says_what_is_served(models: Models) -> None:
    card = await models.card()
    assert card.dim == (await models.encode(TEXTS)).embeddings.shape[1]
    assert card.interests >= 1
    assert 1 <= card.codebook_version <= 65_535
    assert card == await models.card()


async def test_texts_become_unit_embeddings_and_codes(models: Models) -> None:
    card, encoded = await models.card(), await models.encode(TEXTS)
    assert (encoded.embeddings.shape, encoded.embeddings.dtype) == ((len(TEXTS), DIM), np.float32)
    assert (encoded.codes.shape, encoded.codes.dtype) == ((len(TEXTS), card.code_bytes), np.uint8)
    assert (encoded.fidelity.shape, encoded.fidelity.dtype) == ((len(TEXTS),), np.float32)
    np.testing.assert_allclose(np.linalg.norm(encoded.embeddings, axis=1), 1, atol=1e-4)
    assert (np.abs(encoded.fidelity) <= 1 + 1e-4).all()
    assert (encoded.codes[0] == encoded.codes[-1]).all()
    assert not np.allclose(encoded.embeddings[0], encoded.embeddings[1])


async def test_a_text_is_encoded_alike_in_any_company(models: Models) -> None:
    together = await models.encode(TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose((await models.encode([text])).embeddings[0], together.embeddings[i], atol=1e-4)


async def test_more_texts_than_a_batch_keep_their_order(models: Models) -> None:
    texts = [f"item {i % 300}" for i in range(301)]
    encoded = await models.encode(texts)
    assert encoded.embeddings.shape == (301, DIM)
    np.testing.assert_allclose(encoded.embeddings[0], encoded.embeddings[300], atol=1e-4)


async def test_histories_become_unit_interests_and_weights(models: Models) -> None:
    card = await models.card()
    out = await models.interests(histories(card, [1, 40, 0, 7]))
    assert (out.vectors.shape, out.vectors.dtype) == ((4, len(SCENARIOS), card.interests, DIM), np.float32)
    assert (out.weights.shape, out.weights.dtype) == ((4, len(SCENARIOS), card.interests), np.float32)
    np.testing.assert_allclose(np.linalg.norm(out.vectors, axis=-1), 1, atol=1e-4)
    np.testing.assert_allclose(out.weights.sum(-1), 1, atol=1e-4)
    assert (out.weights > 0).all()
    assert not np.allclose(out.vectors[0], out.vectors[1])


async def test_a_history_is_read_alike_in_any_company_and_padding(models: Models) -> None:
    card = await models.card()
    together = await models.interests(histories(card, [1, 40, 7], padding=3))
    for i, length in enumerate([1, 40, 7]):
        alone = await models.interests(histories(card, [length]))
        np.testing.assert_allclose(alone.vectors[0], together.vectors[i], atol=1e-4)
        np.testing.assert_allclose(alone.weights[0], together.weights[i], atol=1e-4)


async def test_what_is_not_valid_is_not_read(models: Models) -> None:
    card = await models.card()
    clean, dirty = histories(card, [9], padding=2), histories(card, [9], padding=2)
    dirty.codes[0, 9:], dirty.action[0, 9:] = 255, 3
    np.testing.assert_allclose(
        (await models.interests(clean)).vectors, (await models.interests(dirty)).vectors, atol=1e-4
    )


async def test_an_item_has_an_id_and_a_query_none(models: Models) -> None:
    """What the id of an item that the model does not know changes: nothing."""
    of_items, of_none = await models.encode(TEXTS, [f"unheard of {i}" for i in range(6)]), await models.encode(TEXTS)
    np.testing.assert_allclose(of_items.embeddings, of_none.embeddings, atol=1e-4)


async def test_a_warm_item_is_known_by_its_id() -> None:
    twin = MemoryModels(dim=8, warm=frozenset({"i1"}))
    encoded = await twin.encode(["tea", "pot", "tea"], ["i1", "i1", "i2"])
    assert encoded.embeddings.shape == (3, 8)
    assert (encoded.codes[0] == encoded.codes[1]).all()
    assert (encoded.codes[2] == (await twin.encode(["tea"])).codes[0]).all()


async def test_answers_of_another_codebook_are_not_taken(triton_url: str) -> None:
    served = TritonModels(triton_url, TIMEOUT)
    card = await served.card()
    served.keep_to(card.codebook_version)
    await served.encode(["tea"])
    served = TritonModels(triton_url, TIMEOUT)
    served.keep_to(card.codebook_version + 1)
    with pytest.raises(Transient, match=rf"item_encoder \d+ is of codebook {card.codebook_version}, what is stored"):
        await served.encode(["tea"])
    with pytest.raises(Transient, match=rf"user_interests \d+ is of codebook {card.codebook_version}"):
        await served.interests(histories(card, [3]))
    await served.close()


async def test_what_was_known_of_the_same_history_changes_nothing_and_of_another_does(models: Models) -> None:
    asked = histories(await models.card(), [70, 5, 0, 200])
    first = await models.interests(asked)
    assert first.coarse is not None
    again = await models.interests(replace(asked, coarse=first.coarse))
    np.testing.assert_allclose(again.vectors, first.vectors, atol=2e-3)  # they travel as half floats
    np.testing.assert_allclose(again.weights, first.weights, atol=2e-3)
    np.testing.assert_array_equal(again.coarse, first.coarse)

    half = first.coarse[[1, 1, 1, 1]].copy()
    half[2:] = np.nan
    other = await models.interests(replace(asked, coarse=half))
    np.testing.assert_allclose(other.weights[1:], first.weights[1:], atol=2e-3)
    assert np.abs(other.weights[0] - first.weights[0]).max() > 5e-3
    np.testing.assert_allclose(other.coarse, np.where(np.isnan(half), first.coarse, half), atol=2e-3)


async def test_calls_may_overlap(models: Models) -> None:
    card = await models.card()
    answers = await asyncio.gather(*(models.interests(histories(card, [n])) for n in (1, 2, 3, 1)))
    np.testing.assert_allclose(answers[0].vectors, answers[-1].vectors, atol=1e-4)


async def test_a_request_that_makes_no_sense_is_permanent(triton_url: str) -> None:
    served = TritonModels(triton_url, TIMEOUT)
    wrong = histories(await served.card(), [3])
    with pytest.raises(Permanent, match="Triton: "):
        await served.interests(HistoryTensors(wrong.codes[0], wrong.time, wrong.scenario, wrong.action, wrong.valid))
    await served.close()


ENCODER = """
    max_batch_size: 2
    input { name: "TEXT" data_type: TYPE_STRING dims: 1 }
    input { name: "ITEM_ID" data_type: TYPE_STRING dims: 1 }
    output { name: "EMBEDDING" data_type: TYPE_FP32 dims: 64 }
    output { name: "CODES" data_type: TYPE_UINT8 dims: 4 }
    output { name: "FIDELITY" data_type: TYPE_FP32 dims: 1 }
    parameters { key: "codebook_version" value { string_value: "7" } }
    parameters { key: "code_bytes" value { string_value: "4" } }
    parameters { key: "dim" value { string_value: "64" } }
"""
INTERESTS = """
    max_batch_size: 8
    input { name: "CODES" data_type: TYPE_UINT8 dims: [-1, 4] }
    input { name: "TIME" data_type: TYPE_INT64 dims: -1 }
    input { name: "SCENARIO" data_type: TYPE_UINT8 dims: -1 }
    input { name: "ACTION" data_type: TYPE_UINT8 dims: -1 }
    input { name: "VALID" data_type: TYPE_UINT8 dims: -1 }
    input { name: "KNOWN_COARSE" data_type: TYPE_FP16 dims: -1 }
    output { name: "INTERESTS" data_type: TYPE_FP32 dims: [3, 4, 64] }
    output { name: "WEIGHTS" data_type: TYPE_FP32 dims: [3, 4] }
    output { name: "COARSE" data_type: TYPE_FP16 dims: -1 }
    parameters { key: "codebook_version" value { string_value: "7" } }
    parameters { key: "interests" value { string_value: "4" } }
"""


class Impostor(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Triton's protocol with configurations of the test's choice; every inference fails with `status`."""

    def __init__(self, encoder: str = ENCODER, interests: str = INTERESTS, status: Any = None) -> None:
        self.configs = {ITEM_ENCODER: encoder, USER_INTERESTS: interests}
        self.status = status

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = text_format.Parse(self.configs[request.name], model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["2", "10"])

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.status is None:
            await asyncio.sleep(TIMEOUT)
        await context.abort(self.status, "says the test")


@asynccontextmanager
async def listening(impostor: Impostor, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(impostor, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield port
    await server.stop(None)


@asynccontextmanager
async def facing(impostor: Impostor, timeout: float = TIMEOUT) -> AsyncIterator[TritonModels]:
    async with listening(impostor) as port:
        models = TritonModels(f"127.0.0.1:{port}", timeout)
        yield models
        await models.close()


async def test_the_card_is_read_from_the_configurations() -> None:
    async with facing(Impostor()) as models:
        assert await models.card() == ModelCard(64, 4, 4, codebook_version=7, model_version="10")
    async with facing(Impostor(encoder=ENCODER.replace("64", "-1").replace('"-1"', '"256"'))) as models:
        assert (await models.card()).dim == 256


@pytest.mark.parametrize(
    ("model", "old", "new", "message"),
    [
        ("encoder", "dims: 64", "dims: [8, 8]", r"item_encoder has EMBEDDING as FP32 \[8, 8\]; FP32 \[-1\] is needed"),
        ("encoder", '"TEXT"', '"WORDS"', "item_encoder has no tensor TEXT"),
        ("encoder", "TYPE_UINT8", "TYPE_UINT16", r"CODES as UINT16 \[4\]; UINT8 \[-1\] is needed"),
        ("interests", "dims: [3, 4, 64]", "dims: [2, 4, 64]", r"INTERESTS as FP32 \[2, 4, 64\]"),
        ("interests", "dims: [3, 4] ", "dims: [12] ", r"WEIGHTS as FP32 \[12\]; FP32 \[3, -1\] is needed"),
        ("interests", '"7"', '"8"', "disagree on codebook_version: item_encoder says 7, user_interests says 8"),
        ("interests", '"interests"', '"k"', "no model on Triton states the parameter interests"),
        ("interests", 'string_value: "4"', 'string_value: "four"', "interests='four', which is no number"),
    ],
)
async def test_models_that_do_not_fit_are_refused(model: str, old: str, new: str, message: str) -> None:
    text = {"encoder": ENCODER, "interests": INTERESTS}[model]
    assert old in text
    async with facing(Impostor(**{model: text.replace(old, new)})) as models:
        with pytest.raises(Permanent, match=message):
            await models.card()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Transient),  # also a full queue
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Transient),
        (grpc.StatusCode.NOT_FOUND, Transient),  # not loaded yet
        (grpc.StatusCode.INTERNAL, Transient),  # a stub that died
        (grpc.StatusCode.CANCELLED, Transient),
        (grpc.StatusCode.INVALID_ARGUMENT, Permanent),
        (grpc.StatusCode.UNIMPLEMENTED, Transient),
        (grpc.StatusCode.UNAUTHENTICATED, Transient),
    ],
)
async def test_the_status_decides_whether_asking_again_helps(status: Any, kind: type[Exception]) -> None:
    async with facing(Impostor(status=status)) as models:
        with pytest.raises(kind, match="Triton: says the test"):
            await models.encode(["tea"])


async def test_an_answer_without_tensors_is_transient() -> None:
    """As a tritonserver gives that was frozen, before it dies."""

    class Hollow(Impostor):
        async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            return service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")

    async with facing(Hollow()) as models:
        with pytest.raises(Transient, match="Triton's answer of item_encoder lacks rows of EMBEDDING"):
            await models.encode(["tea"])


async def test_a_late_answer_is_transient() -> None:
    async with facing(Impostor(), timeout=0.2) as models:
        with pytest.raises(Transient, match="Deadline"):
            await models.encode(["tea"])


async def test_a_call_can_be_cancelled() -> None:
    async with facing(Impostor()) as models:
        call = asyncio.create_task(models.encode(["tea"]))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_triton_that_restarts_is_found_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    models = TritonModels(f"127.0.0.1:{port}", TIMEOUT)
    with pytest.raises(Transient):
        await models.check_ready()
    for _ in range(2):
        async with listening(Impostor(), port):
            for _ in range(200):
                if not await why_not(models.check_ready):
                    break
                await asyncio.sleep(0.05)
            assert (await models.card()).codebook_version == 7
        with pytest.raises(Transient):
            await models.card()
    await models.close()
