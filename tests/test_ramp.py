"""How concurrency comes back after a failure."""

import asyncio

from stream.ramp import Ramp


async def test_one_after_a_failure_and_one_more_with_each_success() -> None:
    ramp, going = Ramp(3), list[int]()

    async def wait(number: int) -> None:
        await ramp.turn(number)
        going.append(number)

    async def turns() -> list[int]:
        going.clear()
        tasks = [asyncio.create_task(wait(number)) for number in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return sorted(going)

    assert await turns() == [0, 1, 2]
    ramp.failed()
    assert await turns() == [0]
    waiting = asyncio.create_task(wait(1))
    ramp.succeeded()
    assert await turns() == [0, 1, 1] or waiting.done()
    ramp.succeeded()
    ramp.succeeded()
    assert ramp.allowed == 3
