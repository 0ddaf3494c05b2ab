"""`facetstream dead`: what was refused, to look into, mend, replay and drop."""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial, wraps
from typing import IO, Any

import click

from stream.addresses import find
from stream.commands.dump import Moment
from stream.commands.produce import bars
from stream.dead_letters import OPEN, ORIGINS, Advance, DeadLetters, Settled, Wanted, drop, replay
from stream.dead_topic import Letter
from stream.errors import UserError
from stream.ports import Outcome, Place, Returns
from stream.services import log, producer, reader
from stream.settings import Settings, load
from stream.topics import DEAD

SHOWN = 100  # letters, unless it is said how many
KEY_SHOWN = 32  # characters in a list
REFUSALS = 10  # shown


class Name(click.ParamType):
    """A letter's name."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        if isinstance(value, Place):
            return value
        if not (place := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,18})", value)):
            self.fail(f"{value!r} is no name of a letter: write PARTITION:OFFSET, as facetstream dead list", param, ctx)
        return Place(int(place[1]), int(place[2]))


def _choosing(run: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments and options that choose letters; `run` gets them as one `Wanted`."""

    @click.argument("names", metavar="[NAME]...", nargs=-1, type=Name())
    @click.option("--reason", help="Only with this in the reason; `ts:` for the field ts.")
    @click.option("--topic", type=click.Choice(ORIGINS), help="Only what was refused from this topic.")
    @click.option("--since", type=Moment(), help="Only letters written since: a time, or 1h, 7d for ago.")
    @click.option("--until", type=Moment(), help="Only letters written before.")
    @click.option("--limit", type=click.IntRange(1), help="At most so many, the oldest.")
    @wraps(run)
    def chosen(
        names: tuple[Place, ...],
        reason: str | None,
        topic: str | None,
        since: int | None,
        until: int | None,
        limit: int | None,
        **others: Any,
    ) -> Any:
        return run(Wanted(frozenset(names), reason, topic, since, until, limit), **others)

    return chosen


