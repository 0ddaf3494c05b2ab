"""The virtual shards whose users a worker refreshes, and the fencing token of each.

A worker that was paused past its session (stopped, swapped out, cut off) is a zombie: the group has given its
partitions away, and it does not know. What it may still do when it wakes, and what becomes of it:

- append a batch once more: offset marks skip what the new owner has applied (law 2)
- commit offsets: Kafka refuses those of an earlier generation
- write a profile of an older version: refused by Qdrant (law 3)
- write one of the same version, by another model perhaps: refused by Qdrant, since its token is older
- clear a dirty mark: refused by the script, for the same reason
- begin another refresh: it sees first that its tokens are no longer in force
- announce a profile that was refused: this is not prevented. An announcement says that there is news, not what it is

A token is taken before the first refresh in its shard, and only when the group's coordinator has just confirmed the
membership, so a zombie takes none. Until the new owner's first refresh in a shard the zombie's token there is in force,
and it does no harm: what it clears, Qdrant has. One that falls asleep between the two takes one too late; then the true
owner finds its own refused, is confirmed, and takes the next. Meanwhile both write what is in Redis now.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set

from stream.identity import shard
from stream.stores import Histories


async def _always() -> bool:
    return True


class Ownership:
    """Of one worker, or of a replay that is alone."""

    def __init__(
        self,
        histories: Histories,
        assigned: Callable[[], Set[int]],
        confirmed: Callable[[], Awaitable[bool]] = _always,
    ) -> None:
        self._histories = histories
        self._assigned = assigned  # shards, as far as this process knows
        self._confirmed = confirmed  # whether that is so, asked of the group now
        self._tokens: dict[int, int] = {}
        self._taking = asyncio.Lock()

    def shards(self) -> list[int]:
        """Those that this worker was assigned."""
        return sorted(self._assigned())

    async def tokens(self, users: Sequence[str]) -> dict[str, int]:
        """A token in force for each of these users who is this worker's; taken where it has none."""
        numbers = sorted({shard(user) for user in users} & self._assigned())
        async with self._taking:
            owners = dict(zip(numbers, await self._histories.owners(numbers), strict=True))
            lost = [number for number, owner in owners.items() if owner != self._tokens.get(number)]
            for number in lost:
                self._tokens.pop(number, None)
            if lost and await self._confirmed():
                self._tokens |= dict(zip(lost, await self._histories.own(lost), strict=True))
            held = {number: self._tokens[number] for number in numbers if number in self._tokens}
        return {user: held[shard(user)] for user in users if shard(user) in held}
