"""`facetstream worker`: consumes events and keeps profiles fresh, until SIGTERM or Ctrl-C."""

import asyncio
import ctypes
import gc
import logging
import time
from contextlib import suppress

import click

from stream import addresses, settings
from stream.app import work

QUIET_SECONDS = 10.0  # a message is not repeated within
KINDS = 1_000  # of messages remembered
YOUNG = 50_000  # objects: a batch of events makes thousands that all go with it, and Python looks at them every 700
OLDER = (5, 2)  # times as rarely at older and at oldest ones: cycles among these hold buffers
LARGE_BYTES = 256 << 10
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h


@click.command("worker")
def command() -> None:
    """Consume events and items, keep profiles fresh.

    Run as many as there are partitions; each takes its share. Stops cleanly on SIGTERM and Ctrl-C.
    """
    wanted = settings.load()
    logging.basicConfig(level=wanted.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(Sparing())
    give_back()
    gc.freeze()
    gc.set_threshold(YOUNG, *OLDER)
    asyncio.run(work(wanted, addresses.find(wanted)))


def give_back() -> None:
    """Have glibc, where it is, return large buffers to the system when they are free: else it keeps room for the
    largest so far, in an arena for each thread."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_ARENA_MAX, 1)


class Sparing(logging.Filter):
    """Lets each kind of message pass now and then: in an outage, clients repeat themselves many times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[tuple[str, str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        about = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        kind, now = (record.name, str(record.msg), about), time.monotonic()
        if now - self._passed.get(kind, float("-inf")) < QUIET_SECONDS:
            return False
        if len(self._passed) >= KINDS:
            self._passed.clear()
        self._passed[kind] = now
        return True
