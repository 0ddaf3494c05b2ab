"""The embedded default as a whole: four addresses, kept data, one owner, nothing left behind."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka.admin import AdminClient, NewTopic
from qdrant_client import QdrantClient, models
from test_guard import exists
from tritonclient.grpc import InferenceServerClient

from models.contract import ITEM_ENCODER, USER_INTERESTS
from stream import addresses
from stream.addresses import Addresses
from stream.embedded import kafka, triton
from stream.embedded.stack import Stack
from stream.errors import UserError
from stream.settings import Settings, load

ELSEWHERE = {
    "kafka_url": "127.0.0.1:1",
    "redis_url": "redis://127.0.0.1:1",
    "triton_url": "127.0.0.1:1",
    "qdrant_url": "http://127.0.0.1:1",
}

# Two models that echo, so that a tritonserver starts in half a second.
CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [{{ name: "X" data_type: TYPE_FP32 dims: [1] }}]
output [{{ name: "Y" data_type: TYPE_FP32 dims: [1] }}]
instance_group [{{ kind: KIND_CPU }}]
"""
ECHO = """
import models.contract  # the stub finds our package,
import tritonclient  # and the wheels of this environment
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("Y", given)]) for given in inputs]
"""


@pytest.fixture
def echo_repository(tmp_path: Path) -> Path:
    for name in triton.MODELS:
        version = tmp_path / "echo" / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(CONFIG.format(name=name))
        (version / "model.py").write_text(ECHO)
    return tmp_path / "echo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def settings_in(folder: Path, repository: Path, **given: Any) -> Settings:
    nowhere = dict.fromkeys(ELSEWHERE)
    return load(**{"data_folder": folder, "model_repository": repository, "start_timeout": 120, **nowhere, **given})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_four_parts_answer_and_their_data_survive_a_restart_on_other_ports(folder: Path, echo_repository: Path) -> None:
    settings = settings_in(folder, echo_repository)
    told: list[str] = []
    with Stack(settings, told.append) as found:
        assert len(told) == 4
        assert addresses.find(settings) == found
        assert kafka.answers(found.kafka)
        with redis.Redis.from_url(found.redis) as client:
            client.set("kept", "yes")
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        with InferenceServerClient(found.triton) as models_served:
            assert models_served.is_model_ready(ITEM_ENCODER)
            assert models_served.is_model_ready(USER_INTERESTS)
        qdrant = QdrantClient(url=found.qdrant)
        qdrant.create_collection("kept", models.VectorParams(size=2, distance=models.Distance.COSINE))
        qdrant.upsert("kept", [models.PointStruct(id=1, vector=[0.6, 0.8], payload={"a": 1})])
        qdrant.close()
    assert not (folder / addresses.RUNNING).exists()
    assert not list(triton.SHARED_MEMORY.glob(f"{triton.region_prefix(folder / 'triton')}*"))

    names = ("redis_port", "triton_port", "triton_http_port", "triton_metrics_port", "qdrant_port")
    ports = {name: free_port() for name in names}
    with Stack(settings_in(folder, echo_repository, **ports)) as found:
        assert found.redis == f"redis://127.0.0.1:{ports['redis_port']}/0"
        assert found.triton == f"127.0.0.1:{ports['triton_port']}"
        assert found.qdrant == f"http://127.0.0.1:{ports['qdrant_port']}"
        for name, path in (("triton_http_port", "/v2/health/ready"), ("triton_metrics_port", "/metrics")):
            urllib.request.urlopen(f"http://127.0.0.1:{ports[name]}{path}", timeout=30).close()
        with redis.Redis.from_url(found.redis) as client:
            assert client.get("kept") == b"yes"
        qdrant = QdrantClient(url=found.qdrant)
        (point,) = qdrant.retrieve("kept", [1], with_vectors=True)
        assert (point.payload, point.vector) == ({"a": 1}, pytest.approx([0.6, 0.8]))
        qdrant.close()


def test_a_real_kafka_keeps_its_topics(folder: Path, echo_repository: Path, kafka_home: Path) -> None:
    others = {part: url for part, url in ELSEWHERE.items() if part != "kafka_url"}
    settings = settings_in(folder, echo_repository, KAFKA_HOME=kafka_home, **others)
    quiet = {"log_level": 0}
    with Stack(settings) as found:
        admin = AdminClient({"bootstrap.servers": found.kafka, **quiet})
        admin.create_topics([NewTopic("kept", 3, 1)])["kept"].result(30)
    with Stack(settings) as found:
        admin = AdminClient({"bootstrap.servers": found.kafka, **quiet})
        assert len(admin.list_topics(timeout=30).topics["kept"].partitions) == 3