@click.group("dead")
def command() -> None:
    """Look into dead letters, mend, replay and drop them.

    A letter is named by its place on the topic events.dead, PARTITION:OFFSET. It is open until it is replayed or
    dropped; that is noted on the topic, and retention takes letters and notes in the end.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it raises what it logs


@command.command("list")
@_choosing
@click.option("--all", "settled", is_flag=True, help="Replayed and dropped letters, too.")
@click.option("--by", type=click.Choice(["reason"]), help="Count instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(wanted: Wanted, settled: bool, by: str | None, as_json: bool) -> None:
    """List open letters, the oldest first.

    Those that are named, or that all options take, 100 unless --limit says otherwise: name, when it was written (UTC),
    topic and key of the original, and the reason. --by reason counts together what differs in values only.
    """
    limit = wanted.limit or (None if as_json else SHOWN)
    with DeadLetters(replace(wanted, limit=limit)) as letters:
        asyncio.run(_read(letters))
        (_list_reasons if by else _list_letters)(letters, settled, as_json)
        matching = letters.count(settled)
        if not by and limit and matching > limit:
            click.echo(f"{limit:,} of {matching:,} shown: see --limit", err=as_json)
        if not matching and wanted != Wanted():
            click.echo("no letter fits" if settled else "no open letter fits: see --all", err=as_json)
        click.echo(_totals(letters.counts()), err=as_json)


@command.command("show")
@click.argument("name", type=Name())
@click.option("--raw", is_flag=True, help="The original's bytes alone.")
def show(name: Place, raw: bool) -> None:
    """Print a letter.

    The headers of letter NAME, and the original: laid out if it is JSON, else with escapes.
    """
    with DeadLetters(Wanted(names=frozenset([name])), originals=True) as letters:
        asyncio.run(_read(letters))
        ((letter, state),) = letters.chosen(settled=True)
    value = letter.original.value
    if letter.was_cut("bytes"):
        click.echo("the original was cut: see header bytes", err=True)
    if not raw:
        click.echo("\n".join(_described(letter, state)))
    elif value is None:
        raise UserError(f"the original of {name} is null: there are no bytes to print")
    else:
        click.get_binary_stream("stdout").write(value)


@command.command("replay")
@_choosing
@click.option("--value", type=click.File("rb"), help="A file with what to send instead of the one letter's original.")
@click.option("--yes", is_flag=True, help="All open letters, if nothing else is said.")
def replay_(wanted: Wanted, value: IO[bytes] | None, yes: bool) -> int:
    """Send originals back to their own topics.

    Open letters only, keys and all. What is still wrong with an original makes a new letter; that it is late is not
    held against it. If it is broken off, some events may be sent again the next time, which counts once. Exit code 1 if
    a letter was refused; it stays open.
    """
    if value is not None and len(wanted.names) != 1:
        raise UserError("--value is for one letter: give its NAME")
    _ask(wanted, yes)
    act = partial(replay, value=None if value is None else value.read())
    with DeadLetters(wanted, originals=True) as letters:
        done = asyncio.run(_settle(letters, act))
        _report(letters, Outcome.REPLAYED, done)
    return 1 if done.refused else 0


@command.command("drop")
@_choosing
@click.option("--yes", is_flag=True, help="All open letters, if nothing else is said.")
def drop_(wanted: Wanted, yes: bool) -> None:
    """Settle open letters without sending anything."""
    _ask(wanted, yes)
    with DeadLetters(wanted) as letters:
        _report(letters, Outcome.DROPPED, asyncio.run(_settle(letters, drop)))


def _list_letters(letters: DeadLetters, settled: bool, as_json: bool) -> None:
    for letter, state in letters.chosen(settled):
        click.echo(json.dumps(_plain(letter, state)) if as_json else _lines(letter, state if settled else ""))


def _list_reasons(letters: DeadLetters, settled: bool, as_json: bool) -> None:
    for reason, count in letters.reasons(settled):
        click.echo(json.dumps({"reason": reason, "letters": count}) if as_json else f"{count:9,}  {_safe(reason)}")


def _ask(wanted: Wanted, yes: bool) -> None:
    if wanted == Wanted() and not yes:
        raise UserError("that would be all open letters: choose some, or add --yes")


async def _read(letters: DeadLetters) -> tuple[str, Settings]:
    settings = load()
    bootstrap = settings.kafka_url or find(settings, ("kafka",)).kafka
    async with reader(bootstrap, settings, [DEAD]) as records:
        await letters.read(records)
    return bootstrap, settings


async def _settle(
    letters: DeadLetters, act: Callable[[Iterable[Letter], Returns, Advance], Awaitable[Settled]]
) -> Settled:
    bootstrap, settings = await _read(letters)
    letters.check_open()
    chosen = (letter for letter, _ in letters.chosen())
    async with producer(bootstrap, settings) as kafka:
        with bars() as progress:
            task = progress.add_task("letters", total=None)
            return await act(chosen, log(kafka), partial(progress.advance, task))


def _report(letters: DeadLetters, outcome: Outcome, done: Settled) -> None:
    for reason, count in done.refused.most_common(REFUSALS):
        click.echo(f"refused {count:,} × {_safe(reason)}", err=True)
    counts = letters.counts()
    counts.update({outcome: done.count, OPEN: -done.count})
    click.echo(f"{done.count:,} {outcome}, {done.refused.total():,} refused; {_totals(counts)}")


def _totals(counts: Counter[str]) -> str:
    states = ", ".join(f"{counts[state]:,} {state}" for state in (OPEN, *Outcome))
    return f"{counts.total():,} letters on the topic: {states}"


def _plain(letter: Letter, state: str) -> dict[str, Any]:
    original = letter.original
    return {
        "name": str(letter.place),
        "state": state,
        "sent_ms": letter.sent_ms,
        "reason": original.reason,
        "topic": original.topic,
        "partition": original.partition,
        "offset": original.offset,
        "key": None if original.key is None else _safe(original.key),
    }


def _lines(letter: Letter, state: str) -> str:
    """Two, of which the first fits a terminal of 80 columns and the second may be long."""
    original = letter.original
    key = _safe(original.key or b"")
    key = key if len(key) <= KEY_SHOWN else key[: KEY_SHOWN - 1] + "…"
    parts = (str(letter.place), _when(letter.sent_ms), state, _safe(original.topic), key)
    return f"{'  '.join(filter(None, parts))}\n    {_safe(original.reason)}"


def _described(letter: Letter, state: str) -> Iterable[str]:
    key = letter.original.key
    yield f"letter {letter.place}, {state}, written {_when(letter.sent_ms)} UTC"
    for name, said in letter.headers:
        yield f"{_safe(name)}: {_safe(said or b'')}"
    yield f"key: {'null' if key is None else _safe(key)}"
    yield ""
    yield "null" if letter.original.value is None else _readable(letter.original.value)


def _readable(value: bytes) -> str:
    """Laid out if it is JSON, else escaped."""
    try:
        text = json.dumps(json.loads(value.decode()), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return _safe(value)
    return "\n".join(map(_safe, text.split("\n")))


def _safe(text: str | bytes) -> str:
    """Without anything that a terminal would obey."""
    text = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _when(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a time that a stranger made up
        return f"{ms} ms"
