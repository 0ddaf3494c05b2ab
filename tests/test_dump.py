"""The log as a dataset: what is in it, what is left out, and that it is there whole or not at all."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as parquet
import pytest

from models import dataset
from stream import cli
from stream.adapters.kafka import Producer, provision_topics
from stream.adapters.memory import MemoryReader
from stream.admission import Admission
from stream.commands.dump import Moment
from stream.dump import REASONS, Dumped, dump_events, dump_items, folder_of
from stream.errors import UserError
from stream.settings import Settings, load, variable
from tests.path.rig import NOW_MS, batch, event, item

LIMIT = 65_536


async def dumped(folder: Path, *batches: Any, hours: int = 0) -> tuple[Dumped, list[dict[str, Any]]]:
    done, steps = Dumped(), []
    await dump_events(MemoryReader(batches), folder, Admission(LIMIT, hours), steps.append, done)
    assert sum(steps) == sum(len(b.records) for b in batches)
    return done, parquet.read_table(folder / "events.parquet").to_pylist()


async def test_events_become_rows(tmp_path: Path) -> None:
    searches = [
        event(1, None, action="search", query="tea"),
        event(2, "i1", action="search", query="pot"),
        event(3, "i1", query="pot"),
    ]
    done, rows = await dumped(
        tmp_path,
        batch("events.search", searches),
        batch("events.feed", [event(4, "i2", "v", dwell_ms=900)]),
        batch("events.discovery", [event(5, "i3", channel="new")]),
    )
    assert (done.events, done.duplicates, done.left_out.total()) == (5, 0, 0)
    assert [(r["user_id"], r["item_id"], r["scenario"], r["action"], r["query"], r["dwell_ms"]) for r in rows] == [
        ("u", None, "search", "search", "tea", None),
        ("u", None, "search", "search", "pot", None),
        ("u", "i1", "search", "click", "pot", None),
        ("v", "i2", "feed", "click", None, 900),
        ("u", "i3", "discovery", "click", None, None),
    ]
    assert [r["ts"] for r in rows] == [NOW_MS + n for n in range(1, 6)]


async def test_an_event_sent_twice_is_there_once(tmp_path: Path) -> None:
    done, rows = await dumped(
        tmp_path,
        batch("events.feed", [event(1), event(2), event(1)]),
        batch("events.feed", [event(2), event(1, user="v"), event(3)], 3),
        batch("events.search", [event(1)]),
    )
    assert (done.events, done.duplicates) == (len(rows), 2)
    assert [(r["scenario"], r["user_id"], r["ts"] - NOW_MS) for r in rows] == [
        ("feed", "u", 1),
        ("feed", "u", 2),
        ("feed", "v", 1),
        ("feed", "u", 3),
        ("search", "u", 1),
    ]


async def test_what_ingest_refuses_is_left_out_with_its_reason(tmp_path: Path) -> None:
    bad = [b"", None, b"{", event(1, action="stare"), event(2, user=" "), b"x" * (LIMIT + 1), event(3, ts=1)]
    done, rows = await dumped(tmp_path, batch("events.feed", [*bad, event(4)]))
    assert len(rows) == 1
    assert done.left_out.total() == len(bad)
    assert done.left_out["events.feed: value: is null (a tombstone)"] == 1
    assert any(reason.startswith("events.feed: action: Input should be") for reason in done.left_out)


def test_reasons_are_bounded() -> None:
    done = Dumped()
    for n in range(3 * REASONS):
        done.leave_out("items", f"value: has {n} bytes")
    assert len(done.left_out) == REASONS + 1
    assert done.left_out.total() == 3 * REASONS


async def test_the_newest_record_of_an_item_counts(tmp_path: Path) -> None:
    done = Dumped()
    first = [item("b", "old"), item("a", "A"), b"{}"]
    second = [item("b", "new") | {"category": "c", "text": "words", "attributes": {"x": 1}}]
    reader = MemoryReader([batch("items", first), batch("items", second, 3)])
    await dump_items(reader, tmp_path, Admission(LIMIT, 0), lambda n: None, done)
    assert (done.items, done.left_out) == (2, {"items: item_id: Field required": 1})
    assert parquet.read_table(tmp_path / "items.parquet").to_pylist() == [
        {"item_id": "a", "title": "A", "category": None, "text": ""},
        {"item_id": "b", "title": "new", "category": "c", "text": "words"},
    ]


def test_the_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out, aside = tmp_path / "data", tmp_path / "data.writing"
    aside.mkdir()
    (aside / "left.parquet").touch()  # by a run that was killed
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"), folder_of(out) as folder:
        folder.write_text("")
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with folder_of(out) as folder:
        (folder / "events.parquet").touch()
        assert list(out.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["events.parquet"]
    with pytest.raises(UserError, match="is there already: name a folder that is new or empty"), folder_of(out):
        pass


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-02", 86_400), ("1970-01-01T01:00", 3_600), ("1970-01-01T01:00+01:00", 0), ("1970-01-01T00:00:01Z", 1)],
)
def test_times(text: str, seconds: int) -> None:
    assert Moment().convert(text, None, None) == seconds * 1000
    assert Moment().convert("90m", None, None) == pytest.approx((time.time() - 5_400) * 1000, abs=5_000)


async def test_what_is_produced_is_dumped(
    kafka_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Produce, dump, and read as training does."""
    settings, run = load(kafka_url=None), uuid4().hex
    await provision_topics(kafka_url, settings)
    await asyncio.sleep(0.01)
    since = time.time()
    await produce(kafka_url, settings, run)
    monkeypatch.setenv(variable("kafka_url"), kafka_url)
    arguments = ["dump", "--out", str(tmp_path / "data"), "--since", str(f"{since:.3f}")]
    assert cli.run(["dump", "--out", str(tmp_path / "bad"), "--since", "soon"]) == 2
    assert "'soon' is no time" in capsys.readouterr().err
    assert cli.run(["dump", "--out", str(tmp_path / "bad"), "--since", "2h", "--until", "3h"]) == 2
    assert "--since must be before --until" in capsys.readouterr().err
    arguments[-1] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since)) + f".{int(since % 1 * 1000):03d}"
    assert await asyncio.to_thread(cli.run, arguments) == 0
    told = capsys.readouterr()
    assert told.out.startswith("80 events and ")
    assert "1 events were sent twice" in told.err
    data = dataset.read(tmp_path / "data")
    assert data.user_ids == sorted(f"{run}-{n}" for n in range(8))
    assert [int(end - start) for start, end in zip(data.first[:-1], data.first[1:], strict=True)] == [10] * 8
    titles = dict(zip(data.item_ids, data.texts, strict=False))
    assert [titles[f"{run}-{n}"] for n in range(10)] == [f"new title {n}" for n in range(10)]


async def produce(url: str, settings: Settings, run: str) -> None:
    async with Producer(url, settings) as producer:
        for age in ("old", "new"):
            for n in range(10):
                made = item(f"{run}-{n}", f"{age} title {n}")
                await producer.send_item(made["item_id"], json.dumps(made).encode())
        for n in [*range(80), 0]:
            made = event(n, f"{run}-{n // 8}", f"{run}-{n % 8}", event_id=f"{run}-{n}")
            await producer.send_event("feed", made["user_id"], json.dumps(made).encode())
        await producer.send_event("feed", "u", b"no event")
        await producer.flush()
