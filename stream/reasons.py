"""Why a record is refused, in one line: `field: what is wrong, is VALUE`."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import to_json

IS = ", is "
SHOWN = 60  # characters of a value, or of a name that others chose
PLAIN_NAME = re.compile(r"[\w-]{1,64}")


def about(reason: str, value: Any) -> str:
    """With the value, when it is a plain one; what cannot be printed is escaped."""
    if not isinstance(value, str | int | float | None):
        return reason
    text = repr(value) if isinstance(value, str) else to_json(value, inf_nan_mode="constants").decode()
    return reason + IS + _short(text)


def place(parts: Iterable[str | int]) -> str:
    """A field in fields; what is no plain name, as those of attributes may be, is quoted."""
    return ".".join(str(p) if PLAIN_NAME.fullmatch(str(p)) else _short(repr(p)) for p in parts)


def without_value(reason: str) -> str:
    """What was said before the value was told."""
    return reason.partition(IS)[0]


def kind(reason: str) -> str:
    """What reasons have in common that differ in values and numbers only."""
    return re.sub(r"\d+", "…", without_value(reason))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
