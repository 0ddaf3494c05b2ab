"""How concurrency comes back after a failure."""

import asyncio

from stream.ramp import Ramp


async def going(ramp: Ramp) -> list[int]:
    """The tasks of three that may go on now."""
    tasks = [asyncio.create_task(ramp.turn(number)) for number in range(3)]
    await asyncio.sleep(0)
    found = [number for number, task in enumerate(tasks) if task.done()]
    for task in tasks:
        task.cancel()
    return found


async def test_one_after_a_failure_and_one_more_with_each_success() -> None:
    ramp = Ramp(3)
    assert await going(ramp) == [0, 1, 2]
    ramp.failed()
    assert await going(ramp) == [0]
    for allowed in ([0, 1], [0, 1, 2], [0, 1, 2]):
        ramp.succeeded()
        assert await going(ramp) == allowed


async def test_who_waits_goes_on_with_a_success() -> None:
    ramp = Ramp(3)
    ramp.failed()
    waiting = asyncio.create_task(ramp.turn(1))
    await asyncio.sleep(0)
    ramp.succeeded()
    await asyncio.wait_for(waiting, 5)
