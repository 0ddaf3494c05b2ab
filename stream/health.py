"""Which dependencies can serve, why not, and since when."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from stream.errors import Permanent, Transient

ANSWER_SECONDS = 2.0  # for one dependency: a probe is not kept waiting by one that is frozen

Ask = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Standing:
    """Of one dependency."""

    why: str  # it cannot serve, one sentence; empty when it can
    since: float  # `time.monotonic` when it was first found so

    @property
    def ready(self) -> bool:
        return not self.why

    def plain(self) -> dict[str, object]:
        """For JSON."""
        why = {"why": self.why} if self.why else {}
        return {"ready": self.ready, **why, "seconds": round(time.monotonic() - self.since, 1)}


class Readiness:
    """Asks every dependency, at the same time, and remembers what it found before."""

    def __init__(self, asks: Mapping[str, Ask]) -> None:
        self._asks = asks  # each raises why its dependency cannot serve
        self._found: dict[str, Standing] = {}

    async def look(self) -> dict[str, Standing]:
        reasons = await asyncio.gather(*(why_not(ask) for ask in self._asks.values()))
        self._found = {
            part: self._standing(self._found.get(part), why) for part, why in zip(self._asks, reasons, strict=True)
        }
        return self._found

    def _standing(self, before: Standing | None, why: str) -> Standing:
        lasts = before is not None and before.ready == (not why)
        return Standing(why, before.since if before and lasts else time.monotonic())


async def why_not(ask: Ask) -> str:
    """What keeps a dependency from serving; empty when nothing does."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await ask()
    except TimeoutError:
        return f"gives no answer within {ANSWER_SECONDS:g} s"
    except (Transient, Permanent) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""
