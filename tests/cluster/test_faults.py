"""The short version of `python -m tests.cluster`."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.cluster.cells import SHORT, Cell, run
from tests.cluster.machines import Machines, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1_800)]  # the first builds the images


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machines(docker: None) -> AsyncIterator[Machines]:
    async with running() as started:
        yield started


@pytest.mark.parametrize("cell", SHORT, ids=str)
async def test_nothing_is_lost_doubled_or_stale(machines: Machines, cell: Cell) -> None:
    verdict = await run(machines, cell)
    assert not verdict.broken, "\n".join((str(verdict), *verdict.broken, machines.stack.logs()))
    assert (verdict.applied, verdict.duplicated, verdict.lost, verdict.stale) == (verdict.events, 0, 0, 0)
