"""The embedded default: every part whose address is not given, started together and stopped together."""

import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from stream import addresses
from stream.addresses import PARTS, Addresses, Running
from stream.embedded import kafka, qdrant, redis, triton
from stream.embedded.process import Server, folder_of
from stream.errors import UserError
from stream.settings import Settings, variable

STARTERS: dict[str, Callable[[Settings], Server]] = {
    "kafka": kafka.start,
    "redis": redis.start,
    "triton": triton.start,
    "qdrant": qdrant.start,
}
CHECKS: dict[str, Callable[[Settings], None]] = {
    "kafka": kafka.check,
    "redis": redis.check,
    "triton": triton.check,
    "qdrant": qdrant.check,
}
LOCK = "stack.lock"


class Stack:
    """A context manager whose value is the `Addresses` of all four parts, embedded or given.

    One stack per data folder. While it runs, `running.json` in the folder tells other terminals the addresses. Its
    servers end with this process, however it ends.
    """

    def __init__(self, settings: Settings, on_progress: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._tell = on_progress or (lambda _: None)
        self._lock: BinaryIO | None = None
        self.servers: dict[str, Server] = {}
        self.addresses: Addresses | None = None

    def __enter__(self) -> Addresses:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Addresses:
        """All parts healthy. What cannot work is told at once; when a part fails later, the others are stopped and its
        reason is the `UserError`."""
        self._lock = _lock(self._settings)
        try:
            self._start_missing()
        except BaseException:
            self.stop()
            raise
        given = {part: getattr(self._settings, f"{part}_url") for part in PARTS}
        embedded = {part: server.address for part, server in self.servers.items()}
        self.addresses = Addresses(**{**given, **embedded})
        self.announce(None)
        return self.addresses

    def announce(self, worker: str | None) -> None:
        """Write `running.json`, with the URL of the worker's own pages when there is one."""
        if self.addresses is None:
            raise RuntimeError("the stack is not running")
        addresses.write(self._settings.data_folder, Running(os.getpid(), self.addresses, worker))

    def stop(self) -> None:
        """End every server, readers of the log first. Idempotent."""
        if self._lock is None:
            return
        addresses.forget(self._settings.data_folder)
        for part in ("triton", "kafka", "qdrant", "redis"):
            server = self.servers.pop(part, None)
            if server is not None:
                server.stop()
        self._lock.close()
        self._lock = None

    def resident_bytes(self) -> dict[str, int]:
        """Memory held by each embedded part (Linux)."""
        return {part: server.resident_bytes() for part, server in self.servers.items()}

    def _start_missing(self) -> None:
        missing = [part for part in PARTS if getattr(self._settings, f"{part}_url") is None]
        for part in missing:
            CHECKS[part](self._settings)
        with ThreadPoolExecutor(len(PARTS)) as threads:
            starting = [threads.submit(self._start, part) for part in missing]
            for started in as_completed(starting):
                server = started.result()  # raises the first failure, once the others have started too
                self._tell(f"{server.name} is ready at {server.address}")

    def _start(self, part: str) -> Server:
        self.servers[part] = STARTERS[part](self._settings)
        return self.servers[part]


def _lock(settings: Settings) -> BinaryIO:
    """The data folder for this process alone, until it ends."""
    path: Path = folder_of(settings, "") / LOCK
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        running = addresses.read(settings.data_folder)
        who = f" (process {running.pid})" if running else ""
        raise UserError(
            f"another Facetstream{who} uses {settings.data_folder}: stop it, or set {variable('data_folder')}"
        ) from None
    return lock
