"""`facetstream export`: a trained checkpoint becomes a version that Triton can serve."""

from pathlib import Path

import click

from models.commands import Command
from models.contract import ITEM_ENCODER, USER_INTERESTS

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("export", cls=Command)
@click.option("--checkpoint", type=FOLDER, required=True, help="What facetstream train has written.")
@click.option("--repository", type=FOLDER, default="triton_repo", show_default=True, help="Of Triton.")
@click.option("--version", type=click.IntRange(1), required=True, help="Newer than all that are there.")
@click.option("--breaking", is_flag=True, help="Allow another codebook, dimension or number of interests.")
def command(checkpoint: Path, repository: Path, version: int, breaking: bool) -> None:
    """Put a checkpoint into a Triton model repository as a new version of both models.

    It is tried out first, and nothing is changed when it does not fit. A version is never overwritten. Triton serves
    it once it is told to load it; the version before answers until then.
    """
    from transformers.utils import logging

    from models.repository import export

    logging.disable_progress_bar()
    export(checkpoint, repository, version, breaking)
    click.echo(f"version {version} of {ITEM_ENCODER} and {USER_INTERESTS} is in {repository}; to serve it:")
    for model in (ITEM_ENCODER, USER_INTERESTS):
        click.echo(f"  curl -X POST http://TRITON:8000/v2/repository/models/{model}/load")
