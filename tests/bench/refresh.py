"""Users a second from packed histories to interests: through Triton, by the same module in process, and all the way."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import torch

from models.events import Histories
from models.user_tower import UserTower
from stream import history
from stream.coarse import CoarseCache
from stream.dirty_queue import DirtyQueue
from stream.identity import SHARDS
from stream.ownership import Ownership
from stream.pending import Pending
from stream.refresh import Pace, Refresher
from stream.services import Services, Stores, log, producer
from stream.stats import Stats
from stream.stores import Dirty
from stream.synthetic import synthesize
from tests.bench.report import Section, compared, interleaved
from tests.bench.system import ROOT, System, apply

USERS, EVENTS, BATCH = 512, 20_480, 64
PASSES = 4  # over all users
UNDER_WAY = 2  # batches, as a worker has it by default
DIRECT = "torch in process"
ABOUT = f"""\
{USERS:,} users with {EVENTS // USERS} events on average, packed as in Redis, {BATCH} at a time, {PASSES} times over;
unpacking is in every figure. One thread for torch, in process as in Triton. The last row is the product's whole
refresh: read, infer, upsert into the embedded Qdrant, announce, settle. Ratios are to the same module in process;
asked is 0.8 as the product does it, which is with {UNDER_WAY} batches under way. What Triton adds to a batch is some
3 ms of CPU time to the model's 90: unpacking and gRPC here, shared memory there."""

Step = Callable[[Sequence[str], Sequence[bytes]], Awaitable[object]]


def measure(system: System) -> Section:
    system.empty()
    users = system.use(partial(_fill, system))
    lanes = {
        DIRECT: partial(_lane, system, users, _direct, 1),
        "Triton, one batch at a time": partial(_lane, system, users, _triton, 1),
        f"Triton, {UNDER_WAY} batches under way": partial(_lane, system, users, _triton, UNDER_WAY),
        f"whole refresh, {UNDER_WAY} batches under way": partial(_lane, system, users, _whole, UNDER_WAY),
    }
    return Section("Refresh", ABOUT, compared(interleaved(lanes), "users/s", {"in process": DIRECT}))


async def _fill(system: System, services: Services, opened: Stores) -> list[str]:
    population = synthesize(USERS, EVENTS)
    await apply(system, services, opened, population.acts)
    return sorted(population.interests)


def _lane(system: System, users: Sequence[str], step: Callable[..., Step], under_way: int) -> float:
    async def body(services: Services, opened: Stores) -> float:
        async with producer(system.addresses.kafka, system.settings) as kafka:
            run = step(services, opened, log(kafka), await services.models.card())
            packed = await opened.histories.read(users)
            slices = [slice(start, start + BATCH) for start in range(0, len(users), BATCH)]
            await run(users[slices[0]], packed[slices[0]])  # warm
            todo = iter(slices * PASSES)

            async def drain() -> None:
                for part in todo:
                    await run(users[part], packed[part])

            began = time.perf_counter()
            await asyncio.gather(*(drain() for _ in range(under_way)))
            return len(users) * PASSES / (time.perf_counter() - began)

    return system.use(body)


def _direct(*_: object) -> Step:
    torch.set_num_threads(1)
    tower = UserTower.load(ROOT / "triton_repo" / "user_interests" / "1")

    async def run(_: Sequence[str], packed: Sequence[bytes]) -> object:
        t = history.tensors(packed)
        found = Histories(
            codes=torch.from_numpy(t.codes),
            time=torch.from_numpy(t.time),
            scenario=torch.from_numpy(t.scenario).long(),
            action=torch.from_numpy(t.action).long(),
            valid=torch.from_numpy(t.valid).bool(),
        )
        with torch.inference_mode():
            return [answer.numpy() for answer in tower(found)]

    return run


def _triton(services: Services, *_: object) -> Step:
    return lambda _, packed: services.models.interests(history.tensors(packed))


def _whole(services: Services, opened: Stores, out: object, card: object) -> Step:
    refresher = Refresher(
        histories=opened.histories,
        pending=Pending(opened.histories, opened.items, services.models),
        models=services.models,
        vectors=services.vectors,
        log=out,
        card=card,
        queue=DirtyQueue(),
        stats=Stats(),
        pace=Pace(BATCH, UNDER_WAY, sweep_interval=2.0),
        ownership=Ownership(opened.histories, lambda: frozenset(range(SHARDS))),
        coarse=CoarseCache(),
    )
    return lambda users, _: refresher.refresh([Dirty(user, int(time.time() * 1000)) for user in users])
