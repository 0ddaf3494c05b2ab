"""Coarse interests as a worker has heard them last, of users whose history has grown by little since (HyMiRec's cache).

The light branch reads the whole history, and of a long one (`LEAST`) that is most of what a refresh costs. What it said
is given to the models again until `SHARE` of the history or `events` are new, `seconds` are over, or the models are of
another version. In memory: who takes over a partition has the models look again.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from stream import history
from stream.ports import Halves, Interests

SHARE = 1 / 64  # of a history; what more costs in quality: tests/bench/INTERESTS.md
LEAST = 256  # records; a shorter history costs little, and an event of it is worth more
USERS = 20_000  # remembered: some 20 MB


class _Entry(NamedTuple):
    version: int  # of the history
    heard: float
    coarse: Halves


class CoarseCache:
    """Of one worker."""

    def __init__(
        self,
        events: int = 0,
        seconds: float = 0.0,
        users: int = USERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model_version = ""  # that all entries are of
        self._events, self._seconds, self._users, self._clock = events, seconds, users, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently heard first

    def known(self, packed: Mapping[str, bytes]) -> Halves | None:
        """For the packed histories of users, [N, size], rows that are not known NaN; None when none is."""
        found = [self._fresh(user, data) for user, data in packed.items()]
        size = next((len(row) for row in found if row is not None), None)
        if size is None:
            return None
        return np.stack([np.full(size, np.nan, np.float16) if row is None else row for row in found])

    def hear(self, packed: Mapping[str, bytes], known: Halves | None, answer: Interests) -> int:
        """Remember what the models answered where it was not `known`; for how many it was."""
        if answer.coarse is None or not self._events:
            return 0
        if answer.model_version != self.model_version:
            self._entries.clear()
            self.model_version = answer.model_version
        reused = np.zeros(len(packed), bool) if known is None else ~np.isnan(known).any(axis=1)
        for (user, data), row, again in zip(packed.items(), answer.coarse, reused, strict=True):
            if not again and history.records_in(data) >= LEAST:
                self._entries[user] = _Entry(history.version_of(data), self._clock(), row.copy())
                self._entries.move_to_end(user)
        while len(self._entries) > self._users:
            self._entries.popitem(last=False)
        return int(reused.sum())

    def _fresh(self, user: str, data: bytes) -> Halves | None:
        entry = self._entries.get(user)
        if entry is None or self._clock() - entry.heard > self._seconds:
            return None
        grown = (history.version_of(data) - entry.version + 1) // 2  # an event counts two
        return entry.coarse if 0 <= grown <= min(self._events, SHARE * history.records_in(data)) else None
