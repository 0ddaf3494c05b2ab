"""A checkpoint's catalogue into the stores: as the catalogue path would have put it there, and refused where it is of
other models than those in force. Over the twins, and into a real Redis and Qdrant."""

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from models.contract import ITEM_ENCODER
from stream.adapters import qdrant, redis_connection
from stream.adapters.memory import MemoryModels
from stream.adapters.redis import RedisHistories, RedisItems
from stream.errors import Transient, UserError
from stream.load import Details, load
from stream.points import item_point
from stream.ports import CatalogueEntry, Encoded
from stream.settings import load as load_settings
from stream.stores import Codebook
from stream.trained import catalogue_size, refuse_other_codebook
from tests.conftest import ROOT
from tests.path.rig import CARD, Rig, event, item

SHIPPED = ROOT / "triton_repo" / ITEM_ENCODER / "1" / "codebook.safetensors"


def book(version: int, tensors: bytes = b"tensors") -> bytes:
    """A codebook's file, as far as anybody looks who knows no tensors."""
    header = json.dumps({"__metadata__": {"config": json.dumps({"version": version})}}).encode()
    return len(header).to_bytes(8, "little") + header + tensors


CODEBOOK = Codebook(CARD.codebook_version, CARD.code_bytes, book(CARD.codebook_version))
COUNT = 1_100  # more than two batches
IDS = [f"i{n}" for n in range(COUNT)]


async def write(folder: Path, codebook: bytes = CODEBOOK.file, **changes: Any) -> Encoded:
    """A checkpoint whose items are what `MemoryModels` makes of their ids, but for `changes` of columns."""
    encoded = await MemoryModels().encode(IDS)
    columns: dict[str, Any] = {
        "item_id": IDS,
        "embedding": list(encoded.embeddings),
        "codes": [row.tobytes() for row in encoded.codes],
        "fidelity": encoded.fidelity,
    }
    columns |= changes
    parquet.write_table(
        pa.table({name: c for name, c in columns.items() if c is not None}), folder / "catalogue.parquet"
    )
    (folder / "item_encoder").mkdir(exist_ok=True)
    (folder / "item_encoder" / "codebook.safetensors").write_bytes(codebook)
    return encoded


def details(folder: Path) -> Details:
    """Of a tenth of the items, one of them bad."""
    rows = [item(name, f"title of {name}") | {"category": "c"} for name in IDS[::10]]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"item_id": "bad"}])))
    return Details(folder / "items.jsonl")


@pytest.fixture(params=["twin", "real"])
async def rig(request: Any) -> AsyncIterator[Rig]:
    if request.param == "twin":
        yield await Rig().provision()
        return
    settings = load_settings()
    client = redis_connection.connect(request.getfixturevalue("redis_db"), settings)
    shape = {"code_bytes": CARD.code_bytes, "codebook_version": CARD.codebook_version, "length": 64, "window": 8}
    names = (f"users-{uuid4()}", f"items-{uuid4()}")
    vectors = qdrant.connect(request.getfixturevalue("qdrant_url"), settings, *names)
    yield await Rig(
        histories=RedisHistories(client, **shape), items=RedisItems(client, codebook_version=1), vectors=vectors
    ).provision()
    await vectors.close()
    await client.aclose()


async def loaded(rig: Rig, folder: Path, known: Details | None = None, **changes: Any) -> int:
    services: Any = SimpleNamespace(models=rig.models, vectors=rig.vectors)
    stores: Any = SimpleNamespace(codebook=CODEBOOK, items=rig.items, histories=rig.histories, **changes)
    steps: list[int] = []
    with known or Details(None) as found:
        count = await load(services, stores, folder, found, steps.append)
    assert sum(steps) == count == catalogue_size(folder)
    return count


async def points(rig: Rig, *names: str) -> list[Any]:
    found = await rig.vectors._client.retrieve(rig.vectors.items, list(map(item_point, names)), with_vectors=True)
    return sorted(found, key=lambda point: names.index(point.payload["item_id"]))


async def test_items_are_searchable_and_their_codes_known_at_once(rig: Rig, tmp_path: Path) -> None:
    encoded = await write(tmp_path)
    assert await loaded(rig, tmp_path, details(tmp_path)) == COUNT
    assert (await rig.vectors.stats()).items == COUNT
    known, bare = await points(rig, "i10", "i11")
    np.testing.assert_allclose([known.vector, bare.vector], encoded.embeddings[[10, 11]], atol=1e-6)
    assert (known.payload["title"], known.payload["category"]) == ("title of i10", "c")
    assert bare.payload == {"item_id": "i11", "title": "", "category": None, "attributes": {}, "fidelity": 1.0}
    await rig.feed(event(1, "i10"), event(2, "i1099"))
    assert [r.codes for r in (await rig.history()).records] == [encoded.codes[n].tobytes() for n in (10, 1099)]


