"""The four embedded servers in a folder of their own, provisioned, and the product's ingest on them."""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from stream import settings
from stream.addresses import PARTS, Addresses
from stream.admission import Admission
from stream.dirty_queue import DirtyQueue
from stream.embedded.stack import Stack
from stream.events import Scenario
from stream.identity import item_key, query_key
from stream.ingest import Ingest, ItemCache
from stream.ledger import Batch, Record
from stream.ports import DeadLetter, Update
from stream.provision import provision
from stream.services import Services, Stores, connect, stores
from stream.settings import Settings
from stream.stats import Stats
from stream.synthetic import Act
from stream.topics import EVENT_TOPICS

ROOT = Path(__file__).parents[2]
SCENARIOS = {topic: Scenario[name] for name, topic in EVENT_TOPICS.items()}
T = TypeVar("T")


@dataclass
class Silence:
    """A `stream.ports.Log` that writes nothing: only good events are sent here, and announcing is not measured."""

    letters: list[DeadLetter] = field(default_factory=list)

    async def dead_letter(self, letters: list[DeadLetter]) -> None:
        raise AssertionError(f"{len(letters)} events were refused, the first because: {letters[0].reason}")

    async def announce(self, updates: list[Update]) -> None:
        pass


@dataclass(frozen=True)
class System:
    """What runs."""

    settings: Settings
    addresses: Addresses

    def use(self, body: Callable[[Services, Stores], Awaitable[T]]) -> T:
        """The result of a coroutine over the services, in an event loop of its own."""

        async def run() -> T:
            async with connect(self.settings, self.addresses) as services:
                return await body(services, await stores(services, self.settings))

        return asyncio.run(run())

    def empty(self) -> None:
        """Forget every history and item."""

        async def run() -> None:
            async with connect(self.settings, self.addresses) as services:
                await services.redis.flushall()
                await provision(self.settings, self.addresses, services)

        asyncio.run(run())

    def of_another_group(self) -> "System":
        """The same for a consumer group that has read nothing yet."""
        group = f"bench-{time.time_ns()}"
        return System(self.settings.model_copy(update={"consumer_group": group}), self.addresses)

    def environment(self, **changed: object) -> dict[str, str]:
        """Of a process of its own on the same servers, with other settings changed."""
        told = {f"{part}_url": address for part, address in asdict(self.addresses).items()}
        told |= {"data_folder": self.settings.data_folder, "consumer_group": self.settings.consumer_group, **changed}
        rest = {name: value for name, value in os.environ.items() if not name.startswith(settings.PREFIX)}
        return rest | {"PYTHONPATH": str(ROOT)} | {settings.variable(name): str(value) for name, value in told.items()}


@contextmanager
def running() -> Iterator[System]:
    """Servers of our own, whatever the environment names: they are emptied again and again."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = settings.load(**own(folder))
        with Stack(wanted) as found:
            system = System(wanted, found)
            system.empty()
            yield system


def own(folder: str) -> dict[str, object]:
    """Settings of embedded servers that keep everything in `folder`."""
    unset = dict.fromkeys(f"{part}_url" for part in PARTS)
    return {"data_folder": Path(folder), "model_repository": ROOT / "triton_repo", "start_timeout": 120.0, **unset}


async def ingest(services: Services, opened: Stores, wanted: Settings, queue: DirtyQueue | None = None) -> Ingest:
    """As a worker has it that has met every item there is; no refresh follows."""
    items = ItemCache(opened.items, wanted.item_cache)
    await items.get([item.name async for page in opened.items.scan() for item in page])
    return Ingest(
        histories=opened.histories,
        items=items,
        log=Silence(),
        queue=DirtyQueue() if queue is None else queue,
        stats=Stats(),
        admission=Admission(wanted.max_event_bytes, lateness_hours=0),  # synthetic events are of a fixed month
        registry=services.registry,
    )


def names_of(acts: Sequence[Act]) -> list[str]:
    """Of the items and queries in events, as the item store has them."""
    records = [act.record for act in acts]
    return sorted({query_key(r["query"]) if r["action"] == "search" else item_key(r["item_id"]) for r in records})


async def know(opened: Stores, names: Sequence[str]) -> None:
    """Give every item codes, as the catalogue and refreshes do; they say nothing."""
    items = await opened.items.claim(names)
    await opened.items.put_codes({item.index: bytes(opened.codebook.code_bytes) for item in items})


async def apply(system: System, services: Services, opened: Stores, acts: Sequence[Act]) -> None:
    """Into histories, as if they came from one partition of each topic."""
    await know(opened, names_of(acts))
    handler = await ingest(services, opened, system.settings)
    for name, topic in EVENT_TOPICS.items():
        values = [raw(act) for act in acts if act.scenario == name]
        if values:
            records = tuple(Record(offset, None, value, -1) for offset, value in enumerate(values))
            await handler.handle(Batch(topic, 0, records), Scenario[name])


def raw(act: Act) -> bytes:
    """As the demo sends it."""
    return json.dumps(act.record).encode()
