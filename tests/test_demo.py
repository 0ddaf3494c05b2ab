"""`stream.demo`, where it is ended from without."""

import asyncio
from typing import Any, cast

import pytest

from stream.demo import Demo, Progress


class Endless(Demo):
    """Sends and watches until it is cancelled."""

    async def _send_all(self, rate: float) -> None:
        await asyncio.sleep(3600)

    async def progress(self, phase: str) -> Progress:
        await asyncio.sleep(3600)
        raise AssertionError(phase)


async def test_one_that_is_cancelled_leaves_no_task_behind() -> None:
    nothing = cast(Any, None)
    streaming = asyncio.create_task(Endless(nothing, nothing, nothing, nothing, nothing, nothing).stream_events(0))
    while len(asyncio.all_tasks()) < 4:  # noqa: ASYNC110
        await asyncio.sleep(0)
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming
    assert asyncio.all_tasks() == {asyncio.current_task()}
