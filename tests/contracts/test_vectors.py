"""One contract for `Vectors`: the in-memory twin and Qdrant over REST. Each test has collections of its own."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.contract import DIM, SCENARIOS
from stream.adapters import qdrant
from stream.adapters.memory import MemoryVectors
from stream.adapters.qdrant import PROFILES_PER_REQUEST, QdrantVectors
from stream.errors import Permanent, Transient
from stream.events import Item
from stream.points import item_point, user_point
from stream.ports import CatalogueEntry, ModelCard, Profile
from stream.settings import load

K = 3
CARD = ModelCard(dim=DIM, interests=K, code_bytes=4, codebook_version=1, model_version="1")


@asynccontextmanager
async def over_rest(url: str, users: str, items: str) -> AsyncIterator[QdrantVectors]:
    vectors = qdrant.connect(url, load(), users, items)
    yield vectors
    for name in (users, items):
        await vectors._client.delete_collection(name)
    await vectors.close()


@pytest.fixture(params=["twin", "qdrant"])
async def bare(request: Any) -> AsyncIterator[QdrantVectors]:
    """Nothing provisioned yet."""
    names = (f"users-{uuid.uuid4()}", f"items-{uuid.uuid4()}")
    if request.param == "twin":
        twin = MemoryVectors(*names)
        yield twin
        await twin.close()
        return
    async with over_rest(request.getfixturevalue("qdrant_url"), *names) as vectors:
        yield vectors


@pytest.fixture
async def vectors(bare: QdrantVectors) -> QdrantVectors:
    await bare.provision(CARD)
    return bare


def unit(*shape: int, seed: int = 0) -> Any:
    drawn = np.random.default_rng(seed).standard_normal((*shape, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def profile(user_id: str = "ada", version: int = 1, seed: int = 0, token: int = 1) -> Profile:
    weights = np.random.default_rng(seed).dirichlet(np.ones(K), len(SCENARIOS)).astype(np.float32)
    return Profile(
        user_id, version, "1", 1, 1_700_000_000_000 + seed, token, unit(len(SCENARIOS), K, seed=seed), weights
    )


def entry(item_id: str, seed: int = 0, **fields: Any) -> CatalogueEntry:
    return CatalogueEntry(
        Item(item_id=item_id, title=f"title of {item_id}", **fields), unit(seed=seed), 0.5 + seed / 100
    )


def same(one: Profile, other: Profile | None) -> bool:
    assert other is not None
    np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-6)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)
    blank: dict[str, Any] = {"vectors": None, "weights": None}
    return replace(one, **blank) == replace(other, **blank)


async def test_a_profile_comes_back_as_it_was_put(vectors: QdrantVectors) -> None:
    await vectors.put_profiles([profile("ada", seed=1), profile("böb 🦉", seed=2)])
    assert same(profile("ada", seed=1), await vectors.profile("ada"))
    assert same(profile("böb 🦉", seed=2), await vectors.profile("böb 🦉"))
    assert await vectors.profile("nobody") is None


async def test_an_older_profile_never_overwrites_a_newer_one(vectors: QdrantVectors) -> None:
    await vectors.put_profiles([profile("ada", version=5, seed=1), profile("bob", version=1, seed=1)])
    await vectors.put_profiles([profile("ada", version=4, seed=2), profile("bob", version=2, seed=2), profile("eve")])
    assert same(profile("ada", version=5, seed=1), await vectors.profile("ada"))
    assert same(profile("bob", version=2, seed=2), await vectors.profile("bob"))
    assert same(profile("eve"), await vectors.profile("eve"))


async def test_an_equal_version_of_an_earlier_owner_is_refused(vectors: QdrantVectors) -> None:
    await vectors.put_profiles([profile(version=5, seed=1, token=7)])
    await vectors.put_profiles([profile(version=5, seed=2, token=6)])
    assert same(profile(version=5, seed=1, token=7), await vectors.profile("ada"))
    await vectors.put_profiles([profile(version=6, seed=3, token=6)])
    assert same(profile(version=6, seed=3, token=6), await vectors.profile("ada"))


async def test_an_equal_version_is_written_again(vectors: QdrantVectors) -> None:
    """Another model over the same history."""
    await vectors.put_profiles([profile("ada", version=5, seed=1)])
    await vectors.put_profiles([replace(profile("ada", version=5, seed=2), model_version="2")])
    assert same(replace(profile("ada", version=5, seed=2), model_version="2"), await vectors.profile("ada"))


writes = st.lists(st.tuples(st.sampled_from(["ada", "bob"]), st.integers(1, 9)), min_size=1, max_size=8)


@given(batches=st.lists(writes, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_law_3_whatever_the_order_the_highest_version_stays(
    vectors: QdrantVectors, batches: list[list[tuple[str, int]]]
) -> None:
    run = uuid.uuid4()
    await asyncio.gather(
        *(
            vectors.put_profiles([profile(f"{name}{run}", version, seed=version) for name, version in b])
            for b in batches
        )
    )
    put = [write for batch in batches for write in batch]
    for name in {name for name, _ in put}:
        highest = max(version for other, version in put if other == name)
        assert same(profile(f"{name}{run}", highest, seed=highest), await vectors.profile(f"{name}{run}"))


async def test_more_profiles_than_one_request_holds(vectors: QdrantVectors) -> None:
    await vectors.put_profiles([profile(f"user {i}") for i in range(PROFILES_PER_REQUEST + 1)])
    assert (await vectors.stats()).users == PROFILES_PER_REQUEST + 1
    await vectors.put_profiles([])


async def test_items_are_replaced_and_found_with_their_payload(vectors: QdrantVectors) -> None:
    await vectors.put_items([entry("tea", seed=1), entry("mug", seed=2)])
    await vectors.put_items([entry("tea", seed=3, category="kitchen", attributes={"price": 4.5, "fair": True})])
    [[hit]] = await vectors.search([{"query": unit(seed=3).tolist(), "limit": 1, "with_payload": True}])
    assert (hit.item_id, hit.score) == ("tea", pytest.approx(1, abs=1e-5))
    assert hit.payload["category"] == "kitchen"
    assert hit.payload["attributes"] == {"price": 4.5, "fair": True}
    assert hit.payload["title"] == "title of tea"
    stats = await vectors.stats()
    assert (stats.users, stats.items, stats.fidelity) == (0, 2, pytest.approx((0.53 + 0.52) / 2))


async def test_provisioning_twice_changes_nothing(vectors: QdrantVectors) -> None:
    await vectors.put_profiles([profile("ada")])
    await vectors.provision(CARD)
    assert await vectors.interests() == K
    assert same(profile("ada"), await vectors.profile("ada"))


async def test_two_processes_may_provision_at_once(bare: QdrantVectors) -> None:
    await asyncio.gather(*(bare.provision(CARD) for _ in range(3)))
    assert await bare.interests() == K


async def test_collections_of_another_shape_are_refused(vectors: QdrantVectors) -> None:
    with pytest.raises(Permanent, match=r"users-.* it lacks vectors discovery_3, feed_3, search_3; serve .* or delete"):
        await vectors.provision(replace(CARD, interests=K + 1))
    for refuse in (vectors.provision, vectors.check):
        with pytest.raises(Permanent, match=r"it has vectors of 64-d Cosine, not 32-d Cosine; serve"):
            await refuse(replace(CARD, dim=32))
    vectors.users, vectors.items = vectors.items, vectors.users
    with pytest.raises(Permanent, match=r"lacks vectors discovery_0, .* and has unknown vectors \(unnamed\); serve"):
        await vectors.provision(CARD)


async def test_the_dimension_is_the_models(bare: QdrantVectors) -> None:
    card = replace(CARD, dim=8)
    await bare.provision(card)
    await bare.check(card)
    await bare.put_items([replace(entry("tea"), embedding=np.eye(8, dtype=np.float32)[0])])
    (hits,) = await bare.search([{"query": np.eye(8)[0].tolist(), "with_payload": True}])
    assert [hit.item_id for hit in hits] == ["tea"]


async def test_ready_once_provisioned(bare: QdrantVectors) -> None:
    with pytest.raises(Transient, match=r"has no collection users-.* and items-.*: run facetstream provision"):
        await bare.check_ready()
    await bare.provision(CARD)
    await bare.check_ready()


async def test_what_is_not_provisioned_is_waited_for(bare: QdrantVectors) -> None:
    for call in (
        bare.put_profiles([profile()]),
        bare.put_items([entry("tea")]),
        bare.profile("ada"),
        bare.stats(),
        bare.check(CARD),
    ):
        with pytest.raises(Transient, match=r"Qdrant: .*(users|items)-"):
            await call


async def test_what_makes_no_sense_is_permanent(vectors: QdrantVectors) -> None:
    for body in (
        {"query": [1.0, 2.0]},
        {"query": unit().tolist(), "filter": {"must": [{"key": "category", "matches": 1}]}},
        {"question": 1},
    ):
        with pytest.raises(Permanent, match="Qdrant"):
            await vectors.search([body])
    with pytest.raises(Permanent):
        await vectors.put_items([replace(entry("tea"), embedding=unit()[:32])])
    nobody = {"query": user_point("nobody"), "lookup_from": {"collection": vectors.users, "vector": "feed_0"}}
    with pytest.raises((Permanent, Transient), match="Qdrant"):
        await vectors.search([nobody])


def test_point_ids_are_what_other_languages_compute() -> None:
    assert user_point("ada") == "e709d54b-b8d7-5cc2-b0d7-236ec9f07444"
    assert uuid.UUID(item_point("ada")) == uuid.uuid5(
        uuid.UUID(int=0x6BA7B8119DAD11D180B400C04FD430C8), "facetstream/item/ada"
    )


@asynccontextmanager
async def answering(status: HTTPStatus, body: str, *headers: str) -> AsyncIterator[QdrantVectors]:
    """An adapter in front of an HTTP server that gives every request the same answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *headers,
        ]
        writer.write("\r\n".join([*lines, "", body]).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    vectors = qdrant.connect(f"http://{host}:{port}", load())
    async with server:
        yield vectors
    await vectors.close()


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "message"),
    [
        (503, "", (), Transient, "503 Service Unavailable"),
        (500, '{"status": {"error": "Service internal error: disk"}}', (), Transient, "internal error: disk"),
        (429, '{"status": {"error": "slow down"}}', ("Retry-After: 3",), Transient, "slow down"),
        (429, '{"status": {"error": "slow down"}}', (), Transient, "slow down"),
        (401, "Must provide an API key", (), Transient, "401 Unauthorized: set FACETSTREAM_QDRANT_API_KEY"),
        (403, '{"status": {"error": "Forbidden"}}', (), Transient, "Forbidden: set FACETSTREAM_QDRANT_API_KEY"),
        (400, '{"status": {"error": "Wrong input: what?"}}', (), Permanent, "Wrong input: what?"),
        (200, "<html>hello</html>", (), Permanent, "Qdrant"),
        (
            200,
            '{"title": "qdrant", "version": "1.15.4"}',
            (),
            Permanent,
            "1.15.4 knows no conditional upserts; 1.16 or",
        ),
    ],
)
async def test_what_qdrant_says_decides_whether_asking_again_helps(
    status: int, body: str, headers: tuple[str, ...], kind: type[Exception], message: str
) -> None:
    async with answering(HTTPStatus(status), body, *headers) as vectors:
        with pytest.raises(kind, match=message):
            await vectors.provision(CARD)
        with pytest.raises((Transient, Permanent)):
            await vectors.check_ready()


async def test_a_qdrant_that_is_away_is_transient() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    vectors = qdrant.connect(url, load())
    with pytest.raises(Transient, match=f"^Qdrant at {url} cannot be reached: "):
        await vectors.profile("ada")
    with pytest.raises(Transient):
        await vectors.check_ready()
    await vectors.close()
