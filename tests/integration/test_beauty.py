"""Real data through the whole path: what the stores hold afterwards is what the file says, event by event."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from stream.events import Action, Scenario
from stream.history import History, decode
from stream.identity import item_index, item_key
from stream.services import Services, Stores
from tests.conftest import ROOT
from tests.integration.conftest import System

EVENTS = 20_000
DATA = ROOT.parent / "shared" / "data" / "amazon-beauty"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """The first 20,000 events, the items they are about, and the same events as rows."""
    if not DATA.exists():
        pytest.skip(f"{DATA} is absent")
    parquet = pytest.importorskip("pyarrow.parquet")
    events = parquet.read_table(DATA / "events.parquet").slice(0, EVENTS)
    rows = events.to_pylist()
    wanted = {row["item_id"] for row in rows}
    items = parquet.read_table(DATA / "items.parquet")
    kept = items.filter([row["item_id"] in wanted and bool(row["text"].strip()) for row in items.to_pylist()])
    folder = tmp_path_factory.mktemp("beauty")
    parquet.write_table(events, folder / "events.parquet")
    parquet.write_table(kept, folder / "items.parquet")
    return folder / "events.parquet", folder / "items.parquet", rows


async def _held(services: Services, opened: Stores, users: list[str]) -> tuple[list[History], dict[str, int]]:
    packed = await opened.histories.read(users)
    assert None not in packed
    return [decode(data) for data in packed if data is not None], await services.vectors.versions(users)


@pytest.mark.timeout(600)
def test_every_history_is_what_the_file_says_and_every_user_has_a_point_of_its_version(
    system: System, files: tuple[Path, Path, list[dict[str, Any]]]
) -> None:
    events, items, rows = files
    done = system.facetstream("produce", "--events", str(events), "--items", str(items), timeout=300)
    assert done.returncode == 0, done.stderr
    system.until(lambda: system.counted("events_applied"), len(rows))

    by_user: dict[str, list[tuple[int, str, str, int]]] = defaultdict(list)
    for row in rows:
        by_user[row["user_id"]].append(
            (row["ts"], row["scenario"], row["action"], item_index(item_key(row["item_id"])))
        )
    users = list(by_user)
    histories, versions = system.ask(lambda services, opened: _held(services, opened, users))
    for user, history in zip(users, histories, strict=True):
        found = [(r.ts, Scenario(r.scenario).name, Action(r.action).name, r.item) for r in history.records]
        assert found == by_user[user], user
        assert versions[user] == history.version, user
    assert len(versions) == len(users)


@pytest.mark.timeout(300)
def test_sending_the_file_again_counts_only_what_the_window_has_forgotten(
    system: System, files: tuple[Path, Path, list[dict[str, Any]]]
) -> None:
    events, _, rows = files
    per_user = Counter(row["user_id"] for row in rows)
    remembered = sum(n for n in per_user.values() if n <= system.settings.event_id_window)
    before = system.counted("events_applied")
    assert system.facetstream("produce", "--events", str(events), timeout=300).returncode == 0
    system.until(lambda: system.counted("duplicates_skipped"), remembered)
    assert remembered > 0.95 * len(rows)
    system.until(lambda: system.counted("events_applied"), before + len(rows) - remembered)
    assert system.counted("duplicates_skipped") == remembered
