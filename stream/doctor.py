"""Every connection, version and permission that Facetstream needs, checked. Nothing that is asked changes anything."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

from stream.addresses import Addresses
from stream.errors import Permanent, Transient, UserError
from stream.findings import Check, Doubt, Finding, State
from stream.provision import codebook_file
from stream.services import Services, checks, connect
from stream.settings import Settings, variable
from stream.stores import Codebook

ANSWER_SECONDS = 10.0  # for one check


async def examine(settings: Settings, addresses: Addresses) -> list[Finding]:
    """Findings by part, in the order of the path of an event."""
    async with connect(settings, addresses) as services, checks(settings, addresses, services) as asked:
        asked["redis"] += _registry(services)
        asked["triton"] += _codebooks(settings, services)
        return await answers(asked)


async def answers(asked: Mapping[str, Sequence[Check]]) -> list[Finding]:
    """Of all parts at once."""
    return list(chain(*await asyncio.gather(*(_part(part, checks) for part, checks in asked.items()))))


async def _part(part: str, asked: Sequence[Check]) -> list[Finding]:
    """The first check says whether the part answers at all; if not, that is all there is to say of it."""
    first, *others = asked
    found = await _ask(part, first)
    if found.state is State.WRONG:
        return [found]
    return [found, *await asyncio.gather(*(_ask(part, check) for check in others))]


async def _ask(part: str, check: Check) -> Finding:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return Finding(part, check.name, State.OK, await check.ask())
    except Doubt as doubt:
        state, text = State.WARNING, str(doubt)
    except TimeoutError:
        state, text = State.WRONG, f"gives no answer within {ANSWER_SECONDS:g} s"
    except (Transient, Permanent, UserError) as error:
        state, text = State.WRONG, str(error)
    except Exception as error:  # a server that is none of what it should be: the other checks go on
        state, text = State.WRONG, f"{type(error).__name__}: {error}"
    return Finding(part, check.name, state, " ".join(text.split()), check.remedy)


def _registry(services: Services) -> list[Check]:
    async def codebook() -> str:
        found = await _stored(services)
        return f"version {found.version}, {found.code_bytes} bytes a code"

    async def workers() -> str:
        count = len(await services.registry.workers())
        if not count:
            raise Doubt("none is at work: events wait in Kafka")
        return f"{count} at work"

    return [Check("codebook", codebook, "facetstream provision"), Check("workers", workers, "facetstream worker")]


def _codebooks(settings: Settings, services: Services) -> list[Check]:
    return [
        Check(
            "codebook",
            partial(_same_version, services),
            "serve the models that the histories were made with, or begin anew on an empty Redis and Qdrant",
        ),
        Check(
            "repository",
            partial(_same_file, settings, services),
            f"set {variable('model_repository')} to what Triton serves; only provision and load read it",
        ),
    ]


async def _same_version(services: Services) -> str:
    stored, card = await _comparable(services), await services.models.card()
    if (stored.version, stored.code_bytes) != (card.codebook_version, card.code_bytes):
        raise Permanent(
            f"version {card.codebook_version} ({card.code_bytes} bytes a code), and Redis holds histories of version "
            f"{stored.version} ({stored.code_bytes} bytes)"
        )
    return f"version {card.codebook_version}, as in Redis"


async def _same_file(settings: Settings, services: Services) -> str:
    if not settings.model_repository.exists():
        return "none here, which is well for a worker"
    file, stored = codebook_file(settings), await _comparable(services)
    if file.read_bytes() != stored.file:
        raise Doubt(f"{file} is not the codebook in Redis")
    return f"{file} is the codebook in Redis"


async def _comparable(services: Services) -> Codebook:
    try:
        return await _stored(services)
    except (Transient, Permanent):
        raise Doubt("not compared, since Redis gives no codebook") from None


async def _stored(services: Services) -> Codebook:
    found = await services.registry.codebook()
    if found is None:
        raise Permanent("there is none")
    return found
