"""Every limit of events and items, from both sides; and nothing but `Permanent` ever comes out."""

import dataclasses
import json
import math
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from models.contract import ACTIONS, SCENARIOS
from stream.errors import Permanent
from stream.events import EVENT_MODELS, PLAIN, parse_event, parse_item
from stream.reasons import about, kind

EVENT = {"event_id": "e", "user_id": "u", "item_id": "i", "action": "click", "ts": 1_700_000_000_000}
ITEM = {"item_id": "i", "title": "t"}
NOW_MS = int(time.time() * 1000)


def event(scenario: str = "feed", **fields: Any) -> Any:
    return parse_event(scenario, json.dumps(EVENT | fields).encode())


def item(**fields: Any) -> Any:
    return parse_item(json.dumps(ITEM | fields).encode())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_plain_event(scenario: str) -> None:
    made = event(scenario)
    assert (made.event_id, made.user_id, made.item_id, made.action, made.ts) == tuple(EVENT.values())
    assert made.schema_version == 1


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", EVENT)
def test_what_is_required(scenario: str, name: str) -> None:
    with pytest.raises(Permanent, match=name):
        parse_event(scenario, json.dumps({k: v for k, v in EVENT.items() if k != name}).encode())


@pytest.mark.parametrize("name", ["event_id", "user_id", "item_id"])
def test_ids_have_at_most_256_bytes(name: str) -> None:
    assert getattr(event(**{name: "x" * 256}), name) == "x" * 256
    assert event(**{name: "é" * 128})
    for wrong in ("x" * 257, "é" * 129, "x" * 10_000):
        with pytest.raises(Permanent, match=f"{name}: must be at most 256 bytes"):
            event(**{name: wrong})


@pytest.mark.parametrize("wrong", ["", "  ", "a\nb", "a\x00b", "\u202e", None, 7, ["a"], {"a": 1}, True, "\ud800"])
@pytest.mark.parametrize("name", ["event_id", "user_id", "item_id"])
def test_ids_that_are_none(name: str, wrong: Any) -> None:
    with pytest.raises(Permanent):
        event(**{name: wrong})


@pytest.mark.parametrize(
    ("field", "value", "end"),
    [
        ("action", "zap", " or 'search', is 'zap'"),
        ("ts", "1", " a valid integer, is '1'"),
        ("ts", 1, " (milliseconds since 1970), is 1"),
        ("ts", NOW_MS + 3_600_000, f" (milliseconds since 1970), is {NOW_MS + 3_600_000}"),
        ("ts", math.nan, " a valid integer, is NaN"),
        ("position", -1, " equal to 0, is -1"),
        ("user_id", None, " a valid string, is null"),
        ("user_id", "a\u202eb", r", is 'a\u202eb'"),
        ("user_id", "é" * 129, f", is '{'é' * 59}…"),
        ("item_id", ["a"], "item_id: Input should be a valid string"),
        ("user_id", 7, "user_id: Input should be a valid string, is 7"),
    ],
)
def test_a_refusal_names_the_field_and_the_value(field: str, value: Any, end: str) -> None:
    with pytest.raises(Permanent, match=f"^{field}: ") as refusal:
        event(**{field: value})
    assert str(refusal.value).endswith(end)


@given(
    value=st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.integers(10**4_000, 10**4_200))
)
def test_a_reason_is_one_bounded_printable_line_and_its_kind_is_known(value: Any) -> None:
    told = about("ts: must not be so", value)
    assert told.isprintable()
    assert len(told) < 90
    assert kind(told) == "ts: must not be so"


@given(name=st.text() | st.sampled_from(["a\nb", "a, is b", "a[b", "x" * 50_000]))
def test_whatever_an_attribute_is_called_the_reason_is_one_bounded_printable_line(name: str) -> None:
    with pytest.raises(Permanent) as refusal:
        parse_item(to_json(ITEM | {"attributes": {name: None}}))
    assert str(refusal.value).isprintable()
    assert str(refusal.value).startswith("attributes.")
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("right", [946_684_800_000, NOW_MS, NOW_MS + 240_000])
def test_times_within_the_limits(right: int) -> None:
    assert event(ts=right).ts == right


@pytest.mark.parametrize(
    "wrong", [0, -1, 946_684_799_999, NOW_MS + 3_600_000, 4_102_444_800_000, 10**30, 1.5, "1700000000000", True, None]
)
def test_times_beyond_the_limits(wrong: Any) -> None:
    with pytest.raises(Permanent, match="ts"):
        event(ts=wrong)


@pytest.mark.parametrize("action", ACTIONS)
def test_known_actions(action: str) -> None:
    assert event(action=action).action == action


@pytest.mark.parametrize("wrong", ["Click", "", "buy", None, 3])
def test_unknown_actions(wrong: Any) -> None:
    with pytest.raises(Permanent, match="action"):
        event(action=wrong)


