"""Retrieval with several interests, on the twin and on Qdrant over REST: three interests of the feed, three groups of
items, of which each interest points at one."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.contract import DIM, SCENARIOS
from stream.adapters import qdrant
from stream.adapters.memory import MemoryVectors
from stream.adapters.qdrant import QdrantVectors
from stream.errors import Permanent, UserError
from stream.events import Item
from stream.ports import CatalogueEntry, Hit, ModelCard, Profile
from stream.retrieval import SMALL_WEIGHT, Merge, Retrieval, UnknownUser, max_merge, quota_merge, quotas, request_body
from stream.settings import load

GROUPS = ("tea", "guitar", "tent")
WEIGHTS = (0.7, 0.2, 0.1)
EACH = 12  # items per group
K = len(GROUPS)
CARD = ModelCard(dim=DIM, interests=K, code_bytes=4, codebook_version=1, model_version="1")


def axes(*parts: float) -> Any:
    vector = np.zeros(DIM, np.float32)
    vector[: len(parts)] = parts
    return vector / np.linalg.norm(vector)


def catalogue() -> list[CatalogueEntry]:
    """Item i of a group is the nearer to the group's axis the smaller i is; the last group is nearest to its axis. All
    are a little off the other axes too: equal scores would be ranked as each processor rounds."""
    entries = []
    for g, group in enumerate(GROUPS):
        for i in range(EACH):
            vector = axes(*np.where(np.arange(K) == g, 1, 0.02 - i / 1_000), *np.eye(EACH)[i] * (0.3 + i / 10 - g / 10))
            item = Item(item_id=f"{group} {i}", title=group, category=group, attributes={"rank": i})
            entries.append(CatalogueEntry(item, vector, 1.0))
    return entries


def ada() -> Profile:
    vectors = np.stack([np.stack([axes(*np.roll(np.eye(K), s, 0)[k]) for k in range(K)]) for s in (1, 0, 2)])
    return Profile("ada", 1, "1", 1, 1_700_000_000_000, 1, vectors, np.tile(np.float32(WEIGHTS), (len(SCENARIOS), 1)))


@pytest.fixture(params=["twin", "qdrant"])
async def vectors(request: Any) -> AsyncIterator[QdrantVectors]:
    names = (f"users-{uuid.uuid4()}", f"items-{uuid.uuid4()}")
    if request.param == "twin":
        store: QdrantVectors = MemoryVectors(*names)
    else:
        store = qdrant.connect(request.getfixturevalue("qdrant_url"), load(), *names)
    await store.provision(CARD)
    await store.put_items(catalogue())
    await store.put_profiles([ada()])
    yield store
    for name in names:
        await store._client.delete_collection(name)
    await store.close()


@pytest.fixture
def retrieval(vectors: QdrantVectors) -> Retrieval:
    return Retrieval(vectors)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.item_id for hit in hits]


def groups(hits: list[Hit]) -> dict[str, int]:
    return {group: sum(hit.item_id.startswith(group) for hit in hits) for group in GROUPS}


async def test_rrf_gives_every_interest_the_same_say(retrieval: Retrieval) -> None:
    assert groups(await retrieval.recommend("ada", "feed", 9)) == {"tea": 3, "guitar": 3, "tent": 3}


async def test_rrf_scores_are_those_of_the_formula(retrieval: Retrieval, vectors: QdrantVectors) -> None:
    hits = await retrieval.recommend("ada", "feed", 20)
    queries = [{"query": vector.tolist(), "limit": 50, "with_payload": True} for vector in ada().vectors[1]]
    score: dict[str, float] = {}
    for found in await vectors.search(queries):
        for rank, hit in enumerate(found):
            score[hit.item_id] = score.get(hit.item_id, 0) + 1 / (rank + 2)
    assert [hit.score for hit in hits] == pytest.approx(sorted(score.values(), reverse=True)[:20], abs=1e-5)
    assert [score[hit.item_id] for hit in hits] == pytest.approx([hit.score for hit in hits], abs=1e-5)


async def test_max_ranks_by_the_nearest_interest(retrieval: Retrieval) -> None:
    hits = await retrieval.recommend("ada", "feed", 9, merge="max")
    cosines = {e.item.item_id: float((ada().vectors[1] @ e.embedding).max()) for e in catalogue()}
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines.values(), reverse=True)[:9], abs=1e-5)
    assert groups(hits)["tent"] > groups(hits)["guitar"] > groups(hits)["tea"]  # the nearer group wins, liked or not


async def test_quota_deals_places_by_weight(retrieval: Retrieval) -> None:
    hits = await retrieval.recommend("ada", "feed", 10, merge="quota")
    assert groups(hits) == {"tea": 7, "guitar": 2, "tent": 1}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


async def test_scenarios_have_their_own_interests(retrieval: Retrieval) -> None:
    feed = await retrieval.recommend("ada", "feed", 10, merge="quota")
    search = await retrieval.recommend("ada", "search", 10, merge="quota")
    assert groups(search) == {"tent": 7, "tea": 2, "guitar": 1}
    assert ids(feed) != ids(search)


@pytest.mark.parametrize("merge", ["rrf", "max", "quota"])
async def test_seen_items_do_not_come_back(retrieval: Retrieval, merge: Merge) -> None:
    seen: list[str] = []
    for _ in range(4):
        hits = await retrieval.recommend("ada", "feed", EACH * K // 4, merge, exclude=seen)
        assert len(hits) == EACH * K // 4
        seen += ids(hits)
    assert len(set(seen)) == EACH * K
    assert await retrieval.recommend("ada", "feed", 10, merge, exclude=seen) == []


@pytest.mark.parametrize("merge", ["rrf", "max", "quota"])
async def test_filters_narrow_every_interest(retrieval: Retrieval, merge: Merge) -> None:
    where = {"should": [{"key": "category", "match": {"value": name}} for name in ("tea", "tent")]}
    hits = await retrieval.recommend("ada", "feed", 30, merge, exclude=["tea 0"], where=where)
    assert groups(hits) == {"tea": EACH - 1, "guitar": 0, "tent": EACH}
    where = {"must": [{"key": "attributes.rank", "range": {"lt": 2}}]}
    assert groups(await retrieval.recommend("ada", "feed", 30, merge, where=where)) == dict.fromkeys(GROUPS, 2)


async def test_nearest_shows_each_interest_heaviest_first(retrieval: Retrieval) -> None:
    near = await retrieval.nearest("ada", limit=2)
    assert list(near) == list(SCENARIOS)
    assert [weight for weight, _ in near["feed"]] == pytest.approx(WEIGHTS)
    assert [ids(hits) for _, hits in near["feed"]] == [[f"{group} 0", f"{group} 1"] for group in GROUPS]


@pytest.mark.parametrize("merge", ["rrf", "max", "quota"])
async def test_an_unknown_user_is_the_callers_mistake(retrieval: Retrieval, merge: Merge) -> None:
    with pytest.raises(UnknownUser, match="no profile of user 'bob'"):
        await retrieval.recommend("bob", "feed", merge=merge)
    with pytest.raises(UnknownUser):
        await retrieval.nearest("bob")


async def test_arguments_without_sense_are_the_callers_mistake(retrieval: Retrieval) -> None:
    with pytest.raises(UserError, match="unknown scenario 'fed': choose one of search, feed, discovery"):
        await retrieval.recommend("ada", "fed")
    with pytest.raises(UserError, match="unknown merge 'sum'"):
        await retrieval.recommend("ada", "feed", merge="sum")  # type: ignore[arg-type]
    for limit in (0, -1, 1_001):
        with pytest.raises(UserError, match=f"limit {limit}"):
            await retrieval.recommend("ada", "feed", limit)
    with pytest.raises(UnknownUser):
        await retrieval.recommend("\udcff", "feed")
    with pytest.raises(Permanent, match="filter"):
        await retrieval.recommend("ada", "feed", where={"must": [{"category": "tea"}]})


async def test_the_documented_request_needs_no_code_of_ours(qdrant_url: str) -> None:
    """The body of one POST, as any service would send it, finds what `recommend` finds."""
    names = (f"users-{uuid.uuid4()}", f"items-{uuid.uuid4()}")
    store = qdrant.connect(qdrant_url, load(), *names)
    await store.provision(CARD)
    await store.put_items(catalogue())
    await store.put_profiles([ada()])
    body = json.dumps(request_body("ada", "feed", K, 7, exclude=["tea 0"], users=store.users))
    async with httpx.AsyncClient(base_url=qdrant_url) as http:
        answer = await http.post(f"/collections/{store.items}/points/query", content=body)
        found = [(p["payload"]["item_id"], p["score"]) for p in answer.json()["result"]["points"]]
        hits = await Retrieval(store).recommend("ada", "feed", 7, exclude=["tea 0"])
        assert found == [(hit.item_id, pytest.approx(hit.score)) for hit in hits]
        for name in names:
            await http.delete(f"/collections/{name}")
    await store.close()


def test_the_request_is_short_enough_to_paste() -> None:
    assert request_body("ada", "feed", 2) == {
        "prefetch": [
            {
                "query": "e709d54b-b8d7-5cc2-b0d7-236ec9f07444",
                "lookup_from": {"collection": "users", "vector": f"feed_{k}"},
                "limit": 50,
            }
            for k in (0, 1)
        ],
        "query": {"fusion": "rrf"},
        "limit": 10,
        "with_payload": True,
    }


hit_lists = st.lists(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-1, 1), max_size=8).map(
        lambda scores: sorted((Hit(i, s) for i, s in scores.items()), key=lambda hit: -hit.score)
    ),
    min_size=1,
    max_size=5,
)


@given(lists=hit_lists, limit=st.integers(1, 10))
def test_max_merge_keeps_the_best_score_of_each_item(lists: list[list[Hit]], limit: int) -> None:
    best = {
        hit.item_id: max(h.score for hits in lists for h in hits if h.item_id == hit.item_id)
        for hits in lists
        for hit in hits
    }
    merged = max_merge(lists, limit)
    assert [hit.score for hit in merged] == sorted(best.values(), reverse=True)[:limit]
    assert {hit.item_id: hit.score for hit in merged}.items() <= best.items()
    assert merged == max_merge(lists[::-1], limit)


@given(lists=hit_lists, limit=st.integers(1, 10), data=st.data())
def test_quota_merge_fills_the_page_without_repeating(lists: list[list[Hit]], limit: int, data: Any) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(lists), max_size=len(lists)))
    merged = quota_merge(lists, weights, limit)
    available = {hit.item_id for hits in lists for hit in hits}
    assert len(set(ids(merged))) == len(merged) == min(limit, len(available))
    heaviest = max(range(len(lists)), key=lambda k: (weights[k], -k))
    assert set(ids(lists[heaviest][: quotas(weights, limit)[heaviest]])) <= set(ids(merged))


@given(weights=st.lists(st.floats(1e-6, 1), min_size=1, max_size=8), limit=st.integers(1, 50))
def test_quotas_are_fair(weights: list[float], limit: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    seats = quotas(weights, limit)
    assert sum(seats) == limit
    assert min(seats) >= 0
    for a, b in ((a, b) for a in range(len(seats)) for b in range(len(seats)) if weights[a] > weights[b]):
        assert seats[a] >= seats[b]
    served = [share for share, seat in zip(shares, seats, strict=True) if seat]
    for share, seat in zip(shares, seats, strict=True):
        if share >= SMALL_WEIGHT and limit >= len(weights):
            assert seat >= 1
        assert seat <= share * limit + 1 or share <= max(served)


def test_quotas_by_example() -> None:
    assert quotas([0.7, 0.2, 0.1], 10) == [7, 2, 1]
    assert quotas([0.94, 0.06], 5) == [4, 1]  # lifted: 0.3 of a place is a place
    assert quotas([0.97, 0.03], 5) == [5, 0]
    assert quotas([1, 1, 1], 2) == [1, 1, 0]
