"""What the two model.py of the Triton repository share: checks of configuration and requests, and joining requests."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ACTIONS, SCENARIOS
from models.events import Histories

Columns = Mapping[str, NDArray[Any]]  # tensors by name


class BadRequestError(Exception):
    """One request is wrong, in one sentence; its neighbours in the batch are answered."""


def device_of(args: Mapping[str, str]) -> torch.device:
    """The device Triton chose for the instance; the CPU where this torch has no CUDA."""
    on_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
    return torch.device("cuda", int(args["model_instance_device_id"])) if on_gpu else torch.device("cpu")


def parameters_must_be(args: Mapping[str, str], values: Mapping[str, int]) -> None:
    """Raises `ValueError` where config.pbtxt says something else of the weights than they say themselves."""
    stated = json.loads(args["model_config"]).get("parameters", {})
    for name, value in values.items():
        said = stated.get(name, {}).get("string_value")
        if said != str(value):
            raise ValueError(f"config.pbtxt states {name}={said}, the weights have {name}={value}")


def answer_together(
    requests: Sequence[Any], read: Callable[[Any], Sequence[Any]], run: Callable[[list[Any]], Columns]
) -> list[Columns | BadRequestError]:
    """The outputs of every request: the rows that `read` finds in them go through one `run`, those of a request that
    `read` refuses do not."""
    rows = [_read(request, read) for request in requests]
    good = [row for found in rows if not isinstance(found, BadRequestError) for row in found]
    outputs = run(good) if good else {}
    answers: list[Columns | BadRequestError] = []
    start = 0
    for found in rows:
        if isinstance(found, BadRequestError):
            answers.append(found)
            continue
        end = start + len(found)
        answers.append({name: column[start:end] for name, column in outputs.items()})
        start = end
    return answers


def _read(request: Any, read: Callable[[Any], Sequence[Any]]) -> Sequence[Any] | BadRequestError:
    try:
        return read(request)
    except BadRequestError as error:
        return error


def refuse_bad(columns: Columns, code_bytes: int, coarse_size: int) -> None:
    """Raises `BadRequestError` unless inputs of user_interests fit each other, the codebook and the contract."""
    codes, rows = columns["CODES"].shape, columns["TIME"].shape
    if codes[2] != code_bytes:
        raise BadRequestError(f"CODES: has {codes[2]} bytes per event; this codebook has {code_bytes}")
    users, size = columns["KNOWN_COARSE"].shape
    if size not in (1, coarse_size):
        raise BadRequestError(f"KNOWN_COARSE: has {size} numbers; this model has {coarse_size}, or 1 for none")
    if users != rows[0]:
        raise BadRequestError(f"KNOWN_COARSE: is for {users} histories where TIME is for {_size(rows)}")
    for name, array in columns.items():
        if name != "KNOWN_COARSE" and array.shape[:2] != rows:
            raise BadRequestError(f"{name}: is for {_size(array.shape)} where TIME is for {_size(rows)}")
    for name, known in (("SCENARIO", SCENARIOS), ("ACTION", ACTIONS)):
        if columns[name].size and columns[name].max() >= len(known):
            raise BadRequestError(f"{name}: holds {columns[name].max()}; the largest known is {len(known) - 1}")


def join(rows: Sequence[Columns]) -> Histories:
    """Histories, each given as its inputs without the batch axis, padded at the end to the longest, at least 1."""
    longest = max(1, *(len(columns["TIME"]) for columns in rows))

    def stack(name: str) -> Tensor:
        first = rows[0][name]
        batch = np.zeros((len(rows), longest, *first.shape[1:]), dtype=first.dtype)
        for row, columns in enumerate(rows):
            batch[row, : len(columns[name])] = columns[name]
        return torch.from_numpy(batch)

    return Histories(
        codes=stack("CODES"),
        time=stack("TIME"),
        scenario=stack("SCENARIO").long(),
        action=stack("ACTION").long(),
        valid=stack("VALID").bool(),
    )


def join_coarse(rows: Sequence[Columns], unknown: Tensor) -> Tensor:
    """The coarse interests that come with the histories, put into `unknown` [B, size]."""
    for row, columns in enumerate(rows):
        if len(known := columns["KNOWN_COARSE"]) == unknown.shape[1] > 1:
            unknown[row] = torch.from_numpy(known)
    return unknown


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} histories of {shape[1]} events"
