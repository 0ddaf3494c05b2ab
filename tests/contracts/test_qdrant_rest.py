"""What Facetstream asks of Qdrant's REST API, through qdrant-client's own REST client.

Runs on the embedded server, and on a real one when FACETSTREAM_TEST_QDRANT names it.
"""

import os
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse

from stream.embedded import qdrant as embedded
from stream.settings import Settings, load

GIVEN = "FACETSTREAM_TEST_QDRANT" in os.environ  # the embedded server is held to more than Facetstream relies on
DIM = 8
INTERESTS = tuple(f"{scenario}_{k}" for scenario in ("search", "feed") for k in range(2))
COSINE = m.VectorParams(size=DIM, distance=m.Distance.COSINE)


class Pair:
    """A collection of users and one of items, under names of their own."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self.client = client
        self.users, self.items = (f"test_{part}_{uuid.uuid4().hex}" for part in ("users", "items"))

    async def create(self) -> None:
        vectors = dict.fromkeys(INTERESTS, COSINE)
        await self.client.create_collection(self.users, vectors, hnsw_config=m.HnswConfigDiff(m=0))
        await self.client.create_collection(self.items, COSINE)

    async def drop(self) -> None:
        for name in (self.users, self.items):
            await self.client.delete_collection(name)

    async def put(self, number: int, version: int) -> None:
        await self.client.batch_update_points(self.users, [fenced(number, version)], wait=True)

    async def version(self, number: int) -> int | None:
        found = await self.client.retrieve(self.users, [point(number)])
        return found[0].payload["version"] if found and found[0].payload else None


@pytest.fixture
async def client(qdrant_url: str) -> AsyncIterator[AsyncQdrantClient]:
    connected = AsyncQdrantClient(url=qdrant_url, check_compatibility=False)
    yield connected
    await connected.close()


@pytest.fixture
async def pair(client: AsyncQdrantClient) -> AsyncIterator[Pair]:
    made = Pair(client)
    await made.create()
    yield made
    await made.drop()


def point(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"contract/{number}"))


def unit(seed: int, *shape: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(*shape, DIM))
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def fenced(number: int, version: int) -> m.UpsertOperation:
    """Only over a version that is not newer, as the stream writes profiles."""
    vectors = dict(zip(INTERESTS, unit(1_000 * number + version, len(INTERESTS)).tolist(), strict=True))
    newer = m.FieldCondition(key="version", range=m.Range(gt=version))
    return m.UpsertOperation(
        upsert=m.PointsList(
            points=[m.PointStruct(id=point(number), vector=vectors, payload={"version": version})],
            update_filter=m.Filter(must_not=[newer]),
        )
    )


def items(vectors: np.ndarray) -> list[m.PointStruct]:
    return [
        m.PointStruct(id=point(i), vector=v.tolist(), payload={"item_id": f"i{i}", "category": f"c{i % 3}", "price": i})
        for i, v in enumerate(vectors)
    ]


def ids(points: Sequence[Any]) -> list[str]:
    return [str(found.id) for found in points]


async def test_the_version_names_a_server_with_conditional_upserts(client: AsyncQdrantClient) -> None:
    major, minor, *_ = (await client.info()).version.split(".")
    assert (int(major), int(minor)) >= (1, 16)


async def test_probes(qdrant_url: str) -> None:
    async with httpx.AsyncClient(base_url=qdrant_url) as http:
        for probe in ("healthz", "livez", "readyz"):
            assert (await http.get(f"/{probe}")).status_code == 200


async def test_collections_are_made_seen_and_dropped(pair: Pair) -> None:
    client = pair.client
    assert await client.collection_exists(pair.users)
    names = {found.name for found in (await client.get_collections()).collections}
    assert {pair.users, pair.items} <= names
    info = await client.get_collection(pair.users)
    vectors = info.config.params.vectors
    assert isinstance(vectors, dict)
    assert set(vectors) == set(INTERESTS)
    assert all((v.size, v.distance) == (DIM, m.Distance.COSINE) for v in vectors.values())
    assert info.config.hnsw_config.m == 0 or GIVEN
    assert info.points_count == 0
    assert await client.delete_collection(pair.users)
    assert not await client.collection_exists(pair.users)


async def test_a_missing_point_is_inserted_a_stale_one_ignored_a_newer_one_wins(pair: Pair) -> None:
    await pair.put(1, version=5)
    assert await pair.version(1) == 5
    await pair.put(1, version=4)
    assert await pair.version(1) == 5
    await pair.put(1, version=6)
    assert await pair.version(1) == 6
    (found,) = await pair.client.retrieve(pair.users, [point(1)], with_vectors=True)
    assert isinstance(found.vector, dict)
    expected = dict(zip(INTERESTS, unit(1_006, len(INTERESTS)), strict=True))
    for name, vector in expected.items():
        np.testing.assert_allclose(found.vector[name], vector, atol=1e-6)


async def test_each_point_of_a_batch_has_its_own_condition(pair: Pair) -> None:
    for number, version in ((1, 5), (2, 1)):
        await pair.put(number, version)
    done = await pair.client.batch_update_points(pair.users, [fenced(n, 3) for n in (1, 2, 3)], wait=True)
    assert [result.status for result in done] == [m.UpdateStatus.COMPLETED] * 3
    assert [await pair.version(n) for n in (1, 2, 3)] == [5, 3, 3]


async def test_a_user_finds_items_in_one_request(pair: Pair) -> None:
    """K prefetches look the user's vectors up in another collection and are fused by reciprocal rank."""
    vectors = unit(7, 50)
    await pair.client.upsert(pair.items, items(vectors), wait=True)
    await pair.put(1, version=1)
    interests = unit(1_001, len(INTERESTS))
    ranks = [np.argsort(-(vectors @ interest))[:20].tolist() for interest in interests[2:]]
    found = await pair.client.query_points(
        pair.items,
        prefetch=[
            m.Prefetch(
                query=point(1), lookup_from=m.LookupLocation(collection=pair.users, vector=f"feed_{k}"), limit=20
            )
            for k in range(2)
        ],
        query=m.FusionQuery(fusion=m.Fusion.RRF),
        limit=10,
        with_payload=["item_id"],
    )
    fused = {i: sum(1 / (2 + order.index(i)) for order in ranks if i in order) for order in ranks for i in order}
    got = {int(hit.payload["item_id"][1:]): hit.score for hit in found.points if hit.payload}
    assert len(got) == 10
    assert sorted(got.values(), reverse=True) == pytest.approx(sorted(fused.values(), reverse=True)[:10], abs=1e-6)
    assert all(set(hit.payload or {}) == {"item_id"} for hit in found.points)


