"""Runs one server as long as its parent wants it, and not a moment longer.

    python -I -S guard.py LOCK GRACE COMMAND...

The parent holds the other end of standard input and says stop by closing it, which its death does too. The server
gets SIGTERM, GRACE seconds, then SIGKILL for its whole process group (a tritonserver's stubs). When the guard itself
is killed the kernel kills the server. The guard ends only when every process below it has, and holds the file LOCK
until then, so that a successor on the same folder waits for its predecessor. Standard library only: it starts in
milliseconds and is run by path, apart from the package.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL = 1.0  # seconds between looks at the parent, in case that a fork of it keeps the pipe open
PREDECESSOR = 20.0  # seconds to wait for the lock


def main(lock: str, grace: str, *command: str) -> int:
    parent = os.getppid()
    hold(lock)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake = _wake_on(signal.SIGCHLD, signal.SIGTERM)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with(os.getpid()))
    watch(child, parent, wake)
    stop(child, float(grace))
    return child.wait()


def hold(path: str) -> int:
    """Lock the file until this process ends; SystemExit when a predecessor does not let go."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + PREDECESSOR
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"another server still uses {os.path.dirname(path)}") from None  # noqa: PTH120
            time.sleep(0.1)


def watch(child: subprocess.Popen[bytes], parent: int, wake: int) -> None:
    """Return when the server has ended or is no longer wanted."""
    while child.poll() is None and os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin, wake], [], [], POLL)
        if sys.stdin in readable:
            return
        if wake in readable and signal.SIGTERM in os.read(wake, 64):
            return


def stop(child: subprocess.Popen[bytes], grace: float) -> None:
    """End the server politely, then its whole group for certain, and reap what it left."""
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _wake_on(*signals: signal.Signals) -> int:
    """A descriptor from which the numbers of these signals can be read as they arrive."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return reader


def _die_with(guard: int) -> Callable[[], None]:
    def arm() -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before the kernel was told
            os._exit(1)

    return arm


def _prctl(option: int, value: int) -> None:
    if _PRCTL is not None:
        _PRCTL(option, value, 0, 0, 0)


_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
