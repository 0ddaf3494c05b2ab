"""The images of docker-compose.yml, each run alone by testcontainers."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server
from typing import Any

from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import HealthcheckWaitStrategy

ROOT = Path(__file__).parent.parent
ADDRESSES = {  # of a server whose port on this host is put in
    "kafka": "127.0.0.1:{}",
    "redis": "redis://127.0.0.1:{}/0",
    "triton": "127.0.0.1:{}",
    "qdrant": "http://127.0.0.1:{}",
}
START_SECONDS = 180


@contextmanager
def servers(*names: str) -> Iterator[dict[str, str]]:
    """The addresses of these servers by name, while they run."""
    testcontainers_config.ryuk_disabled = True  # what is started is stopped below; no further image is pulled
    ports = {name: _free_port() for name in names}
    chosen = {f"FACETSTREAM_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    services = json.loads(compose("config", "--format", "json", **chosen))["services"]
    with ExitStack() as running:
        for name in names:
            running.enter_context(_container(services[name]))
        yield {name: ADDRESSES[name].format(port) for name, port in ports.items()}


def compose(*words: str, **variables: str) -> str:
    """What `docker compose` prints."""
    command, environment = ["docker", "compose", *words], os.environ | variables
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-4_000:]
    return answer.stdout


def _container(service: dict[str, Any]) -> DockerContainer:
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


def _free_port() -> int:
    with create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
