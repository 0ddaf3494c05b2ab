"""librdkafka's in-memory Kafka broker as a process: `python -m stream.embedded.memory_broker ADDRESS_FILE`.

It is the broker that librdkafka tests its own clients with. Any client makes a topic by asking for it (4 partitions,
not to be chosen); requests to create topics are not known to it. It keeps the last 5 MB or 100,000 messages of a
partition and forgets everything when it ends. A second member of a consumer group gets an error.
"""

import signal
import sys
from pathlib import Path

from confluent_kafka import Producer

START_TIMEOUT = 10  # seconds


def main(address_file: str) -> None:
    """Write host:port of the broker to the file and serve until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before librdkafka's threads are there
    owner = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", "log_level": 4})
    (broker,) = owner.list_topics(timeout=START_TIMEOUT).brokers.values()
    draft = Path(f"{address_file}.new")
    draft.write_text(f"{broker.host}:{broker.port}")
    draft.replace(address_file)
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main(sys.argv[1])
