"""What `facetstream doctor` asks a Redis."""

import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from redis.asyncio import Redis

from stream.adapters.redis_cluster import Cluster
from stream.adapters.redis_connection import guarded, nodes, raised
from stream.errors import Permanent
from stream.events import AHEAD_MS
from stream.findings import Check, Doubt
from stream.settings import masked, variable

OLDEST_SERVER = (6, 2)
FULL = 0.8  # of maxmemory
SKEW_SECONDS = 5.0
# Writes under a name of our own, so that a key pattern that is forbidden shows, and leaves nothing.
WRITE = "redis.call('SET', KEYS[1], 1, 'PX', 10000) return redis.call('DEL', KEYS[1])"


def checks(redis: Redis, url: str, replicas: int) -> list[Check]:
    """Of a cluster, every primary is asked."""

    def each(ask: Callable[[Redis], Awaitable[str]]) -> Callable[[], Awaitable[str]]:
        return partial(_each, redis, ask)

    cluster = isinstance(redis, Cluster)
    cli = "redis-cli --cluster call HOST:PORT" if cluster else f"redis-cli -u {masked(url)}"
    return [
        Check(
            "server",
            each(partial(_server, masked(url), cluster)),
            f"start it, or set {variable('redis_url')} and {variable('redis_password')}",
        ),
        Check(
            "role",
            each(partial(_role, replicas)),
            f"set {variable('redis_url')} to the primary, {variable('redis_replicas')} to how many must have a write",
        ),
        Check("eviction", each(_eviction), f"{cli} CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"),
        Check("memory", each(_memory), f"{cli} CONFIG SET maxmemory BYTES, or a smaller {variable('history_length')}"),
        Check(
            "persistence",
            each(_persistence),
            f"{cli} CONFIG SET appendonly yes, CONFIG SET appendfsync always, and the same in redis.conf",
        ),
        Check(
            "scripts",
            partial(_scripts, redis),
            "let this user run EVALSHA and SCRIPT LOAD, and all commands on the keys fs:*: ACL SETUSER",
        ),
        Check("clock", each(_clock), "keep the clocks of all machines with NTP"),
    ]


async def _each(redis: Redis, ask: Callable[[Redis], Awaitable[str]]) -> str:
    """The answers of all servers; who is in the wrong speaks before who is in doubt."""
    answers, doubts = [], []
    for node in await nodes(redis):
        try:
            answers.append(await ask(node))
        except Doubt as doubt:
            doubts.append(Doubt(f"{_at(redis, node)}{doubt}"))
        except Permanent as error:
            raise Permanent(f"{_at(redis, node)}{error}") from error
    if doubts:
        raise doubts[0]
    return "; ".join(dict.fromkeys(answers))


def _at(redis: Redis, node: Redis) -> str:
    """Which one, where there are several."""
    place = node.connection_pool.connection_kwargs
    return "" if node is redis else f"{place['host']}:{place['port']} "


async def _info(redis: Redis) -> dict[str, Any]:
    found: dict[str, Any] = await guarded(redis.info())
    return found


async def _server(url: str, cluster: bool, redis: Redis) -> str:
    info = await _info(redis)
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        raise Permanent(f"Redis {version} is older than {'.'.join(map(str, OLDEST_SERVER))}")
    if info["cluster_enabled"] and not cluster:
        raise Permanent(f"a node of a cluster: set {variable('redis_url')} to redis+cluster://host:port")
    return f"Redis {version} at {url}"


async def _role(wanted: int, redis: Redis) -> str:
    info = await _info(redis)
    if info["role"] != "master":
        raise Permanent(f"is a replica of {info.get('master_host')}:{info.get('master_port')}, which takes no writes")
    replicas = int(info.get("connected_slaves", 0))
    text = f"primary with {replicas} replicas"
    if replicas < wanted:
        raise Permanent(f"{text}: nothing counts as written with {variable('redis_replicas')}={wanted}")
    if replicas and not wanted:
        raise Doubt(f"{text}, not waited for: a fail-over may take what was acknowledged to Kafka")
    return text


async def _eviction(redis: Redis) -> str:
    policy = str((await _info(redis))["maxmemory_policy"])
    if policy.startswith("allkeys"):
        raise Permanent(f"maxmemory-policy is {policy}: Redis deletes histories when its memory is full")
    if policy != "noeviction":
        raise Doubt(f"maxmemory-policy is {policy}: it spares what never expires, as all of ours, but says otherwise")
    return f"maxmemory-policy is {policy}"


async def _memory(redis: Redis) -> str:
    info = await _info(redis)
    used, limit = int(info["used_memory"]), int(info["maxmemory"])
    if not limit:
        return f"{used / 2**20:,.0f} MiB used, no limit set"
    text = f"{used / 2**20:,.0f} of {limit / 2**20:,.0f} MiB used"
    if used >= limit:
        raise Permanent(f"{text}: nothing more can be written")
    if used > FULL * limit:
        raise Doubt(f"{text}: it fills up, and then nothing more can be written")
    return text


async def _persistence(redis: Redis) -> str:
    info = await _info(redis)
    if info["aof_enabled"] and info["aof_last_write_status"] != "ok":
        raise Permanent("the append-only file cannot be written: see the log of Redis and its disk")
    if info["aof_enabled"]:
        if (sync := (await guarded(redis.config_get("appendfsync"))).get("appendfsync", "always")) != "always":
            raise Doubt(f"appendfsync is {sync}: Redis may answer before it writes, and lose that if it is killed")
        return "append-only file, synced before Redis answers"
    if (await guarded(redis.config_get("save")))["save"]:
        raise Doubt("snapshots only: a crash takes what came since the last one, and Kafka does not send it again")
    raise Doubt("neither append-only file nor snapshots: a restart takes every history")


async def _scripts(redis: Redis) -> str:
    pipeline = redis.pipeline(transaction=False)
    pipeline.script_load(WRITE)
    (digest,) = raised(await guarded(pipeline.execute(raise_on_error=False)))
    key = f"fs:doctor:{uuid.uuid4().hex}"
    await guarded(redis.evalsha(digest, 1, key))
    return "may be loaded and run, and may write"


async def _clock(redis: Redis) -> str:
    """Against the middle of the round trip."""
    before = time.time()
    seconds, micros = await guarded(redis.time())
    ahead = (before + time.time()) / 2 - (seconds + micros / 1e6)
    text = f"this machine is {abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'} Redis's"
    if abs(ahead) * 1000 >= AHEAD_MS:
        raise Permanent(f"{text}: events more than {AHEAD_MS // 60_000} minutes ahead of a worker are refused")
    if abs(ahead) > SKEW_SECONDS:
        raise Doubt(text)
    return f"within {SKEW_SECONDS:g} s of Redis's"
