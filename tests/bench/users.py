"""What an event costs to ingest, as users grow."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count

from stream import history
from stream.adapters.redis import dirty_key, history_key, window_key
from stream.dirty_queue import DirtyQueue
from stream.events import Scenario
from stream.identity import item_key, shard
from stream.ledger import Batch, Record
from stream.services import Services, Stores
from stream.topics import EVENT_TOPICS
from tests.bench.report import Figure, Section, compared, interleaved
from tests.bench.system import System, ingest, know

SIZES = (1_000, 10_000, 100_000, 1_000_000)  # users
LENGTH = 8  # events of each before a round
EVENTS = 20_000  # of a round
ITEMS = [f"i{number:06d}" for number in range(2_000)]
APART, TOGETHER = 200, 2_000  # records of a batch
PARTITIONS = 4  # that share the users
TOPIC = EVENT_TOPICS[Scenario.feed.name]
PAGE = 10_000  # users written to Redis at once
OFFSETS = count()
ABOUT = f"""\
Time of `stream.ingest` for {EVENTS:,} events, in batches made in memory, Redis included. The users are in Redis
with {LENGTH} events each and the ids of these, before every round, and are refreshed, which is not timed, before every
batch: else few users would be dirty already when their next event comes, and many would not. In batches of {APART} each
event is of another user and costs a script of its own, however many users there are: the ratio is what their number
costs, and asked is at most 1.2. In batches of {TOGETHER:,}, from the users of one partition of {PARTITIONS}, events of
one user share a script while users are few.

It depends on Redis's allocator. The wheel's Redis has glibc's, where freed blocks lie among the values of all users, so
that a script's short-lived strings end in cold memory; elsewhere Redis is built with jemalloc. To have that:
LD_PRELOAD=/usr/lib/…/libjemalloc.so.2 python -m tests.bench users"""


def measure(system: System) -> Section:
    apart: dict[str, list[float]] = {}
    together: dict[str, list[float]] = {}
    for users in SIZES:
        system.empty()
        system.use(partial(_populate, range(users)))
        lanes = {
            f"{users:,} users, {APART} a batch": partial(_cost, system, _apart, users),
            f"{users:,} users, {TOGETHER:,} a batch": partial(_cost, system, _together, users),
        }
        for rounds, (name, found) in zip((apart, together), interleaved(lanes).items(), strict=True):
            rounds[name] = found
    return Section("Users", ABOUT, [*_compared(apart), *_compared(together)])


def _compared(rounds: dict[str, list[float]]) -> list[Figure]:
    return compared(rounds, "µs/event", {f"{SIZES[0]:,} users": next(iter(rounds))})


def _apart(users: int) -> list[list[int]]:
    """The users of each batch's events."""
    return [random.sample(range(users), APART) for _ in range(EVENTS // APART)]


def _together(users: int) -> list[list[int]]:
    return [random.choices(range(users // PARTITIONS), k=TOGETHER) for _ in range(EVENTS // TOGETHER)]


def _cost(system: System, drawn: Callable[[int], list[list[int]]], users: int) -> float:
    batches = drawn(users)

    async def body(services: Services, opened: Stores) -> float:
        await know(opened, [item_key(item) for item in ITEMS])
        queue, seconds = DirtyQueue(), 0.0
        handler = await ingest(services, opened, system.settings, queue)
        await _populate({user for batch in batches for user in batch}, services, opened)
        for batch in [_batch(batch) for batch in batches]:
            began = time.perf_counter()
            await handler.handle(batch, Scenario.feed)
            seconds += time.perf_counter() - began
            await _refreshed(queue, services)
        return seconds / EVENTS * 1e6

    return system.use(body)


def _batch(users: Iterable[int]) -> Batch:
    return Batch(TOPIC, 0, tuple(Record(next(OFFSETS), None, _event(user), -1) for user in users))


def _event(user: int) -> bytes:
    record = {"event_id": f"e{next(OFFSETS)}", "user_id": f"u{user:06d}", "item_id": random.choice(ITEMS)}
    return json.dumps(record | {"action": "click", "ts": int(time.time() * 1000)}).encode()


async def _refreshed(queue: DirtyQueue, services: Services) -> None:
    """As if all dirty users had been."""
    taken = queue.take(len(queue), now=time.monotonic(), now_ms=time.time() * 1000)
    queue.done(user for user, _ in taken)
    await services.redis.delete(*(dirty_key(shard(user)) for user, _ in taken))


async def _populate(users: Iterable[int], services: Services, opened: Stores) -> None:
    """Give these users a history that ends before now, and the ids of as many events."""
    book = opened.codebook
    kept = history.Record(int(time.time() * 1000) - 60_000, Scenario.feed, 0, 0, bytes(book.code_bytes))
    packed = history.encode(history.History(book.code_bytes, book.version, 2 * LENGTH, {}, (kept,) * LENGTH))
    waiting = list(users)
    for start in range(0, len(waiting), PAGE):
        names = [f"u{user:06d}" for user in waiting[start : start + PAGE]]
        pipeline = services.redis.pipeline(transaction=False)
        pipeline.mset({history_key(name): packed for name in names})
        pipeline.mset({window_key(name, Scenario.feed): random.randbytes(8 * LENGTH) for name in names})
        await pipeline.execute()
    while (await services.redis.info("persistence"))["aof_rewrite_in_progress"]:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
