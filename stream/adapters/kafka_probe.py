"""What `facetstream doctor` asks a Kafka. Nothing is written, and no group is joined."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    CorruptRecordException,
    GroupAuthorizationFailedError,
    NoError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from stream.adapters.kafka_admin import DEAD_BYTES, HOUR_MS, admin_client, check_partitions, controlled, lag
from stream.adapters.kafka_connection import connection, translated
from stream.errors import Permanent, Transient
from stream.findings import Check, Doubt
from stream.settings import Settings, variable
from stream.topics import ALL, DEAD, EVENT_TOPICS, ITEMS, UPDATED

PRODUCE_API = 0
HEADERS_SINCE = 3  # version of the API of produce, Kafka 0.11: dead letters have headers
WRITE_MS = 5_000  # for a write, refused as it will be
LOOK_SECONDS = 0.2
LOOKS = 30
READ_TOPICS = (*EVENT_TOPICS.values(), ITEMS)
PROVISION = "facetstream provision"
BY_HAND = "no topic is changed once it is there: kafka-configs.sh or kafka-reassign-partitions.sh do it"
IN_MEMORY = "does not apply to the in-memory broker"


class KafkaProbe:
    """`async with KafkaProbe(bootstrap, settings) as probe`; nothing is sent before the first check."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._closing = AsyncExitStack()
        self._admin: Any = None
        self._memory = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    def checks(self) -> list[Check]:
        group = self._settings.consumer_group
        restart = f"start it, or set {variable('kafka_url')}, {variable('kafka_security')} and what goes with it"
        asked: list[tuple[str, Callable[[], Awaitable[str]], str]] = [
            ("broker", self._broker, restart),
            ("topics", self._topics, PROVISION),
            (
                "partitions",
                self._partitions,
                "make the event topics anew, or add partitions with kafka-topics.sh --alter",
            ),
            ("replicas", self._replicas, BY_HAND),
            ("min.insync.replicas", self._insync, BY_HAND),
            ("retention", self._retention, BY_HAND),
            ("write", self._write, self._acl("Write", "topic", "TOPIC")),
            ("read", self._read, self._acl("Read", "topic", "TOPIC")),
            ("commit", self._commit, self._acl("Read", "group", group)),
            ("group", self._group, "facetstream worker"),
        ]
        return [Check(name, self._patient(ask), remedy) for name, ask, remedy in asked]

    def _acl(self, operation: str, kind: str, name: str) -> str:
        return (
            f"kafka-acls.sh --bootstrap-server {self._bootstrap} --add --operation {operation} --{kind} {name} "
            f"--allow-principal User:{self._settings.kafka_username or 'ANONYMOUS'}"
        )

    def _patient(self, ask: Callable[[], Awaitable[str]]) -> Callable[[], Awaitable[str]]:
        """A broker that has just started, or made a topic, does not know at once who leads and coordinates what."""

        async def asking() -> str:
            for looks_left in reversed(range(LOOKS)):
                try:
                    with translated(self._bootstrap):
                        return await ask()
                except Transient:
                    if not looks_left or self._admin is None:
                        raise
                    await asyncio.sleep(LOOK_SECONDS)
            raise AssertionError("the last look returns or raises")

        return asking

    async def _broker(self) -> str:
        self._admin = await self._closing.enter_async_context(admin_client(self._bootstrap, self._settings))
        self._memory = not await controlled(self._admin)
        if self._memory:
            return f"the in-memory broker at {self._bootstrap}: for one worker, and forgets when it ends"
        cluster = await self._admin.describe_cluster()
        brokers = [broker["node_id"] for broker in cluster["brokers"]]
        answer = await self._send(brokers[0], ApiVersionRequest())
        newest = {key: newest for key, _, newest in answer.api_versions}[PRODUCE_API]
        if newest < HEADERS_SINCE:
            raise Permanent(f"Kafka at {self._bootstrap} is older than 0.11 and knows no record headers")
        return f"{len(brokers)} at {self._bootstrap}, controller {cluster['controller_id']}, produce API {newest}"

    async def _topics(self) -> str:
        present = await self._present()
        if missing := [topic for topic in ALL if topic not in present]:
            raise Permanent(f"missing: {', '.join(missing)}")
        return ", ".join(ALL)

    async def _partitions(self) -> str:
        counts = {topic: len(partitions) for topic, partitions in (await self._present()).items()}
        check_partitions({topic: counts.get(topic, 0) for topic in EVENT_TOPICS.values()})
        count = counts.get(EVENT_TOPICS["feed"], 0)
        if count & (count - 1):
            raise Doubt(f"{count} of each event topic, no power of two: refreshes are a little slower")
        return f"{count} of each event topic"

    async def _replicas(self) -> str:
        wanted, present = self._settings.replication, await self._present()
        partitions = [(topic, p) for topic, theirs in present.items() for p in theirs]
        if dead := _names(topic for topic, p in partitions if p["leader"] < 0):
            raise Permanent(f"no broker leads a partition of {dead}: it can be neither read nor written")
        if few := _names(topic for topic, p in partitions if len(p["replicas"]) < wanted):
            raise Doubt(f"fewer than {variable('replication')}={wanted} of {few}")
        if behind := _names(topic for topic, p in partitions if len(p["isr"]) < len(p["replicas"])):
            raise Doubt(f"some are not in sync of {behind}")
        return f"{min((len(p['replicas']) for _, p in partitions), default=0)} or more of each partition, in sync"

    async def _insync(self) -> str:
        if self._memory:
            return IN_MEMORY
        present = await self._present()
        copies = {topic: min(len(p["replicas"]) for p in partitions) for topic, partitions in present.items()}
        needed = {topic: int(c["min.insync.replicas"]) for topic, c in (await self._configs(present)).items()}
        if closed := _names(topic for topic in present if needed[topic] > copies[topic]):
            raise Doubt(f"more than there are replicas of {closed}: a Kafka before 4.0 takes no writes then")
        if risky := _names(topic for topic in present if copies[topic] > 1 and needed[topic] < 2):
            raise Doubt(f"1 for {risky}: what only one broker holds counts as written")
        return f"{min(needed.values(), default=0)} or more"

    async def _retention(self) -> str:
        if self._memory:
            return "the last 5 MB or 100,000 messages of a partition (the in-memory broker)"
        configs = await self._configs(await self._present())
        hours = self._settings.retention_hours
        short = [t for t in (*EVENT_TOPICS.values(), DEAD) if t in configs and _hours(configs[t]) < hours]
        if short:
            raise Doubt(f"less than {variable('retention_hours')}={hours} of {_names(short)}")
        if ITEMS in configs and "compact" not in configs[ITEMS]["cleanup.policy"]:
            raise Doubt(f"{ITEMS} is not compacted: items vanish from the log, and a replay does not find them")
        if DEAD in configs and int(configs[DEAD]["max.message.bytes"]) < DEAD_BYTES:
            raise Doubt(
                f"{DEAD} takes less than max.message.bytes={DEAD_BYTES}: a large dead letter would hold up its topic"
            )
        return f"{hours} h or more; {ITEMS} compacted"

    async def _write(self) -> str:
        """Send each topic a batch of a wrong checksum: a broker looks at the permission first, and keeps nothing."""
        if self._memory:
            return IN_MEMORY
        leaders = {topic: partitions[0] for topic, partitions in (await self._present()).items()}
        answers = await asyncio.gather(*(self._refused(topic, p) for topic, p in leaders.items()))
        forbidden = [topic for topic, may in zip(leaders, answers, strict=True) if not may]
        if needed := [topic for topic in forbidden if topic in (DEAD, UPDATED)]:
            raise Permanent(f"may not write to {_names(needed)}")
        if forbidden:
            raise Doubt(f"may not write to {_names(forbidden)}: a worker need not, `facetstream produce` must")
        return _names(leaders)

    async def _refused(self, topic: str, partition: Any) -> bool:
        """Whether the topic may be written to."""
        request = ProduceRequest(None, -1, WRITE_MS, [(topic, [(partition["partition"], _broken_batch())])])
        answer = await self._send(partition["leader"], request)
        ((_, ((_, code, *_),)),) = answer.topics
        error = for_code(code)
        if issubclass(error, TopicAuthorizationFailedError):
            return False
        if not issubclass(error, CorruptRecordException):
            raise error(topic)
        return True

    async def _read(self) -> str:
        present = await self._present()
        tps = [TopicPartition(t, p["partition"]) for t in READ_TOPICS if t in present for p in present[t]]
        if not tps:
            return "nothing is there to be read"
        consumer = AIOKafkaConsumer(auto_offset_reset="latest", **connection(self._bootstrap, self._settings))
        await consumer.start()
        try:
            consumer.assign(tps)
            while any(consumer.highwater(tp) is None for tp in tps):  # until each has answered a fetch
                await consumer.getmany(timeout_ms=int(LOOK_SECONDS * 1000))
        except TopicAuthorizationFailedError as error:
            raise Permanent(f"may not read {error.args[0]}") from error
        finally:
            await consumer.stop()
        return _names(tp.topic for tp in tps)

    async def _commit(self) -> str:
        if self._memory:
            return IN_MEMORY
        group = self._settings.consumer_group
        answer = await self._send(await self._admin.find_coordinator(group), HeartbeatRequest(group, -1, "doctor"))
        error = for_code(answer.error_code)
        if issubclass(error, GroupAuthorizationFailedError):
            raise Permanent(f"may not read group {group}: a worker could neither join it nor commit")
        if not issubclass(error, (UnknownMemberIdError, NoError)):  # permitted, but no member; or not known yet
            raise error(f"group {group}")
        return f"group {group}"

    async def _group(self) -> str:
        group, behind = self._settings.consumer_group, await lag(self._bootstrap, self._settings)
        if self._memory:
            return f"{group} is {behind} records behind"
        found = await self._described()
        text = (
            f"{group} is {behind} records behind, {found['state'] or 'unknown'}, with {len(found['members'])} members"
        )
        if not found["members"]:
            raise Doubt(text)
        return text

    async def _described(self) -> dict[str, Any]:
        (answer,) = await self._admin.describe_consumer_groups([self._settings.consumer_group])
        found: dict[str, Any] = answer.to_object()["groups"][0]
        if found["error_code"]:
            raise for_code(found["error_code"])(f"group {self._settings.consumer_group}")
        return found

    async def _present(self) -> dict[str, list[Any]]:
        """Partitions of our topics that are there."""
        described = await self._admin.describe_topics()
        return {t["topic"]: t["partitions"] for t in described if t["topic"] in ALL and not t["error_code"]}

    async def _configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        found = {}
        for answer in await self._admin.describe_configs(resources):
            for code, message, _, topic, entries in answer.resources:
                if code:
                    raise for_code(code)(f"configuration of {topic}: {message}")
                found[topic] = {name: value for name, value, *_ in entries}
        return found

    async def _send(self, node: int, request: Any) -> Any:
        client = AIOKafkaClient(**connection(self._bootstrap, self._settings))
        try:
            await client.bootstrap()
            return await client.send(node, request)
        finally:
            await client.close()


def _broken_batch() -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1_024,
    )
    builder.append(0, timestamp=int(time.time() * 1000), key=b"doctor", value=b"", headers=[])
    batch = bytearray(builder.build())
    batch[-1] ^= 1
    return bytes(batch)


def _hours(config: dict[str, str]) -> float:
    kept_ms = int(config["retention.ms"])
    return float("inf") if kept_ms < 0 else kept_ms / HOUR_MS


def _names(topics: Iterable[str]) -> str:
    distinct: Sequence[str] = list(dict.fromkeys(topics))
    return ", ".join(distinct)
