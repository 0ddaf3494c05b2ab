"""Who may work together: workers; and a replay with nobody."""

import pytest

from stream.adapters.memory_stores import MemoryRegistry
from stream.errors import UserError
from stream.presence import alone, at_work


async def test_workers_see_each_other_and_are_forgotten_when_they_leave() -> None:
    registry = MemoryRegistry()
    async with at_work(registry) as others:
        assert others == frozenset()
        async with at_work(registry) as others:
            assert len(others) == 1
    assert await registry.workers() == frozenset()


async def test_a_replay_begins_only_where_nobody_is_at_work() -> None:
    registry = MemoryRegistry()
    async with at_work(registry):
        with pytest.raises(UserError, match="a worker is at work on this Redis: stop it first"):
            async with alone(registry):
                pass
        assert len(await registry.workers()) == 1
    async with alone(registry):
        with pytest.raises(UserError, match="another replay is at work"):
            async with alone(registry):
                pass


async def test_a_worker_does_not_begin_during_a_replay() -> None:
    registry = MemoryRegistry()
    async with alone(registry):
        with pytest.raises(UserError, match="a replay is under way on this Redis: start workers when it has ended"):
            async with at_work(registry):
                pass
    async with at_work(registry):
        pass
