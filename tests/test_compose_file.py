"""What docker-compose.yml and the Dockerfiles promise, checked without an engine; tests/compose runs them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.settings import Settings, variable

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = sorted(SERVICES.keys() - {"provision"})
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*")

servers = pytest.mark.parametrize("name", SERVERS)
dockerfiles = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


def dependencies(name: str) -> dict[str, str]:
    return {other: wait["condition"] for other, wait in SERVICES[name].get("depends_on", {}).items()}


def test_the_services_are_those_of_the_design() -> None:
    assert sorted(SERVICES) == ["kafka", "provision", "qdrant", "redis", "triton", "worker"]


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    else:
        assert PINNED.fullmatch(service["image"])


@dockerfiles
def test_a_dockerfile_starts_from_pinned_images_and_ends_as_nobody_special(dockerfile: Path) -> None:
    lines = dockerfile.read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert bases
    assert all(PINNED.fullmatch(base) for base in bases)
    assert users[-1] not in {"root", "0"}
    assert not lines[0].startswith("# syntax=")


@servers
def test_a_server_says_how_it_is_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"].keys() >= {"test", "interval", "timeout", "retries"}
    assert service["restart"] == "unless-stopped"


def test_the_worker_starts_when_everything_is_provisioned() -> None:
    stores = {"kafka", "redis", "qdrant", "triton"}
    assert dependencies("provision") == dict.fromkeys(stores, "service_healthy")
    assert dependencies("worker") == {"provision": "service_completed_successfully"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user", "1").split(":")[0] not in {"root", "0"}


@pytest.mark.parametrize(
    ("name", "folder"), [("kafka", "/var/lib/kafka/data"), ("redis", "/data"), ("qdrant", "/qdrant/storage")]
)
def test_what_is_kept_is_in_a_named_volume(name: str, folder: str) -> None:
    (volume,) = SERVICES[name]["volumes"]
    source, _, target = volume.partition(":")
    assert source in COMPOSE["volumes"]
    assert target == folder


@servers
def test_ports_are_loopback_only_and_overridable(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert re.fullmatch(rf"127\.0\.0\.1:\$\{{FACETSTREAM_{name.upper()}_PORT:-\d+\}}:\d+", port)


@pytest.mark.parametrize("name", ["provision", "worker"])
def test_the_settings_given_exist(name: str) -> None:
    known = {variable(setting) for setting in Settings.model_fields}
    assert SERVICES[name]["environment"].keys() <= known


def test_redis_loses_and_evicts_nothing() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes --appendfsync always" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize(
    "files",
    [["docker-compose.yml"], ["docker-compose.yml", "deploy/gpu.yml"], ["tests/cluster/docker-compose.yml"]],
    ids="+".join,
)
def test_compose_accepts_the_files(files: list[str]) -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no Docker Compose here")
    chosen = [word for file in files for word in ("-f", file)]
    answer = subprocess.run(["docker", "compose", *chosen, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
