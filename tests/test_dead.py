"""`facetstream dead` against a real Kafka and the in-memory broker: list, show, mend, replay, drop, and be killed."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream import cli
from stream.adapters.kafka import KafkaLog, Producer, provision_topics
from stream.adapters.kafka_reader import KafkaReader
from stream.admission import HOUR_MS
from stream.embedded import kafka as embedded
from stream.events import Scenario
from stream.ledger import Record
from stream.ports import DeadLetter
from stream.settings import Settings, load, variable
from stream.topics import DEAD, EVENT_TOPICS, ITEMS
from tests.conftest import serve
from tests.path.rig import Rig, event

KILLED = """
import os, signal, sys
from stream import cli
from stream.adapters.kafka import KafkaLog
async def settle(*_): os.kill(os.getpid(), signal.SIGKILL)
KafkaLog.settle = settle
cli.main(["dead", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Desk:
    """The command line on one broker. What letters others left there is dropped; `run` marks this test's."""

    url: str
    settings: Settings
    capture: pytest.CaptureFixture[bytes]
    run: str

    def __call__(self, *arguments: str, code: int = 0) -> bytes:
        """What a command prints; what it says on stderr when it fails."""
        self.capture.readouterr()
        assert cli.run(["dead", *arguments]) == code, self.capture.readouterr().err
        told = self.capture.readouterr()
        assert b"Traceback" not in told.err
        return told.err if code == 2 else told.out

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self("list", "--json", *arguments).splitlines()]

    def names(self, *arguments: str) -> list[str]:
        return [each["name"] for each in self.listed(*arguments)]

    def counts(self) -> dict[str, int]:
        """Of all letters there are, by state."""
        words = self("list").decode().splitlines()[-1].replace(",", "").replace(" on the topic:", "").split()
        return {state: int(count) for count, state in zip(words[::2], words[1::2], strict=True)}

    def refuse(self, *values: bytes | None, reason: str = "ts: bad", topic: str = "events.feed") -> None:
        """Write a letter for each value, keyed by this test's mark."""
        letters = [DeadLetter(reason, topic, 1, n, self.run.encode(), value) for n, value in enumerate(values)]

        async def write() -> None:
            async with Producer(self.url, self.settings) as producer:
                await KafkaLog(producer).dead_letter(letters)

        asyncio.run(write())

    def send(self, topic: str, *records: tuple[bytes | None, bytes | None, Sequence[tuple[str, Any]]]) -> None:
        async def write() -> None:
            async with Producer(self.url, self.settings) as producer:
                for key, value, headers in records:
                    await producer.send(topic, key, value, headers)
                await producer.flush()

        asyncio.run(write())

    def sent_back(self) -> list[tuple[str, bytes | None]]:
        """Topics and values of this test's records on all topics that letters come from."""

        async def read() -> list[tuple[str, bytes | None]]:
            async with KafkaReader(self.url, self.settings, [*EVENT_TOPICS.values(), ITEMS]) as reader:
                return [
                    (batch.topic, record.value)
                    async for batch in reader.batches()
                    for record in batch.records
                    if record.key == self.run.encode()
                ]

        return asyncio.run(read())


@pytest.fixture(params=["real", "in-memory"])
def desk(
    request: Any,
    embedded_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Iterator[Desk]:
    alone = embedded_settings.model_copy(update={"kafka_home": None, "kafka_port": None, "data_folder": tmp_path})
    urls = (
        [request.getfixturevalue("real_kafka_url")]
        if request.param == "real"
        else serve("embedded", embedded.start, alone)
    )
    for url in urls:
        settings = load(kafka_url=None)
        asyncio.run(provision_topics(url, settings))
        monkeypatch.setenv(variable("kafka_url"), url)
        found = Desk(url, settings, capsysbinary, uuid4().hex)
        found("drop", "--yes")
        yield found


def test_letters_are_listed_and_filtered(desk: Desk) -> None:
    since = time.time()
    desk.refuse(b"1", reason="ts: bad")
    time.sleep(0.01)
    until = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now := time.time())) + f".{int(now % 1 * 1000):03d}"
    desk.refuse(b"2", reason="item_id: Field required", topic="events.search")
    desk.refuse(None, b"", reason="value: \x1b[31m", topic="items")
    first, *_ = found = desk.listed()
    assert first["sent_ms"] >= int(since * 1000)
    assert first | {"name": "", "sent_ms": 0} == {
        "name": "",
        "state": "open",
        "sent_ms": 0,
        "reason": "ts: bad",
        "topic": "events.feed",
        "partition": 1,
        "offset": 0,
        "key": desk.run,
    }
    names = [letter["name"] for letter in found]
    assert len(set(names)) == 4
    assert desk.names("--reason", "item_id:") == names[1:2]
    assert desk.names("--reason", "required", "--topic", "items") == []
    assert desk.names("--topic", "items") == names[2:]
    assert desk.names("--until", until) == names[:1]
    assert desk.names("--since", until) == names[1:]
    assert desk.names("--limit", "1") == names[:1]
    assert desk.names(names[3], names[0]) == [names[0], names[3]]
    lines = desk("list").decode().splitlines()
    assert [line.split()[0] for line in lines[:-1:2]] == names
    assert lines[1::2] == ["    ts: bad", "    item_id: Field required", *["    value: \\x1b[31m"] * 2]
    assert all(len(line) <= 80 for line in lines)
    assert "\nno open letter fits: see --all\n" in "\n" + desk("list", "--reason", "nothing such").decode()
    assert "2 of 4 shown" in desk("list", "--limit", "2").decode()
    by_reason = [json.loads(line) for line in desk("list", "--by", "reason", "--json").splitlines()]
    assert by_reason[0] == {"reason": "value: \x1b[31m", "letters": 2}
    assert "item_id: Field required" in desk("list", "--by", "reason").decode()


