"""The connection to Redis: a client of a server or of a cluster, calls with the errors of the project, and scripts."""

import asyncio
import re
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import DefaultParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from stream.adapters.redis_cluster import Cluster
from stream.adapters.redis_replicas import Replicated
from stream.errors import Permanent, Transient, UserError
from stream.settings import Settings, masked

T = TypeVar("T")
_WAITS = (
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
    exceptions.ClusterDownError,
    exceptions.AskError,  # and MovedError: the cluster is changing faster than we can follow
    exceptions.OutOfMemoryError,
)
_WAIT_CODES = re.compile(r"\b(OOM|LOADING|READONLY|MASTERDOWN|BUSY|MISCONF|NOREPLICAS|CLUSTERDOWN|UNBLOCKED)\b")
CLUSTER = "+cluster"  # ends a URL's scheme
WAIT_SHARE = 0.5  # of the time for a round trip: how long it may take the replicas


def connect(url: str, settings: Settings) -> Redis:
    """A client of a server, or of a cluster (`redis+cluster://host:port,host:port`). It never retries: policies do."""
    scheme, _, rest = url.partition("://")
    if not scheme.endswith(CLUSTER):
        return _client(url, settings)
    credentials, at, place = rest.rpartition("@")
    hosts, mark, options = place.partition("?")
    plain = scheme.removesuffix(CLUSTER)
    return Cluster(
        hosts.rstrip("/").split(","),
        lambda node: _client(f"{plain}://{credentials}{at}{node}{mark}{options}", settings),
    )


def _client(url: str, settings: Settings) -> Redis:
    kind = Replicated if settings.redis_replicas else Redis
    password = settings.redis_password.get_secret_value() if settings.redis_password else None
    extra: dict[str, Any] = {"password": password} if password else {}
    try:
        client = kind.from_url(
            url,
            socket_timeout=None,  # `_tuned` has one
            socket_connect_timeout=settings.redis_timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            **extra,
        )
    except ValueError:
        raise UserError(f"{masked(url)!r} is no Redis: write redis://host:port/db or rediss://host:port/db") from None
    if isinstance(client, Replicated):
        client.replicas, client.wait_ms = settings.redis_replicas, int(WAIT_SHARE * settings.redis_timeout * 1000)
    client.connection_pool.connection_class = _tuned(client.connection_pool.connection_class, settings.redis_timeout)
    return client


def _tuned(connection: Any, seconds: float) -> Any:
    """That kind of connection, quicker where redis-py's asyncio half is slow: hiredis packs the commands, and the time
    is limited where it waits for the socket, not once more for every reply of a pipeline."""

    class Parser(DefaultParser):  # type: ignore[misc,valid-type]
        async def read_from_socket(self) -> bool:
            async with asyncio.timeout(seconds):
                return bool(await super().read_from_socket())

    class Tuned(connection):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"parser_class": Parser})

        def pack_command(self, *arguments: Any) -> list[bytes]:
            return [pack_command((*arguments[0].encode().split(), *arguments[1:]))]

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            try:
                async with asyncio.timeout(seconds):
                    await super().send_packed_command(command, check_health)
            except TimeoutError as error:
                raise exceptions.TimeoutError("Timeout writing to socket") from error

    return Tuned


async def nodes(redis: Redis) -> list[Redis]:
    """The servers behind a client: of a cluster, its primaries."""
    return await guarded(redis.primaries()) if isinstance(redis, Cluster) else [redis]


@lru_cache
def script(name: str) -> tuple[str, str]:
    """Source and SHA-1 of a script of `stream/lua`."""
    source = files("stream").joinpath("lua", f"{name}.lua").read_text()
    return source, sha1(source.encode()).hexdigest()


async def guarded(call: Awaitable[T]) -> T:
    """Await a Redis call; its client's errors become the project's."""
    try:
        return await call
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise Transient(f"Redis does not answer: {error}") from error
    except exceptions.RedisError as error:
        raise translated(error) from error


def translated(error: Exception) -> Any:
    """By the error's code, which stands in the middle of the text when a script met it."""
    if isinstance(error, _WAITS) or _WAIT_CODES.search(str(error)):
        return Transient(f"Redis cannot serve now: {error}")
    return Permanent(f"Redis refuses: {error}")


async def run_script(redis: Redis, name: str, calls: Sequence[tuple[list[str], list[Any]]]) -> list[Any]:
    """Run a script once per (keys, arguments) in one round trip; loads it where a fail-over or a flush has lost it.
    A reply may be an error: see `raised`."""
    source, digest = script(name)
    replies: list[Any] = [None] * len(calls)
    missing = list(range(len(calls)))
    for attempt in range(2):
        pipeline = redis.pipeline(transaction=False)
        if attempt:
            pipeline.script_load(source)
        for i in missing:
            keys, arguments = calls[i]
            pipeline.evalsha(digest, len(keys), *keys, *arguments)
        answers = (await guarded(pipeline.execute(raise_on_error=False)))[attempt:]
        for i, answer in zip(missing, answers, strict=True):
            replies[i] = answer
        missing = [i for i in missing if isinstance(replies[i], exceptions.NoScriptError)]
        if not missing:
            break
    return replies


def raised(replies: list[Any]) -> list[Any]:
    """The replies; raises the first that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise translated(reply)
    return replies
