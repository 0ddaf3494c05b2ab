"""Qdrant over REST: the port `Vectors`, and the searches of `stream.retrieval`."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx
import numpy as np
from pydantic import ValidationError
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from models.contract import SCENARIOS
from stream.errors import Permanent, Transient
from stream.points import ITEMS, USERS, item_point, user_point, vector_name
from stream.ports import CatalogueEntry, Hit, ModelCard, Profile
from stream.settings import Settings, variable

OLDEST_SERVER = (1, 16)  # earlier ones ignore update_filter without a word, and law 3 with it
PROFILES_PER_REQUEST = 64  # about 1 MB of JSON
ITEMS_PER_REQUEST = 256
POINTS_PER_PAGE = 1_000
REFUSALS = (400, 409, 413, 422)  # HTTP
FORBIDDEN = (401, 403)  # no key, a wrong one, or one that may not
USER_INDEXES = {"version": models.PayloadSchemaType.INTEGER, "fence": models.PayloadSchemaType.INTEGER}
ITEM_INDEXES = {"item_id": models.PayloadSchemaType.KEYWORD, "category": models.PayloadSchemaType.KEYWORD}

Shape = dict[str, tuple[int, str]]  # vector name ("" when unnamed) -> components, distance
T = TypeVar("T")


@dataclass(frozen=True)
class Stats:
    """What the two collections hold."""

    users: int
    items: int
    fidelity: float  # mean cos(embedding, decoded codes) over the items; nan when there are none


def connect(url: str, settings: Settings, users: str = USERS, items: str = ITEMS) -> "QdrantVectors":
    """Nothing is sent yet; the client connects with each request, so it survives restarts of Qdrant."""
    return QdrantVectors(make_client(url, settings), users, items)


def make_client(url: str, settings: Settings) -> AsyncQdrantClient:
    """To be closed by the caller."""
    key = settings.qdrant_api_key
    return AsyncQdrantClient(
        url=url,
        port=_default_port(url),
        api_key=key.get_secret_value() if key else None,
        timeout=math.ceil(settings.qdrant_timeout),
        check_compatibility=False,  # it would ask from a thread of its own; `provision` checks the version
    )


class QdrantVectors:
    """`Vectors` over a client. Every write is searchable on return; every failure is `Transient` or `Permanent`."""

    def __init__(self, client: AsyncQdrantClient, users: str = USERS, items: str = ITEMS) -> None:
        self._client = client
        self.users = users
        self.items = items

    async def missing(self) -> list[str]:
        """The collections that `provision` would create."""
        with translated():
            present = {c.name for c in (await self._client.get_collections()).collections}
        return [name for name in (self.users, self.items) if name not in present]

    async def check_ready(self) -> None:
        """Raise `Transient` when Qdrant does not answer or has not both collections."""
        if missing := await self.missing():
            raise Transient(f"Qdrant has no collection {' and '.join(missing)}: run facetstream provision")

    async def close(self) -> None:
        await self._client.close()

    async def provision(self, card: ModelCard) -> None:
        with translated():
            await refuse_old_server(self._client)
            wanted = self._wanted(card)
            # Users are looked up, never searched: m=0 builds no graph.
            await self._create(self.users, wanted[self.users], models.HnswConfigDiff(m=0))
            await self._create(self.items, wanted[self.items])
        await self.check(card)
        with translated():
            await self._index(self.users, USER_INDEXES)
            await self._index(self.items, ITEM_INDEXES)

    async def check(self, card: ModelCard) -> None:
        for name, vectors in self._wanted(card).items():
            with translated():
                difference = _difference(found=await self._shape(name), wanted=_shape(vectors))
            if difference:
                raise Permanent(
                    f"Qdrant collection {name!r} is not what the models need: it {difference}; serve the models it "
                    "was made for, or delete it, run facetstream provision, and load and replay what it held"
                )

    async def put_items(self, entries: Sequence[CatalogueEntry]) -> None:
        for batch in _batches(entries, ITEMS_PER_REQUEST):
            with translated():
                await self._client.upsert(self.items, [_item(entry) for entry in batch], wait=True)

    async def put_profiles(self, profiles: Sequence[Profile]) -> None:
        """One operation per user, each with its own condition. An equal version is written again, since another model
        may have made it; but not by an earlier owner, whose model may be the older one."""
        for batch in _batches(profiles, PROFILES_PER_REQUEST):
            with translated():
                await self._client.batch_update_points(self.users, [_fenced(p) for p in batch], wait=True)

    async def profile(self, user_id: str) -> Profile | None:
        with translated():
            found = await self._client.retrieve(self.users, [user_point(user_id)], with_vectors=True)
        return _profile(found[0]) if found else None

    async def versions(self, user_ids: Sequence[str]) -> dict[str, int]:
        """The version of each profile that is there."""
        found: dict[str, int] = {}
        for batch in _batches(user_ids, POINTS_PER_PAGE):
            with translated():
                points = await self._client.retrieve(
                    self.users, [user_point(u) for u in batch], with_payload=["user_id", "version"]
                )
            found |= {p.payload["user_id"]: p.payload["version"] for p in points if p.payload}
        return found

    async def interests(self) -> int:
        """K, as `users` was provisioned."""
        with translated():
            return len(await self._shape(self.users)) // len(SCENARIOS)

    async def search(self, bodies: Sequence[Mapping[str, Any]]) -> list[list[Hit]]:
        """One HTTP request that runs queries over `items`, each the body of `POST /collections/items/points/query`; the
        hits of each, best first."""
        with translated():
            requests = [models.QueryRequest.model_validate(body) for body in bodies]
            answers = await self._client.query_batch_points(self.items, requests)
        return [[_hit(point) for point in answer.points] for answer in answers]

    async def stats(self) -> Stats:
        with translated():
            users = (await self._client.count(self.users, exact=True)).count
            fidelity = [payload["fidelity"] async for payload in self._payloads(self.items, ["fidelity"])]
        return Stats(users, len(fidelity), float(np.mean(fidelity)) if fidelity else math.nan)

    async def _payloads(self, collection: str, fields: list[str]) -> Any:
        offset = None
        while True:
            page, offset = await self._client.scroll(
                collection, limit=POINTS_PER_PAGE, offset=offset, with_payload=fields, with_vectors=False
            )
            for point in page:
                yield point.payload or {}
            if offset is None:
                return

    def _wanted(self, card: ModelCard) -> dict[str, Any]:
        """The vectors of both collections."""
        names = [vector_name(scenario, k) for scenario in SCENARIOS for k in range(card.interests)]
        return {self.users: {name: _cosine(card.dim) for name in names}, self.items: _cosine(card.dim)}

    async def _create(self, name: str, vectors: Any, hnsw: models.HnswConfigDiff | None = None) -> None:
        if await self._client.collection_exists(name):
            return
        try:
            await self._client.create_collection(name, vectors, hnsw_config=hnsw)
        except UnexpectedResponse as error:
            if error.status_code != httpx.codes.CONFLICT:  # another process was quicker
                raise

    async def _shape(self, name: str) -> Shape:
        vectors = (await self._client.get_collection(name)).config.params.vectors
        return _shape(vectors or {})

    async def _index(self, name: str, fields: Mapping[str, models.PayloadSchemaType]) -> None:
        for field, kind in fields.items():
            await self._client.create_payload_index(name, field, kind, wait=True)


async def refuse_old_server(client: AsyncQdrantClient) -> str:
    """The version, when it is new enough."""
    version = (await client.info()).version
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        needed = ".".join(map(str, OLDEST_SERVER))
        raise Permanent(f"Qdrant {version} knows no conditional upserts; {needed} or later is needed")
    return version


def _cosine(dim: int) -> models.VectorParams:
    return models.VectorParams(size=dim, distance=models.Distance.COSINE)


def _shape(vectors: models.VectorParams | Mapping[str, models.VectorParams]) -> Shape:
    named = {"": vectors} if isinstance(vectors, models.VectorParams) else vectors
    return {name: (params.size, str(params.distance)) for name, params in named.items()}


def _difference(found: Shape, wanted: Shape) -> str:
    """In words, what keeps `found` from being `wanted`; empty when nothing does."""

    def told(names: Iterable[str]) -> str:
        return ", ".join(sorted(name or "(unnamed)" for name in names))

    kinds = {
        f"{found[n][0]}-d {found[n][1]}, not {wanted[n][0]}-d {wanted[n][1]}"
        for n in found.keys() & wanted.keys()
        if found[n] != wanted[n]
    }
    parts = {
        "lacks vectors": told(wanted.keys() - found.keys()),
        "has unknown vectors": told(found.keys() - wanted.keys()),
        "has vectors of": told(kinds),
    }
    return " and ".join(f"{what} {which}" for what, which in parts.items() if which)


def _item(entry: CatalogueEntry) -> models.PointStruct:
    item = entry.item
    payload = {
        "item_id": item.item_id,
        "title": item.title,
        "category": item.category,
        "attributes": item.attributes,
        "fidelity": float(entry.fidelity),
    }
    return models.PointStruct(id=item_point(item.item_id), vector=entry.embedding.tolist(), payload=payload)


def _fenced(profile: Profile) -> models.UpsertOperation:
    """Inserts a missing point; replaces one unless its version is newer (law 3), or the same by a newer token."""
    newer = models.FieldCondition(key="version", range=models.Range(gt=profile.version))
    same = models.FieldCondition(key="version", match=models.MatchValue(value=profile.version))
    later = models.FieldCondition(key="fence", range=models.Range(gt=profile.token))
    unless: list[models.Condition] = [newer, models.Filter(must=[same, later])]
    return models.UpsertOperation(
        upsert=models.PointsList(points=[_user(profile)], update_filter=models.Filter(must_not=unless))
    )


def _user(profile: Profile) -> models.PointStruct:
    vectors = {
        vector_name(scenario, k): vector.tolist()
        for scenario, interests in zip(SCENARIOS, profile.vectors, strict=True)
        for k, vector in enumerate(interests)
    }
    payload = {
        "user_id": profile.user_id,
        "version": profile.version,
        "model_version": profile.model_version,
        "codebook_version": profile.codebook_version,
        "event_ts": profile.event_ts,
        "fence": profile.token,
        "weights": dict(zip(SCENARIOS, profile.weights.tolist(), strict=True)),
    }
    return models.PointStruct(id=user_point(profile.user_id), vector=vectors, payload=payload)


def _profile(point: models.Record) -> Profile:
    payload, vectors = point.payload or {}, cast(dict[str, list[float]], point.vector)
    weights = np.asarray([payload["weights"][scenario] for scenario in SCENARIOS], np.float32)
    k = weights.shape[1]
    return Profile(
        user_id=payload["user_id"],
        version=payload["version"],
        model_version=payload["model_version"],
        codebook_version=payload["codebook_version"],
        event_ts=payload["event_ts"],
        token=payload.get("fence", 0),  # none in those of the first version
        vectors=np.asarray([[vectors[vector_name(s, i)] for i in range(k)] for s in SCENARIOS], np.float32),
        weights=weights,
    )


def _hit(point: models.ScoredPoint) -> Hit:
    payload = point.payload or {}
    return Hit(payload["item_id"], point.score, payload)


def _batches(records: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (records[start : start + size] for start in range(0, len(records), size))


def _default_port(url: str) -> int | None:
    """qdrant-client would add 6333 to an https address that names no port, and miss every proxy."""
    return None if url.startswith("https://") else 6333


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except UnexpectedResponse as error:
        raise _refusal(error) from error
    except ResourceExhaustedResponse as error:
        raise Transient(f"Qdrant asks to wait: {error}") from error
    except ResponseHandlingException as error:
        if isinstance(error.source, httpx.TransportError):
            url = error.source.request.url
            place = f"{url.scheme}://{url.netloc.decode()}"
            raise Transient(f"Qdrant at {place} cannot be reached: {error.source!r}") from error
        raise Permanent(f"Qdrant's answer is not understood: {error.source!r}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise Permanent(f"Qdrant query: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, AssertionError) as error:  # the local engine refuses, or a body is no JSON or holds no result
        kind = Transient if "not found" in str(error) else Permanent  # as 404 of the server
        raise kind(f"Qdrant: {error}") from error


def _refusal(error: UnexpectedResponse) -> Transient | Permanent:
    """Only what is wrong with the request itself is for good: a collection that is missing can be provisioned, a key
    corrected."""
    way_out = f": set {variable('qdrant_api_key')} to one that may" if error.status_code in FORBIDDEN else ""
    return (Permanent if error.status_code in REFUSALS else Transient)(f"Qdrant: {_message(error)}{way_out}")


def _message(error: UnexpectedResponse) -> str:
    """Qdrant's own sentence, or the HTTP status when something else answered."""
    try:
        return str(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status_code} {error.reason_phrase}".strip()
