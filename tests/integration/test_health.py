"""The worker's pages and `facetstream doctor` while the whole system runs, and while one part of it does not."""

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from stream.addresses import PARTS
from stream.embedded import qdrant
from stream.embedded.process import port_for
from stream.points import ITEMS as COLLECTION
from stream.services import producer
from stream.settings import variable
from stream.topics import EVENT_TOPICS, ITEMS
from tests.integration.conftest import PATIENCE, System, start_worker

KEY = variable("qdrant_api_key")
STALL_SECONDS = 11.0  # above the timeouts of a model call and of a Qdrant request
NOW_MS = int(time.time() * 1000) - 60_000  # a minute ago

Page = Callable[[str], tuple[int, Any]]


@pytest.fixture(scope="module")
def page(system: System) -> Page:
    """Asks a page of a worker that serves them."""
    system.worker.stop()
    port = port_for(system.settings, "web_port")
    patience = {"web_port": port, "stall_seconds": STALL_SECONDS, "redis_timeout": 1.0}
    system.worker = start_worker(system.settings, system.addresses, **patience)

    def ask(name: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)

    eventually(lambda: port_open(ask), "the pages")
    return ask


def port_open(ask: Page) -> bool:
    try:
        return ask("livez")[0] == 200
    except urllib.error.URLError:
        return False


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def send(system: System, user: str, count: int) -> None:
    async def run() -> None:
        async with producer(system.addresses.kafka, system.settings) as kafka:
            for n in range(count):
                event = {
                    "event_id": f"{user}-{n}",
                    "user_id": user,
                    "item_id": "i",
                    "action": "click",
                    "ts": NOW_MS + n,
                }
                await kafka.send(EVENT_TOPICS["feed"], user.encode(), json.dumps(event).encode())
            await kafka.flush()

    asyncio.run(run())


@contextmanager
def frozen(system: System, part: str, program: str) -> Iterator[None]:
    pids = [p for p in system.servers[part].pids() if program in Path(f"/proc/{p}/comm").read_text()]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_worker_at_work_is_alive_and_ready(system: System, page: Page) -> None:
    before = system.counted("events_applied")
    send(system, "healthy", 5)
    system.until(lambda: system.counted("events_applied"), before + 5)
    eventually(lambda: page("readyz")[1]["lag"] == 0, "no lag")
    status, ready = page("readyz")
    assert (status, ready["ready"], ready["dirty_users"], ready["oldest_dirty_ms"]) == (200, True, 0, None)
    assert {part: standing["ready"] for part, standing in ready["dependencies"].items()} == dict.fromkeys(PARTS, True)
    assert ready["breakers"] == {part: {"open": False, "waiting": 0} for part in PARTS}
    assert ready["partitions"] == {topic: [0, 1, 2, 3] for topic in (*EVENT_TOPICS.values(), ITEMS)}
    assert page("livez") == (200, {"alive": True, "waiting": {}})
    assert page("counters")[1]["events_applied"] == before + 5


@pytest.mark.timeout(400)
def test_a_worker_waits_for_a_frozen_redis_says_so_and_goes_on(system: System, page: Page) -> None:
    before = system.counted("events_applied")
    with frozen(system, "redis", "redis-server"):
        send(system, "waits", 5)
        waited = 0.0
        deadline = time.monotonic() + PATIENCE
        while waited < 1.5 * STALL_SECONDS:
            status, said = page("livez")
            assert status == 200, said
            for topic, waiting in said["waiting"].items():
                assert topic == "events.feed"
                assert waiting["for"].startswith("Redis does not answer")
                waited = waiting["seconds"]
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        status, ready = page("readyz")
        assert (status, ready["ready"], ready["lag"]) == (503, False, 5)
        assert [part for part, standing in ready["dependencies"].items() if not standing["ready"]] == ["redis"]
        assert ready["dependencies"]["redis"]["why"]
        assert page("counters")[0] == 503
        eventually(lambda: page("readyz")[1]["breakers"]["redis"]["open"], "the breaker opens")
    eventually(lambda: page("readyz")[0] == 200, "ready again")
    eventually(lambda: not page("readyz")[1]["breakers"]["redis"]["open"], "the breaker closes")
    system.until(lambda: system.counted("events_applied"), before + 5)
    assert page("livez") == (200, {"alive": True, "waiting": {}})
    assert page("readyz")[1]["dependencies"]["redis"]["seconds"] < ready["dependencies"]["redis"]["seconds"] + PATIENCE


