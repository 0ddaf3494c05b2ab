"""Behaviour events and catalogue items as they arrive, and every limit put on them.

Unknown extra fields are ignored; whatever breaks a limit is `Permanent` with the field named.
"""

import time
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from models.contract import ACTIONS, SCENARIOS
from stream.errors import Permanent
from stream.reasons import about, place

SCHEMA_VERSION: Literal[1] = 1
ID_BYTES = 256
NAME_BYTES = 64  # of an attribute
TEXT_BYTES = 4_096
QUERY_BYTES = 1_024
OLDEST_MS = 946_684_800_000  # 2000-01-01T00:00:00Z
AHEAD_MS = 300_000  # a producer's clock may run five minutes fast

Scenario = IntEnum("Scenario", {name: code for code, name in enumerate(SCENARIOS)})  # type: ignore[misc]
Action = IntEnum("Action", {name: code for code, name in enumerate(ACTIONS)})  # type: ignore[misc]


def _id(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    if len(value.encode()) > ID_BYTES:
        raise ValueError(f"must be at most {ID_BYTES} bytes of UTF-8")
    if not value.isprintable():
        raise ValueError("must hold printable characters only")
    return value


def _bounded(limit: int) -> AfterValidator:
    def check(value: str) -> str:
        if len(value.encode()) > limit:
            raise ValueError(f"must be at most {limit} bytes of UTF-8")
        if "\x00" in value:
            raise ValueError("must not hold a NUL character")
        return value

    return AfterValidator(check)


def _attribute(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Else pydantic would say of anything that is none of the types that it is no string, the first of them."""
    try:
        return handler(value)
    except ValidationError:
        if isinstance(value, str):
            raise
        raise ValueError("must be a string, a finite number, true or false") from None


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _described(limit: int, **more: int) -> WithJsonSchema:
    """A limit of bytes is one of characters too, which is all that JSON Schema can say."""
    return WithJsonSchema({"type": "string", "maxLength": limit, **more})


PLAIN = "constrained-str"  # pydantic's name of the next type: what is wrong with an id, the second kind says
Plain = Annotated[str, Field(pattern=f"^[!-~]([ -~]{{0,{ID_BYTES - 2}}}[!-~])?$")]
Id = Annotated[  # nearly all are plain, and three are in an event: those that are need no call of Python
    Plain | Annotated[str, AfterValidator(_id)],
    Field(union_mode="left_to_right"),
    _described(ID_BYTES, minLength=1),
]
Label = Annotated[str, _bounded(ID_BYTES), _described(ID_BYTES)]
Name = Annotated[str, AfterValidator(_not_blank), _bounded(NAME_BYTES), _described(NAME_BYTES, minLength=1)]
Prose = Annotated[str, _bounded(TEXT_BYTES), _described(TEXT_BYTES)]
Query = Annotated[str, AfterValidator(_not_blank), _bounded(QUERY_BYTES), _described(QUERY_BYTES, minLength=1)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what Qdrant stores
Attribute = Annotated[Label | Integer | FiniteFloat | bool, WrapValidator(_attribute)]
Milliseconds = Annotated[  # `parse_event`, which knows when it was produced, checks the bounds
    int, Field(strict=True), WithJsonSchema({"type": "integer", "minimum": OLDEST_MS})
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What the three scenarios have in common. A dataclass: pydantic takes two thirds of the time of a model's."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="version of this schema")
    event_id: Id = Field(description="unique per event: it counts once while it is in the user's window of ids")
    user_id: Id = Field(description="who acted; also the Kafka key")
    item_id: Id | None = Field(description="what was acted on")
    action: Literal[ACTIONS] = Field(description="what was done")  # type: ignore[valid-type]
    ts: Milliseconds = Field(description="when, in milliseconds since 1970-01-01 UTC")
    position: int | None = Field(default=None, ge=0, le=100_000, description="rank at which the item was shown, from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEvent(Event):
    """A query typed (action `search`, no item), or an action on one of its results."""

    item_id: Id | None = Field(default=None, description="the result acted on; absent when the query was only typed")
    query: Query | None = Field(default=None, description="the text searched for")

    @model_validator(mode="after")
    def _something_to_record(self) -> "SearchEvent":
        if self.action == "search" and self.query is None:
            raise ValueError("query: is required when action is search")
        if self.action != "search" and self.item_id is None:
            raise ValueError("item_id: is required unless action is search")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedEvent(Event):
    """An action on an item of the feed."""

    item_id: Id = Field(description="the item acted on")
    dwell_ms: int | None = Field(default=None, ge=0, le=86_400_000, description="milliseconds spent on the item")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryEvent(Event):
    """An action on an item met while exploring."""

    item_id: Id = Field(description="the item acted on")
    channel: Label | None = Field(default=None, description="where in discovery")


class Item(BaseModel):
    """A catalogue item; its text is what the item tower reads."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="version of this schema")
    item_id: Id = Field(description="also the Kafka key")
    title: Prose = Field(default="", description="shown to people, read by the model")
    text: Prose = Field(default="", description="anything else the model should read")
    category: Label | None = Field(default=None, description="filterable in Qdrant")
    attributes: dict[Name, Attribute] = Field(
        default_factory=dict, max_length=32, description="flat, filterable in Qdrant"
    )

    @model_validator(mode="after")
    def _something_to_encode(self) -> "Item":
        if not (self.title.strip() or self.text.strip()):
            raise ValueError("text: title and text must not both be blank")
        return self

    @property
    def content(self) -> str:
        """What the item tower encodes."""
        return " ".join(part for part in (self.title, self.category or "", self.text) if part.strip())


EVENT_MODELS: dict[str, type[Event]] = {
    "search": SearchEvent,
    "feed": FeedEvent,
    "discovery": DiscoveryEvent,
}
_EVENT: dict[str, Callable[..., Any]] = {
    scenario: TypeAdapter(model).validator.validate_json for scenario, model in EVENT_MODELS.items()
}
_ITEM: Callable[..., Any] = TypeAdapter(Item).validator.validate_json


def parse_event(scenario: str, raw: bytes, now_ms: int | None = None) -> Event:
    """The event in `raw` (JSON, UTF-8). Raises `Permanent` with `field: what is wrong`.

    `now_ms` is when it was produced: what was impossible then must be refused by a replay, too.
    """
    try:
        event: Event = _EVENT[scenario](raw)
    except ValidationError as error:
        raise Permanent(reason(error)) from None
    if event.ts < OLDEST_MS:
        raise Permanent(about("ts: must not be before 2000-01-01 (milliseconds since 1970)", event.ts))
    if event.ts > (now_ms or time.time() * 1000) + AHEAD_MS:
        raise Permanent(about("ts: must not be more than 5 minutes ahead (milliseconds since 1970)", event.ts))
    return event


def parse_item(raw: bytes) -> Item:
    """The item in `raw` (JSON, UTF-8). Raises `Permanent` with `field: what is wrong`."""
    try:
        item: Item = _ITEM(raw)
    except ValidationError as error:
        raise Permanent(reason(error)) from None
    return item


def reason(error: ValidationError) -> str:
    """One line for a dead letter: the first field at fault, what is wrong with it, and the value."""
    errors = error.errors(include_url=False, include_context=False)
    first = next((e for e in errors if e["loc"][-1:] != (PLAIN,)), errors[0])  # an attribute may be called that, too
    field = place(first["loc"][: 2 if first["loc"][:1] == ("attributes",) else 1])  # behind it are names of validators
    message = first["msg"].removeprefix("Value error, ")
    return about(f"{field}: {message}", first["input"]) if field else message
