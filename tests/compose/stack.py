"""A Compose file, docker-compose.yml or another, brought up under a name and on ports of its own."""

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).parents[2]
SERVERS = ("kafka", "redis", "qdrant", "triton", "worker")
PORTS = tuple(f"FACETSTREAM_{part}_PORT" for part in ("KAFKA", "REDIS", "TRITON", "QDRANT"))
UP_SECONDS = 300  # until everything is healthy, once it is built
LOG_LINES = 40


def free_ports(count: int) -> list[int]:
    """Different ones, free a moment ago."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


def well(container: dict[str, Any]) -> bool:
    """Healthy, or ended as it should."""
    return container["Health"] == "healthy" or (container["State"], container["ExitCode"]) == ("exited", 0)


def _logs(container: str) -> str:
    command = ["docker", "logs", "--tail", str(LOG_LINES), container]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


class ComposeError(Exception):
    """A docker compose command failed: what it said, and the last lines of every service."""


@dataclass(frozen=True)
class Stack:
    """One project of Compose."""

    project: str
    variables: dict[str, int]  # that the file asks for: ports on 127.0.0.1, and what else
    file: str = "docker-compose.yml"

    @classmethod
    def new(cls, names: Sequence[str] = PORTS, file: str = "docker-compose.yml") -> "Stack":
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        return cls(f"facetstream-test-{uuid4().hex[:8]}", ports, file)

    @property
    def addresses(self) -> dict[str, str]:
        """The four parts as settings of a process on the host."""
        port = self.variables
        return {
            "FACETSTREAM_KAFKA_URL": f"127.0.0.1:{port['FACETSTREAM_KAFKA_PORT']}",
            "FACETSTREAM_REDIS_URL": f"redis://127.0.0.1:{port['FACETSTREAM_REDIS_PORT']}/0",
            "FACETSTREAM_TRITON_URL": f"127.0.0.1:{port['FACETSTREAM_TRITON_PORT']}",
            "FACETSTREAM_QDRANT_URL": f"http://127.0.0.1:{port['FACETSTREAM_QDRANT_PORT']}",
        }

    def compose(self, *words: str) -> str:
        """Run a docker compose command; its stdout. Raises `ComposeError`."""
        answer = self._run(*words)
        if answer.returncode:
            raise ComposeError(f"docker compose {' '.join(words)}:\n{answer.stderr[-2_000:]}\n{self.logs()}")
        return answer.stdout

    def up(self) -> None:
        self.compose("up", "--detach", "--build", "--wait", "--wait-timeout", str(UP_SECONDS))

    def kill(self, service: str) -> None:
        """As a crash would."""
        self.compose("kill", service)

    def start(self, service: str, recreate: bool = False) -> None:
        """What is there of a service, or all of it anew; until it is healthy."""
        how = "--force-recreate" if recreate else "--no-recreate"
        self.compose("up", "--detach", "--no-deps", how, "--wait", "--wait-timeout", str(UP_SECONDS), service)

    def restarts(self, service: str) -> int:
        """How often the engine had to restart it because it ended by itself."""
        container = self.compose("ps", "--quiet", service).strip()
        command = ["docker", "inspect", "--format", "{{.RestartCount}}", container]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def logs(self) -> str:
        """The last lines of the services that are not well; of all when all are."""
        found = [json.loads(line) for line in self._run("ps", "--all", "--format", "json").stdout.splitlines()]
        unwell = [container for container in found if not well(container)]
        return "\n".join(f"---- {c['Service']}\n{_logs(c['Name'])}" for c in unwell or found)

    def down(self) -> None:
        self._run("down", "--volumes", "--remove-orphans", "--timeout", "5")

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FACETSTREAM_")}
        environment = clean | {name: str(port) for name, port in self.variables.items()}
        command = ["docker", "compose", "--file", self.file, "--project-name", self.project, *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
