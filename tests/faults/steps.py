"""The steps of a worker, numbered as in the docstrings of stream.ingest, stream.refresh and stream.catalog.

A point is `before` or `after` a step; nothing in `stream` knows of them: `gated` wraps the methods that are the steps.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from stream import ingest
from stream.adapters.kafka import KafkaLog
from stream.adapters.qdrant import QdrantVectors
from stream.adapters.redis import RedisHistories, RedisItems
from stream.adapters.triton import TritonModels
from stream.consumer import BatchConsumer
from stream.pending import Pending

SIDES = ("before", "after")


@dataclass(frozen=True)
class Step:
    """A method that is a step, of `owner`, a class or a module."""

    name: str
    owner: Any
    method: str
    nth: int = 1  # the pass at which faults strike: the second where a burst has several, so that a part is done
    concerns: Callable[..., bool] = lambda *_, **__: True  # of the method's calls, those that are the step


def _items(_: Any, texts: Any, item_ids: Any = None) -> bool:
    return item_ids is not None


def _queries(_: Any, texts: Any, item_ids: Any = None) -> bool:
    return item_ids is None


INGEST = (
    Step("ingest 0 fetch", BatchConsumer, "_deliver", nth=2),
    Step("ingest 1 validate", ingest, "validate", nth=2),
    Step("ingest 2 codes", ingest.ItemCache, "get", nth=2),
    Step("ingest 3 append", RedisHistories, "append", nth=2),
    Step("ingest 4 dead letter", KafkaLog, "dead_letter", nth=2),
    Step("ingest 5 acknowledge", BatchConsumer, "ack", nth=2),
    Step("ingest 6 commit", BatchConsumer, "_commit"),
)
REFRESH = (
    Step("refresh 1 read", RedisHistories, "read", nth=2),
    Step("refresh 2 fill", Pending, "fill", nth=2),
    Step("refresh 2 encode queries", TritonModels, "encode", concerns=_queries),
    Step("refresh 3 interests", TritonModels, "interests", nth=2),
    Step("refresh 4 upsert", QdrantVectors, "put_profiles", nth=2),
    Step("refresh 5 announce", KafkaLog, "announce", nth=2),
    Step("refresh 6 settle", RedisHistories, "settle", nth=2),
)
CATALOG = (
    Step("catalog 2 encode", TritonModels, "encode", concerns=_items),
    Step("catalog 3 upsert", QdrantVectors, "put_items"),
    Step("catalog 4 store codes", RedisItems, "put_codes"),
    Step("catalog 4 fill", RedisItems, "waiting"),  # begins with who is to be filled
    Step("catalog 4 mark", RedisHistories, "mark"),
)
STEPS = {step.name: step for step in (*INGEST, *REFRESH, *CATALOG)}


def gated(step: Step, ask: Callable[[str], None]) -> None:
    """Have `ask` called, and waited for, with `before <name>` and `after <name>` around each call that is the step."""
    original = getattr(step.owner, step.method)
    before, after = (f"{side} {step.name}" for side in SIDES)

    @wraps(original)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        if not step.concerns(*args, **kwargs):
            return await original(*args, **kwargs)
        ask(before)
        result = await original(*args, **kwargs)
        ask(after)
        return result

    @wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        ask(before)
        result = original(*args, **kwargs)
        ask(after)
        return result

    setattr(step.owner, step.method, awaited if inspect.iscoroutinefunction(original) else called)
