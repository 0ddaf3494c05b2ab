"""`facetstream doctor` on servers that are well, and on servers that are not, each in its own way."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from qdrant_client import QdrantClient

from stream import cli, doctor
from stream.adapters import redis_connection
from stream.adapters.kafka_admin import provision_topics
from stream.adapters.qdrant import connect as connect_qdrant
from stream.adapters.redis import RedisRegistry
from stream.addresses import PARTS
from stream.embedded import kafka
from stream.embedded import redis as embedded_redis
from stream.embedded.process import Server
from stream.errors import Permanent, Transient
from stream.findings import Check, Doubt, State
from stream.points import ITEMS, USERS
from stream.ports import ModelCard
from stream.settings import Settings, load, variable
from stream.stores import Codebook
from tests.redis_nodes import Nodes

NOWHERE = {
    "kafka": "127.0.0.1:1",
    "redis": "redis://127.0.0.1:1",
    "triton": "127.0.0.1:1",
    "qdrant": "http://127.0.0.1:1",
}
CARD = ModelCard(dim=8, interests=2, code_bytes=3, codebook_version=1, model_version="1")
Output = pytest.CaptureFixture[str]
Findings = dict[tuple[str, str], dict[str, str]]
Examine = Callable[..., Findings]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path) -> Examine:
    """Runs the command and gives its findings by part and name; parts that are not named are nowhere."""

    def run(**urls: str) -> Findings:
        for part in PARTS:
            monkeypatch.setenv(variable(f"{part}_url"), urls.get(part, NOWHERE[part]))
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        code = cli.run(["doctor", "--json"])
        said = json.loads(capsys.readouterr().out)
        found = {(f["part"], f["name"]): f for f in said["findings"]}
        assert code == (0 if said["ok"] else 1)
        assert said["ok"] == (State.WRONG not in {f["state"] for f in found.values()})
        assert all(bool(f["remedy"]) == (f["state"] != "ok") for f in found.values())
        assert not any("\n" in f["text"] for f in found.values())
        return found

    return run


def states(found: Findings, part: str) -> dict[str, str]:
    return {name: finding["state"] for (of, name), finding in found.items() if of == part}


async def well() -> str:
    return "well"


async def test_every_check_is_asked_whatever_becomes_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.05)

    def failing(error: Exception) -> Check:
        async def ask() -> str:
            raise error

        return Check(type(error).__name__, ask, "do this")

    async def hang() -> str:
        await asyncio.Event().wait()
        return "never"

    errors = [Doubt("perhaps"), Transient("away"), Permanent("no"), LookupError("a defect")]
    found = await doctor.answers(
        {
            "a": [
                Check("server", well, "r"),
                *map(failing, errors),
                Check("frozen", hang, "r"),
                Check("last", well, "r"),
            ],
            "b": [failing(Transient("away")), Check("never asked", well, "r")],
        }
    )
    assert [(f.part, f.name, f.state.value, f.text, f.remedy) for f in found] == [
        ("a", "server", "ok", "well", ""),
        ("a", "Doubt", "warning", "perhaps", "do this"),
        ("a", "Transient", "wrong", "away", "do this"),
        ("a", "Permanent", "wrong", "no", "do this"),
        ("a", "LookupError", "wrong", "LookupError: a defect", "do this"),
        ("a", "frozen", "wrong", "gives no answer within 0.05 s", "r"),
        ("a", "last", "ok", "well", ""),
        ("b", "Transient", "wrong", "away", "do this"),
    ]


def test_servers_that_are_down_are_a_line_each(examine: Examine, capsys: Output) -> None:
    found = examine()
    assert list(found) == [("kafka", "broker"), ("redis", "server"), ("triton", "server"), ("qdrant", "server")]
    assert {finding["state"] for finding in found.values()} == {"wrong"}
    assert cli.run(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 9  # with a remedy each, and the sum
    assert out.endswith("0 ok, 0 warning, 4 wrong\n")
    assert err == ""


def test_no_address_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path) -> None:
    for part in PARTS:
        monkeypatch.delenv(variable(f"{part}_url"), raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor"]) == 2
    assert "FACETSTREAM_KAFKA_URL" in capsys.readouterr().err


# Redis


@pytest.fixture
def server(embedded_settings: Settings, tmp_path: Path) -> Iterator[Server]:
    """A Redis of its own."""
    started = embedded_redis.start(embedded_settings.model_copy(update={"data_folder": tmp_path / "redis"}))
    yield started
    started.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with redis.Redis.from_url(server.address) as connected:
        yield connected


def test_a_redis_that_is_well_lacks_only_the_codebook_and_a_worker(examine: Examine, server: Server) -> None:
    found = examine(redis=server.address)
    assert states(found, "redis") == {
        **dict.fromkeys(("server", "role", "eviction", "memory", "persistence", "scripts", "clock"), "ok"),
        "codebook": "wrong",
        "workers": "warning",
    }
    assert found["redis", "codebook"]["remedy"] == "facetstream provision"
    asyncio.run(_provision_redis(server.address))
    assert states(examine(redis=server.address), "redis") == {
        **dict.fromkeys(states(found, "redis"), "ok"),
    }


async def _provision_redis(url: str) -> None:
    client = redis_connection.connect(url, load())
    await RedisRegistry(client).put_codebook(Codebook(1, 3, b"file"))
    await RedisRegistry(client).beat("w", 60.0)
    await client.aclose()


def test_an_examined_redis_is_as_before(examine: Examine, server: Server, client: Any) -> None:
    examine(redis=server.address)
    assert client.dbsize() == 0


@pytest.mark.parametrize(
    ("settings", "check", "state", "says"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, "eviction", "wrong", "allkeys-lru: Redis deletes histories"),
        ({"maxmemory-policy": "volatile-ttl"}, "eviction", "warning", "volatile-ttl"),
        ({"maxmemory": "1"}, "memory", "wrong", "nothing more can be written"),
        ({"appendonly": "no"}, "persistence", "warning", "neither append-only file nor snapshots"),
        ({"appendonly": "no", "save": "60 1"}, "persistence", "warning", "snapshots only"),
        ({"appendfsync": "everysec"}, "persistence", "warning", "appendfsync is everysec: Redis may answer before"),
    ],
)
def test_a_redis_that_would_lose_histories(
    examine: Examine, server: Server, client: Any, settings: dict[str, str], check: str, state: str, says: str
) -> None:
    for name, value in settings.items():
        client.config_set(name, value)
    finding = examine(redis=server.address)["redis", check]
    assert (finding["state"], says in finding["text"]) == (state, True), finding


def test_the_remedy_of_an_eviction_policy_cures_it(examine: Examine, server: Server, client: Any) -> None:
    client.config_set("maxmemory-policy", "allkeys-random")
    command = examine(redis=server.address)["redis", "eviction"]["remedy"].partition(",")[0].split()
    assert command[:3] == ["redis-cli", "-u", server.address]
    client.execute_command(*command[3:])
    assert examine(redis=server.address)["redis", "eviction"]["state"] == "ok"


def test_a_replica(examine: Examine, server: Server, client: Any, redis_db: str) -> None:
    primary = redis.connection.parse_url(redis_db)
    client.replicaof(primary["host"], primary["port"])
    found = examine(redis=server.address)
    assert states(found, "redis")["role"] == "wrong"
    assert str(primary["port"]) in found["redis", "role"]["text"]
    assert "READONLY" in found["redis", "scripts"]["text"]


def test_a_cluster_is_asked_node_by_node(
    examine: Examine, redis_cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examine(redis=redis_cluster.url)
    assert "with 1 replicas, not waited for" in found["redis", "role"]["text"]
    monkeypatch.setenv("FACETSTREAM_REDIS_REPLICAS", "1")
    told = ("server", "role", "eviction", "memory", "persistence", "scripts", "clock")
    assert {name: states(examine(redis=redis_cluster.url), "redis")[name] for name in told} == dict.fromkeys(told, "ok")
    primary, _ = redis_cluster.of("fs:counters")
    redis_cluster.ask(primary, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    wrong = examine(redis=redis_cluster.url)["redis", "eviction"]
    redis_cluster.ask(primary, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert wrong["text"].startswith(f"127.0.0.1:{primary} maxmemory-policy is allkeys-lru")
    alone = examine(redis=f"redis://127.0.0.1:{primary}")["redis", "server"]
    assert "redis+cluster://" in alone["text"]


def test_replicas_that_are_asked_for_and_not_there(
    examine: Examine, redis_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETSTREAM_REDIS_REPLICAS", "1")
    found = examine(redis=redis_db)
    assert "nothing counts as written" in found["redis", "role"]["text"]
    assert "NOREPLICAS 0 of 1" in found["redis", "scripts"]["text"]


def test_a_user_who_may_not_run_scripts_and_one_who_may_not_touch_our_keys(
    examine: Examine, server: Server, client: Any
) -> None:
    address = server.address.removeprefix("redis://")
    client.acl_setuser(
        "low", enabled=True, passwords=["+p"], keys=["fs:*"], categories=["+@all"], commands=["-evalsha"]
    )
    client.acl_setuser("far", enabled=True, passwords=["+p"], keys=["other:*"], categories=["+@all"])
    for user in ("low", "far"):
        finding = examine(redis=f"redis://{user}:p@{address}")["redis", "scripts"]
        assert finding["state"] == "wrong"
        assert "permission" in finding["text"].lower()
    found = examine(redis=f"redis://low:wrong@{address}")
    assert list(states(found, "redis")) == ["server"]
    assert "wrong@" not in json.dumps(list(found.values()))


def test_a_frozen_redis_is_a_line(examine: Examine, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACETSTREAM_REDIS_TIMEOUT", "0.5")
    (process,) = [pid for pid in server.pids() if "redis-server" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(process, signal.SIGSTOP)
    try:
        found = examine(redis=server.address)
    finally:
        os.kill(process, signal.SIGCONT)
    assert states(found, "redis") == {"server": "wrong"}


# Kafka

WELL = dict.fromkeys(
    ("broker", "topics", "partitions", "replicas", "min.insync.replicas", "retention", "write", "read", "commit"), "ok"
)
CONFIGURED = (
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n"
    "allow.everyone.if.no.acl.found=true\n"
)


@pytest.fixture
def broker(
    embedded_settings: Settings, tmp_path: Path, kafka_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A real Kafka of its own, which knows permissions."""
    plain = kafka._properties
    monkeypatch.setattr(kafka, "_properties", lambda *args: plain(*args) + CONFIGURED)
    started = kafka.start(
        embedded_settings.model_copy(update={"data_folder": tmp_path / "kafka", "kafka_home": kafka_home})
    )
    yield started
    started.stop()


