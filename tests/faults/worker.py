"""The real worker, which asks for leave at every point: `python -m tests.faults.worker SOCKET`.

It stands still, as a whole, until the harness at the other end of the Unix socket answers: so any process can be killed
or frozen exactly there.
"""

import os
import socket
import sys

from stream import batches
from stream.commands.worker import command
from tests.faults.steps import STEPS, gated

SESSION_SECONDS = 3.0  # the broker of the harness allows it; Kafka's own least is six
batches.SESSION_SECONDS = SESSION_SECONDS
batches.HEARTBEAT_SECONDS = SESSION_SECONDS / 4


def main(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as harness:
        harness.connect(path)
        lines = harness.makefile("rw")

        def ask(point: str) -> None:
            print(point, file=lines, flush=True)
            if not lines.readline():  # nobody is there to answer any more
                os._exit(1)

        for step in STEPS.values():
            gated(step, ask)
        command(args=[])


if __name__ == "__main__":
    main(sys.argv[1])
