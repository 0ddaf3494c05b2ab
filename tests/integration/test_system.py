"""The running system from outside: hostile input, the commands, and what happens when the worker dies."""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from aiokafka import AIOKafkaConsumer

from models.contract import SCENARIOS
from stream.errors import UserError
from stream.history import decode
from stream.services import producer
from stream.topics import DEAD, EVENT_TOPICS
from tests.conftest import need
from tests.integration.conftest import PATIENCE, System, start_worker

BAD = 10_000
GOOD = 2_000
NOW_MS = int(time.time() * 1000) - 60_000  # a minute ago


def event(number: int, user: str, **more: Any) -> dict[str, Any]:
    item_id = f"i{number % 50}"
    return {
        "event_id": f"{user}-{number}",
        "user_id": user,
        "item_id": item_id,
        "action": "click",
        "ts": NOW_MS + number,
        **more,
    }


FAULTS: list[Callable[[random.Random], bytes | None]] = [
    lambda rng: None,
    lambda rng: b"",
    lambda rng: b"null",
    lambda rng: rng.randbytes(rng.randint(1, 200)) + b"\xff",
    lambda rng: b"[" * rng.randint(1, 5_000),
    lambda rng: json.dumps(event(1, "bad")).encode()[: rng.randint(1, 80)],
    lambda rng: json.dumps({**event(1, "bad"), rng.choice(["event_id", "user_id", "item_id", "ts"]): None}).encode(),
    lambda rng: json.dumps({"event_id": "bad", "user_id": "bad", "action": rng.choice([7, None, [], "view"])}).encode(),
    lambda rng: json.dumps(event(1, "bad", action=rng.choice(["", "zap", "CLICK"]))).encode(),
    lambda rng: json.dumps(event(1, "x" * rng.randint(257, 2_000))).encode(),
    lambda rng: json.dumps(event(1, "bad", ts=rng.choice([0, -1, 4_102_444_800_000, 10**30, "now", 1.5]))).encode(),
    lambda rng: json.dumps(event(1, "bad", user_id=rng.choice(["", " ", "a\u0000b", "\n", [], {}, 3]))).encode(),
    lambda rng: json.dumps(event(1, "bad", schema_version=rng.randint(2, 9))).encode(),
]  # fmt: skip


async def _send(system: System, messages: list[tuple[str, bytes | None]]) -> None:
    async with producer(system.addresses.kafka, system.settings) as kafka:
        for number, (topic, value) in enumerate(messages):
            await kafka.send(topic, b"key%d" % (number % 64), value)
        await kafka.flush()


