"""What `facetstream doctor` asks a Qdrant."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from qdrant_client import AsyncQdrantClient, models

from stream.adapters.qdrant import ITEM_INDEXES, USER_INDEXES, QdrantVectors, make_client, refuse_old_server, translated
from stream.errors import Permanent, Transient
from stream.findings import Check, Doubt
from stream.ports import ModelCard
from stream.settings import Settings, variable

PROVISION = "facetstream provision"


@asynccontextmanager
async def probe(
    url: str, settings: Settings, vectors: QdrantVectors, card: Callable[[], Awaitable[ModelCard]]
) -> AsyncIterator["QdrantProbe"]:
    """`card` says what the models need."""
    client = make_client(url, settings)
    try:
        yield QdrantProbe(client, url, vectors, card)
    finally:
        await client.close()


class QdrantProbe:
    """Nothing is sent before the first check."""

    def __init__(
        self, client: AsyncQdrantClient, url: str, vectors: QdrantVectors, card: Callable[[], Awaitable[ModelCard]]
    ) -> None:
        self._client, self._url, self._vectors, self._card = client, url, vectors, card

    def checks(self) -> list[Check]:
        key = variable("qdrant_api_key")
        return [
            Check("server", self._server, f"start 1.16 or later, or set {variable('qdrant_url')} and {key}"),
            Check("collections", self._collections, f"{PROVISION}, after what the sentence says"),
            Check("status", self._status, "see the log of Qdrant and its disk; yellow and grey pass by themselves"),
            Check("indexes", self._indexes, PROVISION),
            Check("write", self._write, f"set {key} to one that may write to both collections"),
        ]

    async def _server(self) -> str:
        with translated():
            version = await refuse_old_server(self._client)
            await self._client.get_collections()  # the version is told to anybody, this is not
        return f"Qdrant {version} at {self._url}"

    async def _collections(self) -> str:
        await self._vectors.check_ready()
        try:
            card = await self._card()
        except (Transient, Permanent):
            raise Doubt("are there; their shape is not compared, since the models do not say what they need") from None
        await self._vectors.check(card)
        return f"{self._vectors.users} and {self._vectors.items} are of the models' shape"

    async def _status(self) -> str:
        with translated():
            found = {name: await self._client.get_collection(name) for name in self._names()}
        told = ", ".join(
            f"{name} {info.status.value}, {info.points_count or 0:,} points" for name, info in found.items()
        )
        if any(info.status == models.CollectionStatus.RED for info in found.values()):
            raise Permanent(told)
        if any(info.status != models.CollectionStatus.GREEN for info in found.values()):
            raise Doubt(told)
        return told

    async def _indexes(self) -> str:
        missing = []
        for name, wanted in zip(self._names(), (USER_INDEXES, ITEM_INDEXES), strict=True):
            with translated():
                found = (await self._client.get_collection(name)).payload_schema
            missing += [f"{name}.{field}" for field, kind in wanted.items() if _kind(found.get(field)) != kind]
        if missing:
            raise Permanent(f"missing, or of another kind: {', '.join(missing)}")
        return ", ".join(f for indexes in (USER_INDEXES, ITEM_INDEXES) for f in indexes)

    async def _write(self) -> str:
        """Delete a point that is not there."""
        for name in self._names():
            with translated():
                await self._client.delete(name, [str(uuid.uuid4())], wait=True)
        return "allowed"

    def _names(self) -> tuple[str, str]:
        return self._vectors.users, self._vectors.items


def _kind(index: models.PayloadIndexInfo | None) -> models.PayloadSchemaType | None:
    return index.data_type if index else None
