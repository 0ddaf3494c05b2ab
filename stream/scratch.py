"""Tables that need not fit into memory: in a temporary file, unless they are small, that goes with its connection."""

import sqlite3


def scratch(schema: str) -> sqlite3.Connection:
    """A new table, of `CREATE TABLE {schema}`."""
    store = sqlite3.connect("", isolation_level=None)
    store.execute("PRAGMA journal_mode = OFF")
    store.execute(f"CREATE TABLE {schema}")
    store.execute("BEGIN")
    return store


def first(seen: sqlite3.Connection, identity: int | str) -> bool:
    """Whether it was not in the table `seen` yet, of one column; it is now."""
    return seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (identity,)).rowcount == 1