async def _dead(bootstrap: str, expected: int) -> list[Any]:
    consumer = AIOKafkaConsumer(DEAD, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[Any] = []
    deadline = time.monotonic() + 60
    try:
        while len(found) < expected and time.monotonic() < deadline:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [r for r in records if "reason" in dict(r.headers)]  # no settlements
    finally:
        await consumer.stop()
    return found


@pytest.mark.timeout(300)
def test_ten_thousand_bad_messages_among_good_ones_all_end_as_dead_letters(system: System) -> None:
    rng = random.Random(11)
    topics = list(EVENT_TOPICS.values())
    bad = [(rng.choice(topics), FAULTS[n % len(FAULTS)](rng)) for n in range(BAD - 3)]
    bad += [("events.feed", b"x" * 1_000_000)] * 3
    good = [("events.feed", json.dumps(event(n, f"fuzz{n % 20}")).encode()) for n in range(GOOD)]
    mixed = bad + good
    rng.shuffle(mixed)
    before = system.counted("dead_letters")
    asyncio.run(_send(system, mixed))
    system.until(lambda: system.counted("dead_letters"), before + BAD)

    users = [f"fuzz{n}" for n in range(20)]
    packed = system.ask(lambda _, opened: opened.histories.read(users))
    assert sum(decode(data).events_applied for data in packed if data is not None) == GOOD
    letters = asyncio.run(_dead(system.addresses.kafka, BAD))
    assert len(letters) == BAD
    for letter in letters:
        headers = dict(letter.headers)
        assert headers["reason"]
        assert headers["topic"].decode() in topics
        assert int(headers["partition"]) >= 0
        assert int(headers["offset"]) >= 0
        assert letter.key.startswith(b"key")
    assert sorted(v or b"" for _, v in bad) == sorted(letter.value for letter in letters)


def test_a_mended_letter_is_applied_and_one_that_is_not_mended_dies_again(system: System, tmp_path: Path) -> None:
    def open_letters() -> list[str]:
        lines = system.facetstream("dead", "list", "--json").stdout.splitlines()
        return [letter["name"] for letter in map(json.loads, lines) if letter["key"] == "key0"]

    others, before = set(open_letters()), system.counted("dead_letters")
    for wrong in (event(1, "mended", action="zap"), event(2, "mended", ts="now")):
        asyncio.run(_send(system, [("events.feed", json.dumps(wrong).encode())]))
    system.until(lambda: system.counted("dead_letters"), before + 2)
    zap, now = (name for name in open_letters() if name not in others)
    (tmp_path / "mended.json").write_text(
        system.facetstream("dead", "show", zap, "--raw").stdout.replace("zap", "like")
    )
    applied = system.counted("events_applied")
    done = system.facetstream("dead", "replay", zap, "--value", str(tmp_path / "mended.json"))
    assert done.stdout.startswith("1 replayed, 0 refused"), done.stderr
    system.until(lambda: system.counted("events_applied"), applied + 1)
    (line,) = json.loads(system.facetstream("inspect", "mended", "--json").stdout)["history"]["newest"]
    assert (line["action"], line["ts"]) == ("like", NOW_MS + 1)

    assert system.facetstream("dead", "replay", now).returncode == 0
    system.until(lambda: system.counted("dead_letters"), before + 3)
    (again,) = (name for name in open_letters() if name not in others)
    assert again != now
    assert system.facetstream("dead", "drop", again).stdout.startswith("1 dropped, 0 refused")


def test_a_user_is_inspected_and_recommended_for_without_any_setting(system: System) -> None:
    items = [json.dumps({"item_id": f"i{n}", "title": f"trail running shoe {n}"}).encode() for n in range(50)]
    events = [json.dumps(event(n, "seen")).encode() for n in range(5)]
    before = system.counted("events_applied")
    items_before = system.counted("items_applied")
    asyncio.run(_send(system, [("items", i) for i in items] + [("events.feed", e) for e in events]))
    system.until(lambda: system.counted("events_applied"), before + 5)
    system.until(lambda: min(system.counted("items_applied") - items_before, 50), 50)

    inspected = json.loads(system.facetstream("inspect", "seen", "--json").stdout)
    assert inspected["history"]["events"] == 5
    assert inspected["history"]["version"] == inspected["profile"]["version"] == 10
    assert [line["name"] for line in inspected["history"]["newest"]] == [f"i{n}" for n in range(5)]
    for scenario in SCENARIOS:
        assert abs(sum(i["weight"] for i in inspected["interests"][scenario]) - 1) < 1e-3
    for scenario, merge in zip(SCENARIOS, ("rrf", "max", "quota"), strict=True):
        answer = system.facetstream("recommend", "seen", "--scenario", scenario, "--merge", merge, "--json")
        found = [i["item_id"] for i in json.loads(answer.stdout)["items"]]
        assert len(found) == 10
        assert not set(found) & {f"i{n}" for n in range(5)}
    assert "seen" in system.facetstream("inspect", "seen").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recommend", "nobody"], "nobody"),
        (["inspect", "nobody"], "nobody"),
        (["recommend", "seen", "--scenario", "radio"], "radio"),
        (["recommend", "seen", "--limit", "0"], "limit 0"),
    ],
)
def test_a_users_mistake_is_one_sentence(system: System, arguments: list[str], says: str) -> None:
    done = system.facetstream(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_provisioning_again_changes_nothing(system: System) -> None:
    done = system.facetstream("provision")
    assert (done.returncode, done.stdout) == (0, "everything is there\n")


def test_a_worker_that_cannot_listen_says_so(system: System) -> None:
    def refused(**places: object) -> str:
        worker = start_worker(system.settings, system.addresses, **places)
        with pytest.raises(UserError, match="did not start"):
            worker.wait_ready(lambda: False, PATIENCE)
        assert worker.code == 2
        return worker.log.read_text()  # Faust leaves an event loop, of which -W error tells below

    system.worker.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(web_port=port).startswith(
            f"facetstream: FACETSTREAM_WEB_PORT={port}: cannot listen on 127.0.0.1"
        )
        said = refused(web_port=port, web_host="nowhere.invalid")
        assert said.startswith("facetstream: FACETSTREAM_WEB_HOST='nowhere.invalid': ")
    system.worker = start_worker(system.settings, system.addresses)


@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_loses_nothing(system: System) -> None:
    if not os.environ.get("KAFKA_HOME"):
        need("kafka", "the in-memory broker has no second group member: set KAFKA_HOME")
    users, per_user = 40, 100
    events = [("events.feed", json.dumps(event(n, f"kill{n % users}")).encode()) for n in range(users * per_user)]
    for part in range(0, len(events), 1_000):
        asyncio.run(_send(system, events[part : part + 1_000]))
        for pid in system.worker.pids():
            os.kill(pid, signal.SIGKILL)
        system.worker.stop()
        system.worker = start_worker(system.settings, system.addresses)

    names = [f"kill{n}" for n in range(users)]

    def applied() -> int:
        packed = system.ask(lambda _, opened: opened.histories.read(names))
        return sum(decode(data).events_applied for data in packed if data is not None)

    system.until(applied, len(events))
    assert applied() == len(events)
    versions = system.ask(lambda services, _: services.vectors.versions(names))
    assert set(versions.values()) == {decode(d).version for d in system.ask(lambda _, o: o.histories.read(names)) if d}


def _digest(system: System) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(system.facetstream("digest", "--json").stdout)
    return found


@pytest.mark.timeout(300)
def test_the_log_is_replayed_after_redis_was_lost(system: System) -> None:
    """And before, into an empty one, beside the worker."""
    if not os.environ.get("KAFKA_HOME"):
        need("kafka", "the in-memory broker forgets: set KAFKA_HOME")
    system.until(lambda: 0, 0)
    expected, letters = _digest(system), system.counted("dead_letters")
    with redis.Redis.from_url(system.addresses.redis) as client:
        compared = system.facetstream("replay", "--from", "beginning", "--into", f"{system.addresses.redis}/1")
        assert compared.stdout.endswith("\nequal\n"), compared.stdout + compared.stderr
        refused = system.facetstream("replay", "--from", "beginning")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        system.worker.stop()
        client.flushall()
    assert system.facetstream("replay", "--from", "beginning").returncode == 2  # not provisioned
    assert "made codebook" in system.facetstream("provision").stdout
    done = system.facetstream("replay", "--from", "beginning", timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"{letters:,} refused" in done.stdout
    assert _digest(system) == expected
    assert len(asyncio.run(_dead(system.addresses.kafka, letters))) == letters
    system.worker = start_worker(system.settings, system.addresses)
    system.until(lambda: 0, 0)
    assert _digest(system) == expected
