"""Reading a dataset folder: every row is kept, in order; whatever is wrong is one sentence."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings

from models import dataset, splits, tables
from models.contract import ACTIONS, SCENARIOS
from models.dataset import Behaviour
from models.errors import BadInput
from stream.commands.synthesize import command as synthesize
from tests.conftest import ROOT

NOON = 1_700_000_000_000
EVENT = {"user_id": "u", "item_id": "i", "ts": NOON, "scenario": "feed", "action": "click"}
NONE = {name: pa.array([], pa.int64() if name == "ts" else pa.string()) for name in EVENT}


def write(folder: Path, events: Any, items: Any = None) -> Path:
    """A dataset of rows, or of columns."""
    folder.mkdir(exist_ok=True)
    for name, rows in (("events", events), ("items", items)):
        if rows is not None:
            table = pa.table(rows) if isinstance(rows, dict) else pa.Table.from_pylist(rows)
            parquet.write_table(table, folder / f"{name}.parquet")
    return folder


def told(data: Behaviour) -> list[tuple[str, str, int, str, str]]:
    """Every event again, in the order of `data`."""
    names = [*data.item_ids, *data.texts[data.items :]]
    return [
        (data.user_ids[user], names[text], int(time), SCENARIOS[scenario], ACTIONS[action])
        for user, text, time, scenario, action in zip(
            data.owner(np.arange(len(data.text))), data.text, data.time, data.scenario, data.action, strict=True
        )
    ]


rows = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["ann", "bob", "cid", "ümit"]),
        "item_id": st.sampled_from(["i1", "i2", "i3", None, ""]),
        "query": st.sampled_from(["shoes", "red shoes"]),
        "ts": st.integers(NOON, NOON + 5),
        "scenario": st.sampled_from(SCENARIOS),
        "action": st.sampled_from(ACTIONS),
    }
)


@given(events=st.lists(rows, min_size=1, max_size=30), batch=st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_every_event_is_kept_by_user_and_time_with_ties_as_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, Any]], batch: int
) -> None:
    folder = write(tmp_path_factory.mktemp("d"), events, [{"item_id": "i3", "text": "three"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH_ROWS", batch)
        data = dataset.read(folder)
    expected = sorted(events, key=lambda row: (row["user_id"], row["ts"]))  # stable
    names = ("ts", "scenario", "action")
    assert told(data) == [
        (row["user_id"], row["item_id"] or row["query"], *(row[name] for name in names)) for row in expected
    ]
    assert data.item_ids[0] == "i3"
    queries = data.texts[data.items :]
    assert len(queries) == len({row["query"] for row in events if not row["item_id"]})
    liked = np.array([row["action"] not in dataset.UNWANTED for row in expected])
    assert (data.liked == liked).all()
    assert (data.wanted == liked & np.array([bool(row["item_id"]) for row in expected])).all()
    distinct = {tuple(told(data)[i]) for i in range(len(events))}
    assert data.summary().duplicates == len(events) - len(distinct)


def test_items_come_from_both_files_and_nothing_is_filtered(tmp_path: Path) -> None:
    items = [
        {"item_id": "sold", "title": "Boots", "category": "shoes", "text": "Warm.", "image": [1.0, 2.0], "price": 3},
        {"item_id": "shelf", "title": None, "category": None, "text": "", "image": None, "price": None},
    ]
    events = [EVENT | {"item_id": "new"}, EVENT | {"item_id": "sold"}, EVENT | {"item_id": "sold"}, EVENT]
    data = dataset.read(write(tmp_path, [*events, EVENT | {"user_id": "once", "scenario": "search"}], items))
    assert data.item_ids == ["sold", "shelf", "new", "i"]
    assert data.texts == ["Boots shoes Warm.", "", "", ""]
    assert data.categories == ["shoes", "", "", ""]
    assert data.images is not None
    assert data.images.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]
    summary = data.summary()
    assert (summary.users, summary.with_one_event, summary.without_text, summary.duplicates) == (2, 1, 3, 1)
    assert summary.per_scenario == {"search": 1, "feed": 4, "discovery": 0}
    assert str(summary) == (
        "2 users (1 with one event), 4 items (3 without text), 0 queries, 5 events (search 1, feed 4; 1 duplicates)"
    )


def test_a_query_is_one_only_without_an_item(tmp_path: Path) -> None:
    events = [EVENT | {"query": "boots"}, EVENT | {"item_id": None, "query": "coat", "action": "search"}]
    data = dataset.read(write(tmp_path, events))
    assert (data.item_ids, data.texts, data.items) == (["i"], ["", "coat"], 1)
    assert data.wanted.tolist() == [True, False]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_times_strings_and_lists_of_any_width(tmp_path: Path, zone: str | None) -> None:
    events = {
        "user_id": pa.array(["u", "u"], pa.large_string()),
        "item_id": pa.array(["a", "b"]).dictionary_encode(),
        "ts": pa.array([NOON * 1_000_000 + 5, NOON * 1_000_000 + 3_000_000], pa.timestamp("ns", tz=zone)),
        "scenario": pa.array(["feed", "search"]).dictionary_encode(),
        "action": ["click", "like"],
        "query": pa.nulls(2),
    }
    items = {
        "item_id": pa.array(["a", "b"], pa.large_string()),
        "image": pa.array([[4, 5, 6], [1, 2, 3]], pa.list_(pa.float64(), 3)),
    }
    data = dataset.read(write(tmp_path, events, items))
    assert told(data) == [("u", "a", NOON, "feed", "click"), ("u", "b", NOON + 3, "search", "like")]
    assert data.images is not None
    assert data.images.tolist() == [[4, 5, 6], [1, 2, 3]]


def test_the_width_of_images_may_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    items = [{"item_id": str(n), "image": [float(n)] * 2 if n > 2 else None} for n in range(6)]
    data = dataset.read(write(tmp_path, [EVENT], items))
    assert data.images is not None
    assert data.images[:, 0].tolist() == [0, 0, 0, 3, 4, 5, 0]
    bare = dataset.read(write(tmp_path, [EVENT], {"item_id": ["x"], "image": pa.nulls(1), "text": ["t"]}))
    assert bare.images is None


def test_what_synthesize_writes_is_a_dataset(tmp_path: Path) -> None:
    synthesize.callback(tmp_path, users=12, events=300, items=80, seed=3)
    data = dataset.read(tmp_path)
    assert (data.users, data.items, len(data.text)) == (12, 80, 300)
    assert len(data.texts) > 80
    assert all(data.texts)
    assert (np.diff(data.time)[np.diff(data.owner(np.arange(300))) == 0] >= 0).all()


@pytest.mark.parametrize(
    ("name", "users", "items", "events", "without_text"),
    [("amazon-beauty", 22_363, 12_101, 198_502, 7), ("amazon-food-kitchen", 16_579, 58_888, 202_402, 58_888)],
)
def test_real_data_is_kept_whole(name: str, users: int, items: int, events: int, without_text: int) -> None:
    folder = ROOT.parent / "shared" / "data" / name
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    data = dataset.read(folder)
    summary = data.summary()
    assert (summary.users, summary.items, summary.events, summary.without_text) == (users, items, events, without_text)
    leave_one_out = splits.leave_one_out(data)
    assert len(leave_one_out.test) + leave_one_out.unasked == users


def times(*values: Any, **more: Any) -> dict[str, Any]:
    return {name: [value] * len(values) for name, value in EVENT.items()} | {"ts": list(values)} | more


@pytest.mark.parametrize(
    ("events", "items", "sentence"),
    [
        (None, None, r"{} has no events.parquet; `facetstream synthesize --out DIR` makes a dataset"),
        ({"user_id": ["u"]}, None, "events.parquet has no column ts, scenario, action, item_id; it has user_id"),
        (times("2024-01-01"), None, r"events.parquet: ts is of type string and must be int64 \(milliseconds\)"),
        (times(NOON, user_id=[1.5]), None, "events.parquet: user_id is of type double and must be string"),
        (times(NOON, item_id=[7]), None, "events.parquet: item_id is of type int64 and must be string"),
        (times(NOON, None), None, "events.parquet, row 2: ts is null; every row needs one"),
        (times(NOON, NOON, user_id=["u", ""]), None, "events.parquet, row 2: user_id is empty; every row needs one"),
        (times(NOON, scenario=["Feed"]), None, "row 1: scenario 'Feed' is unknown; known are search, feed, discovery"),
        (times(NOON, action=["buy"]), None, "row 1: action 'buy' is unknown; known are view, click"),
        (times(NOON // 1000), None, r"row 1: ts 1700000000 is not between .* \(seconds\? multiply by 1000"),
        (times(NOON * 1000), None, r"row 1: ts 1700000000000000 is not between 1990 and 2100 \(ts is in ms since 1970"),
        (times(NOON, item_id=[None]), None, "row 1: item_id is null and so is query; an event needs one of them"),
        (NONE, None, "events.parquet has no events; a dataset needs at least one"),
        ([EVENT], {"item_id": ["a", "b", "a"], "text": ["", "", ""]}, "items.parquet, row 3: item_id 'a' is there tw"),
        ([EVENT], {"item_id": ["a", None], "text": ["", ""]}, "items.parquet, row 2: item_id is null"),
        ([EVENT], {"text": ["a"]}, "items.parquet has no column item_id; it has text"),
        ([EVENT], {"item_id": ["a"], "Text": [""]}, "items.parquet has none of the columns text, title and image"),
        ([EVENT], {"item_id": ["a"], "text": [3]}, "items.parquet: text is of type int64 and must be string"),
        ([EVENT], {"item_id": ["a"], "image": ["x"]}, "image is of type string and must be list of float"),
        (
            [EVENT],
            {"item_id": ["a", "b"], "image": [[1.0], [1.0, 2.0]]},
            "items.parquet, row 2: image has 2 numbers, the ones before it 1",
        ),
        ([EVENT], {"item_id": ["a"], "image": [[float("nan")]]}, "row 1: image holds a number that is not finite"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, events: Any, items: Any, sentence: str) -> None:
    write(tmp_path, events, items)
    with pytest.raises(BadInput, match=sentence.format(tmp_path)) as raised:
        dataset.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_rows_are_counted_over_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 3)
    write(tmp_path, [*[EVENT] * 1_234, EVENT | {"action": "buy"}])
    with pytest.raises(BadInput, match="row 1,235: action 'buy'"):
        dataset.read(tmp_path)
    write(tmp_path, [EVENT], [{"item_id": str(n), "text": ""} for n in (0, 1, 2, 3, 1)])
    with pytest.raises(BadInput, match="row 5: item_id '1' is there twice"):
        dataset.read(tmp_path)


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no folder .*gone; `facetstream"):
        dataset.read(tmp_path / "gone")
    for content in (b"", b"user_id,item_id\n", b"PAR1" * 100):
        (tmp_path / "events.parquet").write_bytes(content)
        with pytest.raises(BadInput, match=r"events\.parquet cannot be read as Parquet") as raised:
            dataset.read(tmp_path)
        assert "\n" not in str(raised.value)
    write(tmp_path, [EVENT | {"item_id": str(n)} for n in range(5_000)])
    whole = (tmp_path / "events.parquet").read_bytes()
    (tmp_path / "events.parquet").write_bytes(whole[:50] + bytes(2_000) + whole[2_050:])
    with pytest.raises(BadInput, match=r"events.parquet"):
        dataset.read(tmp_path)
    (tmp_path / "events.parquet").unlink()
    (tmp_path / "events.parquet").mkdir()
    with pytest.raises(BadInput, match=r"cannot read .*events.parquet"):
        dataset.read(tmp_path)
