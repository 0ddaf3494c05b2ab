"""`facetstream doctor`: what is wrong, and what to do about it."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

import click

from stream import addresses, settings
from stream.doctor import examine
from stream.findings import Finding, State

COLOURS = {State.OK: "green", State.WARNING: "yellow", State.WRONG: "red"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> int:
    """Check every connection, version and permission.

    One line for each check: ok, warning or wrong; below it, for what is not ok, what to do. Exits with 1 when something
    is wrong. Changes nothing.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it raises what it logs
    wanted = settings.load()
    found = asyncio.run(examine(wanted, addresses.find(wanted)))
    wrong = any(finding.state is State.WRONG for finding in found)
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in found]}))
    else:
        _print(found)
    return int(wrong)


def _print(found: Sequence[Finding]) -> None:
    for finding in found:
        state = click.style(f"{finding.state:8}", COLOURS[finding.state])
        click.echo(f"{state}{finding.part:7} {finding.name:20} {finding.text}")
        if finding.remedy:
            click.echo(f"{'':8}{'':7} -> {finding.remedy}")
    counts = {state: sum(finding.state is state for finding in found) for state in State}
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
