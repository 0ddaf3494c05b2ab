"""The embedded log: a real Apache Kafka when KAFKA_HOME and Java are there, else librdkafka's in-memory broker."""

import base64
import importlib.util
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from stream.embedded.process import Server, folder_of, port_for, spawn
from stream.errors import UserError
from stream.settings import Settings, variable

HEAP = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
FORMAT_TIMEOUT = 60.0  # seconds
MEMORY_PARTITIONS = 4  # of every topic of the in-memory broker; it offers no other number


def check(settings: Settings) -> None:
    """Raise a `UserError` for what cannot work, before anything is started."""
    if settings.kafka_security != "PLAINTEXT":
        raise UserError(f"{variable('kafka_security')} is for your own Kafka: set {variable('kafka_url')} too")
    if settings.kafka_home:
        _java(settings.kafka_home)
        port_for(settings, "kafka_port")
    else:
        _check_in_memory(settings)


def start(settings: Settings) -> Server:
    """A ready broker; its address is host:port."""
    check(settings)
    return _start_real(settings, settings.kafka_home) if settings.kafka_home else _start_in_memory(settings)


def _start_real(settings: Settings, home: Path) -> Server:
    java = [_java(home), *HEAP, "-cp", f"{home.resolve()}/libs/*"]
    folder, port = folder_of(settings, "kafka"), port_for(settings, "kafka_port")
    properties = folder / "server.properties"
    properties.write_text(_properties(folder, port, _free_port(settings, port)))
    _format(java, folder, properties)
    server = spawn("Kafka", f"127.0.0.1:{port}", folder, [*java, "kafka.Kafka", str(properties)])
    return server.wait_ready(lambda: answers(server.address), settings.start_timeout)


def _check_in_memory(settings: Settings) -> None:
    if settings.kafka_port:
        raise UserError(
            f"{variable('kafka_port')} needs a real Kafka ({variable('kafka_home')}): "
            "the in-memory broker chooses its port itself"
        )
    if settings.partitions != MEMORY_PARTITIONS:
        raise UserError(
            f"{variable('partitions')}={settings.partitions} needs a real Kafka ({variable('kafka_home')} or "
            f"{variable('kafka_url')}): the in-memory broker gives every topic {MEMORY_PARTITIONS} partitions"
        )
    if importlib.util.find_spec("confluent_kafka") is None:
        raise UserError(f"no broker here: pip install 'facetstream[embedded]', or set {variable('kafka_url')}")


def _start_in_memory(settings: Settings) -> Server:
    folder = folder_of(settings, "kafka")
    address = folder / "address"
    address.unlink(missing_ok=True)
    server = spawn("Kafka", "", folder, [sys.executable, "-m", "stream.embedded.memory_broker", str(address)])
    server.wait_ready(address.exists, settings.start_timeout)
    server.address = address.read_text()
    return server


def answers(address: str) -> bool:
    """Whether the broker at `address` serves metadata."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": address, "log_level": 0, "socket.timeout.ms": 2_000})
    try:
        return bool(client.list_topics(timeout=2).brokers)
    except KafkaException:
        return False


def _java(home: Path) -> str:
    java = shutil.which("java")
    if java is None:
        raise UserError(f"{variable('kafka_home')} is set but there is no java on the PATH (17 or newer)")
    if not any((home / "libs").glob("kafka*.jar")):
        raise UserError(
            f"{variable('kafka_home')}={home} holds no Apache Kafka (libs/kafka*.jar): unpack one there, or unset it"
        )
    return java


def _format(java: list[str], folder: Path, properties: Path) -> None:
    """Make the storage of a new cluster; nothing when it is made."""
    if (folder / "data" / "meta.properties").exists():
        return
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
    command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), "--ignore-formatted"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT, check=False)
    if done.returncode:
        raise UserError(f"Kafka could not format {folder / 'data'}:\n{done.stdout}{done.stderr}".rstrip())


def _free_port(settings: Settings, taken: int) -> int:
    """A port for the controller."""
    free = settings.model_copy(update={"kafka_port": None})
    while (port := port_for(free, "kafka_port")) == taken:
        pass
    return port


def _properties(folder: Path, port: int, controller_port: int) -> str:
    """One node that is broker and controller, on loopback; topics are made by `facetstream provision` only."""
    return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder / "data"}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""
