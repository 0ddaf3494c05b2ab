"""A worker process: `python worker.py JOURNAL BOOTSTRAP GROUP FOLDER TOPIC...` notes each record it has handled."""

import asyncio
import sys
from pathlib import Path
from typing import TextIO

from stream import batches
from stream.batches import Batch, application, consume, run, terminated
from stream.settings import load

HANDLING_SECONDS = 0.01  # per batch, before anything is noted
batches.SESSION_SECONDS = 6.0  # the least that a broker allows by default


async def main(journal: TextIO, bootstrap: str, group: str, folder: str, *topics: str) -> None:
    app = application(load(consumer_group=group, data_folder=Path(folder), ingest_batch=200), bootstrap)

    async def handle(batch: Batch) -> None:
        await asyncio.sleep(HANDLING_SECONDS)
        for record in batch.records:
            print(batch.topic, batch.partition, record.offset, file=journal)

    for topic in topics:
        consume(app, topic, handle)
    await run(app, terminated())


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a", buffering=1) as lines:
        asyncio.run(main(lines, *sys.argv[2:]))
