"""The contract suites against the very images of docker-compose.yml, each run alone by testcontainers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import HealthcheckWaitStrategy

ROOT = Path(__file__).parents[2]
ADDRESSES = {  # of a server whose port on this host is put in
    "kafka": "127.0.0.1:{}",
    "redis": "redis://127.0.0.1:{}/0",
    "triton": "127.0.0.1:{}",
    "qdrant": "http://127.0.0.1:{}",
}
START_SECONDS = 180

pytestmark = pytest.mark.timeout(1_800)  # the first builds an image


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def compose(*words: str, **variables: str) -> str:
    command, environment = ["docker", "compose", *words], os.environ | variables
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-4_000:]
    return answer.stdout


def container(service: dict[str, Any]) -> DockerContainer:
    """What Compose would run for a service, without its volume: nothing here can differ from docker-compose.yml."""
    health = service["healthcheck"]
    check = {
        "test": [word.replace("$$", "$") for word in health["test"]],
        "retries": health["retries"],
        **{name: int(health[name].removesuffix("s")) * 10**9 for name in ("interval", "timeout")},
    }
    made = DockerContainer(
        service["image"],
        command=service["command"],
        env=service.get("environment"),
        user=service.get("user"),
        cap_drop=service["cap_drop"],
        security_opt=service["security_opt"],
        shm_size=service.get("shm_size"),
        healthcheck=check,
    )
    for port in service["ports"]:
        made.with_bind_ports(port["target"], int(port["published"]))
    return made.waiting_for(HealthcheckWaitStrategy().with_startup_timeout(START_SECONDS))


@pytest.fixture
def addresses(docker: None) -> Iterator[dict[str, str]]:
    """The four servers, as variables of the test suite."""
    testcontainers_config.ryuk_disabled = True  # what is started is stopped below; no further image is pulled
    compose("build", "triton")
    ports = {name: free_port() for name in ADDRESSES}
    chosen = {f"FACETSTREAM_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    services = json.loads(compose("config", "--format", "json", **chosen))["services"]
    with ExitStack() as running:
        for name in ADDRESSES:
            running.enter_context(container(services[name]))
        yield {f"FACETSTREAM_TEST_{n.upper()}": url.format(ports[n]) for n, url in ADDRESSES.items()}


def test_every_port_keeps_its_contract_on_the_pinned_images(addresses: dict[str, str]) -> None:
    environment = os.environ | addresses | {"FACETSTREAM_REQUIRE": ",".join(ADDRESSES)}
    command = [sys.executable, "-m", "pytest", "-q", "tests/contracts"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(answer.stdout)
    assert answer.returncode == 0
