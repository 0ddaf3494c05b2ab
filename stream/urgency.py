"""How much earlier than its date a dirty user's turn comes: by the scenario that somebody waits in, and by drift.

Drift is how far the user's interests moved in the last refresh: who is exploring gains more from the next one than who
is not. Both are small head starts; they move nobody past a user who has waited for too long (stream.dirty_queue).
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.contract import SCENARIOS
from stream.ports import Floats

DRIFT_SECONDS = 0.5  # of head start when all interests are new; half of that when they have turned by 60 degrees
REMEMBERED = 10_000  # users whose last vectors are kept; some 20 MB


def head_starts(text: str) -> dict[int, float]:
    """Seconds by scenario, of `search=0.5,feed=0`; one that is not named has none. Raises `ValueError`."""
    found: dict[int, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, seconds = (word.strip() for word in part.partition("="))
        if name not in SCENARIOS:
            raise ValueError(f"there is no scenario {name!r}, write {'=…,'.join(SCENARIOS)}=… in seconds")
        if SCENARIOS.index(name) in found:
            raise ValueError(f"{name} is named twice")
        try:
            found[SCENARIOS.index(name)] = float(seconds)
        except ValueError:
            found[SCENARIOS.index(name)] = math.nan
        if not 0 <= found[SCENARIOS.index(name)] < math.inf:
            raise ValueError(f"{part!r} does not end in seconds, write {name}=0.5")
    return found


@dataclass
class Urgency:
    """Of the users of one worker."""

    scenarios: Mapping[int, float] = field(default_factory=dict)  # seconds, by stream.events.Scenario
    remembered: int = REMEMBERED
    _last: OrderedDict[str, tuple[NDArray[np.float16], float]] = field(default_factory=OrderedDict)  # vectors, drift

    def seconds(self, user_id: str, scenario: int | None) -> float:
        """The head start of a user who has become dirty by an event of `scenario`, or for another reason (None)."""
        drift = self._last[user_id][1] if user_id in self._last else 0.0
        return DRIFT_SECONDS * drift + (0.0 if scenario is None else self.scenarios.get(scenario, 0.0))

    def refreshed(self, user_id: str, vectors: Floats) -> None:
        """Remember the new interests (unit vectors), and how far they are from the last ones."""
        last = self._last.pop(user_id, None)
        drift = _distance(last[0], vectors) if last and last[0].shape == vectors.shape else 0.0
        self._last[user_id] = (vectors.astype(np.float16), drift)
        if len(self._last) > self.remembered:
            self._last.popitem(last=False)


def _distance(one: NDArray[np.float16], other: Floats) -> float:
    """1 - mean cosine, between 0 and 1: opposite is no more than new."""
    return float(np.clip(1.0 - np.mean(np.sum(one.astype(np.float32) * other, axis=-1)), 0.0, 1.0))
