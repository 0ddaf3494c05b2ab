"""Exclusion by id made quick: the local engine hashes the whole list of excluded ids for every point it looks at."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client.http import models
from qdrant_client.local import local_collection
from qdrant_client.local.payload_filters import calculate_payload_mask
from qdrant_client.local.utils import normalize_point_id

Mask = NDArray[np.bool_]


def install() -> None:
    """Make the engine of this process use `mask`."""
    vars(local_collection)["calculate_payload_mask"] = mask


def mask(
    payloads: list[dict[str, Any]],
    payload_filter: models.Filter | None,
    ids_inv: list[models.ExtendedPointId],
    deleted_per_vector: dict[str, Mask],
) -> Mask:
    """What `calculate_payload_mask` answers: which points the filter accepts, in the order of `ids_inv`."""
    excluded, rest = _split(payload_filter)
    accepted: Mask = calculate_payload_mask(payloads, rest, ids_inv, deleted_per_vector).astype(bool)
    if excluded:
        accepted &= np.fromiter((point not in excluded for point in ids_inv), bool, len(ids_inv))
    return accepted


def _split(payload_filter: models.Filter | None) -> tuple[set[models.ExtendedPointId], models.Filter | None]:
    """The ids that `must_not` names, and what else the filter asks."""
    if payload_filter is None or payload_filter.must_not is None:
        return set(), payload_filter
    given = payload_filter.must_not
    conditions = given if isinstance(given, list) else [given]
    by_id = [condition for condition in conditions if isinstance(condition, models.HasIdCondition)]
    others = [condition for condition in conditions if not isinstance(condition, models.HasIdCondition)]
    rest = payload_filter.model_copy(update={"must_not": others or None})
    asks = any(clause is not None for clause in (rest.must, rest.must_not, rest.should, rest.min_should))
    return {normalize_point_id(point) for condition in by_id for point in condition.has_id}, rest if asks else None
