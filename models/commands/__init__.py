"""Commands of the models, one module each: `facetstream` imports a module when its command is called for.

A module here imports torch, pyarrow and the rest of models only inside its function, so that its help costs nothing and
a core installation has it too.
"""

from typing import Any

import click

from models.errors import BadInput


class Command(click.Command):
    """A command whose `BadInput`, or missing extra, is one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BadInput as error:
            raise click.UsageError(str(error)) from error
        except ModuleNotFoundError as error:
            raise click.UsageError(f"{error.name} is missing: pip install 'facetstream[models]'") from error
