"""`facetstream recommend`: what a user would be shown now."""

import asyncio
import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from models.contract import SCENARIOS
from stream import addresses, settings
from stream.ports import Hit
from stream.profile import seen
from stream.retrieval import Merge, Retrieval
from stream.services import connect, stores


@click.command("recommend")
@click.argument("user")
@click.option("--scenario", default="feed", show_default=True, help=" | ".join(SCENARIOS))
@click.option("--limit", default=10, show_default=True, help="How many items.")
@click.option("--merge", default="rrf", show_default=True, help="rrf | max | quota: how interests are merged.")
@click.option("--include-seen", is_flag=True, help="Keep items that are in the user's history.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(user: str, scenario: str, limit: int, merge: Merge, include_seen: bool, as_json: bool) -> None:
    """Show what USER would be recommended, best first."""
    hits = asyncio.run(_recommend(user, scenario, limit, merge, include_seen))
    if as_json:
        items = [{"item_id": h.item_id, "score": h.score, "title": h.payload.get("title", "")} for h in hits]
        click.echo(json.dumps({"user": user, "scenario": scenario, "items": items}))
    else:
        Console(markup=False, highlight=False).print(table(f"{scenario} for {user}", hits))


async def _recommend(user: str, scenario: str, limit: int, merge: Merge, include_seen: bool) -> list[Hit]:
    wanted = settings.load()
    async with connect(wanted, addresses.find(wanted, ("redis", "qdrant"))) as services:
        opened = await stores(services, wanted)
        exclude = [] if include_seen else await seen(opened.histories, opened.items, user)
        return await Retrieval(services.vectors).recommend(user, scenario, limit, merge, exclude)


def table(title: str, hits: Sequence[Hit], fresh: frozenset[str] = frozenset()) -> Table:
    """Ranked items; those in `fresh` are marked."""
    shown = Table(title=title, title_justify="left")
    for name in ("#", "item", "title", "category"):
        shown.add_column(name, overflow="fold")
    for rank, hit in enumerate(hits, 1):
        style = "bold green" if hit.item_id in fresh else None
        category = str(hit.payload.get("category") or "")
        shown.add_row(str(rank), hit.item_id, str(hit.payload.get("title") or ""), category, style=style)
    return shown
