"""The recommender as Triton serves it, to be measured like any other."""

import numpy as np
import torch
from torch import Tensor

from models.contract import USER_INTERESTS, USER_INTERESTS_INPUTS, USER_INTERESTS_OUTPUTS
from models.errors import BadInput
from models.events import Histories


class Served:
    """The user_interests behind a gRPC address; `items` [V, D] are those of the same version."""

    def __init__(self, url: str, items: Tensor) -> None:
        import tritonclient.grpc as grpc

        self._grpc, self._client, self._items = grpc, grpc.InferenceServerClient(url), items
        try:
            ready = self._client.is_model_ready(USER_INTERESTS)
        except grpc.InferenceServerException as error:
            raise BadInput(f"--triton {url}: {error.message()}; give host:port of Triton's gRPC") from error
        if not ready:
            raise BadInput(f"--triton {url}: {USER_INTERESTS} is not loaded there; load it and ask again")

    @property
    def items(self) -> Tensor:
        return self._items

    def answer(self, rows: Tensor, histories: Histories) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Interests [B, scenario, K, D] and weights [B, scenario, K], asked for in requests of one history each."""
        found = [self._ask(histories, row) for row in range(len(histories.valid))]
        interests, weights = zip(*found, strict=True)
        return torch.cat(interests), torch.cat(weights)

    def _ask(self, histories: Histories, row: int) -> tuple[Tensor, Tensor]:
        columns = (histories.codes, histories.time, histories.scenario, histories.action, histories.valid)
        kinds = {"UINT8": np.uint8, "INT64": np.int64, "FP16": np.float16}
        inputs = []
        arrays = [column[row : row + 1][histories.valid[row : row + 1]][None].numpy() for column in columns]
        for tensor, array in zip(USER_INTERESTS_INPUTS, [*arrays, np.full((1, 1), np.nan)], strict=True):
            array = array.astype(kinds[tensor.dtype])
            asked = self._grpc.InferInput(tensor.name, list(array.shape), tensor.dtype)
            asked.set_data_from_numpy(array)
            inputs.append(asked)
        answer = self._client.infer(USER_INTERESTS, inputs)
        interests, weights, _ = (torch.tensor(answer.as_numpy(tensor.name)) for tensor in USER_INTERESTS_OUTPUTS)
        return interests, weights
