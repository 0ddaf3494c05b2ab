"""Every knob, in one frozen object. Each is read from the environment as `FACETSTREAM_` + the name in capitals."""

import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stream.errors import UserError
from stream.urgency import head_starts

PREFIX = "FACETSTREAM_"
MASK = "********"
OTHERS = ("FACETSTREAM_TEST_", "FACETSTREAM_REQUIRE")  # the tests' own

Delivery = Literal["batch", "stock"]
HOURS = 1_000_000  # a century
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """What a process is told from outside. Unset addresses mean the embedded default (see `stream.addresses`)."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False
    )

    # Addresses. A part whose address is set is never embedded.
    kafka_url: str | None = Field(None, description="Kafka bootstrap servers, host:port[,host:port]")
    redis_url: str | None = Field(
        None, description="Redis, redis://host:port/db or rediss://; a cluster, redis+cluster://host:port[,host:port]"
    )
    triton_url: str | None = Field(None, description="Triton's gRPC endpoint, host:port")
    qdrant_url: str | None = Field(None, description="Qdrant's REST endpoint, http://host:port")

    # Credentials.
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka security protocol"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="Kafka SASL mechanism"
    )
    kafka_username: str | None = Field(None, description="Kafka SASL user")
    kafka_password: SecretStr | None = Field(None, description="Kafka SASL password")
    redis_password: SecretStr | None = Field(None, description="Redis password")
    qdrant_api_key: SecretStr | None = Field(None, description="Qdrant API key")

    # Files.
    data_folder: Path = Field(Path(".facetstream"), description="folder of everything the embedded servers keep")
    model_repository: Path = Field(Path("triton_repo"), description="Triton model repository, holding the codebook")
    kafka_home: Path | None = Field(
        None, validation_alias="KAFKA_HOME", description="an unpacked Apache Kafka for the embedded log (no prefix)"
    )

    # Ports of the embedded servers; unset means a free one.
    kafka_port: Port | None = Field(None, description="embedded Kafka's port; only with KAFKA_HOME")
    redis_port: Port | None = Field(None, description="embedded Redis's port")
    triton_port: Port | None = Field(None, description="embedded Triton's gRPC port")
    triton_http_port: Port | None = Field(None, description="embedded Triton's HTTP port")
    triton_metrics_port: Port | None = Field(None, description="embedded Triton's metrics port")
    qdrant_port: Port | None = Field(None, description="embedded Qdrant's REST port")
    web_port: Port | None = Field(None, description="the worker's own HTTP port (health, counters)")
    web_host: str = Field("127.0.0.1", description="the interface the worker's HTTP port is bound to")

    # Log.
    partitions: int = Field(4, ge=1, le=4096, description="partitions of each event topic")
    replication: int = Field(1, ge=1, le=7, description="replicas of each topic, most of them in sync")
    retention_hours: int = Field(168, ge=1, le=HOURS, description="hours that Kafka keeps events and dead letters")
    consumer_group: str = Field("facetstream", min_length=1, max_length=200, description="Kafka consumer group")
    max_event_bytes: int = Field(65_536, ge=1_024, le=1_000_000, description="bytes above which a record is refused")
    lateness_hours: int = Field(
        720, ge=0, le=HOURS, description="hours after which an event is refused as late; 0: never"
    )
    delivery: Delivery = Field("batch", description="how a worker reads: batch, or record by record as stock Faust")
    ingest_batch: int = Field(2_000, ge=1, le=100_000, description="records of one partition handled at once")

    # Histories.
    redis_replicas: int = Field(0, ge=0, le=5, description="replicas of Redis that must have what counts as written")
    history_length: int = Field(1_024, ge=1, le=8_192, description="records kept per user, newest")
    event_id_window: int = Field(
        64, ge=0, le=4_096, description="latest event ids remembered per user and scenario; 0: none"
    )
    item_cache: int = Field(200_000, ge=0, description="items whose codes a worker keeps in memory")

    # Refresh.
    refresh_batch: int = Field(64, ge=1, le=1_024, description="users per model call")
    refresh_concurrency: int = Field(2, ge=1, le=64, description="model calls under way at once per worker")
    refresh_min_interval: float = Field(0.1, ge=0, description="seconds between two refreshes of one user")
    refresh_priority: str = Field(
        "search=0.5", description="seconds by which the newest event's scenario brings a user forward, name=seconds,…"
    )
    refresh_max_staleness: float = Field(
        10.0, gt=0, description="seconds after which a dirty user is overdue and goes first, oldest first"
    )
    refresh_backlog_rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="overdue users refreshed per second and worker; unset, no limit"
    )
    coarse_events: int = Field(
        16,
        ge=0,
        description="new events, or 1 in 64 of a long history, with which all of it is read again; 0: always",
    )
    coarse_hours: int = Field(24, ge=0, description="hours after which all of a history is read again")
    sweep_interval: float = Field(2.0, gt=0, description="seconds between two sweeps over the dirty sets in Redis")

    # Patience.
    redis_timeout: float = Field(5.0, gt=0, description="seconds for one Redis round trip")
    triton_timeout: float = Field(10.0, gt=0, description="seconds for one model call")
    qdrant_timeout: float = Field(10.0, gt=0, description="seconds for one Qdrant request")
    stall_seconds: float = Field(
        60.0, validate_default=True, description="seconds without progress after which /livez calls a worker stuck"
    )
    start_timeout: float = Field(60.0, gt=0, description="seconds an embedded server may take to become healthy")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("WARNING", description="what the worker logs")

    @field_validator("stall_seconds")
    @classmethod
    def _patient(cls, value: float, info: ValidationInfo) -> float:
        """Waiting for an answer is no standstill."""
        timeouts = [name for name in ("redis_timeout", "triton_timeout", "qdrant_timeout") if name in info.data]
        for name in timeouts:
            if value <= info.data[name]:
                raise ValueError(f"must be more than {variable(name)}={info.data[name]:g}")
        return value

    @field_validator("refresh_priority")
    @classmethod
    def _priority(cls, value: str) -> str:
        head_starts(value)
        return value

    @field_validator("kafka_url")
    @classmethod
    def _bootstrap(cls, value: str | None) -> str | None:
        for server in (value or "").split(",") if value is not None else ():
            host, _, port = server.strip().rpartition(":")
            if not host or not _is_port(port) or "/" in host:
                raise ValueError("write host:port[,host:port], without a scheme")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        schemes = ("redis://", "rediss://", "redis+cluster://", "rediss+cluster://", "unix://")
        if value is not None and not value.startswith(schemes):
            raise ValueError("write redis://host:port, rediss://host:port or redis+cluster://host:port[,host:port]")
        return value if value and "," in value else _with_port(value)

    @field_validator("triton_url")
    @classmethod
    def _triton(cls, value: str | None) -> str | None:
        host, _, port = (value or "h:1").rpartition(":")
        if not host or not _is_port(port) or "/" in host:
            raise ValueError("write host:port of the gRPC endpoint, without http://")
        return value

    @field_validator("qdrant_url")
    @classmethod
    def _qdrant(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("write http://host:port or https://host:port")
        return _with_port(value)


def _is_port(text: str) -> bool:
    return text.isdigit() and 0 < int(text) < 65_536


def _with_port(url: str | None) -> str | None:
    try:
        urlsplit(url or "").port  # noqa: B018  raises
    except ValueError:  # what it says may hold a part of a password
        raise ValueError("the port is none: 1 to 65535") from None
    return url


def variable(name: str) -> str:
    """The environment variable behind a setting."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else PREFIX + name.upper()


