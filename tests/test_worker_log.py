"""In an outage the worker's log stays readable."""

import logging

import pytest

from stream.commands import worker


def test_a_message_is_not_repeated_at_once_but_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    sparing = worker.Sparing()

    def passes(name: str, text: str, *args: object) -> bool:
        return sparing.filter(logging.LogRecord(name, logging.ERROR, "", 1, text, args, None))

    assert passes("a", "%s; again in %.1f s", "Redis is away", 0.1)
    assert not passes("a", "%s; again in %.1f s", "Redis is away", 0.2)
    assert passes("a", "%s; again in %.1f s", "Triton is away", 0.2)
    assert passes("b", "stopped")
    now += worker.QUIET_SECONDS
    assert passes("a", "%s; again in %.1f s", "Redis is away", 0.4)
