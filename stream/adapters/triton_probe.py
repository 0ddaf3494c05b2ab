"""What `facetstream doctor` asks a Triton."""

from functools import partial

from models.contract import INPUTS
from stream.adapters.triton import TritonModels
from stream.findings import Check
from stream.settings import variable


def checks(models: TritonModels, url: str) -> list[Check]:
    load = " ".join(f"--load-model={name}" for name in INPUTS)
    return [
        Check(
            "server", partial(_server, models, url), f"start it, or set {variable('triton_url')} to its gRPC endpoint"
        ),
        Check(
            "models", partial(_models, models), f"tritonserver --model-control-mode=explicit {load}, and see its log"
        ),
        Check("contract", partial(_contract, models), "serve models that `facetstream export` made, of this release"),
    ]


async def _server(models: TritonModels, url: str) -> str:
    return f"{await models.server()} at {url}"


async def _models(models: TritonModels) -> str:
    await models.check_ready()
    return f"{' and '.join(INPUTS)} are loaded"


async def _contract(models: TritonModels) -> str:
    card = await models.card()
    return (
        f"{card.interests} interests of {card.dim} components a scenario, {card.code_bytes} bytes a code, "
        f"version {card.model_version}"
    )
