"""The short crash matrix: the worker killed at each step, and a fault of each server; `make faults` runs all of it."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stream.errors import UserError
from tests.conftest import need
from tests.faults.cells import Cell, run
from tests.faults.laws import judge, watching
from tests.faults.steps import INGEST, REFRESH
from tests.faults.system import System, running
from tests.faults.truth import Truth

SHORT = [
    *(Cell("worker", "kill", f"after {step.name}") for step in (*INGEST, *REFRESH)),
    Cell("worker", "kill", "after catalog 4 fill"),
    Cell("worker", "freeze", "before ingest 3 append"),
    Cell("kafka", "kill", "before ingest 6 commit"),
    Cell("redis", "kill", "after ingest 3 append"),
    Cell("triton", "kill", "before refresh 3 interests"),
    Cell("qdrant", "kill", "before refresh 4 upsert"),
]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    try:
        async with running(tmp_path_factory.mktemp("faults"), kafka_home) as started:
            yield started
    except UserError as error:
        if " here: " not in str(error):  # what is installed must start
            raise
        need("triton", str(error))


@pytest.mark.parametrize("cell", SHORT, ids=str)
async def test_nothing_is_lost_doubled_or_stale(system: System, cell: Cell) -> None:
    verdict = await run(system, cell)
    assert not verdict.broken
    assert (verdict.applied, verdict.duplicated, verdict.lost, verdict.stale) == (verdict.events, 0, 0, 0)


async def test_what_is_lost_or_doubled_or_falls_would_be_seen(system: System) -> None:
    since_ms, truth = int(time.time() * 1000), Truth("seen")
    one, other = truth.users[:2]
    async with watching(system, truth.users) as watch:
        await system.send(truth.burst())
        await system.settled(truth.users)
    truth.histories[other].append(truth.histories[one].pop())
    truth.letters = {b"never sent"}
    watch.see("Qdrant", {one: 0})
    verdict = await judge(system, truth, watch, since_ms, ordered=True)
    assert (verdict.duplicated, verdict.lost) == (1, 1)
    assert {law.split(":")[0] for law in verdict.broken} == {"law 1 or 2", "law 3", "law 9"}
