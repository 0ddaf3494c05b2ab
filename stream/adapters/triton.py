"""Triton over gRPC aio: the port `Models`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from models.contract import (
    INPUTS,
    ITEM_ENCODER,
    OUTPUTS,
    USER_INTERESTS,
    Tensor,
)
from stream.errors import Permanent, Transient
from stream.ports import Encoded, HistoryTensors, Interests, ModelCard

PARAMETERS = ("codebook_version", "code_bytes", "dim", "interests")  # of config.pbtxt, in one model or in both
CHANNEL = [
    ("grpc.max_send_message_length", -1),  # unlimited: the server's own limit is 2 GiB
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # gRPC's own two minutes would outlast any restart
]
# Anything else may pass: a full queue or a restart (UNAVAILABLE), a model not loaded yet (NOT_FOUND), one that ran out
# of memory or whose process died and waits to be reloaded (INTERNAL), credentials that are being changed.
POINTLESS = {"StatusCode.INVALID_ARGUMENT", "StatusCode.OUT_OF_RANGE"}

Arrays = Mapping[str, NDArray[Any]]


class TritonModels:
    """`Models` over Triton's gRPC endpoint `url` (host:port). One `timeout` (seconds) bounds each call.

    The channel is opened by the first call, in its event loop, and reconnects by itself when Triton restarts.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._opened: Any = None
        self._batches: dict[str, int] = {}  # model -> rows it takes at once
        self._codebook: int | None = None  # the only one whose answers are taken
        self._vetted: set[tuple[str, str]] = set()  # models and versions that are of it

    async def check_ready(self) -> None:
        """Raise `Transient` when Triton does not answer or a model is not loaded."""
        if missing := [model for model in INPUTS if not await self._call("is_model_ready", model)]:
            raise Transient(f"Triton has not loaded {' and '.join(missing)}")

    async def server(self) -> str:
        """Name and version of what answers."""
        metadata = await self._call("get_server_metadata")
        return f"{metadata.name} {metadata.version}"

    def keep_to(self, codebook_version: int) -> None:
        """From now on the answer of a model of another codebook, loaded meanwhile, is `Transient`: what it says must
        not be mixed with what is stored."""
        self._codebook = codebook_version

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def card(self) -> ModelCard:
        configs = {model: await self._config(model) for model in INPUTS}
        for model, config in configs.items():
            _refuse_misfit(model, config)
        values = {name: _agreed(name, configs) for name in PARAMETERS}
        metadata = await self._call("get_model_metadata", USER_INTERESTS)
        return ModelCard(**values, model_version=max(metadata.versions, key=int))

    async def encode(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> Encoded:
        ids = [""] * len(texts) if item_ids is None else item_ids
        out, _ = await self._infer(ITEM_ENCODER, {"TEXT": _strings(texts), "ITEM_ID": _strings(ids)})
        return Encoded(out["EMBEDDING"], out["CODES"], out["FIDELITY"][:, 0])

    async def interests(self, histories: HistoryTensors) -> Interests:
        out, version = await self._infer(
            USER_INTERESTS,
            {
                "CODES": histories.codes,
                "TIME": histories.time,
                "SCENARIO": histories.scenario,
                "ACTION": histories.action,
                "VALID": histories.valid,
                "KNOWN_COARSE": _known(histories),
            },
        )
        return Interests(out["INTERESTS"], out["WEIGHTS"], version, out["COARSE"])

    async def _infer(self, model: str, columns: Arrays) -> tuple[Arrays, str]:
        """The outputs for all rows, in as many calls as the model's largest batch demands (at least one row), and the
        version that answered first: the older, when models are swapped between two calls."""
        size = await self._batch(model)
        rows = len(next(iter(columns.values())))
        answers = [
            await self._infer_batch(model, {name: array[start : start + size] for name, array in columns.items()})
            for start in range(0, rows, size)
        ]
        outputs = {name: np.concatenate([answer[name] for answer, _ in answers]) for name in answers[0][0]}
        return outputs, answers[0][1]

    async def _infer_batch(self, model: str, columns: Arrays) -> tuple[Arrays, str]:
        inputs = [_input(tensor, columns[tensor.name]) for tensor in INPUTS[model]]
        result = await self._call("infer", model, inputs)
        outputs = {tensor.name: result.as_numpy(tensor.name) for tensor in OUTPUTS[model]}
        _refuse_torn(model, outputs, rows=len(next(iter(columns.values()))))
        version: str = result.get_response().model_version
        await self._vet(model, version)
        return outputs, version

    async def _vet(self, model: str, version: str) -> None:
        if self._codebook is None or (model, version) in self._vetted:
            return
        parameters = (await self._call("get_model_config", model, version)).config.parameters
        stated = parameters["codebook_version"].string_value if "codebook_version" in parameters else ""
        if stated not in ("", str(self._codebook)):
            raise Transient(
                f"Triton's {model} {version} is of codebook {stated}, what is stored of {self._codebook}: load the "
                "version before, or provision an empty Redis and Qdrant for the new one"
            )
        self._vetted.add((model, version))

    async def _batch(self, model: str) -> int:
        if model not in self._batches:
            self._batches[model] = max(1, (await self._config(model)).max_batch_size)
        return self._batches[model]

    async def _config(self, model: str) -> Any:
        return (await self._call("get_model_config", model)).config

    async def _call(self, method: str, *args: Any) -> Any:
        if self._opened is None:
            self._opened = grpc.InferenceServerClient(self._url, channel_args=CHANNEL)
        try:
            return await getattr(self._opened, method)(*args, client_timeout=self._timeout)
        except InferenceServerException as error:
            self._vetted.clear()  # who answers next may be another server
            kind = Permanent if error.status() in POINTLESS else Transient
            raise kind(f"Triton: {error.message().partition(chr(10))[0]}") from error


def _known(histories: HistoryTensors) -> NDArray[Any]:
    nothing = np.full((len(histories.valid), 1), np.nan, np.float16)
    return nothing if histories.coarse is None else histories.coarse


def _strings(texts: Sequence[str]) -> NDArray[Any]:
    return np.array([text.encode() for text in texts], dtype=np.object_).reshape(-1, 1)


def _input(tensor: Tensor, array: NDArray[Any]) -> Any:
    column = grpc.InferInput(tensor.name, list(array.shape), tensor.dtype)
    return column.set_data_from_numpy(np.ascontiguousarray(array))


def _refuse_torn(model: str, outputs: Mapping[str, NDArray[Any] | None], rows: int) -> None:
    """A tritonserver that is about to die may answer without an error and without tensors."""
    for name, array in outputs.items():
        if array is None or len(array) != rows:
            raise Transient(f"Triton's answer of {model} lacks rows of {name}")


def _refuse_misfit(model: str, config: Any) -> None:
    for promised, served in ((INPUTS[model], config.input), (OUTPUTS[model], config.output)):
        found = {tensor.name: tensor for tensor in served}
        for wanted in promised:
            tensor = found.get(wanted.name)
            if tensor is None:
                raise Permanent(f"Triton's {model} has no tensor {wanted.name}")
            if not _fits(wanted, tensor):
                raise Permanent(
                    f"Triton's {model} has {wanted.name} as {_dtype(tensor)} {list(tensor.dims)}; "
                    f"{wanted.dtype} {list(wanted.shape)} is needed"
                )


def _fits(wanted: Tensor, served: Any) -> bool:
    sizes = list(served.dims)
    return (
        _dtype(served) == wanted.dtype
        and len(sizes) == len(wanted.shape)
        and all(need in (-1, size) for need, size in zip(wanted.shape, sizes, strict=True))
    )


def _dtype(tensor: Any) -> str:
    name: str = grpc.model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _agreed(name: str, configs: Mapping[str, Any]) -> int:
    """A parameter's value, the same in every model that states it."""
    stated = {m: c.parameters[name].string_value for m, c in configs.items() if name in c.parameters}
    if not stated:
        raise Permanent(f"no model on Triton states the parameter {name} in its config.pbtxt")
    if len(set(stated.values())) > 1:
        told = ", ".join(f"{model} says {value}" for model, value in stated.items())
        raise Permanent(f"Triton's models disagree on {name}: {told}")
    value = next(iter(stated.values()))
    if not value.isdecimal():
        raise Permanent(f"Triton's {next(iter(stated))} states {name}={value!r}, which is no number")
    return int(value)
