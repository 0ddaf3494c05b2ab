"""Marshalling for item_encoder: UTF-8 in, `models.item_tower` and `models.codebook` in between, tensors out."""

from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from models.codebook import ResidualCodebook
from models.item_tower import ItemTower
from models.pieces import in_pieces
from models.serving import BadRequestError, Columns, answer_together, device_of, parameters_must_be


class TritonPythonModel:
    """Loads the weights beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)  # the instances and the other servers share the cores
        folder, device = Path(__file__).parent, device_of(args)
        self.tower = ItemTower.load(folder).to(device)
        self.codebook = ResidualCodebook.load(folder).to(device)
        book = self.codebook.config
        parameters_must_be(
            args, {"codebook_version": book.version, "code_bytes": book.code_bytes, "dim": self.tower.config.dim}
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [_response(answer) for answer in answer_together(requests, _rows, self._encode)]

    @torch.inference_mode()
    def _encode(self, rows: list[tuple[str, str]]) -> Columns:
        vectors = self.tower(*zip(*rows, strict=True))
        codes = in_pieces(self.codebook.encode, vectors)
        fidelity = (vectors * self.codebook.decode(codes)).sum(dim=-1, keepdim=True)
        columns = {"EMBEDDING": vectors, "CODES": codes, "FIDELITY": fidelity}
        return {name: column.cpu().numpy() for name, column in columns.items()}


def _rows(request: Any) -> list[tuple[str, str]]:
    """A text and an item id (empty: of no item) per row."""
    return list(zip(_strings(request, "TEXT"), _strings(request, "ITEM_ID"), strict=True))


def _strings(request: Any, name: str) -> list[str]:
    column = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    try:
        return [text.decode() for text in column[:, 0]]
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{name}: is not valid UTF-8 ({error.reason} at byte {error.start})") from None


def _response(answer: Columns | BadRequestError) -> Any:
    if isinstance(answer, BadRequestError):
        return pb_utils.InferenceResponse([], pb_utils.TritonError(str(answer), pb_utils.TritonError.INVALID_ARG))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, column) for name, column in answer.items()])