async def test_a_point_is_what_the_catalogue_path_writes(rig: Rig, tmp_path: Path) -> None:
    await write(tmp_path)
    await loaded(rig, tmp_path, details(tmp_path))
    (mine,) = await points(rig, "i20")
    await rig.catalogue(item("i20", "title of i20") | {"category": "c"})
    (theirs,) = await points(rig, "i20")
    assert mine.payload == theirs.payload


async def test_histories_that_wait_are_filled_and_their_users_dirty(rig: Rig, tmp_path: Path) -> None:
    await rig.feed(event(1, "i5"))
    await rig.refresh()
    assert (await rig.history()).records[0].codes is None
    encoded = await write(tmp_path)
    await loaded(rig, tmp_path)
    assert (await rig.history()).records[0].codes == encoded.codes[5].tobytes()
    assert [mark.user_id for mark in await rig.histories.dirty(range(4096), 9)] == ["u"]


async def test_a_load_that_was_broken_off_is_repeated(rig: Rig, tmp_path: Path) -> None:
    encoded = await write(tmp_path)
    put, calls = rig.vectors.put_items, iter(range(9))

    async def failing(entries: list[CatalogueEntry]) -> None:
        if next(calls) == 1:
            raise Transient("Qdrant is away")
        await put(entries)

    rig.vectors.put_items = failing
    with pytest.raises(Transient):
        await loaded(rig, tmp_path)
    for _ in range(2):
        await loaded(rig, tmp_path)
    assert (await rig.vectors.stats()).items == COUNT
    found = await rig.items.claim(["i:i0", "i:i1099"])
    assert [stored.codes for stored in found] == [encoded.codes[n].tobytes() for n in (0, 1099)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": book(2)}, "is of codebook 2, Redis holds histories of codebook 1: load"),
        ({"codebook": book(1, b"others")}, "another codebook 1 than the one in Redis"),
        ({"codebook": b"nonsense"}, "is no codebook of ours"),
        ({"fidelity": None}, "has no column fidelity"),
        ({"codes": [b"abc"] * COUNT}, "row 1: item 'i0' has .* 3 bytes of codes; Triton serves 64 and 4"),
        ({"codes": [b"abcd"] * (COUNT - 1) + [None]}, "row 1100: item 'i1099' has .* 0 bytes"),
        ({"embedding": [[1.0] * 32] * COUNT}, "an embedding of 32 components"),
        ({"embedding": [[float("nan")] * 64] * COUNT}, "row 1: the embedding of item 'i0' is no unit vector"),
        ({"embedding": [None] * COUNT}, "row 1: item 'i0' has an embedding of 0 components"),
        ({"fidelity": [None] * COUNT}, "row 1: item 'i0' has nulls"),
        ({"embedding": ["a"] * COUNT}, "row 1: item 'i0' has nulls or no numbers"),
    ],
)
async def test_what_is_not_of_the_models_in_force_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rig = await Rig().provision()
    await write(tmp_path, **change)
    with pytest.raises(UserError, match=message):
        await loaded(rig, tmp_path)


def test_a_codebook_that_training_has_saved_is_known_again(tmp_path: Path) -> None:
    (tmp_path / "item_encoder").mkdir()
    shutil.copy(SHIPPED, tmp_path / "item_encoder")
    served = Codebook(1, 3, SHIPPED.read_bytes())
    refuse_other_codebook(tmp_path, served)
    with pytest.raises(UserError, match="of codebook 99"):
        refuse_other_codebook(tmp_path, replace(served, file=book(99)))


async def test_a_checkpoint_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    rig = await Rig().provision()
    with pytest.raises(UserError, match=r"cannot read .*codebook\.safetensors: No such file"):
        await loaded(rig, tmp_path)
    with pytest.raises(
        UserError, match=r"is no finished checkpoint: catalogue\.parquet is missing; `facetstream train` makes one"
    ):
        catalogue_size(tmp_path)


def test_a_file_without_any_item_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event_id": "e"}\n{"event_id": "f"}\n')
    with (
        pytest.raises(UserError, match=r"events\.jsonl has no item: see facetstream validate"),
        Details(tmp_path / "events.jsonl"),
    ):
        pass


async def test_another_codebook_served_is_refused(tmp_path: Path) -> None:
    rig = await Rig().provision()
    await write(tmp_path)

    async def card() -> Any:
        return replace(CARD, codebook_version=2)

    rig.models.card = card
    with pytest.raises(UserError, match="Triton serves codebook 2, Redis holds histories of codebook 1"):
        await loaded(rig, tmp_path)
