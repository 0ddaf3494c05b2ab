"""`facetstream evaluate`: what a checkpoint is worth on a dataset, beside baselines."""

import json
from pathlib import Path

import click

from models.commands import Command

FOLDER = click.Path(path_type=Path, file_okay=False)
SHOWN = ("HR@10", "NDCG@10", "HR@100")


@click.command("evaluate", cls=Command)
@click.option("--data", type=FOLDER, required=True, help="The dataset that it was trained on.")
@click.option("--checkpoint", type=FOLDER, required=True, help="What facetstream train has written.")
@click.option("--part", type=click.Choice(["valid", "test"]), default="test", show_default=True)
@click.option("--limit", type=click.IntRange(1), default=100_000, show_default=True, help="Questions, at most.")
@click.option("--history", type=click.IntRange(1), default=1_024, show_default=True, help="Events of a history.")
@click.option("--triton", metavar="URL", help="Ask the user_interests that is served there (gRPC, host:port).")
@click.option("--report", type=FOLDER, help="Also write report.md, with plots, into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    data: Path,
    checkpoint: Path,
    part: str,
    limit: int,
    history: int,
    triton: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Rank the whole catalogue for every question of a split, and say how well the wanted items are placed.

    Items of the history are left out of the ranking, all but the one wanted; a tie counts against it.
    """
    from transformers.utils import logging

    from models import benchmark

    logging.disable_progress_bar()
    found = benchmark.run(data, checkpoint, part, limit, triton, history)
    if report:
        benchmark.write_report(found, report, checkpoint)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    click.echo(f"{len(found.questions):,} questions, split {found.split}")
    for name, result in found.results.items():
        for way in ("max", "rrf"):
            values = result.figures[way]["overall"].values
            figures = "  ".join(f"{key} {values[key].value:.4f}" for key in SHOWN)
            click.echo(f"{name:24}{way:5}{figures}")