@pytest.mark.timeout(400)
def test_without_triton_histories_grow_and_users_stay_dirty(system: System, page: Page) -> None:
    before = system.counted("events_applied")
    with frozen(system, "triton", "tritonserver"):
        send(system, "dirty", 5)
        eventually(lambda: system.counted("events_applied") == before + 5, "histories grow")
        status, ready = page("readyz")
        assert (status, ready["ready"], ready["dirty_users"]) == (503, False, 1)
        assert ready["oldest_dirty_ms"] > 0
        assert [part for part, standing in ready["dependencies"].items() if not standing["ready"]] == ["triton"]
        assert page("livez")[0] == 200
    system.until(lambda: system.counted("events_applied"), before + 5)
    eventually(lambda: page("readyz")[0] == 200, "ready again")


@contextmanager
def locked(system: System) -> Iterator[None]:
    """Qdrant, on its port and data, asks for a key that nobody has."""

    def start_again(key: SecretStr | None) -> None:
        old = system.servers["qdrant"]
        old.stop()
        port = int(old.address.rsplit(":", 1)[1])
        changed = {"qdrant_port": port, "qdrant_api_key": key}
        system.servers["qdrant"] = qdrant.start(system.settings.model_copy(update=changed))

    start_again(SecretStr("another"))
    try:
        yield
    finally:
        start_again(None)


@pytest.mark.timeout(400)
def test_with_a_wrong_key_of_qdrant_histories_grow_and_everything_names_the_key(system: System, page: Page) -> None:
    before = system.counted("events_applied")
    with locked(system):
        send(system, "keyless", 5)
        eventually(lambda: system.counted("events_applied") == before + 5, "histories grow")
        eventually(lambda: KEY in page("readyz")[1]["dependencies"]["qdrant"].get("why", ""), "the reason")
        status, ready = page("readyz")
        assert (status, ready["ready"], ready["dirty_users"]) == (503, False, 1)
        assert [part for part, standing in ready["dependencies"].items() if not standing["ready"]] == ["qdrant"]
        assert page("livez")[0] == 200
        done = system.facetstream("recommend", "keyless")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert KEY in done.stderr
        assert KEY in doctor(system, 1)["qdrant", "server"]["text"]
    system.until(lambda: system.counted("events_applied"), before + 5)
    eventually(lambda: page("readyz")[0] == 200, "ready again")


def doctor(system: System, code: int) -> dict[tuple[str, str], dict[str, str]]:
    done = system.facetstream("doctor", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    return {(f["part"], f["name"]): f for f in json.loads(done.stdout)["findings"]}


def test_the_doctor_finds_nothing_wrong_with_the_embedded_default(system: System, page: Page) -> None:
    found = doctor(system, 0)
    assert {name: f for name, f in found.items() if f["state"] != "ok"} == {}
    assert {part for part, _ in found} == set(PARTS)
    assert found["redis", "workers"]["text"] == "1 at work"
    lines = system.facetstream("doctor").stdout.splitlines()
    assert len(lines) == len(found) + 1
    assert lines[-1] == f"{len(found)} ok, 0 warning, 0 wrong"


def test_the_doctor_misses_a_collection_and_its_remedy_helps(system: System) -> None:
    url = f"{system.addresses.qdrant}/collections/{COLLECTION}"
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30).close()
    finding = doctor(system, 1)["qdrant", "collections"]
    assert finding["state"] == "wrong"
    assert "has no collection items" in finding["text"]
    assert finding["remedy"].startswith("facetstream provision")
    assert system.facetstream("provision").stdout.splitlines() == ["made collection items", "everything is there"]
    doctor(system, 0)
