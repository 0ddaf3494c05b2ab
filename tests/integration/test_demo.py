"""`facetstream demo`, from outside: its verdict, a second run on the same data, and what is left when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from stream.addresses import PARTS
from stream.settings import variable
from stream.topics import EVENT_TOPICS, ITEMS
from tests.conftest import ROOT

SMALL = ("--events", "2500", "--users", "50", "--rate", "0", "--json")
KEYS = {
    "events_produced",
    "events_applied",
    "duplicates_skipped",
    "dead_letters",
    "users",
    "refreshes",
    "qdrant_users",
    "qdrant_items",
    "bytes_per_event",
    "freshness_ms",
    "feed_before",
    "feed_after",
    "recommendations_changed",
    "seconds",
}


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    unset = {variable(f"{part}_url") for part in ("kafka", "redis", "triton", "qdrant")}
    env = {k: v for k, v in os.environ.items() if k not in unset} | {variable("data_folder"): str(folder)}
    command = [sys.executable, "-m", "stream.cli", "demo", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


def perform(run: subprocess.Popen[str]) -> dict[str, Any]:
    """The verdict of a demo that is now kept running."""
    assert run.stdout is not None
    assert run.stderr is not None
    told = []
    while (line := run.stderr.readline()) != "Ctrl-C ends everything.\n":
        told.append(line)
        assert line, "".join(told)
    verdict: dict[str, Any] = json.loads(run.stdout.readline())
    return verdict


def ask(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def check(verdict: dict[str, Any]) -> None:
    assert verdict.keys() >= KEYS
    assert verdict["events_applied"] == verdict["events_produced"] == 2_512
    assert (verdict["duplicates_skipped"], verdict["dead_letters"]) == (0, 0)
    assert verdict["users"] == 50
    assert verdict["qdrant_users"] in (50, 100)  # the second run has users of its own
    assert verdict["qdrant_items"] == 2_000
    assert verdict["bytes_per_event"] <= 16
    assert verdict["codebook_cosine"] >= 0.95
    assert verdict["freshness_ms"].keys() == {"p50", "p95", "p99"}
    assert verdict["recommendations_changed"]
    assert verdict["feed_before"] != verdict["feed_after"]
    assert len(verdict["feed_after"]) == 10


@pytest.mark.timeout(400)
def test_the_verdict_holds_twice_on_one_folder_and_nothing_is_left_running(tmp_path: Path) -> None:
    first = demo(tmp_path, *SMALL, "--keep-running")
    check(perform(first))
    worker = json.loads((tmp_path / "running.json").read_text())["worker"]
    assert ask(f"{worker}/livez") == {"alive": True, "waiting": {}}
    ready = ask(f"{worker}/readyz")
    assert {part: standing["ready"] for part, standing in ready["dependencies"].items()} == dict.fromkeys(PARTS, True)
    assert (ready["ready"], ready["lag"], ready["dirty_users"], ready["oldest_dirty_ms"]) == (True, 0, 0, None)
    assert ready["partitions"] == {topic: [0, 1, 2, 3] for topic in (*EVENT_TOPICS.values(), ITEMS)}
    assert ask(f"{worker}/counters")["events_applied"] == 2_512
    os.kill(first.pid, signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 0
    assert "Traceback" not in err
    assert not (tmp_path / "running.json").exists()
    assert processes_of(tmp_path) == []

    second = demo(tmp_path, *SMALL, "--keep-running")  # finds the histories and profiles of the first
    check(perform(second))
    os.kill(second.pid, signal.SIGKILL)
    second.communicate()
    deadline = time.monotonic() + 40
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(tmp_path) == []


@pytest.mark.timeout(200)
def test_a_worker_that_dies_is_named_at_once(tmp_path: Path) -> None:
    run = demo(tmp_path, "--events", "5000", "--users", "50", "--rate", "50", "--json")
    assert run.stderr is not None
    while "streaming" not in (line := run.stderr.readline()):
        assert line, "the demo ended early"
    os.kill(guarded(tmp_path, "worker"), signal.SIGKILL)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"worker ended; the end of {tmp_path / 'worker' / 'log'}" in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.timeout(200)
def test_while_it_is_kept_running_a_worker_may_be_stopped_and_a_server_that_dies_ends_it(tmp_path: Path) -> None:
    run = demo(tmp_path, "--events", "200", "--users", "10", "--rate", "0", "--json", "--keep-running")
    perform(run)
    assert run.stderr is not None
    os.kill(guarded(tmp_path, "worker"), signal.SIGTERM)
    assert run.stderr.readline() == f"worker was stopped; its log is {tmp_path / 'worker' / 'log'}\n"
    os.kill(guarded(tmp_path, "redis"), signal.SIGKILL)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"Redis ended; the end of {tmp_path / 'redis' / 'log'}" in err
    assert processes_of(tmp_path) == []


def guarded(folder: Path, part: str) -> int:
    """The process of a part, below its guard."""
    table = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
    lines = [line.split(maxsplit=2) for line in table[1:]]
    (guard,) = [pid for pid, _, args in lines if str(folder / part / "lock") in args]
    (child,) = [pid for pid, parent, _ in lines if parent == guard]
    return int(child)
