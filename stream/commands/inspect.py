"""`facetstream inspect`: everything that is known of a user."""

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from stream import addresses, settings
from stream.errors import UserError
from stream.ports import Hit, Profile
from stream.profile import Known, known
from stream.retrieval import Retrieval
from stream.services import connect, stores

Near = dict[str, list[tuple[float, list[Hit]]]]


@click.command("inspect")
@click.argument("user")
@click.option("--events", default=20, show_default=True, type=click.IntRange(1), help="How many of the newest events.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(user: str, events: int, as_json: bool) -> None:
    """Show USER's history, interests with their nearest items, and versions."""
    history, profile, near = asyncio.run(_inspect(user))
    if as_json:
        click.echo(json.dumps(_plain(user, history, profile, near, events)))
    else:
        _print(Console(markup=False, highlight=False), user, history, profile, near, events)


async def _inspect(user: str) -> tuple[Known, Profile | None, Near]:
    wanted = settings.load()
    async with connect(wanted, addresses.find(wanted, ("redis", "qdrant"))) as services:
        opened = await stores(services, wanted)
        history = await known(opened.histories, opened.items, user)
        if history is None:
            raise UserError(f"no events of user {user!r} have been seen")
        profile = await services.vectors.profile(user)
        near = await Retrieval(services.vectors).nearest(user, limit=3) if profile else {}
        return history, profile, near


def _plain(user: str, history: Known, profile: Profile | None, near: Near, events: int) -> dict[str, Any]:
    return {
        "user": user,
        "history": {
            "version": history.version,
            "codebook_version": history.codebook_version,
            "bytes": history.packed_bytes,
            "events": len(history.lines),
            "newest": [asdict(line) for line in history.lines[-events:]],
        },
        "profile": profile and {"version": profile.version, "model_version": profile.model_version},
        "interests": {
            scenario: [{"weight": weight, "nearest": [h.item_id for h in hits]} for weight, hits in interests]
            for scenario, interests in near.items()
        },
    }


def _print(console: Console, user: str, history: Known, profile: Profile | None, near: Near, events: int) -> None:
    fresh = profile is not None and profile.version == history.version
    state = "none yet" if profile is None else f"version {profile.version}, model {profile.model_version}"
    console.print(
        f"{user}: {len(history.lines)} events in {history.packed_bytes} bytes, history version "
        f"{history.version}, codebook {history.codebook_version}; profile {state}" + (" (up to date)" if fresh else "")
    )
    lines = Table(title=f"newest {min(events, len(history.lines))} events", title_justify="left")
    for name in ("time (UTC)", "scenario", "action", "item or query", "codes"):
        lines.add_column(name, overflow="fold")
    for line in reversed(history.lines[-events:]):
        at = datetime.fromtimestamp(line.ts / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        lines.add_row(at, line.scenario, line.action, line.name, "yes" if line.coded else "pending")
    console.print(lines)
    for scenario, interests in near.items():
        shown = Table(title=f"interests: {scenario}", title_justify="left")
        shown.add_column("weight")
        shown.add_column("nearest items", overflow="fold")
        for weight, hits in interests:
            shown.add_row(f"{weight:.2f}", "; ".join(str(h.payload.get("title") or h.item_id) for h in hits))
        console.print(shown)
