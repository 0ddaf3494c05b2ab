"""The quick mask accepts exactly the points that the engine's own accepts."""

import uuid
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models as m
from qdrant_client.local.payload_filters import calculate_payload_mask

from stream.embedded.qdrant_filters import mask

IDS: list[Any] = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(i))) for i in range(6)] + [1, 2]
PAYLOADS = [{"a": i % 3} for i in range(len(IDS))]
NO_VECTORS: dict[str, Any] = {"": np.zeros(len(IDS), dtype=bool)}

spelled = st.sampled_from(IDS).flatmap(
    lambda i: st.just(i) if isinstance(i, int) else st.sampled_from([i, i.upper(), i.replace("-", ""), uuid.UUID(i)])
)
by_id = st.builds(m.HasIdCondition, has_id=st.lists(spelled, max_size=4))
by_value = st.builds(lambda v: m.FieldCondition(key="a", match=m.MatchValue(value=v)), st.integers(0, 2))
conditions = st.none() | by_id | by_value | st.lists(by_id | by_value, max_size=3)
nested = st.builds(m.Filter, must_not=conditions)
filters = st.builds(m.Filter, must=conditions, must_not=conditions | st.lists(by_id | nested), should=conditions)


@given(st.none() | filters)
def test_both_masks_agree(payload_filter: m.Filter | None) -> None:
    quick = mask(PAYLOADS, payload_filter, IDS, NO_VECTORS)
    own = calculate_payload_mask(PAYLOADS, payload_filter, IDS, NO_VECTORS)
    assert quick.tolist() == own.tolist()
