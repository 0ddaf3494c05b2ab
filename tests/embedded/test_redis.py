"""Law 1 rests on it: what Redis has answered is on disk, however slow the disk, and whatever becomes of Redis."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import redis

from stream.embedded import redis as embedded
from stream.settings import Settings
from tests.conftest import need

SLOW_DISK = """
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int file) { usleep(2500000); return syscall(SYS_fdatasync, file); }
"""
WRITING_SECONDS = 1.8  # less than one sync, more than the second after which `everysec` begins one


@pytest.fixture
def slow_disk(tmp_path: Path) -> Path:
    """A library to be preloaded, with which a sync takes 2.5 s."""
    compiler = shutil.which("cc")
    if compiler is None:
        need("cc", "there is no C compiler")
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_DISK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_what_was_answered_survives_a_kill(
    embedded_settings: Settings, slow_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = embedded_settings.model_copy(update={"data_folder": tmp_path})
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(slow_disk))
        server = embedded.start(settings)
    answered, end = 0, time.monotonic() + WRITING_SECONDS
    with redis.Redis.from_url(server.address) as client:
        while time.monotonic() < end:
            answered = client.incr("written")
    for pid in server.pids():
        if os.getsid(pid) != pid:  # its guard
            os.kill(pid, signal.SIGKILL)
    server.stop()
    server = embedded.start(settings)
    with redis.Redis.from_url(server.address) as client:
        assert int(client.get("written") or 0) == answered
    server.stop()
