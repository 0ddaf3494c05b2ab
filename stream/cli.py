"""`facetstream`: each command is a module, imported only when it is called for.

Exit codes: 0 done, 1 failed or found something bad, 2 a user's mistake, 130 interrupted. An error is one sentence on
stderr; `facetstream --debug COMMAND` shows the stack trace.
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from stream.errors import Permanent, Transient, UserError

COMMANDS = {  # name: its module, by name because stream imports nothing of models, and its line of help
    "demo": ("stream.commands.demo", "Run everything embedded and watch a recommendation change."),
    "worker": ("stream.commands.worker", "Consume events and keep profiles fresh."),
    "provision": ("stream.commands.provision", "Create topics and collections, load the codebook."),
    "doctor": ("stream.commands.doctor", "Check every connection, version and permission."),
    "load": ("stream.commands.load", "Load a trained catalogue into Redis and Qdrant."),
    "produce": ("stream.commands.produce", "Send files of events and items to Kafka."),
    "inspect": ("stream.commands.inspect", "Show what is known of a user."),
    "recommend": ("stream.commands.recommend", "Show what a user would be recommended."),
    "dead": ("stream.commands.dead", "List, show, replay and drop dead letters."),
    "dump": ("stream.commands.dump", "Write the log as a dataset to train on."),
    "replay": ("stream.commands.replay", "Apply the log again: after a loss, or to compare."),
    "digest": ("stream.commands.digest", "Print one hash of all histories."),
    "synthesize": ("stream.commands.synthesize", "Write a synthetic population to files."),
    "import": ("models.commands.import_", "Convert raw files of public datasets for training."),
    "train": ("models.commands.train", "Train the models on a dataset."),
    "evaluate": ("models.commands.evaluate", "Measure a checkpoint beside baselines."),
    "export": ("models.commands.export", "Put a checkpoint into a Triton model repository."),
    "validate": ("stream.commands.validate", "Check a file of events or items."),
    "schema": ("stream.commands.schema", "Print the JSON Schemas of events and items."),
    "config": ("stream.commands.config", "Print the settings in force."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, expose_value=False, help="Show stack traces.")
@click.version_option(package_name="facetstream")
def cli() -> None:
    """Streaming, real-time user profiles."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs a command and exits."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """A command's exit code; a command returns None or its code."""
    try:
        _refuse_bytes(arguments)
        code = cli.main(args=list(arguments), prog_name="facetstream", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _explain(error)


def _refuse_bytes(arguments: Sequence[str]) -> None:
    """Users, items and topics are UTF-8, and so must a file's name be that is written of."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"the argument {os.fsencode(argument)!r} is no UTF-8") from None


def _explain(error: Exception) -> int:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return 2
        case click.ClickException():
            text, code = error.format_message(), 2
        case UserError():
            text, code = str(error), 2
        case Transient():
            text, code = f"{error} (facetstream doctor checks every connection)", 1
        case Permanent():
            text, code = str(error), 1
        case OSError(errno=errno.EROFS | errno.ENOSPC | errno.EDQUOT | errno.EACCES | errno.EPERM):
            text, code = f"{error.filename or 'a file'} cannot be written: {error.strerror}", 2
        case OSError(errno=errno.ENOENT | errno.ENOTDIR) if error.filename:
            text, code = f"{error.filename} cannot be made or read: {error.strerror}", 2
        case _:
            text = f"{type(error).__name__}: {error} (facetstream --debug shows where)"
            code = 1
    print("facetstream:", " ".join(text.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