def test_reasons_that_differ_in_values_only_are_counted_together(desk: Desk) -> None:
    for size in (70_000, 70_001, 80_000):
        desk.refuse(b"x", reason=f"value: has {size} bytes, the limit is 65536")
        desk.refuse(b"x", reason=f"ts: must not be before 2000-01-01, is {size}")
    desk.refuse(b"x", reason="user_id: must be at most 256 bytes of UTF-8")
    assert desk("list", "--by", "reason").decode().splitlines()[:3] == [
        "        3  ts: must not be before 2000-01-01",
        "        3  value: has … bytes, the limit is …",
        "        1  user_id: must be at most 256 bytes of UTF-8",
    ]


def test_a_letter_is_shown(desk: Desk) -> None:
    desk.refuse(b'{"b": [1, "\xc3\xbc"]}', b"\xff\x1b[31m", None, b"[" * 100_000)
    as_json, as_bytes, null, deep = (desk("show", name).decode() for name in desk.names())
    assert '{\n  "b": [\n    1,\n    "ü"\n  ]\n}\n' in as_json
    assert all(said in as_json for said in (", open, ", "reason: ts: bad", "offset: 0", f"key: {desk.run}"))
    assert as_bytes.endswith("\n\n\\xff\\x1b[31m\n")
    assert null.endswith("\n\nnull\n")
    assert deep.endswith("[" * 100_000 + "\n")
    (name,) = [letter["name"] for letter in desk.listed() if letter["offset"] == 2]
    assert b"is null: there are no bytes" in desk("show", name, "--raw", code=2)


@examples(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.binary(), min_size=1, max_size=4))
def test_raw_bytes_are_the_originals(desk: Desk, values: list[bytes]) -> None:
    desk("drop", "--yes")
    desk.refuse(*values)
    letters = sorted(desk.listed(), key=lambda letter: letter["offset"])
    assert [desk("show", letter["name"], "--raw") for letter in letters] == values


def test_originals_go_back_as_they_were(desk: Desk) -> None:
    values = [b"\xff\x00", b"", None, b"x" * 900_000]
    for topic in (*EVENT_TOPICS.values(), ITEMS):
        desk.refuse(*values, topic=topic)
    before = desk.counts()
    told = desk("replay", "--yes").decode()
    assert told.startswith(f"16 replayed, 0 refused; {before['letters']:,} letters on the topic: 0 open")
    found = desk.sent_back()
    assert {topic: [v for t, v in found if t == topic] for topic, _ in found} == dict.fromkeys(
        (*EVENT_TOPICS.values(), ITEMS), values
    )
    assert desk("replay", "--yes").decode().startswith("0 replayed, 0 refused")
    assert len(desk.sent_back()) == 16


def test_a_mended_letter_is_sent_in_the_place_of_the_original(desk: Desk, tmp_path: Path) -> None:
    desk.refuse(b'{"ts": ', b"x" * 2_600_000)
    broken, cut = desk.names()
    assert b"0 replayed, 1 refused" in desk("replay", cut, code=1)
    value = tmp_path / "mended"  # of the user who is the key: other tests count what is in the log, and so by partition
    mended = b'{"event_id": "e", "user_id": "' + desk.run.encode() + b'", "item_id": "i", "action": "click", "ts": %d}'
    for name, ts in ((broken, 1_750_000_000_000), (cut, 1_750_000_000_001)):
        for wrong in (b"", desk("show", name, "--raw")):
            value.write_bytes(wrong)
            assert b"0 replayed, 1 refused" in desk("replay", name, "--value", str(value), code=1)
        value.write_bytes(mended % ts)
        assert b"1 replayed" in desk("replay", name, "--value", str(value))
    assert sorted(desk.sent_back()) == [("events.feed", mended % ts) for ts in (1_750_000_000_000, 1_750_000_000_001)]
    assert f"dead letter {cut} was replayed before" in desk("replay", cut, code=2).decode()
    assert f"letter {cut}, replayed, " in desk("show", cut).decode()


