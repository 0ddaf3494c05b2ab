"""A synthetic population with known truth: who was interested in what, when, and why each event happened.

Everything follows from the seed; `end_ms` only moves it in time. The process, with its numbers:

*Items.* Each is drawn from one of the 72 subtopics of `stream.vocabulary` (every subtopic gets one first, the rest
fall at random): title = brand + adjective + thing, text = two remarks and the subtopic's name. Brand and adjective are
noise. Within a subtopic, popularity falls as 1/rank.

*Interests.* A user has 2 to 4 interests at any time. One lives 5 days plus an exponential of mean 15 days; when it
dies, a subtopic the user never had takes its place. Its strength is 0.5 + an exponential of mean 1. Those alive at the
start of the 30 days observed are at a uniformly random point of their lives.

*Lag.* An interest shows in search from its birth, in feed 1 to 2 days later, in discovery 3 to 5 days after its birth;
when it dies, each scenario forgets it with the same lag.

*Events.* Users differ in activity (log-normal, sigma 0.7). A session starts at a time of day around the user's own hour
(normal, 2.5 h), on a random day, and has on average 8 events some 25 s apart, at most 25 events 2 min apart. Its
scenario is search 35 %, feed 45 %, discovery 20 %. None begins in the last 50 minutes: all have ended by `end_ms`.

*Habits.* Search: one interest per session, its strength times 1 + 4 exp(-age / 3 days); a typed query (action `search`,
no item), then clicks, carts, purchases on that subtopic, a new query every fourth event. Feed: an interest per event,
by the square root of its strength, with position and dwell time. Discovery: 60 % of the events are on any subtopic.

*Noise and repeats.* Of search sessions 5 %, and of feed events 10 %, are on any subtopic, and so is all of a user who
has no interest that shows. Outside interests, feed and discovery skip or hide six times as often, and dwell times have
a median of 2.5 s instead of 9 s. 12 % of the item events return to an item that the user met before in that subtopic.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from random import Random
from typing import Any

from stream.errors import UserError
from stream.events import Item
from stream.vocabulary import ADJECTIVES, BRANDS, SUBTOPICS, Subtopic

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SPAN_MS = 30 * DAY_MS  # observed
END_MS = 1_748_736_000_000  # 2025-06-01T00:00:00Z; fixed, so that a seed gives the same file on every day
QUIET_MS = 50 * 60_000  # the longest session
SESSION_EVENTS = 25  # at most

SCENARIO_SHARES = {"search": 0.35, "feed": 0.45, "discovery": 0.20}
LAG_DAYS = {"search": (0.0, 0.0), "feed": (1.0, 2.0), "discovery": (3.0, 5.0)}
SEARCH_NOISE, FEED_NOISE, EXPLORING, REPEATS = 0.05, 0.10, 0.60, 0.12

SEARCH_ACTIONS = {"click": 60, "view": 15, "save": 8, "cart": 10, "purchase": 7}
FEED_ACTIONS = {"view": 50, "click": 24, "like": 12, "save": 4, "share": 4, "comment": 2, "skip": 3, "hide": 1}
DISCOVERY_ACTIONS = {"view": 55, "click": 24, "like": 8, "save": 5, "follow": 4, "skip": 4}
DISLIKED = ("skip", "hide")
CHANNELS = ("trending", "new", "nearby", "editors")


@dataclass(frozen=True)
class Interest:
    """The planted truth: the user cared for `subtopic` from `born_ms` to `died_ms`; each scenario shows it later."""

    user_id: str
    subtopic: str
    strength: float
    born_ms: int
    died_ms: int
    lag_ms: dict[str, int]  # by scenario

    def shows(self, scenario: str, at_ms: int) -> bool:
        """Whether events of `scenario` may come from this interest at that time."""
        lag = self.lag_ms[scenario]
        return self.born_ms + lag <= at_ms < self.died_ms + lag


@dataclass(frozen=True, slots=True)
class Act:
    """One event as it goes to Kafka (`record`, without nulls), and why it happened."""

    scenario: str
    record: dict[str, Any]
    subtopic: str
    cause: str  # interest | explore | noise | burst


@dataclass(frozen=True)
class Catalogue:
    """The items, and what each is about."""

    items: list[Item]
    subtopics: dict[str, str]  # item_id -> subtopic
    shelves: dict[str, tuple[str, ...]]  # subtopic -> item ids, most popular first


@dataclass(frozen=True)
class Population:
    """Events by time, the catalogue they are about, and every planted interest by user."""

    catalogue: Catalogue
    acts: list[Act]
    interests: dict[str, list[Interest]]

    def foreign_subtopic(self, user_id: str) -> str:
        """A well stocked subtopic of a category in which the user never had an interest."""
        known = {CATEGORY[interest.subtopic] for interest in self.interests[user_id]}
        shelves = self.catalogue.shelves
        strange = [name for name in shelves if CATEGORY[name] not in known] or list(shelves)
        return max(strange, key=lambda name: (len(shelves[name]), name))


CATEGORY = {subtopic.name: subtopic.category for subtopic in SUBTOPICS}
_BY_NAME = {subtopic.name: subtopic for subtopic in SUBTOPICS}


def synthesize(
    users: int = 500,
    events: int = 20_000,
    items: int = 2_000,
    seed: int = 7,
    end_ms: int = END_MS,
    run: str = "",
    people: str = "u",
) -> Population:
    """Exactly `events` events of users `u000000`... (or another prefix), sorted by time, none after `end_ms`.

    Event ids are `run` + a number: two runs into the same system need different `run`s. Items are `i000000`...
    """
    for name, value in (("users", users), ("events", events), ("items", items)):
        if value < 1:
            raise UserError(f"a population needs at least one of each: {name} is {value}")
    catalogue = make_catalogue(items, seed)
    interests: dict[str, list[Interest]] = {}
    acts: list[Act] = []
    for number, count in enumerate(_activity(users, events, Random(f"{seed}/activity"))):
        rng = Random(f"{seed}/user/{number}")
        user = _User(f"{people}{number:06d}", catalogue, end_ms, rng)
        interests[user.user_id] = user.interests
        acts.extend(user.live(count))
    acts.sort(key=lambda act: (act.record["ts"], act.record["user_id"]))
    for number, act in enumerate(acts):
        act.record["event_id"] = f"{run}e{number:08d}"
    return Population(catalogue, acts, interests)


def search_burst(
    catalogue: Catalogue, user_id: str, subtopic: str, at_ms: int, n: int = 12, run: str = "", seed: int = 7
) -> list[Act]:
    """`n` search events on one subtopic, 3 s apart, the last at `at_ms`: every fourth a query, the rest on results."""
    rng = Random(f"{seed}/burst/{user_id}/{subtopic}/{at_ms}")
    shelf = catalogue.shelves[subtopic]
    order = rng.sample(shelf, len(shelf))
    acts, query = [], ""
    for number in range(n):
        record = {"event_id": f"{run}burst-{user_id}-{at_ms}-{number:03d}", "user_id": user_id}
        if number % 4 == 0:
            query = make_query(_BY_NAME[subtopic], rng)
            record |= {"action": "search", "query": query}
        else:
            action = rng.choice(("click", "click", "save", "cart"))
            record |= {"item_id": order[number % len(order)], "action": action, "query": query}
        acts.append(Act("search", record | {"ts": at_ms - 3_000 * (n - 1 - number)}, subtopic, "burst"))
    return acts


def make_catalogue(items: int, seed: int) -> Catalogue:
    """The items of a seed; with fewer items than subtopics, only that many subtopics exist."""
    rng = Random(f"{seed}/items")
    order = rng.sample(SUBTOPICS, len(SUBTOPICS))
    drawn = [order[n] if n < len(order) else rng.choice(order) for n in range(items)]
    rng.shuffle(drawn)
    made = [_item(f"i{number:06d}", subtopic, rng) for number, subtopic in enumerate(drawn)]
    shelves: dict[str, list[str]] = defaultdict(list)
    for item, subtopic in zip(made, drawn, strict=True):
        shelves[subtopic.name].append(item.item_id)
    names = {item.item_id: subtopic.name for item, subtopic in zip(made, drawn, strict=True)}
    return Catalogue(made, names, {name: tuple(ids) for name, ids in sorted(shelves.items())})


def make_query(subtopic: Subtopic, rng: Random) -> str:
    """What somebody with that interest types: a thing or the subtopic's name, at times with something more."""
    name, thing, remark = subtopic.name, rng.choice(subtopic.things), rng.choice(subtopic.remarks)
    return rng.choice((name, thing, f"{rng.choice(ADJECTIVES)} {thing}", f"{thing} {remark}", f"{name} {remark}"))


