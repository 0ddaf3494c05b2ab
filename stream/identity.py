"""From ids to numbers: item indexes, event-id hashes and virtual shards.

All are functions of the id alone, so replaying the log gives the same bytes on any machine, in any order; but for two
items whose indexes collide, where the second to come has to give way.
"""

import hashlib
import unicodedata
from functools import lru_cache

from aiokafka.partitioner import murmur2

SHARDS = 4_096  # fixed for ever: part of every Redis key
INDEX_BITS = 39  # at a million items two of them collide in every fourth catalogue; collisions are resolved by salt


def item_key(item_id: str) -> str:
    """The name under which a catalogue item is known to the item store."""
    return f"i:{item_id}"


def query_key(text: str) -> str:
    """The name of a search query as an item; case, width and spacing do not count."""
    return "q:" + " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def item_index(key: str, salt: int = 0) -> int:
    """The number of an item (39 bits) in history records; `salt` > 0 only when a different item holds it already."""
    text = key if salt == 0 else f"{salt}:{key}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - INDEX_BITS)


def event_hash(event_id: str) -> bytes:
    """Eight bytes that stand for an event id in the de-duplication window."""
    return hashlib.blake2b(event_id.encode(), digest_size=8).digest()


@lru_cache(maxsize=100_000)
def shard(user_id: str) -> int:
    """The virtual shard of a user: Kafka's own hash of the key, so that shard % partitions is the partition whenever
    the number of partitions divides `SHARDS` and producers use the default partitioner."""
    return int(murmur2(user_id.encode()) & 0x7FFFFFFF) % SHARDS