def test_what_strangers_wrote_is_shown_and_can_only_be_dropped(desk: Desk) -> None:
    desk.send(
        DEAD,
        (None, b"\xff", []),
        (b"k", None, [("reason", None), ("\x1b", b"\x1b")]),
        (None, b"", [("settles", b"9" * 40), ("outcome", b"dropped")]),
        (None, b"", [("settles", b"0"), ("outcome", b"open")]),
        (b"k", b"v", [("reason", b"r"), ("topic", b"profiles.updated"), ("partition", b"0"), ("offset", b"0")]),
    )
    found = desk.listed()
    assert [letter["reason"].startswith("malformed: ") for letter in found].count(True) == 4
    for name in desk.names():
        assert b"\x1b" not in desk("show", name)
    assert b"0 replayed, 5 refused" in desk("replay", "--yes", code=1)
    assert len(desk.listed()) == 5
    assert desk("drop", "--reason", "malformed:").startswith(b"4 dropped, 0 refused; ")
    assert [letter["reason"] for letter in desk.listed()] == ["r"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "77:0"], "there is no dead letter 77:0: see facetstream dead list --all"),
        (["replay", "0:999999999999"], "there is no dead letter 0:999999999999"),
        (["drop", "seven"], "'seven' is no name of a letter: write PARTITION:OFFSET"),
        (["drop", "1:-1"], "'1:-1' is no name of a letter"),
        (["list", f"0:{10**40}"], "is no name of a letter"),
        (["replay"], "that would be all open letters: choose some, or add --yes"),
        (["drop"], "that would be all open letters"),
        (["replay", "--reason", "x", "--value", __file__], "--value is for one letter: give its NAME"),
        (["replay", "0:0", "--value", "absent"], "absent"),
        (["list", "--since", "soon"], "'soon' is no time"),
    ],
)
def test_a_mistake_is_one_sentence(desk: Desk, arguments: list[str], says: str) -> None:
    told = desk(*arguments, code=2).decode()
    assert says in told
    assert told.startswith("facetstream: ")
    assert told.count("\n") == 1


def test_a_kill_before_the_settlement_sends_twice_what_counts_once(desk: Desk) -> None:
    valid = event(1, user=desk.run)
    desk.refuse(json.dumps(valid).encode(), b"still no event")
    killed = subprocess.run([sys.executable, "-c", KILLED, "replay", "--yes"], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert len(desk.names()) == 2
    assert len(desk.sent_back()) == 2
    assert b"2 replayed" in desk("replay", "--yes")
    assert len(desk.sent_back()) == 4
    rig = asyncio.run(ingest(desk))
    assert (rig.stats.counts["events_applied"], rig.stats.counts["duplicates_skipped"]) == (1, 1)
    assert [letter.value for letter in rig.log.letters if letter.key == desk.run.encode()] == [b"still no event"] * 2


def test_a_late_event_that_is_replayed_is_taken(desk: Desk) -> None:
    late = json.dumps(event(1, user=desk.run, ts=int(time.time() * 1000) - 2 * HOUR_MS)).encode()
    desk.send("events.feed", (desk.run.encode(), late, []))
    (letter,) = asyncio.run(ingest(desk, lateness_hours=1)).log.letters
    assert letter.reason.startswith("late: ")
    desk.refuse(late, reason=letter.reason)
    assert b"1 replayed" in desk("replay", "--reason", "late:")
    rig = asyncio.run(ingest(desk, lateness_hours=1))
    assert (rig.stats.counts["events_applied"], len(rig.log.letters)) == (1, 1)


async def ingest(desk: Desk, **parts: Any) -> Rig:
    """This test's events of the feed, as a worker takes them in."""
    rig = Rig(**parts)
    async with KafkaReader(desk.url, desk.settings, [EVENT_TOPICS["feed"]]) as reader:
        async for batch in reader.batches():
            mine: tuple[Record, ...] = tuple(r for r in batch.records if r.key == desk.run.encode())
            if mine:
                await rig.ingest.handle(type(batch)(batch.topic, batch.partition, mine), Scenario.feed)
    return rig


def test_counts_add_up_after_anything(desk: Desk) -> None:
    rng, expected = random.Random(5), desk.counts()
    for _ in range(12):
        match rng.choice(["refuse", "replay", "drop", "stranger"]):
            case "refuse":
                count = rng.randint(1, 9)
                desk.refuse(*[b"x"] * count, reason=rng.choice(["ts: bad", "item_id: bad"]))
                expected["letters"] += count
                expected["open"] += count
            case "stranger":
                desk.send(DEAD, (None, b"x", []))
                expected["letters"] += 1
                expected["open"] += 1
            case outcome:
                choice = ["--limit", str(rng.randint(1, 6)), "--reason", rng.choice(["ts:", "item_id:"])]
                count = len(desk.listed(*choice))
                assert desk(outcome, *choice).startswith(f"{count} ".encode())
                expected["open"] -= count
                expected["replayed" if outcome == "replay" else "dropped"] += count
        assert desk.counts() == expected
        assert expected["letters"] == sum(expected[state] for state in ("open", "replayed", "dropped"))
    assert expected["replayed"] > 0 < expected["dropped"]
