"""Qdrant's MAX_SIM sums over the query's vectors: wrong from a user to items, right from an item to users.

A user has two interests, hiking and jazz. What we want of an item is its best match with *any* interest (the maximum,
as the models are trained); MAX_SIM of a query of two vectors adds both matches up, so a bland item that is half of
each passes the item that is exactly jazz. From an item to users, the query is one vector: the sum has one term, and
MAX_SIM is the maximum over the user's interests.
"""

import uuid
from collections.abc import AsyncIterator

import pytest
from qdrant_client import AsyncQdrantClient
from qdrant_client import models as m

HIKING, JAZZ, COOKING = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
BLAND = [0.7, 0.7, 0.14]  # cosine of about 0.7 with hiking and with jazz
ITEMS = {1: JAZZ, 2: BLAND, 3: COOKING}
USERS = {1: [HIKING, JAZZ], 2: [HIKING, COOKING], 3: [BLAND, BLAND]}
MULTI = m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM)


@pytest.fixture
async def collection(qdrant_url: str) -> AsyncIterator[tuple[AsyncQdrantClient, str]]:
    client = AsyncQdrantClient(url=qdrant_url, check_compatibility=False)
    name = f"test_max_sim_{uuid.uuid4().hex}"
    params = m.VectorParams(size=3, distance=m.Distance.COSINE, multivector_config=MULTI)
    await client.create_collection(name, params)
    yield client, name
    await client.delete_collection(name)
    await client.close()


async def test_from_user_to_items_it_prefers_the_bland(collection: tuple[AsyncQdrantClient, str]) -> None:
    client, name = collection
    await client.upsert(name, [m.PointStruct(id=i, vector=[v]) for i, v in ITEMS.items()], wait=True)
    summed = await client.query_points(name, query=[HIKING, JAZZ], limit=1)
    assert summed.points[0].id == 2
    assert summed.points[0].score > 1  # no cosine: a sum of two

    best: dict[int, float] = {}
    for interest in (HIKING, JAZZ):
        for hit in (await client.query_points(name, query=[interest], limit=3)).points:
            best[int(hit.id)] = max(best.get(int(hit.id), -1), hit.score)
    assert max(best, key=best.__getitem__) == 1
    assert best[1] == pytest.approx(1, abs=1e-6)


async def test_from_item_to_users_it_finds_who_has_the_interest(collection: tuple[AsyncQdrantClient, str]) -> None:
    client, name = collection
    await client.upsert(name, [m.PointStruct(id=i, vector=v) for i, v in USERS.items()], wait=True)
    audience = await client.query_points(name, query=[JAZZ], limit=3)
    assert [hit.id for hit in audience.points] == [1, 3, 2]
    assert audience.points[0].score == pytest.approx(1, abs=1e-6)
