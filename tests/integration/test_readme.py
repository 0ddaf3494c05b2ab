"""What the README tells people to type does what it says."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stream.cli import COMMANDS
from stream.retrieval import request_body
from stream.settings import Settings, variable
from tests.conftest import ROOT
from tests.integration.conftest import System

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
NOW_MS = 1_750_000_000_000


def settings_table() -> str:
    """As it stands in the README; paste it there when a setting changes."""
    rows = [
        f"| `{variable(name)}` | {'' if field.default is None else f'`{field.default}`'} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | what it is |", "| --- | --- | --- |", *rows])


def test_the_settings_table_is_the_settings() -> None:
    found = re.search(r"<!-- settings -->\n(.*?)\n<!-- /settings -->", README, re.DOTALL)
    assert found is not None
    assert found[1] == settings_table()


@pytest.mark.parametrize("target", re.findall(r"^make ([a-z-]+)", "\n".join(BLOCKS), re.MULTILINE))
def test_every_make_target_exists(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_variable_is_a_setting() -> None:
    known = {variable(name) for name in Settings.model_fields}
    assert set(re.findall(r"FACETSTREAM_[A-Z_]+", README)) <= known


@pytest.fixture(scope="module")
def user_folder(system: System, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the README has it, with `demo --keep-running` in another terminal."""
    folder: Path = tmp_path_factory.mktemp("reader")
    (folder / ".facetstream").symlink_to(system.settings.data_folder)
    (folder / ".venv").symlink_to(sys.prefix)
    items = [{"item_id": f"i-{n}", "title": f"Ember classic trail shoe {n}"} for n in range(30)]
    events = [
        {
            "scenario": "feed",
            "event_id": f"e-{n}",
            "user_id": "u000042",
            "item_id": f"i-{n}",
            "action": "click",
            "ts": NOW_MS + n,
        }
        for n in range(8)
    ]
    (folder / "my-items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "my-events.jsonl").write_text("\n".join(map(json.dumps, events)))
    return folder


def run(folder: Path, script: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("FACETSTREAM_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f". .venv/bin/activate\n{script}"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, script + done.stdout + done.stderr
    return done.stdout


def block(word: str) -> str:
    (found,) = [b for b in BLOCKS if word in b]
    return found


def test_own_data_is_validated_produced_inspected_and_retrieved_by_one_request(
    system: System, user_folder: Path
) -> None:
    before = system.counted("events_applied")
    items_before = system.counted("items_applied")
    assert "8" in run(user_folder, block("facetstream produce"))
    system.until(lambda: system.counted("events_applied"), before + 8)
    system.until(lambda: system.counted("items_applied"), items_before + 30)
    shown = run(user_folder, block("facetstream recommend"))
    assert "Ember classic trail shoe" in shown
    assert "u000042: 8 events" in shown

    answer = json.loads(run(user_folder, block("curl")))
    assert answer["status"] == "ok"
    assert len(answer["result"]["points"]) == 10
    assert all(point["payload"]["title"] for point in answer["result"]["points"])


def test_the_request_in_the_readme_is_the_one_we_send() -> None:
    (found,) = re.findall(r"-d '(\{.*?\n\})'", block("curl"), re.DOTALL)
    ours = request_body("u000042", "feed", interests=4)
    point = ours["prefetch"][0]["query"]
    assert json.loads(found.replace("'$USER_POINT'", point)) == ours


def test_the_event_in_the_readme_is_valid(user_folder: Path) -> None:
    (found,) = re.findall(r"```json\n(\{.*?\})\n```", README, re.DOTALL)
    (user_folder / "one.jsonl").write_text(json.dumps(json.loads(found) | {"scenario": "feed"}))
    assert "1" in run(user_folder, "facetstream validate one.jsonl")


@pytest.mark.parametrize("line", re.findall(r"^(?:[A-Z_]+=\S+ )?facetstream (.+)$", "\n".join(BLOCKS), re.MULTILINE))
def test_every_command_takes_its_options(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    command = importlib.import_module(COMMANDS[name][0]).command
    command.make_context(name, arguments, resilient_parsing=False)


def test_own_models_are_trained_measured_and_exported(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "triton_repo", tmp_path / "triton_repo", ignore=shutil.ignore_patterns("__pycache__"))
    run(tmp_path, "facetstream synthesize --out my-data --users 40 --events 1200 --items 100")
    quick = "--preset quick --set epochs=1 --set text_steps=2"
    said = run(tmp_path, block("facetstream export --checkpoint my-checkpoint ").replace(" train ", f" train {quick} "))
    assert "popularity" in said
    assert (tmp_path / "my-report" / "report.md").exists()
    assert {path.name for path in (tmp_path / "triton_repo" / "user_interests").glob("2/*")} >= {"model.py"}
