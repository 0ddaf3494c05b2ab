"""One number for all histories: equal histories have equal digests, in whatever order a store shows them (law 5)."""

from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b

from stream.errors import Permanent
from stream.history import events_applied
from stream.scratch import first, scratch
from stream.stores import Histories

HASH_BYTES = 32
MODULUS = 1 << 8 * HASH_BYTES
LENGTH_BYTES = 4  # of the length before a user id, so that no two pairs of user and history are the same bytes


@dataclass(frozen=True)
class Digest:
    """Of all histories of a store."""

    users: int
    events: int  # ever applied, whether still kept or not
    unreadable: int  # users whose history is none, or of a format to come: hashed, their events not counted
    hash: str  # hexadecimal: the sum of the users' hashes, modulo 2 ** 256


async def digest(histories: Histories) -> Digest:
    """In one pass and bounded memory. What is written meanwhile may be in it or not."""
    with closing(scratch("seen (user_id TEXT PRIMARY KEY) WITHOUT ROWID")) as seen:
        users = events = unreadable = total = 0
        async for page in histories.scan():
            for user, data in page:
                if not first(seen, user):
                    continue
                users += 1
                total += _hash(user.encode(), data)
                try:
                    events += events_applied(data)
                except Permanent:
                    unreadable += 1
    return Digest(users, events, unreadable, f"{total % MODULUS:064x}")


def _hash(user: bytes, data: bytes) -> int:
    text = len(user).to_bytes(LENGTH_BYTES, "big") + user + data
    return int.from_bytes(blake2b(text, digest_size=HASH_BYTES).digest(), "big")