def _item(item_id: str, subtopic: Subtopic, rng: Random) -> Item:
    title = f"{rng.choice(BRANDS)} {rng.choice(ADJECTIVES)} {rng.choice(subtopic.things)}"
    first, second = rng.sample(subtopic.remarks, 2)
    text = f"For {subtopic.name}: {first}, {second}."
    return Item(item_id=item_id, title=title, text=text, category=subtopic.category)


def _activity(users: int, events: int, rng: Random) -> list[int]:
    """Events per user, summing to `events`."""
    bounds = list(accumulate(rng.lognormvariate(0, 0.7) for _ in range(users)))
    edges = [round(events * bound / bounds[-1]) for bound in bounds]
    return [high - low for low, high in zip([0, *edges], edges, strict=False)]


class _User:
    """One user's month; all its randomness comes from `rng`, so it depends on no other user."""

    def __init__(self, user_id: str, catalogue: Catalogue, end_ms: int, rng: Random) -> None:
        self.user_id, self.catalogue, self.end_ms, self.rng = user_id, catalogue, end_ms, rng
        self.subtopics = list(catalogue.shelves)
        self.start_ms = end_ms - SPAN_MS
        self.hour_ms = rng.random() * DAY_MS  # of the day at which this user is most active
        self.met: dict[str, list[str]] = defaultdict(list)
        self.interests = sorted(self._plant(), key=lambda interest: interest.born_ms)

    def _plant(self) -> Iterator[Interest]:
        fresh = iter(self.rng.sample(self.subtopics, len(self.subtopics)))
        for _ in range(self.rng.randint(2, 4)):
            life = self._life_ms()
            born = self.start_ms - int(self.rng.random() * life)
            while born < self.end_ms and (subtopic := next(fresh, None)):
                lag = {name: int(self.rng.uniform(*days) * DAY_MS) for name, days in LAG_DAYS.items()}
                strength = 0.5 + self.rng.expovariate(1.0)
                yield Interest(self.user_id, subtopic, strength, born, born + life, lag)
                born, life = born + life, self._life_ms()

    def _life_ms(self) -> int:
        return int((5 + self.rng.expovariate(1 / 15)) * DAY_MS)

    def live(self, count: int) -> list[Act]:
        """`count` events by time, no two at the same."""
        sessions: list[list[tuple[int, str]]] = []
        while count > 0:
            session = self._session(min(count, SESSION_EVENTS))
            sessions.append(session)
            count -= len(session)
        sessions.sort()
        acts = [act for session in sessions for act in self._acts(session)]
        acts.sort(key=lambda act: act.record["ts"])
        last = 0
        for act in acts:
            last = act.record["ts"] = max(act.record["ts"], last + 1)
        return acts

    def _session(self, longest: int) -> list[tuple[int, str]]:
        """Times and scenario."""
        scenario = self._pick(SCENARIO_SHARES)
        day = self.rng.randrange(SPAN_MS // DAY_MS) * DAY_MS
        at = self.start_ms + (day + int(self.hour_ms + self.rng.gauss(0, 2.5) * HOUR_MS)) % (SPAN_MS - QUIET_MS)
        length = min(longest, 1 + int(self.rng.expovariate(1 / 7)))
        gaps = (1_000 + int(min(self.rng.expovariate(1 / 24_000), 119_000)) for _ in range(length))
        return [(at + offset, scenario) for offset in accumulate(gaps)]

    def _acts(self, session: list[tuple[int, str]]) -> Iterator[Act]:
        scenario = session[0][1]
        if scenario == "search":
            yield from self._search([at for at, _ in session])
        else:
            for position, (at, _) in enumerate(session):
                yield self._browse(scenario, at, position)

    def _search(self, times: list[int]) -> Iterator[Act]:
        name, cause = self._subject("search", times[0], SEARCH_NOISE)
        query = ""
        for number, at in enumerate(times):
            if number % 4 == 0:
                query = make_query(_BY_NAME[name], self.rng)
                record = {"user_id": self.user_id, "action": "search", "ts": at, "query": query}
            else:
                record = self._on_item(name, self._pick(SEARCH_ACTIONS), at)
                record |= {"query": query, "position": int(self.rng.expovariate(1 / 3))}
            yield Act("search", record, name, cause)

    def _browse(self, scenario: str, at: int, position: int) -> Act:
        name, cause = self._subject(scenario, at, FEED_NOISE if scenario == "feed" else EXPLORING)
        actions = FEED_ACTIONS if scenario == "feed" else DISCOVERY_ACTIONS
        dull = cause != "interest"
        action = self._pick({a: w * (6 if dull and a in DISLIKED else 1) for a, w in actions.items()})
        record = self._on_item(name, action, at) | {"position": position}
        if scenario == "feed":
            record["dwell_ms"] = int(min(self.rng.lognormvariate(math.log(2_500 if dull else 9_000), 0.8), 600_000))
        else:
            record["channel"] = self.rng.choice(CHANNELS)
        return Act(scenario, record, name, cause)

    def _subject(self, scenario: str, at: int, elsewhere: float) -> tuple[str, str]:
        """A subtopic and the cause."""
        alive = [interest for interest in self.interests if interest.shows(scenario, at)]
        if not alive or self.rng.random() < elsewhere:
            return self.rng.choice(self.subtopics), "explore" if scenario == "discovery" else "noise"
        return self._pick({i.subtopic: _pull(i, scenario, at) for i in alive}), "interest"

    def _on_item(self, subtopic: str, action: str, at: int) -> dict[str, Any]:
        met = self.met[subtopic]
        if met and self.rng.random() < REPEATS:
            item_id = self.rng.choice(met)
        else:
            item_id = _popular(self.catalogue.shelves[subtopic], self.rng)
            met.append(item_id)
        return {"user_id": self.user_id, "item_id": item_id, "action": action, "ts": at}

    def _pick(self, weights: dict[str, float] | dict[str, int]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]


def _pull(interest: Interest, scenario: str, at: int) -> float:
    if scenario == "search":
        return interest.strength * (1 + 4 * math.exp(-(at - interest.born_ms) / (3 * DAY_MS)))
    return math.sqrt(interest.strength)


def _popular(shelf: tuple[str, ...], rng: Random) -> str:
    """By 1/rank: the logarithm of the rank is about uniform."""
    return shelf[bisect_left(_ranks(len(shelf)), rng.random())]


@cache
def _ranks(size: int) -> list[float]:
    sums = list(accumulate(1 / rank for rank in range(1, size + 1)))
    return [value / sums[-1] for value in sums]
