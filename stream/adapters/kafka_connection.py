"""How every Kafka client is connected, and what its errors mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    BrokerResponseError,
    IllegalSaslStateError,
    KafkaError,
)
from aiokafka.helpers import create_ssl_context

from stream.errors import Permanent, Transient
from stream.settings import Settings

_REFUSED = (AuthenticationFailedError, AuthenticationMethodNotSupported, IllegalSaslStateError)


def connection(bootstrap: str, settings: Settings) -> dict[str, Any]:
    """What every aiokafka client is told about the cluster."""
    password = settings.kafka_password
    return {
        "bootstrap_servers": bootstrap,
        "security_protocol": settings.kafka_security,
        "ssl_context": create_ssl_context() if "SSL" in settings.kafka_security.split("_") else None,
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_username,
        "sasl_plain_password": password.get_secret_value() if password else None,
    }


@contextmanager
def translated(bootstrap: str) -> Iterator[None]:
    """Turn Kafka's errors into `Transient` and `Permanent`."""
    try:
        yield
    except (KafkaError, OSError) as error:
        final = isinstance(error, _REFUSED) or (isinstance(error, BrokerResponseError) and not error.retriable)
        kind = Permanent if final else Transient
        raise kind(f"Kafka at {bootstrap}: {error}") from error
