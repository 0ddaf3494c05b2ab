"""A worker's large buffers go back to the system."""

import ctypes
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LATER = """
import ctypes, sys
from stream.commands.worker import give_back

class Usage(ctypes.Structure):  # malloc.h, struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "arena free fast maps mapped top cached used unused kept".split()]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Usage
if "give back" in sys.argv:
    give_back()
largest = bytes(16 << 20)
del largest
before = libc.mallinfo2().mapped
later = bytes(1 << 20)
print(libc.mallinfo2().mapped - before)
"""


def _mapped(*arguments: str) -> int:
    """Bytes that are mapped for 1 MiB alone, after 16 MiB were in use."""
    done = subprocess.run([sys.executable, "-c", LATER, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_room_for_the_largest_buffer_so_far_is_not_kept() -> None:
    try:
        ctypes.CDLL("libc.so.6").mallinfo2  # noqa: B018
    except (OSError, AttributeError):
        pytest.skip("this is not glibc 2.33 or later")
    assert _mapped() == 0
    assert _mapped("give back") >= 1 << 20
