"""The command line: exit codes, one sentence per error, no stack trace unless asked for."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from pyarrow import parquet

from models.contract import SCENARIOS
from stream import cli
from stream.errors import Permanent, Transient, UserError
from stream.settings import Settings, variable

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.chdir(tmp_path)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command("config")
    def command() -> None:
        raise error

    monkeypatch.setattr("stream.commands.config.command", command)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("do this\ninstead"), 2, "facetstream: do this instead\n"),
        (Transient("Kafka is away"), 1, "facetstream: Kafka is away (facetstream doctor checks every connection)\n"),
        (Permanent("refused"), 1, "facetstream: refused\n"),
        (
            ZeroDivisionError("by zero"),
            1,
            "facetstream: ZeroDivisionError: by zero (facetstream --debug shows where)\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "out/ck"),
            2,
            "facetstream: out/ck cannot be written: Read-only file system\n",
        ),
        (
            OSError(errno.EPERM, "Operation not permitted", "out/ck.lock"),
            2,
            "facetstream: out/ck.lock cannot be written: Operation not permitted\n",
        ),
        (
            OSError(errno.ENOENT, "No such file or directory", "/proc/x"),
            2,
            "facetstream: /proc/x cannot be made or read: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: Output, error: BaseException, code: int, sentence: str
) -> None:
    failing(monkeypatch, error)
    assert cli.run(["config"]) == code
    out, err = capsys.readouterr()
    assert (out, err.lstrip("\n")) == ("", sentence)


def test_debug_shows_the_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, UserError("do this"))
    with pytest.raises(UserError):
        cli.run(["--debug", "config"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["config", "--nonsense"],
        ["schema", "ads"],
        ["validate"],
        ["validate", "absent.jsonl"],
        ["validate", "."],
        ["validate", "\udcff.jsonl"],
        ["inspect", "\udcff"],
        ["recommend", "u", "--scenario", "\udcff"],
        ["\udcff"],
        ["produce"],
        ["produce", "--events", "x.jsonl", "--rate", "0"],
        ["produce", "--events", "x.jsonl", "--rate", "nan"],
        ["produce", "--events", "x.jsonl"],
        ["dead", "nonsense"],
        ["dead", "show"],
        ["dead", "list"],
        ["dead", "list", "--topic", "nope"],
        ["dead", "drop", "--limit", "0"],
        ["replay"],
        ["replay", "--from", "soon"],
        ["replay", "--from", "2999-01-01"],
        ["replay", "--from", "beginning"],
        ["digest"],
        ["digest", "--redis", "nonsense"],
        ["synthesize"],
        ["synthesize", "--out", "a", "--users", "0"],
        ["synthesize", "--out", "/dev/null/a"],
    ],
)
def test_mistakes_are_one_sentence(capsys: Output, arguments: list[str]) -> None:
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("facetstream: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["config", "--help"], ["--version"]])
def test_help(capsys: Output, arguments: list[str]) -> None:
    assert cli.run(arguments) == (0 if arguments else 2)
    assert "facetstream" in "".join(capsys.readouterr())


def test_help_lists_every_command(capsys: Output) -> None:
    cli.run(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_a_command_imports_no_more_than_it_needs() -> None:
    program = (
        "import sys; from stream.cli import run; run(['schema', 'feed']); run(['--help']); run(['config']);"
        "print([name for name in ('faust', 'aiokafka', 'pyarrow', 'torch', 'qdrant_client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_the_console_script_exits_with_the_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream.cli", "validate", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_a_mistake(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("FACETSTREAM_PARTITIONS", "none")
    assert cli.run(["config"]) == 2
    assert capsys.readouterr().err.startswith("facetstream: FACETSTREAM_PARTITIONS='none': ")


def test_a_demo_whose_port_is_taken_does_not_start(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("FACETSTREAM_WEB_PORT", str(port))
        assert cli.run(["demo"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        f"facetstream: FACETSTREAM_WEB_PORT={port}: the port is in use: name another, or unset it\n",
    )


def test_config_masks_secrets(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("FACETSTREAM_REDIS_URL", "redis://me:s3cret@h:1/0")
    monkeypatch.setenv("FACETSTREAM_QDRANT_API_KEY", "s3cret")
    monkeypatch.setenv("FACETSTREAM_KAFKA_PASSWORD", "s3cret")
    for arguments in (["config"], ["config", "--json"]):
        assert cli.run(arguments) == 0
        out = capsys.readouterr().out
        assert "s3cret" not in out
        assert out.count("********") == 3
        assert all(variable(name) in out for name in Settings.model_fields)


def test_config_as_json(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("FACETSTREAM_PARTITIONS", "8")
    cli.run(["config", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["FACETSTREAM_PARTITIONS"]["value"] == 8
    assert shown["FACETSTREAM_PARTITIONS"]["default"] is False
    assert shown["FACETSTREAM_REPLICATION"] == {
        "value": 1,
        "default": True,
        "description": Settings.model_fields["replication"].description,
    }


def test_schema(capsys: Output) -> None:
    assert cli.run(["schema"]) == 0
    schemas = json.loads(capsys.readouterr().out)
    assert list(schemas) == [*SCENARIOS, "item"]
    for name, schema in schemas.items():
        assert cli.run(["schema", name]) == 0
        assert json.loads(capsys.readouterr().out) == schema
        assert schema["properties"]["item_id"] != {}
    feed = schemas["feed"]["properties"]
    assert feed["user_id"]["maxLength"] == 256
    assert feed["ts"]["minimum"] == 946_684_800_000
    assert feed["dwell_ms"]["anyOf"][0]["maximum"] == 86_400_000
    assert schemas["item"]["properties"]["text"]["maxLength"] == 4_096


def test_synthesize_then_validate(capsys: Output, tmp_path: Path) -> None:
    size = ["--users", "10", "--events", "200", "--items", "80"]
    for folder in ("a", "b"):
        assert cli.run(["synthesize", "--out", folder, *size]) == 0
    names = {"events", "items", "truth", "truth_events", "truth_items"}
    assert {path.stem for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / f"a/{name}.parquet").read_bytes() == (tmp_path / f"b/{name}.parquet").read_bytes()
    assert cli.run(["synthesize", "--out", "a", *size, "--seed", "8"]) == 2
    assert "a holds a dataset already: name another folder, or delete it first" in capsys.readouterr().err
    assert (tmp_path / "a/events.parquet").read_bytes() == (tmp_path / "b/events.parquet").read_bytes()
    assert cli.run(["synthesize", "--out", "c", *size, "--seed", "8"]) == 0
    ids = [parquet.read_table(tmp_path / f"{folder}/events.parquet")["event_id"].to_pylist() for folder in ("a", "c")]
    assert set(ids[0]).isdisjoint(ids[1])  # both can be sent to one system
    capsys.readouterr()
    assert cli.run(["validate", "a/events.parquet"]) == 0
    assert cli.run(["validate", "a/items.parquet", "--items"]) == 0
    assert capsys.readouterr().out == "200 good, 0 bad\n80 good, 0 bad\n"


def test_validate_reports_line_field_and_reason(capsys: Output, tmp_path: Path) -> None:
    good = {"event_id": "e", "user_id": "u", "item_id": "i", "action": "like", "ts": 1_700_000_000_000}
    lines = [good | {"scenario": "feed"}, good | {"scenario": "feed", "ts": 1}, good | {"scenario": "ads"}]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert cli.run(["validate", "events.jsonl"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "events.jsonl:2: ts: must not be before 2000-01-01 (milliseconds since 1970), is 1"
    assert out[1].startswith("events.jsonl:3: scenario: ")
    assert out[2:] == ["1 good, 2 bad"]


def test_validate_prints_the_first_hundred(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("bad\n" * 1_234)
    assert cli.run(["validate", "events.jsonl"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 102
    assert out[-2:] == ["... and 1,134 more", "0 good, 1,234 bad"]


def test_validate_says_when_the_file_holds_the_other_kind(capsys: Output, tmp_path: Path) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "i", "action": "like", "ts": 1_700_000_000_000}
    (tmp_path / "events.jsonl").write_text(json.dumps(event | {"scenario": "feed"}))
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "i", "title": "t"}))
    assert cli.run(["synthesize", "--out", ".", "--users", "5", "--events", "50", "--items", "20"]) == 0
    capsys.readouterr()
    for arguments in (["events.jsonl"], ["items.jsonl", "--items"], ["items.parquet", "--items"]):
        assert cli.run(["validate", *arguments]) == 0
        assert "look like" not in capsys.readouterr().out
    assert cli.run(["validate", "items.jsonl"]) == 1
    assert capsys.readouterr().out.endswith("\n0 good, 1 bad\nthese look like items: add --items\n")
    assert cli.run(["validate", "events.jsonl", "--items"]) == 1
    assert capsys.readouterr().out.endswith("\n0 good, 1 bad\nthese look like events: leave out --items\n")
    assert cli.run(["validate", "items.parquet"]) == 2
    assert capsys.readouterr().err.endswith(" scenario, action; these look like items: add --items\n")


def test_validate_into_a_closed_pipe(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("bad\n" * 100)
    command = f"{sys.executable} -m stream.cli validate events.jsonl | head -1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert "Traceback" not in done.stderr
