"""A worker whose refreshes can be held: `python zombie.py HOLD FOLDER KAFKA REDIS QDRANT MODEL_VERSION`.

Everything is real but the models. While the file HOLD is there, they note in it that they were asked, and do
not answer.
"""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from stream import batches, services
from stream.adapters.memory import MemoryModels
from stream.addresses import Addresses
from stream.app import work
from stream.ports import HistoryTensors, Interests
from stream.settings import load

batches.SESSION_SECONDS = 6.0  # the least that a broker allows by default


class Held(MemoryModels):
    """In the place of Triton."""

    hold: Path
    version: str

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__()

    def keep_to(self, codebook_version: int) -> None:
        pass

    async def check_ready(self) -> None:
        pass

    async def interests(self, histories: HistoryTensors) -> Interests:
        answer = replace(await super().interests(histories), model_version=self.version)
        if self.hold.exists():
            self.hold.write_text("asked")
        while self.hold.exists():  # noqa: ASYNC110  another process removes it
            await asyncio.sleep(0.02)
        return answer


if __name__ == "__main__":
    hold, folder, kafka, redis, qdrant, version = sys.argv[1:]
    Held.hold, Held.version = Path(hold), version
    services.TritonModels = Held
    addresses = Addresses(kafka, redis, "none:1", qdrant)
    asyncio.run(work(load(data_folder=Path(folder), consumer_group="zombies", sweep_interval=0.5), addresses))