def test_queries_have_at_most_1024_bytes() -> None:
    assert event("search", query="q" * 1024).query == "q" * 1024
    for wrong in ("q" * 1025, "é" * 513, " ", ""):
        with pytest.raises(Permanent, match="query"):
            event("search", query=wrong)


def test_a_typed_query_needs_no_item_and_any_other_search_event_does() -> None:
    typed = event("search", action="search", query="tea", item_id=None)
    assert (typed.item_id, typed.query) == (None, "tea")
    with pytest.raises(Permanent, match="query: is required when action is search"):
        event("search", action="search")
    with pytest.raises(Permanent, match="item_id: is required unless action is search"):
        event("search", item_id=None, query="tea")


@pytest.mark.parametrize(
    ("scenario", "field", "right", "wrong"),
    [
        ("feed", "dwell_ms", 86_400_000, 86_400_001),
        ("feed", "dwell_ms", 0, -1),
        ("feed", "position", 100_000, 100_001),
        ("search", "position", 0, -1),
        ("discovery", "channel", "c" * 256, "c" * 257),
        ("discovery", "channel", None, 5),
        ("feed", "schema_version", 1, 2),
    ],
)
def test_what_a_scenario_adds(scenario: str, field: str, right: Any, wrong: Any) -> None:
    assert getattr(event(scenario, **{field: right}), field) == right
    with pytest.raises(Permanent, match=field):
        event(scenario, **{field: wrong})


def test_unknown_fields_are_ignored() -> None:
    assert event(colour="red", nested={"a": [1]}, query="not of the feed") == event()


def test_items() -> None:
    made = item(text="x" * 4096, category="c", attributes={"a": 1, "b": 1.5, "c": True, "d": "e"})
    assert made.content == "t c " + "x" * 4096
    assert made.attributes == {"a": 1, "b": 1.5, "c": True, "d": "e"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"item_id": "x" * 257},
        {"text": "x" * 4097},
        {"title": "é" * 2049},
        {"title": "", "text": " "},
        {"title": None},
        {"category": "c" * 257},
        {"attributes": {str(n): n for n in range(33)}},
        {"attributes": {"k" * 65: 1}},
        {"attributes": {"": 1}},
        {"attributes": {" ": 1}},
        {"attributes": {"k": "v" * 257}},
        {"attributes": {"k": None}},
        {"attributes": {"k": {"deep": 1}}},
        {"attributes": {"k": float("inf")}},
        {"attributes": {"k": float("nan")}},
        {"attributes": [1]},
    ],
)
def test_items_beyond_the_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(Permanent, match=next(iter(wrong)) if "title" not in wrong else "title|text"):
        item(**wrong)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (math.nan, "a string, a finite number"),
        ([1], "a string, a finite number"),
        (None, "a string"),
        ("v" * 257, "at most 256"),
    ],
)
def test_what_is_no_attribute_is_told_all_that_is_one(value: Any, what: str) -> None:
    with pytest.raises(Permanent, match=rf"attributes\.k: must be {what}"):
        item(attributes={"k": value})


def test_an_attribute_may_have_the_name_of_a_kind_of_id() -> None:
    """Which errors of ids leave out: an item could have ended a worker by it."""
    with pytest.raises(Permanent, match=rf"attributes\.{PLAIN}: must be "):
        item(attributes={PLAIN: None})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"{",
        b"{}",
        b"\x00",
        b'{"event_id": "a",}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"user_id": "\\ud800"}',
        b'{"ts": ' + b"9" * 10_000 + b"}",
        b'\xef\xbb\xbf{"event_id": "e"}',
        json.dumps(EVENT | {"user_id": "u" * 1_000_000}).encode(),
    ],
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_hostile_bytes(scenario: str, raw: bytes) -> None:
    with pytest.raises(Permanent) as caught:
        parse_event(scenario, raw)
    assert 0 < len(str(caught.value)) < 1_000
    with pytest.raises(Permanent):
        parse_item(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SCENARIOS), st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_gives_a_record_or_permanent(scenario: str, raw: bytes) -> None:
    with suppress(Permanent):
        parse_event(scenario, raw)
    with suppress(Permanent):
        parse_item(raw)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(SCENARIOS))
def test_any_field_may_hold_anything(data: st.DataObject, scenario: str) -> None:
    fields = st.sampled_from(sorted(field.name for field in dataclasses.fields(EVENT_MODELS[scenario])))
    raw = json.dumps(EVENT | data.draw(st.dictionaries(fields, json_values, max_size=3))).encode()
    with suppress(Permanent):
        again = to_json(parse_event(scenario, raw), exclude_none=True)
        assert parse_event(scenario, again) == parse_event(scenario, raw)
