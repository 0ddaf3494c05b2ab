"""The contract suites against the very images of docker-compose.yml."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.images import ADDRESSES, ROOT, compose, servers

pytestmark = pytest.mark.timeout(1_800)  # the first builds an image


@pytest.fixture
def addresses(docker: None) -> Iterator[dict[str, str]]:
    """The four servers, as variables of the test suite."""
    compose("build", "triton")
    with servers(*ADDRESSES) as running:
        yield {f"FACETSTREAM_TEST_{name.upper()}": url for name, url in running.items()}


def test_every_port_keeps_its_contract_on_the_pinned_images(addresses: dict[str, str]) -> None:
    environment = os.environ | addresses | {"FACETSTREAM_REQUIRE": ",".join(ADDRESSES)}
    command = [sys.executable, "-m", "pytest", "-q", "tests/contracts"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(answer.stdout)
    assert answer.returncode == 0
