"""Topics, collections, codebook: everything a worker expects to find. Running it twice changes nothing."""

from collections.abc import Sequence
from pathlib import Path

from models.contract import ITEM_ENCODER
from stream.adapters.kafka import missing_topics as missing_topics
from stream.adapters.kafka import provision_topics
from stream.addresses import Addresses
from stream.errors import UserError
from stream.ports import ModelCard
from stream.retry import persistently
from stream.services import Services
from stream.settings import Settings, variable
from stream.stores import Codebook


async def provision(settings: Settings, addresses: Addresses, services: Services) -> list[str]:
    """One sentence for each thing that was made; empty when all was there."""
    card = await services.models.card()
    made = [f"collection {name}" for name in await services.vectors.missing()]
    await services.vectors.provision(card)
    made += await _topics(settings, addresses, services)
    return made + await _codebook(settings, services, card)  # last: it is what a worker waits for


async def _topics(settings: Settings, addresses: Addresses, services: Services) -> list[str]:
    # Counted before they are made: a crash between the two must not have new offsets taken for old ones.
    await services.registry.count_creation(await missing_topics(addresses.kafka, settings))
    created: Sequence[str] = await provision_topics(addresses.kafka, settings)
    return [f"topic {name}" for name in created]


async def _codebook(settings: Settings, services: Services, card: ModelCard) -> list[str]:
    known = await services.registry.codebook()
    if known is None:
        codebook = Codebook(card.codebook_version, card.code_bytes, codebook_file(settings).read_bytes())
        await persistently(lambda: services.registry.put_codebook(codebook))
        return [f"codebook {codebook.version}"]
    if (known.version, known.code_bytes) != (card.codebook_version, card.code_bytes):
        raise UserError(
            f"Redis holds histories of codebook {known.version} ({known.code_bytes} bytes an item), Triton serves "
            f"codebook {card.codebook_version} ({card.code_bytes} bytes): serve the old one, or use an empty Redis "
            "and replay the log"
        )
    return []


def codebook_file(settings: Settings) -> Path:
    """Of the newest version in the model repository."""
    versions = (settings.model_repository / ITEM_ENCODER).glob("*/codebook.safetensors")
    found = sorted((path for path in versions if path.parent.name.isdecimal()), key=lambda path: int(path.parent.name))
    if not found:
        raise UserError(
            f"{variable('model_repository')}={settings.model_repository} holds no "
            f"{ITEM_ENCODER}/<version>/codebook.safetensors: name the repository that Triton serves"
        )
    return found[-1]