async def make(url: str, topics: list[NewTopic]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=url)
    await admin.start()
    await admin.create_topics(topics)
    await admin.close()


def forbid(url: str, kind: ResourceType, name: str, operation: AclOperation) -> None:
    pattern = (kind, name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    rules = [
        AclBinding(*pattern, operation, AclPermissionType.DENY),
        AclBinding(*pattern, AclOperation.ALL, AclPermissionType.ALLOW),
    ]
    admin = AdminClient({"bootstrap.servers": url, "log_level": 0})
    for done in admin.create_acls(rules).values():
        done.result(30)


def test_a_kafka_that_is_well_lacks_only_a_worker(examine: Examine, broker: Server) -> None:
    asyncio.run(provision_topics(broker.address, load(kafka_url=None)))
    found = examine(kafka=broker.address)
    assert states(found, "kafka") == {**WELL, "group": "warning"}
    assert "0 records behind" in found["kafka", "group"]["text"]


def test_a_kafka_that_is_not_provisioned(examine: Examine, broker: Server) -> None:
    found = examine(kafka=broker.address)
    assert found["kafka", "topics"]["state"] == "wrong"
    assert "events.feed" in found["kafka", "topics"]["text"]
    assert found["kafka", "topics"]["remedy"] == "facetstream provision"


def test_topics_that_others_made(examine: Examine, broker: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"retention.ms": "3600000"}
    made = [NewTopic("events.feed", 2, 1, topic_configs=short), NewTopic("events.search", 3, 1)]
    closed = NewTopic("profiles.updated", 1, 1, topic_configs={"min.insync.replicas": "2"})
    asyncio.run(make(broker.address, [*made, closed]))
    monkeypatch.setenv("FACETSTREAM_REPLICATION", "2")
    found = examine(kafka=broker.address)
    assert states(found, "kafka") == {
        **WELL,
        "topics": "wrong",
        "partitions": "wrong",
        "replicas": "warning",
        "min.insync.replicas": "warning",
        "retention": "warning",
        "group": "warning",
    }
    assert found["kafka", "topics"]["text"] == "missing: events.discovery, items, events.dead"
    assert "events.search 3, events.feed 2" in found["kafka", "partitions"]["text"]
    assert "profiles.updated" in found["kafka", "min.insync.replicas"]["text"]
    assert "of events.feed" in found["kafka", "retention"]["text"]


def test_what_is_not_permitted_is_named_with_the_command_that_permits_it(examine: Examine, broker: Server) -> None:
    url = broker.address
    asyncio.run(provision_topics(url, load(kafka_url=None)))
    forbid(url, ResourceType.TOPIC, "events.feed", AclOperation.WRITE)
    found = examine(kafka=url)
    assert (found["kafka", "write"]["state"], "events.feed" in found["kafka", "write"]["text"]) == ("warning", True)
    forbid(url, ResourceType.TOPIC, "events.dead", AclOperation.WRITE)
    forbid(url, ResourceType.TOPIC, "events.search", AclOperation.READ)
    forbid(url, ResourceType.GROUP, "facetstream", AclOperation.READ)
    found = examine(kafka=url)
    assert states(found, "kafka") == {**WELL, "write": "wrong", "read": "wrong", "commit": "wrong", "group": "warning"}
    assert found["kafka", "write"]["text"].startswith("may not write to events.dead")
    assert found["kafka", "read"]["text"] == "may not read events.search"
    assert "--operation Read --group facetstream" in found["kafka", "commit"]["remedy"]


def test_a_kafka_that_stops_is_a_line(examine: Examine, broker: Server) -> None:
    broker.stop()
    assert states(examine(kafka=broker.address), "kafka") == {"broker": "wrong"}


def test_the_in_memory_broker_is_known(examine: Examine, embedded_settings: Settings, tmp_path: Path) -> None:
    wanted = embedded_settings.model_copy(update={"data_folder": tmp_path / "kafka", "kafka_home": None})
    broker = kafka.start(wanted)
    try:
        asyncio.run(provision_topics(broker.address, wanted))
        found = examine(kafka=broker.address)
    finally:
        broker.stop()
    assert states(found, "kafka") == {**WELL, "group": "ok"}
    assert "in-memory broker" in found["kafka", "broker"]["text"]
    assert "does not apply" in found["kafka", "commit"]["text"]


# Triton and Qdrant


@pytest.fixture
def collections(qdrant_url: str) -> Iterator[QdrantClient]:
    """Qdrant, with both collections gone before and after."""
    client = QdrantClient(url=qdrant_url)
    for _ in range(2):
        for name in (USERS, ITEMS):
            client.delete_collection(name)
        if _ == 0:
            yield client
    client.close()


async def _provision_qdrant(url: str, card: ModelCard) -> None:
    vectors = connect_qdrant(url, load())
    await vectors.provision(card)
    await vectors.close()


def test_a_qdrant_that_is_not_provisioned(examine: Examine, qdrant_url: str, collections: QdrantClient) -> None:
    found = examine(qdrant=qdrant_url)
    assert states(found, "qdrant")["server"] == "ok"
    assert found["qdrant", "collections"]["state"] == "wrong"
    assert "users and items" in found["qdrant", "collections"]["text"]


def test_without_models_the_shape_is_not_compared(examine: Examine, qdrant_url: str, collections: QdrantClient) -> None:
    asyncio.run(_provision_qdrant(qdrant_url, CARD))
    wanted = {"server": "ok", "collections": "warning", "status": "ok", "indexes": "ok", "write": "ok"}
    assert states(examine(qdrant=qdrant_url), "qdrant") == wanted
    collections.delete_payload_index(ITEMS, "category")
    finding = examine(qdrant=qdrant_url)["qdrant", "indexes"]
    assert (finding["state"], finding["text"]) == ("wrong", "missing, or of another kind: items.category")


def test_models_and_collections_of_another_shape(
    examine: Examine, triton_url: str, qdrant_url: str, collections: QdrantClient
) -> None:
    asyncio.run(_provision_qdrant(qdrant_url, CARD))
    found = examine(triton=triton_url, qdrant=qdrant_url)
    assert states(found, "triton") == {
        **dict.fromkeys(("server", "models", "contract", "repository"), "ok"),
        "codebook": "warning",  # Redis is away
    }
    assert found["qdrant", "collections"]["state"] == "wrong"
    assert "is not what the models need" in found["qdrant", "collections"]["text"]


def test_models_of_another_codebook_than_redis(examine: Examine, triton_url: str, server: Server) -> None:
    async def other() -> None:
        client = redis_connection.connect(server.address, load())
        await RedisRegistry(client).put_codebook(Codebook(9, 3, b"file"))
        await client.aclose()

    asyncio.run(other())
    found = examine(triton=triton_url, redis=server.address)
    assert found["triton", "codebook"]["state"] == "wrong"
    assert "Redis holds histories of version 9" in found["triton", "codebook"]["text"]