def masked(url: Any) -> str:
    """A URL without the credentials in it."""
    hidden = re.sub(r"^((?:[\w+]+://)?).*@", rf"\1{MASK}@", str(url))
    return re.sub(r"([?&][^=&]*(?:password|key|token)=)[^&]*", rf"\1{MASK}", hidden)


def load(**overrides: Any) -> Settings:
    """Settings from the environment; a wrong value is a `UserError` that names its variable.

    A variable that is no setting is told on stderr, not refused: Kubernetes makes such ones of services' names.
    """
    for sentence in unknown(os.environ):
        print("facetstream:", sentence, file=sys.stderr)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(_problem(dict(e)) for e in error.errors())
        raise UserError(problems) from None


def unknown(names: Iterable[str]) -> list[str]:
    """A sentence for each variable that looks like a setting and is none."""
    known = {variable(name).removeprefix(PREFIX): variable(name) for name in Settings.model_fields}
    strange = [n for n in sorted(names) if n.upper().startswith(PREFIX) and not n.upper().startswith(OTHERS)]
    return [_doubt(name, known) for name in strange if name.upper() not in known.values()]


def _doubt(name: str, known: dict[str, str]) -> str:
    near = get_close_matches(name.upper().removeprefix(PREFIX), known, n=1)
    return f"{name} is no setting and does nothing: " + (
        f"is {known[near[0]]} meant?" if near else "see facetstream config"
    )


def _problem(error: dict[str, Any]) -> str:
    name = str(error["loc"][0]) if error["loc"] else "?"
    known = variable(name) if name in Settings.model_fields else name
    secret = any(word in name for word in ("password", "key"))
    value = masked(error["input"]) if name.endswith("_url") else error["input"]
    shown = "" if secret else f"={value!r}"
    return f"{known}{shown}: {error['msg'].removeprefix('Value error, ')}"
