"""How a handler gets on, for whoever watches it: a dependency that is waited for is told from a handler that hangs."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Pulse:
    """Of one handler. Times are those of `time.monotonic`, in seconds."""

    moved: float = field(default_factory=time.monotonic)  # when it last got on, or will have waited as it must
    waiting: str = ""  # what a dependency said that cannot serve now; empty while none is waited for
    since: float = 0.0  # when that wait began

    def move(self) -> None:
        """It got on."""
        self.moved, self.waiting = time.monotonic(), ""

    def wait(self, reason: str, seconds: float = 0.0) -> None:
        """A dependency cannot serve now, and is asked again after so long. That is no standstill, for as long as this
        is heard again and again."""
        now = time.monotonic()
        self.since = self.since if self.waiting else now
        self.moved, self.waiting = now + seconds, reason


_current: ContextVar[Pulse | None] = ContextVar("pulse", default=None)


def watch(pulse: Pulse) -> None:
    """From now on this is the pulse of the running task, and of those it starts."""
    _current.set(pulse)


def current() -> Pulse:
    """Of the running task; one that nobody watches where `watch` was not called."""
    return _current.get() or Pulse()