async def test_a_batch_of_queries_answers_each(pair: Pair) -> None:
    vectors = unit(7, 20)
    await pair.client.upsert(pair.items, items(vectors), wait=True)
    requests = [m.QueryRequest(query=vectors[i].tolist(), limit=1, with_payload=True) for i in (3, 11)]
    answers = await pair.client.query_batch_points(pair.items, requests)
    assert [ids(answer.points) for answer in answers] == [[point(3)], [point(11)]]
    assert [answer.points[0].score for answer in answers] == pytest.approx([1, 1], abs=1e-5)
    bare = await pair.client.query_batch_points(pair.items, [m.QueryRequest(query=vectors[0].tolist(), limit=1)])
    assert bare[0].points[0].payload is None


async def test_filters_hold_inside_and_outside_of_prefetches(pair: Pair) -> None:
    vectors = unit(7, 30)
    await pair.client.upsert(pair.items, items(vectors), wait=True)
    seen = [point(i) for i in range(0, 30, 2)]
    wanted = m.Filter(
        must=[m.FieldCondition(key="category", match=m.MatchValue(value="c1"))],
        must_not=[m.HasIdCondition(has_id=seen)],
    )
    allowed = {point(i) for i in range(30) if i % 3 == 1 and i % 2}
    plain = await pair.client.query_points(pair.items, query=vectors[0].tolist(), query_filter=wanted, limit=30)
    assert set(ids(plain.points)) == allowed
    prefetch = m.Prefetch(query=vectors[0].tolist(), filter=wanted, limit=30)
    fused = await pair.client.query_points(
        pair.items, prefetch=[prefetch, prefetch], query=m.FusionQuery(fusion=m.Fusion.RRF), limit=30
    )
    assert set(ids(fused.points)) == allowed


async def test_excluded_ids_may_be_one_condition_and_spelled_anyhow(pair: Pair) -> None:
    await pair.client.upsert(pair.items, items(unit(7, 6)), wait=True)
    spelled = m.Filter(must_not=m.HasIdCondition(has_id=[point(0).upper(), point(1).replace("-", "")]))
    assert (await pair.client.count(pair.items, spelled)).count == 4


