"""What one cell of the matrix produces, burst by burst, and what must have become of it in the end."""

import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import Any

from stream.events import Action, Scenario
from stream.identity import item_index, item_key, query_key
from stream.topics import EVENT_TOPICS, ITEMS

USERS = 50
ITEMS_PER_BURST = 3
REPEATED = 20  # events of a burst, and of the one before, that are sent once more
AGO_MS = 60_000  # the first event's age: none is late, and none ahead

Line = tuple[int, int, int, int]  # ts, scenario, action, item index: in this order histories are sorted


@dataclass(frozen=True)
class Message:
    """A record on its way to Kafka."""

    topic: str
    key: bytes
    value: bytes


class Truth:
    """The source of truth of a cell, whose users, items and events are its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rng = random.Random(name)
        self._clock = count(int(time.time() * 1000) - AGO_MS)
        self._bursts = 0
        self._sent: list[Message] = []  # good events, latest last
        self.users = [f"{name}-u{n}" for n in range(USERS)]
        self.histories: dict[str, list[Line]] = defaultdict(list)
        self.letters: set[bytes] = set()  # values of the records that are none

    @property
    def events(self) -> int:
        """Distinct good events so far."""
        return len(self._sent)

    def owns(self, value: bytes) -> bool:
        """Whether a record is of this cell: a worker that is taken for dead may send another's dead letter again."""
        return self._name.encode() in value

    def sorted(self, user: str) -> list[Line]:
        """A history as it must be."""
        return sorted(self.histories[user])

    def burst(self) -> list[Message]:
        """An event in each scenario for every user; some of them, and of those before, twice; items, some of which
        events have been about before, and the next ones' will only be known later; and what is no event."""
        fresh = self._events()
        again = self._rng.sample(fresh, REPEATED) + self._sent[-REPEATED:]
        self._sent += fresh
        messages = [*self._items(), *fresh, *self._bad()]
        self._bursts += 1
        return [*messages, *again]

    def _events(self) -> list[Message]:
        acts = [(user, scenario) for user in self.users for scenario in Scenario]
        times = [next(self._clock) for _ in acts]
        self._rng.shuffle(times)  # events come late, too
        return [self._event(user, scenario, ts) for (user, scenario), ts in zip(acts, times, strict=True)]

    def _event(self, user: str, scenario: Scenario, ts: int) -> Message:
        number = self._rng.randrange((self._bursts + 2) * ITEMS_PER_BURST)
        event: dict[str, Any] = {"event_id": f"{self._name}-{ts}", "user_id": user, "ts": ts}
        if scenario.name == "search" and self._rng.random() < 0.5:
            query = f"{self._name} {self._bursts} {number}"
            event |= {"action": "search", "query": query}
            index = item_index(query_key(query))
        else:
            event |= {"action": "click", "item_id": self._item(number)}
            index = item_index(item_key(self._item(number)))
        self.histories[user].append((ts, scenario, Action[event["action"]], index))
        return Message(EVENT_TOPICS[scenario.name], user.encode(), json.dumps(event).encode())

    def _items(self) -> list[Message]:
        first = self._bursts * ITEMS_PER_BURST
        names = [self._item(number) for number in range(first, first + ITEMS_PER_BURST)]
        return [
            Message(ITEMS, name.encode(), json.dumps({"item_id": name, "title": f"what is {name}"}).encode())
            for name in names
        ]

    def _item(self, number: int) -> str:
        return f"{self._name}-i{number}"

    def _bad(self) -> list[Message]:
        topics = (*EVENT_TOPICS.values(), ITEMS)
        bad = [Message(topic, b"bad", value) for topic in topics for value in self._broken(topic)]
        self.letters |= {message.value for message in bad}
        return bad

    def _broken(self, topic: str) -> list[bytes]:
        tag = f"{self._name} {self._bursts} {topic}"
        return [tag.encode() + b" \xff", json.dumps({"event_id": tag, "ts": 4e15}).encode(), b"{" + tag.encode()]
