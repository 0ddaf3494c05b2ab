"""`facetstream demo`: the whole system in one command, and one feed that changes before one's eyes."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click
from rich.console import Console

from stream import settings
from stream.addresses import PARTS, Addresses
from stream.batches import terminated
from stream.commands.demo_view import View
from stream.demo import Demo, Story, report
from stream.embedded.process import Server, folder_of, port_for, resident_bytes, spawn
from stream.embedded.stack import Stack
from stream.errors import Permanent
from stream.provision import provision
from stream.services import Services, connect, stores
from stream.settings import Settings, variable
from stream.synthetic import Population, synthesize

ITEMS = 2_000
FIRST_USER = "u000000"
POLL = 0.5  # seconds between two looks at the processes

T = TypeVar("T")


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
    if wanted.kafka_url is None:  # else a worker may be at work already, perhaps on that port
        port_for(wanted, "web_port")
    view = View(Console(stderr=chosen.as_json, markup=False, highlight=False))
    view.say("starting (the first time takes a little longer) ...")
    stack = Stack(wanted, view.say)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with stack as found:
        try:
            return asyncio.run(_demo(chosen, wanted, found, stack, view, began))
        finally:
            view.say("stopping ...")


async def _demo(chosen: Options, wanted: Settings, found: Addresses, stack: Stack, view: View, began: float) -> int:
    async with connect(wanted, found) as services:
        for what in await provision(wanted, found, services):
            view.say(f"made {what}")
        with _worker(wanted, found, stack, needed=await _alone(wanted, services, view)) as worker:
            opened = await stores(services, wanted)
            population = _population(chosen, (await opened.histories.read([FIRST_USER]))[0] is not None)
            running = [*stack.servers.values(), *([worker] if worker is not None else [])]
            demo = Demo(wanted, found, services, opened, population, view.watch)
            with view:
                story = await _watched(demo.run(chosen.rate), running)
            progress, audit = await demo.progress("done"), await demo.audit()
            verdict = report(progress, audit, story, time.monotonic() - began)
            view.tell(story)
            view.conclude(progress, audit, _memory(stack, worker))
            applied, changed = audit.complete, story.changed
            view.say(
                f"verdict: {'every event applied' if applied else 'EVENTS ARE MISSING'}, "
                f"{'the feed changed' if changed else 'THE FEED DID NOT CHANGE'}, {verdict['seconds']} s in all"
            )
            if chosen.as_json:
                click.echo(json.dumps(verdict))
            if chosen.keep_running:
                await _keep_running(view, found, story, worker, running)
            return 0 if applied and changed else 1


def _population(chosen: Options, again: bool) -> Population:
    """Acting until now. Event ids differ from one run to the next, and so do users where the stores know earlier ones:
    everybody's past is in this run."""
    now_ms = int(time.time() * 1000)
    run = f"{now_ms:x}-"
    people = f"u{run}" if again else "u"
    return synthesize(chosen.users, chosen.events, ITEMS, chosen.seed, now_ms, run, people)


async def _alone(wanted: Settings, services: Services, view: View) -> bool:
    """Whether no worker reads the log yet; of an embedded one nobody else can know."""
    others = 0 if wanted.kafka_url is None else len(await services.registry.workers())
    if others:
        view.say(f"{others} worker{'s are' if others > 1 else ' is'} at work already")
    return not others


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


async def _watched(work: Coroutine[Any, Any, T], running: Sequence[Server]) -> T:
    """What `work` returns; `Permanent` when one of `running` has ended, whatever `work` says of that."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done() and all(server.alive for server in running):
            await asyncio.wait({task}, timeout=POLL)
        if task.done() and task.exception():
            await asyncio.sleep(POLL)  # a client notices sooner than the guard
    finally:
        task.cancel()
        await asyncio.wait({task})
    for server in running:
        if not server.alive:
            raise _ended(server)
    return task.result()


def _ended(server: Server) -> Permanent:
    return Permanent(f"{server.name} ended; the end of {server.log}:\n{server.last_words()}")


def _memory(stack: Stack, worker: Server | None) -> dict[str, int]:
    """Resident bytes of every process of ours."""
    own = {"worker": worker.resident_bytes()} if worker else {}
    return {**stack.resident_bytes(), **own, "demo": resident_bytes(os.getpid())}


async def _keep_running(
    view: View, found: Addresses, story: Story, worker: Server | None, running: list[Server]
) -> None:
    """Until Ctrl-C, or until one of `running` dies; one that is stopped is no longer looked at."""
    ended = asyncio.create_task(terminated())
    await asyncio.sleep(0)  # from here on Ctrl-C is heard
    for part in PARTS:
        view.say(f"{part}: {getattr(found, part)}")
    if worker is not None:
        view.say(f"worker: {worker.address}/counters (kill {worker.pid} stops it, facetstream worker starts another)")
    view.say(f"In another terminal: facetstream recommend {story.user_id} --scenario feed")
    view.say(f"                     facetstream inspect {story.user_id}")
    view.say("Ctrl-C ends everything.")
    while not ended.done():
        await asyncio.wait({ended}, timeout=POLL)
        for server in [each for each in running if not each.alive]:
            if server.code:
                raise _ended(server)
            running.remove(server)
            view.say(f"{server.name} was stopped; its log is {server.log}")