async def test_scroll_pages_through_every_point_once(pair: Pair) -> None:
    await pair.client.upsert(pair.items, items(unit(7, 25)), wait=True)
    found: list[str] = []
    offset: Any = None
    while True:
        page, offset = await pair.client.scroll(pair.items, limit=10, offset=offset, with_payload=["price"])
        found += ids(page)
        assert all(set(record.payload or {}) == {"price"} for record in page)
        if offset is None:
            break
    assert sorted(found) == sorted(point(i) for i in range(25))


async def test_count_delete_and_facet(pair: Pair) -> None:
    client = pair.client
    await client.upsert(pair.items, items(unit(7, 9)), wait=True)
    await client.create_payload_index(pair.items, "category", m.PayloadSchemaType.KEYWORD, wait=True)
    cheap = m.Filter(must=[m.FieldCondition(key="price", range=m.Range(lt=4))])
    assert (await client.count(pair.items, cheap)).count == 4
    facet = await client.facet(pair.items, "category", exact=True)
    assert {hit.value: hit.count for hit in facet.hits} == {"c0": 3, "c1": 3, "c2": 3}
    await client.delete(pair.items, m.PointIdsList(points=[point(0)]), wait=True)
    await client.delete(pair.items, m.FilterSelector(filter=cheap), wait=True)
    assert (await client.count(pair.items)).count == 5


async def test_payloads_are_set_overwritten_deleted_and_cleared(pair: Pair) -> None:
    client, first = pair.client, [point(0)]
    await client.upsert(pair.items, items(unit(7, 2)), wait=True)

    async def payload() -> Any:
        return (await client.retrieve(pair.items, first))[0].payload

    await client.set_payload(pair.items, {"price": 9}, first, wait=True)
    assert await payload() == {"item_id": "i0", "category": "c0", "price": 9}
    await client.delete_payload(pair.items, ["category"], first, wait=True)
    assert await payload() == {"item_id": "i0", "price": 9}
    await client.overwrite_payload(pair.items, {"only": True}, first, wait=True)
    assert await payload() == {"only": True}
    await client.clear_payload(pair.items, first, wait=True)
    assert await payload() == {}


async def test_vectors_are_updated_and_deleted(pair: Pair) -> None:
    await pair.put(1, version=1)
    changed = unit(99)
    update = [m.PointVectors(id=point(1), vector={"feed_0": changed.tolist()})]
    await pair.client.update_vectors(pair.users, update, wait=True)
    await pair.client.delete_vectors(pair.users, ["search_0"], [point(1)], wait=True)
    (found,) = await pair.client.retrieve(pair.users, [point(1)], with_vectors=True)
    assert isinstance(found.vector, dict)
    assert set(found.vector) == set(INTERESTS) - {"search_0"}
    np.testing.assert_allclose(found.vector["feed_0"], changed, atol=1e-6)


async def test_an_index_made_twice_is_there_once(pair: Pair) -> None:
    for _ in range(2):
        await pair.client.create_payload_index(pair.items, "category", m.PayloadSchemaType.KEYWORD, wait=True)
        await pair.client.create_payload_index(
            pair.items, "price", m.IntegerIndexParams(type=m.IntegerIndexType.INTEGER, lookup=False, range=True)
        )
    schema = (await pair.client.get_collection(pair.items)).payload_schema
    if GIVEN and not schema:
        pytest.skip("the given server reports no indexes")
    assert {field: index.data_type for field, index in schema.items()} == {
        "category": m.PayloadSchemaType.KEYWORD,
        "price": m.PayloadSchemaType.INTEGER,
    }
    await pair.client.delete_payload_index(pair.items, "price", wait=True)
    assert set((await pair.client.get_collection(pair.items)).payload_schema) == {"category"}


async def test_an_alias_moves_from_one_collection_to_another(pair: Pair) -> None:
    client, alias = pair.client, f"test_alias_{uuid.uuid4().hex}"
    await client.upsert(pair.items, items(unit(7, 3)), wait=True)

    def points_to(name: str) -> m.CreateAliasOperation:
        return m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name=name, alias_name=alias))

    await client.update_collection_aliases([points_to(pair.users)])
    drop = m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=alias))
    await client.update_collection_aliases([drop, points_to(pair.items)])
    assert (await client.count(alias)).count == 3
    assert [a.alias_name for a in (await client.get_collection_aliases(pair.items)).aliases] == [alias]
    assert alias in {a.alias_name for a in (await client.get_aliases()).aliases}
    await client.update_collection_aliases([drop])


