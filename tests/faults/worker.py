"""The real worker, which asks for leave at every point; a process of its own, forked from one that has imported it all.

It stands still, as a whole, until the harness at the other end of a Unix socket answers: so any process can be killed
or frozen exactly there.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

from stream import batches
from stream.commands.worker import command
from tests.faults.steps import STEPS, gated

SESSION_SECONDS = 2.0  # the broker of the harness allows it; by default Kafka wants six at least
STOP_SECONDS = 30.0
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


class Worker:
    """`facetstream worker` with these environment variables, its log in a file."""

    def __init__(self, gate: Path, log: Path, env: Mapping[str, str]) -> None:
        self._log = log
        log.touch()
        self._process = PROCESSES.Process(target=work, args=(str(gate), str(log), dict(env)), daemon=True)
        self._process.start()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        """SIGKILL; it is gone on return."""
        self._process.kill()
        self._process.join()

    def stop(self) -> int | None:
        """SIGTERM; the exit code, None when it does not end."""
        self._process.terminate()
        self._process.join(STOP_SECONDS)
        return self._process.exitcode

    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-2_000:]


def work(gate: str, log: str, env: dict[str, str]) -> None:
    """What the process does."""
    threading.Thread(target=_end_with_harness, daemon=True).start()
    warnings.simplefilter("error")
    os.environ.update(env)
    with Path(log).open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    batches.SESSION_SECONDS = SESSION_SECONDS
    batches.HEARTBEAT_SECONDS = SESSION_SECONDS / 4
    with socket.socket(socket.AF_UNIX) as harness:
        harness.connect(gate)
        lines = harness.makefile("rw")

        def ask(point: str) -> None:
            print(point, file=lines, flush=True)
            if not lines.readline():  # the harness is gone
                os._exit(1)

        for step in STEPS.values():
            gated(step, ask)
        command(args=[])


def _end_with_harness() -> None:
    if harness := multiprocessing.parent_process():
        harness.join()
    os._exit(1)
