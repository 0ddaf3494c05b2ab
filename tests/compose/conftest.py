"""The whole stack, once for all tests of this folder; removed afterwards, volumes and all."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from stack import Stack


@pytest.fixture(scope="session")
def stack(docker: None) -> Iterator[Stack]:
    running = Stack.new()
    try:
        running.up()
        yield running
    finally:
        running.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """What fails comes with the last lines of every service."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and report.when == "call" and stack:
        report.sections.append(("the last lines of every service", stack.logs()))
    return report
