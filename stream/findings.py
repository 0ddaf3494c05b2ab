"""What `facetstream doctor` asks and finds."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Doubt(Exception):
    """It works, but not as was asked, or perhaps not for long: a warning."""


@dataclass(frozen=True)
class Check:
    """One question. `ask` answers with a sentence when all is well, and else raises `Doubt`, or whatever a service's
    adapter raises, which is wrong."""

    name: str
    ask: Callable[[], Awaitable[str]]
    remedy: str  # what to do when not all is well


@dataclass(frozen=True)
class Finding:
    """The answer."""

    part: str
    name: str
    state: State
    text: str
    remedy: str = ""
