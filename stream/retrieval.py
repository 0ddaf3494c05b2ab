"""From a user to items: every interest of a scenario looks for its nearest items, and the lists are merged.

The queries are plain JSON of Qdrant's REST API; nothing here knows a client, and any service can send the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

from models.contract import SCENARIOS
from stream.errors import Permanent, Transient, UserError
from stream.points import USERS, item_point, user_point, vector_name
from stream.ports import Hit, Profile

Merge = Literal["rrf", "max", "quota"]
Body = dict[str, Any]  # of POST /collections/items/points/query

CANDIDATES = 50  # items each interest brings to the fusion, at least
MOST_HITS = 1_000
SMALL_WEIGHT = 0.05  # an interest below it may end without an item of its own


class UnknownUser(UserError):
    """No profile of this user is in Qdrant (yet)."""


class Searchable(Protocol):
    """What retrieval asks of Qdrant, beside `Vectors`."""

    users: str  # the collection of profiles

    async def profile(self, user_id: str) -> Profile | None: ...
    async def interests(self) -> int: ...
    async def search(self, bodies: Sequence[Body]) -> list[list[Hit]]: ...


class Retrieval:
    """Recommendations from the profiles and items in Qdrant."""

    def __init__(self, vectors: Searchable) -> None:
        self._vectors = vectors

    async def recommend(
        self,
        user_id: str,
        scenario: str,
        limit: int = 10,
        merge: Merge = "rrf",
        exclude: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """At most `limit` items, best first, without those of `exclude` (item ids already seen) and only those that
        the Qdrant filter `where` admits. Scores: `rrf` fused ranks, `max` and `quota` cosines.

        Raises `UnknownUser`, `UserError` for a scenario, limit or merge there is not, and `Permanent` in Qdrant's words
        for a filter it refuses.
        """
        _check(scenario, limit, merge)
        weights = _weights(await self._profile(user_id), scenario) if merge == "quota" else []
        interests = await self._vectors.interests()
        if merge == "rrf":
            body = request_body(user_id, scenario, interests, limit, exclude, where, self._vectors.users)
            return (await self._search(user_id, [body]))[0]
        extra = {"with_payload": True} | _narrowed(exclude, where)
        queries = _queries(user_id, scenario, interests, limit, self._vectors.users)
        found = await self._search(user_id, [query | extra for query in queries])
        return max_merge(found, limit) if merge == "max" else quota_merge(found, weights, limit)

    async def nearest(self, user_id: str, limit: int = 5) -> dict[str, list[tuple[float, list[Hit]]]]:
        """Per scenario, heaviest interest first: its weight and its nearest items."""
        profile = await self._profile(user_id)
        near = {}
        for scenario in SCENARIOS:
            weights = _weights(profile, scenario)
            queries = _queries(user_id, scenario, len(weights), limit, self._vectors.users)
            found = await self._search(user_id, [query | {"with_payload": True} for query in queries])
            near[scenario] = sorted(zip(weights, found, strict=True), key=lambda pair: -pair[0])
        return near

    async def _profile(self, user_id: str) -> Profile:
        profile = await self._vectors.profile(user_id)
        if profile is None:
            raise UnknownUser(f"no profile of user {user_id!r} yet: produce some events of theirs first")
        return profile

    async def _search(self, user_id: str, bodies: Sequence[Body]) -> list[list[Hit]]:
        try:
            return await self._vectors.search(bodies)
        except (Permanent, Transient):
            await self._profile(user_id)  # Qdrant refuses to look up a point that is not there
            raise


def request_body(
    user_id: str,
    scenario: str,
    interests: int,
    limit: int = 10,
    exclude: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    users: str = USERS,
) -> Body:
    """The whole retrieval as one request, fused by reciprocal rank: the body of
    `POST /collections/items/points/query`. Qdrant applies the filter to every prefetch."""
    return {
        "prefetch": _queries(user_id, scenario, interests, max(limit, CANDIDATES), users),
        "query": {"fusion": "rrf"},
        "limit": limit,
        "with_payload": True,
    } | _narrowed(exclude, where)


def max_merge(lists: Sequence[Sequence[Hit]], limit: int) -> list[Hit]:
    """The best items by their highest score in any list."""
    best: dict[str, Hit] = {}
    for hit in (hit for hits in lists for hit in hits):
        if hit.item_id not in best or hit.score > best[hit.item_id].score:
            best[hit.item_id] = hit
    return _ranked(best.values())[:limit]


def quota_merge(lists: Sequence[Sequence[Hit]], weights: Sequence[float], limit: int) -> list[Hit]:
    """Of each interest's list as many items as its weight deserves, heaviest interest first; an item belongs to the
    first interest that takes it. Places that a short list leaves free go to the best of the rest."""
    taken: dict[str, Hit] = {}
    seats = quotas(weights, limit)
    for k in sorted(range(len(lists)), key=lambda k: -weights[k]):
        fresh = [hit for hit in lists[k] if hit.item_id not in taken]
        taken |= {hit.item_id: hit for hit in fresh[: seats[k]]}
    rest = [hit for hit in max_merge(lists, sum(map(len, lists))) if hit.item_id not in taken]
    return _ranked([*taken.values(), *rest[: limit - len(taken)]])


def quotas(weights: Sequence[float], limit: int) -> list[int]:
    """`limit` places dealt to interests by weight (largest remainder, then the earlier interest). While there are
    places for all, none of at least `SMALL_WEIGHT` goes without: the richest cede to it."""
    total = sum(weights)
    shares = [weight / total * limit for weight in weights]
    seats = [int(share) for share in shares]
    by_remainder = sorted(range(len(seats)), key=lambda k: seats[k] - shares[k])
    for k in by_remainder[: limit - sum(seats)]:
        seats[k] += 1
    for k in sorted(range(len(seats)), key=lambda k: -weights[k]):
        richest = max(range(len(seats)), key=lambda j: (seats[j], -weights[j]))
        if seats[k] == 0 and weights[k] / total >= SMALL_WEIGHT and seats[richest] > 1:
            seats[richest], seats[k] = seats[richest] - 1, 1
    return seats


def _ranked(hits: Iterable[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.item_id))


def _queries(user_id: str, scenario: str, interests: int, limit: int, users: str) -> list[Body]:
    """One query per interest, by the vector that Qdrant itself looks up in the user's point."""
    return [
        {
            "query": user_point(user_id),
            "lookup_from": {"collection": users, "vector": vector_name(scenario, k)},
            "limit": limit,
        }
        for k in range(interests)
    ]


def _narrowed(exclude: Sequence[str], where: Mapping[str, Any] | None) -> Body:
    conditions: Body = {}
    if where:
        conditions["must"] = [dict(where)]
    if exclude:
        conditions["must_not"] = [{"has_id": [item_point(item_id) for item_id in exclude]}]
    return {"filter": conditions} if conditions else {}


def _weights(profile: Profile, scenario: str) -> list[float]:
    weights: list[float] = profile.weights[SCENARIOS.index(scenario)].tolist()
    return weights


def _check(scenario: str, limit: int, merge: str) -> None:
    if scenario not in SCENARIOS:
        raise UserError(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}")
    if not 1 <= limit <= MOST_HITS:
        raise UserError(f"limit {limit}: choose 1 to {MOST_HITS}")
    if merge not in get_args(Merge):
        raise UserError(f"unknown merge {merge!r}: choose one of {', '.join(get_args(Merge))}")
