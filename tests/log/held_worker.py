"""A worker process that holds what it takes: `python held_worker.py FOLDER BOOTSTRAP GROUP TOPIC`.

In FOLDER it notes `taken` when it has a batch in hand, `done` the offsets it has handled, and `stopping` when it was
asked to stop. It goes on once `go` is there.
"""

import asyncio
import sys
from pathlib import Path

from stream.batches import Batch, application, consume, run, terminated
from stream.settings import load


async def main(folder: Path, bootstrap: str, group: str, topic: str) -> None:
    app = application(load(consumer_group=group, data_folder=folder, ingest_batch=1), bootstrap)

    async def handle(batch: Batch) -> None:
        (folder / "taken").touch()
        while not (folder / "go").exists():  # noqa: ASYNC110  a file tells nobody
            await asyncio.sleep(0.01)
        with (folder / "done").open("a") as done:
            print(batch.first, file=done)

    async def asked() -> None:
        await terminated()
        (folder / "stopping").touch()

    consume(app, topic, handle)
    await run(app, asked())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
