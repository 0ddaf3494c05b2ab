"""The guard, alone: a server never outlives who wanted it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stream.embedded.process import GRACE, Server, spawn
from stream.errors import UserError

PATIENCE = 20.0  # seconds
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
# A server with a child that ignores SIGTERM, as a stub does that hangs.
FAMILY = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "stubborn = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(\"up\"); time.sleep(600)'\n"
    "subprocess.Popen([sys.executable, '-uc', stubborn])\n"
    "time.sleep(600)",
]


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(server: Server) -> bool:
    return eventually(lambda: "up" in server.log.read_text())


def test_stop_ends_the_server_and_its_children(tmp_path: Path) -> None:
    server = spawn("family", "", tmp_path, FAMILY)
    assert started(server)
    pids = server.pids()
    assert len(pids) == 3
    assert server.resident_bytes() > 0
    server.stop()
    assert not any(map(exists, pids))
    assert not server.alive
    server.stop()


def test_the_kill_of_the_parent_ends_every_process(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from stream.embedded.process import spawn\n"
        f"server = spawn('family', '', Path({str(tmp_path)!r}), {FAMILY!r})\n"
        "while 'up' not in server.log.read_text(): time.sleep(0.05)\n"
        "print(*server.pids(), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not any(map(exists, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_kill_of_the_guard_ends_the_server(tmp_path: Path) -> None:
    server = spawn("sleep", "", tmp_path, SLEEP)
    assert started(server)
    guard, child = sorted(server.pids())
    os.kill(guard, signal.SIGKILL)
    assert eventually(lambda: not exists(child))
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_kill_of_the_guard_while_it_starts_the_server_leaves_none(tmp_path: Path) -> None:
    """The kernel kills the server with its guard only once it was asked to: the child is slow to ask."""
    slow = (
        "import os, sys, time; from pathlib import Path; from stream.embedded import guard\n"
        "prctl, forked = guard._prctl, Path(sys.argv.pop(1))\n"
        "def late(option, value):\n"
        "    if option == guard.PR_SET_PDEATHSIG:\n"
        "        forked.write_text(str(os.getpid())); time.sleep(0.5)\n"
        "    prctl(option, value)\n"
        "guard._prctl = late\n"
        "guard.main(*sys.argv[1:])"
    )
    forked, up = tmp_path / "forked", tmp_path / "up"
    server = [sys.executable, "-c", f"open({str(up)!r}, 'w'); import time; time.sleep(600)"]
    command = [sys.executable, "-c", slow, str(forked), str(tmp_path / "lock"), "1", *server]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert eventually(lambda: forked.exists() and forked.read_text() != "")
    guard.kill()
    guard.communicate()
    assert eventually(lambda: not exists(int(forked.read_text())))
    assert not up.exists()


def test_a_successor_waits_until_its_predecessor_has_left_the_folder(tmp_path: Path) -> None:
    first = spawn("first", "", tmp_path, SLEEP)
    assert started(first)
    second = spawn("second", "", tmp_path, SLEEP)
    assert eventually(lambda: len(second.pids()) == 1)
    time.sleep(0.3)
    assert len(second.pids()) == 1  # the guard, without its server
    first.stop()
    assert eventually(lambda: len(second.pids()) == 2)
    second.stop()


def test_a_server_that_fails_says_its_last_words(tmp_path: Path) -> None:
    server = spawn("Broken", "", tmp_path, [sys.executable, "-c", "raise SystemExit('no such disk')"])
    with pytest.raises(UserError, match=r"(?s)Broken did not start; .*no such disk"):
        server.wait_ready(lambda: False, timeout=PATIENCE)


def test_a_server_that_is_late_is_stopped(tmp_path: Path) -> None:
    server = spawn("Slow", "", tmp_path, SLEEP)
    assert GRACE > 0
    with pytest.raises(UserError, match="Slow was not ready within 0 s"):
        server.wait_ready(lambda: False, timeout=0)
    assert not server.alive
