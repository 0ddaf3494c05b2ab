"""Files: the right line is blamed for the right reason, whatever the format."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.errors import UserError
from stream.files import LINE_BYTES, EventLine, Fault, ItemLine, read_events, read_items, write_parquet
from stream.produce import RUN, EventFile, Outgoing, message

EVENT = {
    "event_id": "e",
    "user_id": "u",
    "item_id": "i",
    "action": "click",
    "ts": 1_700_000_000_000,
    "scenario": "feed",
}
ITEM = {"item_id": "i", "title": "t"}
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "amazon-beauty"


def line(**fields: Any) -> bytes:
    return json.dumps(EVENT | fields).encode()


def jsonl(folder: Path, *lines: bytes) -> Path:
    path = folder / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def parquet(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "events.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_hostile_lines_are_blamed_by_number(tmp_path: Path) -> None:
    hostile = {
        2: (b"\xff\xfe", "Invalid JSON"),
        4: (b"not json", "Invalid JSON"),
        5: (line(user_id="u" * 10_000), "user_id: must be at most 256 bytes"),
        7: (line(user_id=None), "user_id: "),
        8: (line(scenario="ads"), "scenario: "),
        9: (b"[1]", "should be an object"),
        10: (b"[" * 5_000, "Invalid JSON"),
        11: (b'{"a": "' + b"x" * (3 * LINE_BYTES) + b'"}', f"longer than {LINE_BYTES:,} bytes"),
        13: (line(ts=1), "ts: must not be before 2000"),
    }
    lines = {number: raw for number, (raw, _) in hostile.items()} | {3: b"", 12: b"   \r"}
    read = list(read_events(jsonl(tmp_path, *(lines.get(number, line()) for number in range(1, 15)))))
    faults = {row.number: row.reason for row in read if isinstance(row, Fault)}
    assert faults.keys() == hostile.keys()
    for number, (_, reason) in hostile.items():
        assert reason in faults[number]
        assert "\n" not in faults[number]
    assert [row.number for row in read if isinstance(row, EventLine)] == [1, 6, 14]


def test_an_event_goes_to_the_topic_it_names(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line(), line(scenario="search", query="q"), line(scenario="discovery"))
    read = [row for row in read_events(path) if isinstance(row, EventLine)]
    assert [(row.scenario, type(row.event).__name__) for row in read] == [
        ("feed", "FeedEvent"),
        ("search", "SearchEvent"),
        ("discovery", "DiscoveryEvent"),
    ]


def test_items_as_jsonl(tmp_path: Path) -> None:
    path = jsonl(tmp_path, json.dumps(ITEM).encode(), b'{"item_id": "i", "text": " "}')
    good, bad = read_items(path)
    assert isinstance(good, ItemLine)
    assert good.item.title == "t"
    assert bad == Fault(2, "text: title and text must not both be blank")


def test_parquet_rows(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        user_id=["u", "u" * 300, "u"],
        item_id=["i", "i", None],
        ts=[EVENT["ts"]] * 3,
        scenario=["feed", "feed", "search"],
        action=["click", "click", "search"],
        query=[None, None, "tea"],
        other=[1, 2, 3],
    )
    first, second, third = read_events(path)
    assert isinstance(first, EventLine)
    assert second == Fault(2, f"user_id: must be at most 256 bytes of UTF-8, is '{'u' * 59}…")
    assert isinstance(third, EventLine)
    assert (third.number, third.scenario, message(third.event).count(b"null")) == (3, "search", 0)


def test_ids_made_of_content_are_the_same_at_each_reading_and_differ_within_the_file(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        name: [EVENT[name]] * 50 for name in ("user_id", "item_id", "ts", "scenario", "action")
    }
    path = parquet(tmp_path, **columns)
    ids = [row.event.event_id for row in read_events(path) if isinstance(row, EventLine)]
    assert len(set(ids)) == 50
    moved = path.rename(tmp_path / "another name.parquet")
    assert ids == [row.event.event_id for row in read_events(moved) if isinstance(row, EventLine)]


def test_ids_in_the_file_are_kept_and_their_absence_is_a_fault(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {name: [value] * 2 for name, value in EVENT.items()}
    kept, missing = read_events(parquet(tmp_path, **columns | {"event_id": ["mine", None]}))
    assert isinstance(kept, EventLine)
    assert kept.event.event_id == "mine"
    assert missing == Fault(2, "event_id: Field required")


@pytest.mark.parametrize("ts", [pa.array([1.5]), pa.array(["now"]), pa.array([1_700_000_000_000], pa.timestamp("ms"))])
def test_columns_of_another_type_are_faults(tmp_path: Path, ts: Any) -> None:
    columns = {name: [value] for name, value in EVENT.items()} | {"ts": ts}
    (fault,) = read_events(parquet(tmp_path, **columns))
    assert isinstance(fault, Fault)
    assert fault.reason.startswith("ts: ")


def test_a_column_of_bytes_is_text_if_it_is_utf_8(tmp_path: Path) -> None:
    columns: dict[str, Any] = {name: [value] * 2 for name, value in EVENT.items()}
    good, fault = read_events(
        parquet(tmp_path, **columns | {"user_id": pa.array(["é".encode(), b"\xff"], pa.binary())})
    )
    assert isinstance(good, EventLine)
    assert good.event.user_id == "é"
    assert isinstance(fault, Fault)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert isinstance(next(iter(read_events(path))), EventLine)


def test_a_file_as_a_whole_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "empty.parquet").write_bytes(b"")
    parquet(tmp_path, user_id=["u"], ts=[1])
    for name, reason in {
        "absent.jsonl": "No such file",
        "text.txt": "neither Parquet nor",
        "torn.parquet": "as Parquet",
        "empty.parquet": "neither Parquet nor",
        "events.parquet": "has no column scenario, action",
        "": "Is a directory",
    }.items():
        with pytest.raises(UserError, match=reason) as caught:
            list(read_events(tmp_path / name))
        assert str(tmp_path) in str(caught.value)


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    assert list(read_events(jsonl(tmp_path))) == []


@settings(max_examples=100, deadline=None)
@given(content=st.lists(st.binary() | st.just(line()), max_size=20).map(b"\n".join))
@example(content=b"PAR1\nlines")
def test_any_bytes_are_lines(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(content)
    read = list(read_events(path))
    assert [row.number for row in read] == [n for n, raw in enumerate(content.split(b"\n"), start=1) if raw.strip()]


def test_writing_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, {"a": "int64"}, [{"a": 1}, {}])

    def failing() -> Any:
        yield {"a": 2}
        raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        write_parquet(path, {"a": "int64"}, failing())
    assert pq.read_table(path).to_pylist() == [{"a": 1}, {"a": None}]
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_events_leave_in_the_order_of_time_and_ties_in_that_of_the_file(tmp_path: Path) -> None:
    times = [5, 3, 5, 1, 3]
    path = jsonl(tmp_path, *(line(ts=EVENT["ts"] + ts, user_id=f"u{n}") for n, ts in enumerate(times)), b"bad")
    with EventFile(path) as events:
        assert [event.user_id for event in events] == ["u3", "u1", "u4", "u0", "u2"]
        assert (events.good, events.bad) == (5, 1)


def test_a_file_of_many_runs_is_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RUN > 1_000
    monkeypatch.setattr("stream.produce.RUN", 7)
    times = [(n * 37) % 50 for n in range(50)]
    path = jsonl(tmp_path, *(line(ts=EVENT["ts"] + ts, event_id=str(ts)) for ts in times))
    with EventFile(path) as events:
        sent: list[Outgoing] = list(events)
    assert [json.loads(event.value)["event_id"] for event in sent] == [str(ts) for ts in range(50)]


@pytest.mark.skipif(not REAL.exists(), reason="the real data are not here")
def test_real_data() -> None:
    read = list(read_events(REAL / "events.parquet"))
    assert (len(read), sum(isinstance(row, Fault) for row in read)) == (198_502, 0)
    faults = [row for row in read_items(REAL / "items.parquet") if isinstance(row, Fault)]
    assert [fault.reason for fault in faults] == ["text: title and text must not both be blank"] * 7
