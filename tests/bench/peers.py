"""Other stream processors, each in a process of its own: `python -m tests.bench.peers bytewax|quixstreams EVENTS`.

Each reads the event topics with what it has for batches, and does what its user would write around our validation and
our script: one pipeline a batch, over a blocking client, with every item known from the start. It prints the seconds
from the first event in hand to the last one durable.
"""

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from redis import Redis

from stream import addresses, settings
from stream.adapters.redis import RedisHistories
from stream.adapters.redis_connection import script
from stream.admission import Admission
from stream.commands.worker import YOUNG
from stream.history import Source
from stream.ingest import group, validate
from stream.ledger import Batch, Record
from stream.services import connect, stores
from stream.settings import Settings
from stream.stores import StoredItem
from tests.bench.system import ROOT, SCENARIOS, System

PYTHON = ROOT / ".venv-peers" / "bin" / "python"  # with the extra `bench`: quixstreams wants older clients than ours
NAMES = {"bytewax": "Bytewax", "quixstreams": "Quix Streams"}
TIMEOUT = 300.0  # seconds
PACKAGES = ("bytewax", "quixstreams", "confluent-kafka", "pydantic")
VERSIONS = (
    "import json, sys; from importlib.metadata import version as v; print(json.dumps({p: v(p) for p in sys.argv[1:]}))"
)


def missing(peer: str, kafka: bool) -> str:
    """Why it cannot be measured; empty when it can."""
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", f"import {peer}"], capture_output=True).returncode:
        return f"{NAMES[peer]} is not installed (make bench does that)"
    return "" if kafka or peer == "bytewax" else f"{NAMES[peer]} needs a real Kafka (KAFKA_HOME)"


def rate(peer: str, system: System, events: int) -> float:
    """Events a second."""
    done = subprocess.run(
        [PYTHON, "-m", "tests.bench.peers", peer, str(events)],
        cwd=ROOT,
        env=system.of_another_group().environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    if done.returncode:
        raise RuntimeError(f"{NAMES[peer]} ended with {done.returncode}:\n{done.stderr[-2_000:]}")
    return events / float(done.stdout.splitlines()[-1])


def versions() -> dict[str, str]:
    """Of those that are installed, and of what else their environment has of its own."""
    if not PYTHON.exists():
        return {}
    found = subprocess.run([PYTHON, "-c", VERSIONS, *PACKAGES], capture_output=True, text=True, check=False)
    return json.loads(found.stdout) if not found.returncode else {}


class Histories:
    """What a peer writes to, and when it did first and last."""

    def __init__(self, wanted: Settings) -> None:
        self._redis = Redis.from_url(wanted.redis_url)
        self._digest = self._redis.script_load(script("append")[0])
        self._admission = Admission(wanted.max_event_bytes, lateness_hours=0)
        self._items, self._histories = asyncio.run(_opened(wanted))
        self.largest = wanted.ingest_batch
        self.events, self.began, self.ended = 0, 0.0, 0.0

    def begin(self) -> None:
        self.began = self.began or time.perf_counter()

    def write(self, topic: str, partition: int, records: tuple[Record, ...]) -> None:
        """Records of one partition; durable on return."""
        scenario = SCENARIOS[topic]
        arrivals, refused = validate(Batch(topic, partition, records), scenario.name, self._admission)
        assert not refused, refused[0].reason
        pipeline = self._redis.pipeline(transaction=False)
        for append in group(arrivals, Source(scenario, partition), self._items, self._histories.code_bytes):
            keys, arguments = self._histories._append_call(append)
            pipeline.evalsha(self._digest, len(keys), *keys, *arguments)
        pipeline.execute()
        self.events += len(records)
        self.ended = time.perf_counter()


async def _opened(wanted: Settings) -> tuple[dict[str, StoredItem], RedisHistories]:
    """Every item by name, and what packs an append for the script."""
    async with connect(wanted, addresses.find(wanted)) as services:
        opened = await stores(services, wanted)
        items = {item.name: item async for page in opened.items.scan() for item in page}
        return items, opened.histories


def bytewax(wanted: Settings, histories: Histories, events: int) -> None:
    """Batches as they come into the sink, of one partition each; what was read is noted in a recovery store."""
    from bytewax import operators
    from bytewax.connectors.kafka import KafkaSource
    from bytewax.dataflow import Dataflow
    from bytewax.outputs import DynamicSink, StatelessSinkPartition
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import run_main

    class Partition(StatelessSinkPartition):
        def write_batch(self, items: list[Any]) -> None:
            histories.begin()
            for (topic, partition), part in groupby(items, key=lambda m: (m.topic, m.partition)):
                histories.write(topic, partition, tuple(_record(m) for m in part))

    class Sink(DynamicSink):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Partition:
            return Partition()

    def _record(m: Any) -> Record:
        return Record(m.offset, m.key, m.value, m.timestamp[1])

    flow = Dataflow("bench")
    source = KafkaSource([wanted.kafka_url], list(SCENARIOS), tail=False, batch_size=histories.largest)
    operators.output("out", operators.input("in", flow, source), Sink())
    with tempfile.TemporaryDirectory() as folder:
        init_db_dir(Path(folder), 1)
        run_main(flow, recovery_config=RecoveryConfig(folder))


def quixstreams(wanted: Settings, histories: Histories, events: int) -> None:
    """Batches as its sinks gather them between commits; offsets are committed after a batch is written."""
    from quixstreams import Application
    from quixstreams.sinks import BatchingSink, SinkBatch

    class Sink(BatchingSink):
        def add(self, **record: Any) -> None:
            histories.begin()
            self.add = super().add  # from the second record on
            self.add(**record)

        def write(self, batch: SinkBatch) -> None:
            for chunk in batch.iter_chunks(histories.largest):
                histories.write(batch.topic, batch.partition, tuple(_record(m) for m in chunk))

    def _record(m: Any) -> Record:
        return Record(m.offset, m.key, m.value, m.timestamp)

    app = Application(
        wanted.kafka_url,
        consumer_group=wanted.consumer_group,
        auto_offset_reset="earliest",
        auto_create_topics=False,
        loglevel="ERROR",
    )
    sink = Sink()
    for topic in SCENARIOS:
        app.dataframe(app.topic(topic, key_deserializer="bytes", value_deserializer="bytes")).sink(sink)
    app.run(count=events, collect=False)


PEERS = {"bytewax": bytewax, "quixstreams": quixstreams}


def main(arguments: Iterable[str]) -> None:
    peer, events = arguments
    wanted = settings.load()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])  # as every lane has it
    histories = Histories(wanted)
    PEERS[peer](wanted, histories, int(events))
    assert histories.events == int(events), f"{histories.events} of {events} events"
    print(histories.ended - histories.began)


if __name__ == "__main__":
    main(sys.argv[1:])
