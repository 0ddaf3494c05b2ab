"""Worker processes that come and go."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds for a worker to end


class Fleet:
    """Processes of one command, the oldest first: `python COMMAND`."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str] = {}) -> None:
        self._command = [sys.executable, "-W", "error", *map(str, command)]
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> None:
        process = subprocess.Popen(
            [*self._command, *arguments], cwd=ROOT, env=self._environment, stderr=subprocess.PIPE, text=True
        )
        self.running.append(process)

    def terminate(self) -> None:
        """End the oldest in order."""
        self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> None:
        """By a signal, on which the oldest must end well and without a stack trace."""
        worker = self.running.pop(0)
        while not catches(worker.pid, signal.SIGTERM):  # it has not begun: it would just die
            time.sleep(0.1)
        worker.send_signal(number)
        _, said = worker.communicate(timeout=PATIENCE)
        assert worker.returncode == 0, f"{worker.returncode}: {said}"
        assert "Traceback" not in said, said

    def kill(self) -> None:
        worker = self.running.pop(0)
        worker.kill()
        worker.communicate()

    def close(self) -> None:
        while self.running:
            self.kill()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status.get("SigCgt", "0"), 16) >> number - 1 & 1)  # of a process that has ended, nothing is told
