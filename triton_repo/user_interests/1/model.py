"""Marshalling for user_interests: padded histories in, `models.user_tower` in between, interests and weights out."""

from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from models.contract import USER_INTERESTS_INPUTS
from models.serving import (
    BadRequestError,
    Columns,
    answer_together,
    device_of,
    join,
    join_coarse,
    parameters_must_be,
    refuse_bad,
)
from models.user_tower import UserTower


class TritonPythonModel:
    """Loads the weights beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)  # the instances and the other servers share the cores
        self.device = device_of(args)
        self.tower = UserTower.load(Path(__file__).parent).to(self.device)
        book, config = self.tower.codebook.config, self.tower.config
        parameters_must_be(
            args,
            {
                "codebook_version": book.version,
                "code_bytes": book.code_bytes,
                "dim": config.dim,
                "interests": config.interests,
            },
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [_response(answer) for answer in answer_together(requests, self._histories, self._interests)]

    def _histories(self, request: Any) -> list[Columns]:
        columns = {t.name: pb_utils.get_input_tensor_by_name(request, t.name).as_numpy() for t in USER_INTERESTS_INPUTS}
        refuse_bad(columns, self.tower.codebook.config.code_bytes, self.tower.coarse_size)
        return [{name: column[row] for name, column in columns.items()} for row in range(len(columns["TIME"]))]

    @torch.inference_mode()
    def _interests(self, histories: list[Columns]) -> Columns:
        asked = join(histories).to(self.device)
        known = join_coarse(histories, self.tower.unknown(len(histories)))
        answer = self.tower.answer(self.tower.codebook.decode(asked.codes), asked, known)
        columns = answer._replace(coarse=answer.coarse.half())._asdict()
        return {name.upper(): column.cpu().numpy() for name, column in columns.items()}


def _response(answer: Columns | BadRequestError) -> Any:
    if isinstance(answer, BadRequestError):
        return pb_utils.InferenceResponse([], pb_utils.TritonError(str(answer), pb_utils.TritonError.INVALID_ARG))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, column) for name, column in answer.items()])
