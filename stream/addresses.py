"""Where the four services are: the environment says so, or a running embedded stack left word in the data folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stream.errors import UserError
from stream.settings import Settings, variable

RUNNING = "running.json"
PARTS = ("kafka", "redis", "triton", "qdrant")


@dataclass(frozen=True)
class Addresses:
    """What clients connect to, in the form of the settings `kafka_url`, `redis_url`, `triton_url`, `qdrant_url`."""

    kafka: str
    redis: str
    triton: str
    qdrant: str


@dataclass(frozen=True)
class Running:
    """What a process that serves others writes into its data folder: who it is, and where its parts answer."""

    pid: int
    addresses: Addresses
    worker: str | None = None  # http:// URL of the worker's own pages


def find(settings: Settings, needed: Sequence[str] = PARTS) -> Addresses:
    """Addresses from the environment, the rest from a live stack in the data folder; else a `UserError` that names
    both ways out. A part that is not `needed` may end up without an address (empty)."""
    given = {part: getattr(settings, f"{part}_url") for part in PARTS}
    missing = [part for part in needed if given[part] is None]
    if not missing:
        return Addresses(**{part: url or "" for part, url in given.items()})
    running = read(settings.data_folder)
    if running is None:
        variables = ", ".join(variable(f"{part}_url") for part in missing)
        raise UserError(
            f"nothing runs on {settings.data_folder}: set {variables}, or keep `facetstream demo --keep-running` "
            "running in another terminal"
        )
    return Addresses(**{**asdict(running.addresses), **{part: url for part, url in given.items() if url}})


def read(data_folder: Path) -> Running | None:
    """What runs on the folder; None when nothing does, or its process is gone."""
    try:
        found = json.loads((data_folder / RUNNING).read_text())
        running = Running(int(found["pid"]), Addresses(**found["addresses"]), found.get("worker"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{data_folder / RUNNING} cannot be read: delete it, then start again") from None
    return running if _alive(running.pid) else None


def write(data_folder: Path, running: Running) -> None:
    """Announce what runs, all at once: a reader sees the old word or the new."""
    draft = data_folder / f"{RUNNING}.{os.getpid()}"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(asdict(running), indent=2) + "\n")
    draft.replace(data_folder / RUNNING)


def forget(data_folder: Path) -> None:
    (data_folder / RUNNING).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
