"""From a checkpoint to a version that Triton serves: what is refused, that nothing is half done, and a real swap."""

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc.aio as grpc
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2

from models import pbtxt, repository
from models.codebook import CodebookConfig, ResidualCodebook
from models.contract import ITEM_ENCODER, USER_INTERESTS
from models.errors import BadInput
from models.repository import export, stated_parameters, versions
from models.user_tower import UserTower
from stream import cli
from stream.adapters.triton import TritonModels
from stream.embedded import triton as embedded
from stream.errors import Transient
from stream.settings import Settings
from tests.conftest import serve
from tests.contracts.test_models import histories

SHIPPED = Path(__file__).parents[2] / "triton_repo"
MODELS = (ITEM_ENCODER, USER_INTERESTS)
SERVED = stated_parameters((SHIPPED / ITEM_ENCODER / "config.pbtxt").read_text())
NEW = 65_535  # a codebook version that is not the shipped one's


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "repo", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "repo"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The shipped weights, the user tower's a little different."""
    for model in MODELS:
        shutil.copytree(SHIPPED / model / "1", tmp_path / "checkpoint" / model, ignore=shutil.ignore_patterns("*.py*"))
    change_users(tmp_path / "checkpoint", lambda weights: weights.mul_(1.1))
    return tmp_path / "checkpoint"


def change_users(checkpoint: Path, change: Callable[[torch.Tensor], object]) -> None:
    """Every weight of the user tower."""
    tower = UserTower.load(checkpoint / USER_INTERESTS)
    for weights in tower.parameters():
        change(weights.data)
    tower.save(checkpoint / USER_INTERESTS)


def give_codebook(checkpoint: Path, interests: int = 4, **changes: int) -> None:
    """Another codebook for both towers, and other interests."""
    folder, users = checkpoint / ITEM_ENCODER, UserTower.load(checkpoint / USER_INTERESTS)
    config = replace(CodebookConfig(**users.config.codebook), **changes)
    vectors = torch.randn(2 * config.codewords, config.dim, generator=torch.Generator().manual_seed(1))
    book = ResidualCodebook.fit(vectors, config, 1)
    book.save(folder)
    tower = UserTower(replace(users.config, interests=interests, codebook=asdict(config)))
    tower.codebook.load_state_dict(book.state_dict())
    tower.save(checkpoint / USER_INTERESTS)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_version_is_added_to_both_models_and_nothing_else_changes(repo: Path, checkpoint: Path) -> None:
    before = contents(repo)
    export(checkpoint, repo, 3)
    after = contents(repo)
    assert before.items() <= after.items()
    for model in MODELS:
        assert sorted(versions(repo / model)) == [1, 3]
        weights = contents(checkpoint / model)
        assert contents(repo / model / "3") == weights | {"model.py": before[f"{model}/1/model.py"]}
    assert after.keys() - before.keys() == {f"{m}/3/{name}" for m in MODELS for name in contents(repo / m / "3")}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in repo.rglob("*.safetensors"))


def damaged(checkpoint: Path) -> None:
    (checkpoint / USER_INTERESTS / "user_tower.safetensors").write_bytes(b"no tensors")


def not_finite(checkpoint: Path) -> None:
    change_users(checkpoint, lambda weights: weights.fill_(torch.nan))


def two_codebooks(checkpoint: Path) -> None:
    tower = UserTower.load(checkpoint / USER_INTERESTS)
    tower.codebook.codewords.mul_(-1)
    tower.save(checkpoint / USER_INTERESTS)


