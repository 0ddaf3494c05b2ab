"""The four servers as addresses: a running one where a variable names it, else the embedded one on a free port.

    FACETSTREAM_TEST_KAFKA  FACETSTREAM_TEST_REDIS  FACETSTREAM_TEST_TRITON  FACETSTREAM_TEST_QDRANT

Kafka is a running one, else that of KAFKA_HOME, else a container where a Docker Engine answers, else the in-memory
broker. A service that is missing skips its tests with the reason, and fails them when FACETSTREAM_REQUIRE names it
(`kafka` is a real one, which knows groups; comma list).
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest
import redis
from redis.asyncio import Redis

from stream.adapters.redis_connection import connect
from stream.embedded.process import Server
from stream.errors import UserError
from stream.settings import Settings, load
from tests.redis_nodes import Nodes

ROOT = Path(__file__).parent.parent
START_TIMEOUT = 120.0  # seconds; the machine may be busy
collect_ignore = ["cluster", "compose", "containers"]  # they build images: `make test-compose` names them


def need(service: str, reason: str) -> NoReturn:
    """Skip the test, or fail it when FACETSTREAM_REQUIRE names the service."""
    if service in os.environ.get("FACETSTREAM_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(f"FACETSTREAM_REQUIRE names {service}, but {reason}", pytrace=False)
    pytest.skip(reason)


def serve(service: str, start: Callable[[Settings], Server], settings: Settings) -> Iterator[str]:
    """The address of an embedded server, stopped afterwards."""
    try:
        server = start(settings)
    except UserError as error:
        if " here: " not in str(error):  # what is installed must start
            raise
        need(service, str(error))
    yield server.address
    server.stop()


@pytest.fixture(scope="session")
def embedded_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of servers for tests: nothing of the developer's own run is touched."""
    return load(
        data_folder=tmp_path_factory.mktemp("servers"),
        model_repository=ROOT / "triton_repo",
        start_timeout=START_TIMEOUT,
        kafka_url=None,
        redis_url=None,
        triton_url=None,
        qdrant_url=None,
    )


@pytest.fixture(scope="session")
def redis_url(embedded_settings: Settings) -> Iterator[str]:
    from stream.embedded import redis as embedded

    given = os.environ.get("FACETSTREAM_TEST_REDIS")
    yield from [given] if given else serve("redis", embedded.start, embedded_settings)


@pytest.fixture
def redis_db(redis_url: str) -> Iterator[str]:
    """An empty Redis. A server that the tests did not start lends a database that is empty, and gets it back so."""
    with redis.Redis.from_url(redis_url) as client:
        if "FACETSTREAM_TEST_REDIS" not in os.environ:
            client.flushall()
        elif client.dbsize():
            need("redis", f"database {redis_url} is not empty: name an empty one in FACETSTREAM_TEST_REDIS")
        client.script_flush()
        yield redis_url
        client.flushdb()


@pytest.fixture(scope="session")
def redis_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A Redis Cluster, which tests leave as well as they found it."""
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        nodes.up()
        yield nodes
    except UserError as error:
        need("redis", str(error))
    finally:
        nodes.down()


@pytest.fixture
def redis_cluster(redis_nodes: Nodes) -> Nodes:
    """An empty one, whole again whatever the test before has done to it."""
    redis_nodes.settled()
    redis_nodes.empty()
    return redis_nodes


def client_of(server: str, request: pytest.FixtureRequest) -> Redis:
    """Of an empty Redis, or of an empty cluster whose replicas are waited for."""
    if server == "redis":
        return connect(request.getfixturevalue("redis_db"), load())
    return connect(request.getfixturevalue("redis_cluster").url, load(redis_replicas=1))


@pytest.fixture(scope="session")
def triton_url(embedded_settings: Settings) -> Iterator[str]:
    from stream.embedded import triton as embedded

    given = os.environ.get("FACETSTREAM_TEST_TRITON")
    yield from [given] if given else serve("triton", embedded.start, embedded_settings)


@pytest.fixture(scope="session")
def qdrant_url(embedded_settings: Settings) -> Iterator[str]:
    from stream.embedded import qdrant as embedded

    given = os.environ.get("FACETSTREAM_TEST_QDRANT")
    yield from [given] if given else serve("qdrant", embedded.start, embedded_settings)


@pytest.fixture(scope="session")
def kafka_url(embedded_settings: Settings) -> Iterator[str]:
    from stream.embedded import kafka as embedded

    if given := os.environ.get("FACETSTREAM_TEST_KAFKA"):
        yield given
    elif os.environ.get("KAFKA_HOME") or no_docker():
        yield from serve("kafka", embedded.start, embedded_settings)
    else:
        from tests.images import servers

        with servers("kafka") as running:
            yield running["kafka"]


@pytest.fixture(scope="session")
def kafka_home() -> Path:
    """An unpacked Apache Kafka, for tests that start brokers of their own."""
    if not os.environ.get("KAFKA_HOME"):
        need("kafka", "KAFKA_HOME is not set")
    return Path(os.environ["KAFKA_HOME"])


@pytest.fixture(scope="session")
def real_kafka_url(request: pytest.FixtureRequest) -> str:
    """A broker with consumer groups and durability."""
    if not (os.environ.get("FACETSTREAM_TEST_KAFKA") or os.environ.get("KAFKA_HOME")) and (why := no_docker()):
        need("kafka", f"no FACETSTREAM_TEST_KAFKA, no KAFKA_HOME, and {why}: the in-memory broker knows no groups")
    url: str = request.getfixturevalue("kafka_url")
    return url


@pytest.fixture(scope="session")
def docker() -> None:
    """A Docker Engine and Compose that answer."""
    if why := no_docker():
        need("docker", why)


@cache
def no_docker() -> str | None:
    """Why neither a Docker Engine nor Compose can be used; None when they answer."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"there is no Docker client: {error}"
        if answer.returncode:
            return f"{' '.join(command)} says: {(answer.stderr or answer.stdout).strip().splitlines()[-1]}"
    return None
