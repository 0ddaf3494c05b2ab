"""A table on disk for what is too much to hold in memory and is forgotten at the end."""

import sqlite3


def scratch(schema: str) -> sqlite3.Connection:
    """An empty table in a temporary file, unless it is small, that goes with its connection."""
    store = sqlite3.connect("", isolation_level=None)
    store.execute("PRAGMA journal_mode = OFF")
    store.execute(f"CREATE TABLE {schema}")
    store.execute("BEGIN")
    return store