async def test_errors_are_qdrants_with_status_and_sentence(pair: Pair) -> None:
    client, absent = pair.client, f"test_absent_{uuid.uuid4().hex}"
    requests = {
        404: [
            client.get_collection(absent),
            client.upsert(absent, items(unit(7, 1))),
            client.query_points(absent, query=unit(7).tolist()),
            client.query_points(pair.items, query=point(404)),
        ],
        409: [client.create_collection(pair.items, COSINE)],
        400: [
            client.upsert(pair.items, [m.PointStruct(id=point(1), vector=[1.0, 2.0])], wait=True),
            client.upsert(pair.users, [m.PointStruct(id=point(1), vector={"no_such": [1.0] * DIM})], wait=True),
            client.query_points(pair.users, query=unit(7).tolist(), using="no_such"),
        ],
    }
    for status, calls in requests.items():
        for call in calls:
            with pytest.raises(UnexpectedResponse) as refused:
                await call
            allowed = {400, 404} if GIVEN and status == 400 else {status}
            assert refused.value.status_code in allowed, refused.value
            assert httpx.Response(status, content=refused.value.content).json()["status"]["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("PUT", "/points", b"{not json", ""),
        ("PUT", "/points", b"", ""),
        ("PUT", "/points", b'{"points": [{"id": true, "vector": [1.0]}]}', "id"),
        ("PUT", "/points", b'{"points": [{"id": 1, "vector": "x"}]}', "vector"),
        ("POST", "/points/scroll", b'{"limit": "many"}', "limit"),
        ("POST", "/points/query", b'{"limit": {}}', "limit"),
        ("POST", "/points/batch", b'{"operations": [{"upsert": {"points": [{"vector": [1.0]}]}}]}', "id"),
    ],
)
async def test_a_bad_body_is_400(pair: Pair, qdrant_url: str, method: str, path: str, body: bytes, named: str) -> None:
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=qdrant_url, headers=headers) as http:
        answer = await http.request(method, f"/collections/{pair.items}{path}", content=body)
    assert answer.status_code == 400
    sentence = answer.json()["status"]["error"]
    assert sentence
    assert named in sentence or GIVEN


async def test_a_point_by_its_id(pair: Pair, qdrant_url: str) -> None:
    await pair.client.upsert(pair.items, items(unit(7, 1)), wait=True)
    async with httpx.AsyncClient(base_url=f"{qdrant_url}/collections/{pair.items}/points") as http:
        found = await http.get(f"/{point(0)}")
        missing = await http.get(f"/{point(1)}")
    assert found.json()["result"]["payload"]["item_id"] == "i0"
    assert missing.status_code == 404


def settings_in(folder: Path, **given: Any) -> Settings:
    return load(data_folder=folder, start_timeout=60, **given)


async def test_everything_answered_survives_a_crash(tmp_path: Path) -> None:
    server = embedded.start(settings_in(tmp_path))
    client = AsyncQdrantClient(url=server.address, check_compatibility=False)
    pair = Pair(client)
    await pair.create()
    await pair.put(1, version=3)
    await client.create_payload_index(pair.users, "version", m.PayloadSchemaType.INTEGER)
    await client.close()
    os.kill(max(server.pids()), signal.SIGKILL)
    server.stop()
    server = embedded.start(settings_in(tmp_path))
    pair.client = AsyncQdrantClient(url=server.address, check_compatibility=False)
    assert await pair.version(1) == 3
    await pair.put(1, version=2)
    assert await pair.version(1) == 3
    info = await pair.client.get_collection(pair.users)
    assert (set(info.payload_schema), info.config.hnsw_config.m) == ({"version"}, 0)
    await pair.client.close()
    server.stop()


async def test_a_key_that_is_set_is_asked_for(tmp_path: Path) -> None:
    server = embedded.start(settings_in(tmp_path, qdrant_api_key="secret"))
    async with httpx.AsyncClient(base_url=server.address) as http:
        assert (await http.get("/collections")).status_code == 401
        assert (await http.get("/collections", headers={"api-key": "wrong"})).status_code == 401
        assert (await http.get("/collections", headers={"api-key": "secret"})).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
    server.stop()
