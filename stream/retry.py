"""How the stream waits for a dependency: bounded exponential back-off with jitter, for as long as it takes.

One request is bounded by its client's time-out; the waiting is not, as what ingest and catalogue hold would be lost. A
refresh may be given up for a while and has a budget: `stream.suspects`.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from stream.errors import Transient
from stream.pulse import current

T = TypeVar("T")
FIRST_DELAY = 0.05  # seconds
LONGEST_DELAY = 5.0  # seconds
log = logging.getLogger(__name__)


def delays(rng: random.Random | None = None) -> Iterator[float]:
    """Seconds to wait after the first failure, the second, …: doubling, bounded, between half and whole by chance."""
    rng = rng or random.Random()
    delay = FIRST_DELAY
    while True:
        yield delay * rng.uniform(0.5, 1.0)
        delay = min(2 * delay, LONGEST_DELAY)


async def persistently(call: Callable[[], Awaitable[T]]) -> T:
    """Await `call()` until it is not `Transient`. For calls that are safe to repeat and whose work must not be lost.

    The task's pulse tells what is waited for."""
    pulse = current()
    for delay in delays():
        try:
            answer = await call()
        except Transient as error:
            log.warning("%s; trying again in %.2f s", error, delay)
            pulse.wait(str(error), delay)
            await asyncio.sleep(delay)
        else:
            pulse.move()
            return answer
    raise AssertionError("delays never end")