@pytest.mark.parametrize(
    ("spoil", "version", "message"),
    [
        (lambda c: None, 1, r"item_encoder/1 exists.* never overwritten: export as --version 2$"),
        (lambda c: shutil.rmtree(c / USER_INTERESTS), 2, r"user_interests/user_tower\.safetensors is missing"),
        (damaged, 2, "cannot be loaded .* train it anew"),
        (not_finite, 2, "interests are not all finite unit vectors"),
        (two_codebooks, 2, "another codebook than its item encoder"),
        (give_codebook, 2, r"item_encoder/1 holds another codebook of version \d+.*train with another"),
        (lambda c: give_codebook(c, version=NEW), 2, rf"codebook_version=\d+, the checkpoint has {NEW}.*--breaking"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    repo: Path, checkpoint: Path, spoil: Callable[[Path], object], version: int, message: str
) -> None:
    spoil(checkpoint)
    before = contents(repo)
    with pytest.raises(BadInput, match=message) as refused:
        export(checkpoint, repo, version)
    assert "\n" not in str(refused.value)
    assert contents(repo) == before
    assert sorted(path.name for path in (repo / ITEM_ENCODER).iterdir()) == ["1", "config.pbtxt"]


def test_a_version_older_than_the_newest_is_refused(repo: Path, checkpoint: Path) -> None:
    (repo / USER_INTERESTS / "1").rename(repo / USER_INTERESTS / "7")
    with pytest.raises(BadInput, match=r"version 5 would not be served.*export as --version 8$"):
        export(checkpoint, repo, 5)


def test_what_breaks_with_the_stores_must_be_asked_for(repo: Path, checkpoint: Path) -> None:
    give_codebook(checkpoint, interests=2, version=NEW, levels=2, codewords=16)
    with pytest.raises(BadInput, match="--breaking"):
        export(checkpoint, repo, 2)
    export(checkpoint, repo, 2, breaking=True)
    texts = [(repo / model / "config.pbtxt").read_text() for model in MODELS]
    shared = {"codebook_version": str(NEW), "code_bytes": "1", "dim": SERVED["dim"]}
    assert list(map(stated_parameters, texts)) == [shared, shared | {"interests": "2"}]
    assert "dims: [ 64, 1 ]" in texts[1], "the warm-up"


@pytest.mark.parametrize(
    ("model", "old", "new", "message"),
    [
        (ITEM_ENCODER, '"EMBEDDING"', '"VECTOR"', "has no output EMBEDDING, which models/contract.py promises"),
        (ITEM_ENCODER, "TYPE_UINT8", "TYPE_INT8", r"CODES as INT8 \[-1\]; models/contract.py promises UINT8"),
        (
            ITEM_ENCODER,
            "TYPE_FP32 dims: [ -1 ]",
            "TYPE_FP32 dims: [ 32 ]",
            rf"FP32 \[32\]; the checkpoint has FP32 \[{SERVED['dim']}\]",
        ),
        (USER_INTERESTS, "input [\n", 'input [ { name: "AGE" data_type: TYPE_INT64 dims: [ 1 ] },\n', "asks for AGE"),
        (USER_INTERESTS, "dims: [ 3, -1, -1 ]", "dims: [ 4, -1, -1 ]", r"INTERESTS as FP32 \[4, -1, -1\]"),
        (
            USER_INTERESTS,
            "dims: [ -1, -1 ]",
            "dims: [ -1, 99 ]",
            rf"CODES as UINT8 \[-1, 99\]; the checkpoint has UINT8 \[9, {SERVED['code_bytes']}\]",
        ),
        (
            USER_INTERESTS,
            "instance_group [",
            "instance_group ]",
            r"interests/config\.pbtxt: a value is missing before ]",
        ),
    ],
)
def test_a_config_that_breaks_the_contract_is_refused(
    repo: Path, checkpoint: Path, model: str, old: str, new: str, message: str
) -> None:
    config = repo / model / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    with pytest.raises(BadInput, match=message):
        export(checkpoint, repo, 2)
    assert versions(repo / model) == [1]


def test_a_folder_that_is_no_repository_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"item_encoder/config\.pbtxt is missing; begin with a copy of triton_repo"):
        export(checkpoint, tmp_path, 2)


@pytest.mark.parametrize("model", MODELS)
def test_a_config_is_read_as_protobuf_reads_it(model: str) -> None:
    text = (SHIPPED / model / "config.pbtxt").read_text()
    found, known = pbtxt.parse(text), text_format.Parse(text, model_config_pb2.ModelConfig())
    assert repository.stated_parameters(text) == {name: value.string_value for name, value in known.parameters.items()}
    for key in ("input", "output"):
        rows = MessageToDict(known, preserving_proto_field_name=True)[key]
        mine = [(row["name"][0], row["data_type"][0], row["dims"]) for row in found[key]]
        assert mine == [(row["name"], row["data_type"], row["dims"]) for row in rows]


@pytest.mark.parametrize("text", ["a: ", "a { b: 1", "a }", "a: ]", "[", 'a: "b\n"', "a: [1, 2"])
def test_a_config_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        pbtxt.parse(text)


@pytest.fixture
def own_triton(embedded_settings: Settings, repo: Path, tmp_path: Path) -> Iterator[str]:
    """A Triton of the test's own, over `repo`."""
    changes = {"model_repository": repo, "data_folder": tmp_path / "server"}
    yield from serve("triton", embedded.start, embedded_settings.model_copy(update=changes))


async def test_triton_serves_the_new_version_once_it_is_loaded(own_triton: str, repo: Path, checkpoint: Path) -> None:
    models = TritonModels(own_triton, timeout=60.0)
    card = await models.card()
    models.keep_to(card.codebook_version)
    asked = histories(card, [5, 40])
    before = await models.interests(asked)
    export(checkpoint, repo, 2)
    assert (await models.interests(asked)).model_version == before.model_version == card.model_version == "1"
    async with grpc.InferenceServerClient(own_triton) as client:
        swaps = asyncio.gather(*(client.load_model(model) for model in MODELS))
        seen = {(await models.interests(asked)).model_version for _ in range(20)}
        await swaps
        assert seen <= {"1", "2"}
        after = await models.interests(asked)
        assert (after.model_version, (await models.card()).model_version) == ("2", "2")
        offline = repository.load(repo / ITEM_ENCODER / "2", repo / USER_INTERESTS / "2")
        with torch.inference_mode():
            texts = ["running shoes", "moka pot"]
            np.testing.assert_allclose((await models.encode(texts)).embeddings, offline.items(texts), atol=1e-4)
        assert not np.allclose(after.vectors, before.vectors, atol=1e-3)

        give_codebook(checkpoint, version=NEW)
        export(checkpoint, repo, 3, breaking=True)
        for model in MODELS:
            await client.load_model(model)
        with pytest.raises(
            Transient, match=f"user_interests 3 is of codebook {NEW}, what is stored of {card.codebook_version}"
        ):
            await models.interests(asked)
    await models.close()


def test_the_command(repo: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--checkpoint", str(checkpoint), "--repository", str(repo), "--version", "2"]
    assert cli.run(arguments) == 0
    out, err = capsys.readouterr()
    assert "/v2/repository/models/user_interests/load" in out
    assert err == ""
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "export as --version 3" in err
