"""Why a record is refused, in one line: `field: what is wrong, is VALUE`."""

import re
from typing import Any

from pydantic_core import to_json

IS = ", is "
SHOWN = 60  # characters of a value


def about(reason: str, value: Any) -> str:
    """With the value, when it is a plain one; what cannot be printed is escaped."""
    if not isinstance(value, str | int | float | None):
        return reason
    text = repr(value) if isinstance(value, str) else to_json(value, inf_nan_mode="constants").decode()
    return f"{reason}{IS}{text if len(text) <= SHOWN else text[:SHOWN] + '…'}"


def kind(reason: str) -> str:
    """What reasons have in common that differ in values and numbers only."""
    return re.sub(r"\d+", "…", reason.partition(IS)[0])
