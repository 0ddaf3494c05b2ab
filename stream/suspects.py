"""The time budget of refreshes: who may be to blame when the same batch fails again and again, and others wait for it.

Waiting for a dependency never ends (`stream.retry`), since what ingest and catalogue hold would be lost. A user whose
refresh fails stays dirty, so a refresh may be given up for a while. When all attempts have failed for `BUDGET` seconds,
the users of the batch are suspects, and asked for one by one; who fails alone is set aside for as long again. So a
model that fails with one history holds up the others once. After an outage it costs a little of the order in which
users are served, and those who were tried last up to `BUDGET` seconds of freshness.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from stream.stores import Dirty

BUDGET = 10.0  # seconds


@dataclass
class Suspects:
    """Of one worker. Times are seconds of any steady clock."""

    budget: float = BUDGET
    _until: dict[str, float] = field(default_factory=dict)  # by user; set aside as long as that is in the future
    _failing: float | None = None  # since when no attempt has succeeded

    def together(self, marks: Sequence[Dirty]) -> Sequence[Dirty]:
        """The first of these that may be asked for at once."""
        return list(takewhile(lambda mark: mark.user_id not in self._until, marks)) or marks[:1]

    def aside(self, user_id: str, now: float) -> bool:
        """Whether it is not the user's turn, however long it waits."""
        return self._until.get(user_id, now) > now

    def succeeded(self, marks: Sequence[Dirty]) -> None:
        self._failing = None
        for mark in marks:
            self._until.pop(mark.user_id, None)

    def failed(self, marks: Sequence[Dirty], now: float) -> Sequence[Dirty]:
        """Those of the batch who are to be asked for again at once."""
        self._failing = now if self._failing is None else self._failing
        if len(marks) == 1 and (marks[0].user_id in self._until or self._spent(now)):
            self._until[marks[0].user_id] = now + self.budget
            return []
        if self._spent(now):
            self._until |= {mark.user_id: now for mark in marks}
        return marks

    def keep(self, dirty: Collection[str]) -> None:
        """Forget whoever is none of these."""
        self._until = {user: until for user, until in self._until.items() if user in dirty}

    def _spent(self, now: float) -> bool:
        return self._failing is not None and now - self._failing >= self.budget
