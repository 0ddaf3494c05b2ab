"""A server that runs as a child of this process, under a guard, with its log in its own folder."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stream.embedded import guard
from stream.errors import UserError
from stream.settings import Settings, variable

GRACE = 10.0  # seconds between SIGTERM and SIGKILL
LINE_WIDTH = 300  # characters
POLL = 0.05  # seconds between two health checks
LOG_LINES = 12  # of the log, shown when a server fails


class Server:
    """One running server: `address`, `folder` (log, data, lock) and whether it is `alive`."""

    def __init__(self, name: str, address: str, folder: Path, guarded: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.address = address
        self.folder = folder
        self._guard = guarded

    @property
    def alive(self) -> bool:
        return self.code is None

    @property
    def code(self) -> int | None:
        """What it has ended with, 0 after a clean stop; None while it runs."""
        return self._guard.poll()

    @property
    def pid(self) -> int:
        """Of its guard: who sends it SIGTERM stops the server."""
        return self._guard.pid

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def pids(self) -> list[int]:
        """Every process of the server: the guard's session (Linux; empty elsewhere)."""
        return [pid for pid in _processes() if _session(pid) == self._guard.pid]

    def resident_bytes(self) -> int:
        """Memory held by all processes of the server (Linux)."""
        return sum(resident_bytes(pid) for pid in self.pids())

    def wait_ready(self, ready: Callable[[], bool], timeout: float) -> "Server":
        """Self once `ready` says so. A server that ends or is late is stopped; the `UserError` quotes its log."""
        deadline = time.monotonic() + timeout
        while not ready():
            late = time.monotonic() > deadline
            if late or not self.alive:
                self.stop()
                what = f"was not ready within {timeout:g} s ({variable('start_timeout')})" if late else "did not start"
                raise UserError(f"{self.name} {what}; the end of {self.log}:\n{self.last_words()}")
            time.sleep(POLL)
        return self

    def last_words(self) -> str:
        """The end of the log, without Triton's tables."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        told = [line for line in lines if line.strip() and not line.startswith(("|", "+-"))]
        return "\n".join(f"  {line[:LINE_WIDTH]}" for line in told[-LOG_LINES:]) or "  (empty)"

    def stop(self) -> None:
        """End the server and everything below it; nothing of it is left on return. Idempotent."""
        if self._guard.stdin and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def spawn(
    name: str, address: str, folder: Path, command: Sequence[str], env: Mapping[str, str] | None = None
) -> Server:
    """Start `command` under a guard; `env` is added to this process's environment."""
    with (folder / "log").open("wb") as log:
        guarded = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(folder / "lock"), str(GRACE), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # Ctrl-C in the terminal is for the parent, which then stops its servers in order
        )
    return Server(name, address, folder, guarded)


def folder_of(settings: Settings, part: str) -> Path:
    """The absolute folder of one part's data, made if absent."""
    folder = settings.data_folder.resolve() / part
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        named = f"{variable('data_folder')}={settings.data_folder}"
        raise UserError(f"{named}: {error.strerror}; name a folder to write in") from None
    return folder


def port_for(settings: Settings, name: str) -> int:
    """The port that the setting names, or a free one. A port in use is a `UserError`."""
    wanted: int | None = getattr(settings, name)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError:
            raise UserError(f"{variable(name)}={wanted}: the port is in use: name another, or unset it") from None
        port: int = probe.getsockname()[1]
        return port


def _processes() -> list[int]:
    proc = Path("/proc")
    return [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()] if proc.exists() else []


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
