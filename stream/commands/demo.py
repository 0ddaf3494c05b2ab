"""`facetstream demo`: the whole system in one command, and one feed that changes before one's eyes."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import click
from rich.console import Console

from stream import settings
from stream.addresses import PARTS, Addresses
from stream.batches import terminated
from stream.commands.demo_view import View
from stream.demo import Demo, Progress, Story, report
from stream.embedded.process import Server, folder_of, port_for, resident_bytes, spawn
from stream.embedded.stack import Stack
from stream.errors import UserError
from stream.provision import provision
from stream.services import connect, stores
from stream.settings import Settings, variable
from stream.synthetic import Population, synthesize

ITEMS = 2_000


@dataclass(frozen=True)
class Options:
    """Of the command line."""

    events: int
    users: int
    rate: float
    seed: int
    as_json: bool
    keep_running: bool


@click.command("demo")
@click.option("--events", default=20_000, show_default=True, type=click.IntRange(1), help="How many events.")
@click.option("--users", default=500, show_default=True, type=click.IntRange(1), help="Of how many users.")
@click.option(
    "--rate", default=500.0, show_default=True, type=click.FloatRange(0), help="Events a second; 0: no limit."
)
@click.option("--seed", default=7, show_default=True, help="Of the synthetic population.")
@click.option("--json", "as_json", is_flag=True, help="End with the verdict as one JSON object.")
@click.option("--keep-running", is_flag=True, help="Leave everything up until Ctrl-C.")
def command(**options: int | float | bool) -> int:
    """Run everything embedded and watch a recommendation change.

    Starts what has no address in the environment, streams a synthetic catalogue and population through Kafka, and
    shows one user's feed before and after a burst of searches. Exits with 0 when every event is applied and the feed
    has changed.
    """
    chosen = Options(**options)  # type: ignore[arg-type]
    began = time.monotonic()
    wanted = settings.load()
    view = View(Console(stderr=chosen.as_json, markup=False, highlight=False))
    view.say("starting (the first time takes a little longer) ...")
    stack = Stack(wanted, view.say)
    with stack as found:
        return asyncio.run(_demo(chosen, wanted, found, stack, view, began))


async def _demo(chosen: Options, wanted: Settings, found: Addresses, stack: Stack, view: View, began: float) -> int:
    async with connect(wanted, found) as services:
        for what in await provision(wanted, found, services):
            view.say(f"made {what}")
        with _worker(wanted, found, stack, needed=await services.registry.workers() == 0) as worker:
            opened, watch = await stores(services, wanted), _watch(view, worker)
            demo = Demo(wanted, found, services, opened, _population(chosen), watch)
            with view:
                story = await demo.run(chosen.rate)
            progress, audit = await demo.progress("done"), await demo.audit()
            verdict = report(progress, audit, story, time.monotonic() - began)
            view.tell(story)
            view.conclude(progress, audit, _memory(stack, worker))
            applied, changed = audit.complete, bool(story.fresh)
            view.say(
                f"verdict: {'every event applied' if applied else 'EVENTS ARE MISSING'}, "
                f"{'the feed changed' if changed else 'THE FEED DID NOT CHANGE'}, {verdict['seconds']} s in all"
            )
            if chosen.as_json:
                click.echo(json.dumps(verdict))
            if chosen.keep_running:
                await _keep_running(view, found, story, worker)
            return 0 if applied and changed else 1


def _population(chosen: Options) -> Population:
    """Acting until now; event ids differ from one run to the next, which may find the same stores."""
    now_ms = int(time.time() * 1000)
    return synthesize(chosen.users, chosen.events, ITEMS, chosen.seed, now_ms, run=f"{now_ms:x}-")


@contextmanager
def _worker(wanted: Settings, found: Addresses, stack: Stack, needed: bool) -> Iterator[Server | None]:
    """A worker process of our own, unless one is at work already."""
    if not needed:
        yield None
        return
    env = {variable(f"{part}_url"): url for part, url in asdict(found).items()}
    port = port_for(wanted, "web_port")
    env[variable("web_port")] = str(port)
    command = [sys.executable, "-m", "stream.cli", "worker"]
    worker = spawn("worker", f"http://127.0.0.1:{port}", folder_of(wanted, "worker"), command, env)
    stack.announce(worker.address)
    try:
        yield worker
    finally:
        worker.stop()


def _watch(view: View, worker: Server | None) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        if worker is not None and not worker.alive:
            raise UserError(f"the worker ended; the end of {worker.log}:\n{worker.last_words()}")
        view.watch(progress)

    return watch


def _memory(stack: Stack, worker: Server | None) -> dict[str, int]:
    """Resident bytes of every process of ours."""
    own = {"worker": worker.resident_bytes()} if worker else {}
    return {**stack.resident_bytes(), **own, "demo": resident_bytes(os.getpid())}


async def _keep_running(view: View, found: Addresses, story: Story, worker: Server | None) -> None:
    ended = asyncio.create_task(terminated())
    await asyncio.sleep(0)  # from here on Ctrl-C is heard
    for part in PARTS:
        view.say(f"{part}: {getattr(found, part)}")
    if worker is not None:
        view.say(f"worker: {worker.address}/counters")
    view.say(f"In another terminal: facetstream recommend {story.user_id} --scenario feed")
    view.say(f"                     facetstream inspect {story.user_id}")
    view.say("Ctrl-C ends everything.")
    await ended