def test_the_kill_of_the_owner_ends_every_process_and_frees_the_folder(folder: Path, echo_repository: Path) -> None:
    script = (
        "import json, time; from stream.embedded.stack import Stack; from stream.settings import load\n"
        f"stack = Stack(load(data_folder={str(folder)!r}, model_repository={str(echo_repository)!r}, "
        "start_timeout=120, **json.loads('" + json.dumps(dict.fromkeys(ELSEWHERE)) + "')))\n"
        "stack.start()\n"
        "print(*(pid for server in stack.servers.values() for pid in server.pids()), flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) >= 10  # a guard and a server for each part, and the stubs of two models
    settings = settings_in(folder, echo_repository)
    with pytest.raises(UserError, match=rf"another Facetstream \(process {owner.pid}\) uses .*FACETSTREAM_DATA_FOLDER"):
        Stack(settings).start()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert (folder / addresses.RUNNING).exists()
    with pytest.raises(UserError, match="--keep-running"):
        addresses.find(settings)
    with Stack(settings) as found:  # waits for what is still ending
        assert not any(map(exists, pids))
        assert addresses.find(settings) == found


def test_a_part_that_fails_names_its_reason_and_the_others_are_stopped(folder: Path, echo_repository: Path) -> None:
    (echo_repository / USER_INTERESTS / "1" / "model.py").write_text("raise RuntimeError('no such checkpoint')")
    stack = Stack(settings_in(folder, echo_repository))
    with pytest.raises(UserError, match=r"(?s)Triton did not start.*no such checkpoint"):
        stack.start()
    assert stack.servers == {}
    assert not (folder / addresses.RUNNING).exists()


def test_a_part_whose_address_is_given_is_not_embedded(folder: Path, echo_repository: Path) -> None:
    given = {part: url for part, url in ELSEWHERE.items() if part != "redis_url"}
    stack = Stack(settings_in(folder, echo_repository, **given))
    with stack as found:
        assert set(stack.servers) == {"redis"}
        assert Addresses(**{**{part[:-4]: url for part, url in ELSEWHERE.items()}, "redis": found.redis}) == found
        stack.announce("http://127.0.0.1:2")
        running = addresses.read(folder)
        assert running == addresses.Running(os.getpid(), found, "http://127.0.0.1:2")
        assert stack.resident_bytes()["redis"] > 0


def test_a_port_in_use_is_a_users_mistake(folder: Path, echo_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        others = {part: url for part, url in ELSEWHERE.items() if part != "redis_url"}
        with pytest.raises(UserError, match=f"FACETSTREAM_REDIS_PORT={port}: the port is in use"):
            Stack(settings_in(folder, echo_repository, **others, redis_port=port)).start()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kafka_port": 9092, "kafka_home": None}, "FACETSTREAM_KAFKA_PORT needs a real Kafka"),
        ({"partitions": 8, "kafka_home": None}, "FACETSTREAM_PARTITIONS=8 needs a real Kafka"),
        ({"kafka_security": "SSL"}, "FACETSTREAM_KAFKA_SECURITY is for your own Kafka"),
        ({"kafka_home": Path("/nonexistent")}, "KAFKA_HOME"),
    ],
)
def test_what_the_embedded_log_cannot_do_is_said(
    folder: Path, echo_repository: Path, given: dict[str, Any], sentence: str
) -> None:
    renamed = {"KAFKA_HOME" if name == "kafka_home" else name: value for name, value in given.items()}
    with pytest.raises(UserError, match=sentence):
        kafka.start(settings_in(folder, echo_repository, **renamed))


def test_what_cannot_work_is_said_before_anything_starts(
    folder: Path, echo_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: started.append("a server"))
    with pytest.raises(UserError, match=r"KAFKA_HOME=/nonexistent holds no Apache Kafka|no java"):
        Stack(settings_in(folder, echo_repository, KAFKA_HOME=Path("/nonexistent"))).start()
    assert started == []


def test_a_repository_without_the_models_is_said(folder: Path, tmp_path: Path) -> None:
    others = {part: url for part, url in ELSEWHERE.items() if part != "triton_url"}
    with pytest.raises(UserError, match=r"FACETSTREAM_MODEL_REPOSITORY=.* holds no model item_encoder"):
        Stack(settings_in(folder, tmp_path / "empty", **others)).start()


@pytest.mark.parametrize("name", ["a b", "dä"])
def test_a_path_that_triton_cannot_use_is_said(folder: Path, echo_repository: Path, name: str) -> None:
    others = {part: url for part, url in ELSEWHERE.items() if part != "triton_url"}
    with pytest.raises(UserError, match=rf"FACETSTREAM_DATA_FOLDER=.*{name}: Triton needs a path of ASCII"):
        Stack(settings_in(folder / name, echo_repository, **others)).start()


def test_addresses_come_from_the_environment_first(folder: Path, tmp_path: Path) -> None:
    settings = settings_in(folder, tmp_path, **ELSEWHERE)
    assert addresses.find(settings) == Addresses(**{part[:-4]: url for part, url in ELSEWHERE.items()})
    some = settings.model_copy(update={"redis_url": None, "kafka_url": None})
    with pytest.raises(UserError, match=r"FACETSTREAM_KAFKA_URL, FACETSTREAM_REDIS_URL, or keep .*--keep-running"):
        addresses.find(some)


def test_a_broken_note_in_the_data_folder_is_said(folder: Path) -> None:
    folder.mkdir()
    (folder / addresses.RUNNING).write_text("{")
    with pytest.raises(UserError, match=r"running\.json cannot be read"):
        addresses.read(folder)
