"""The system as one machine runs it: events in through Kafka from outside, a point out of Qdrant, nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from outside import Outside
from stack import SERVERS, Stack

pytestmark = pytest.mark.timeout(1_800)  # the first builds the images


@pytest.fixture(scope="module")
def outside(stack: Stack) -> Outside:
    there = Outside(stack)
    there.send_catalogue()
    return there


def test_events_from_outside_become_a_point(outside: Outside) -> None:
    outside.send_wave()
    outside.wait_complete()


@pytest.mark.parametrize("service", SERVERS)
def test_a_crash_loses_nothing(stack: Stack, outside: Outside, service: str) -> None:
    outside.send_wave()
    stack.kill(service)
    if service != "kafka":
        outside.send_wave()
    stack.start(service)
    outside.send_wave()
    outside.wait_complete()
    assert stack.restarts("worker") == 0


@pytest.mark.parametrize("service", SERVERS)
def test_no_service_is_root(stack: Stack, service: str) -> None:
    assert stack.compose("exec", "-T", service, "id", "-u").strip() != "0"


def test_provisioning_again_changes_nothing(stack: Stack, outside: Outside) -> None:
    stack.compose("run", "--rm", "-T", "provision")
    outside.wait_complete()


def test_the_demo_tells_the_same_story(stack: Stack, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stream.cli", "demo", "--json", "--events", "3000", "--users", "100"]
    answer = subprocess.run(command, cwd=tmp_path, env=os.environ | stack.addresses, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-4_000:]
    result = json.loads(answer.stdout.splitlines()[-1])
    assert result["recommendations_changed"] is True
    assert result["events_applied"] == result["events_produced"]
    assert result["qdrant_users"] >= result["users"]
