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

A token is taken only when the group's coordinator has just confirmed the membership, so a zombie takes none. One that
falls asleep between the two takes one too late; then the true owner finds its own refused, is confirmed, and takes the
next. Meanwhile both write what is in Redis now.
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

    async def shards(self) -> list[int]:
        """Those that this worker owns."""
        await self._take()
        return sorted(self._tokens)

    async def tokens(self, users: Sequence[str]) -> dict[str, int]:
        """The token of each of these users who is this worker's; shards that have got another owner are given up."""
        await self._take()
        numbers = sorted({shard(user) for user in users} & self._tokens.keys())
        for number, owner in zip(numbers, await self._histories.owners(numbers), strict=True):
            if owner != self._tokens.get(number):
                self._tokens.pop(number, None)
        return {user: self._tokens[shard(user)] for user in users if shard(user) in self._tokens}

    async def _take(self) -> None:
        """Give up what is no longer assigned, and take what is and was not, or was lost."""
        async with self._taking:
            assigned = self._assigned()
            if assigned == self._tokens.keys():
                return
            self._tokens = {number: token for number, token in self._tokens.items() if number in assigned}
            missing = [number for number in assigned if number not in self._tokens]
            if missing and await self._confirmed():
                self._tokens |= dict(zip(missing, await self._histories.own(missing), strict=True))
