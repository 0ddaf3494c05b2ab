"""Where things are in Qdrant: the names of collections and vectors, and point ids. Any service can compute them.

A point id is the UUIDv5, in the URL namespace of RFC 4122 (6ba7b811-9dad-11d1-80b4-00c04fd430c8), of the UTF-8 text
`facetstream/user/<user_id>` or `facetstream/item/<item_id>`; for example user `ada` is
e709d54b-b8d7-5cc2-b0d7-236ec9f07444. In a shell: `uuidgen --sha1 --namespace @url --name facetstream/user/ada`; in
PostgreSQL: `uuid_generate_v5(uuid_ns_url(), 'facetstream/user/' || user_id)`.
"""

import uuid

USERS = "users"  # one point per user, one named vector per scenario and interest
ITEMS = "items"  # one point per item, one unnamed vector


def user_point(user_id: str) -> str:
    """The id of a user's point in `users`."""
    return _point(f"facetstream/user/{user_id}")


def item_point(item_id: str) -> str:
    """The id of an item's point in `items`."""
    return _point(f"facetstream/item/{item_id}")


def vector_name(scenario: str, interest: int) -> str:
    """The named vector in `users` of a scenario's interest, counted from 0: `feed_0`."""
    return f"{scenario}_{interest}"


def _point(name: str) -> str:
    # A lone surrogate, which no stored id holds, is spelled out: such an id is unknown, not an error.
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name.encode(errors="backslashreplace").decode()))
