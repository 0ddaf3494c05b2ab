"""The part of Qdrant's REST API that qdrant-client uses: method, path, body and what the engine does for each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qdrant_client.http import models

from stream.embedded.qdrant_engine import Engine

DEFAULT_LIMIT = 10  # of a scroll, query or facet that names none


class NotFoundError(Exception):
    """What the request names is not there."""


@dataclass(frozen=True)
class Call:
    """One request: what stands in the path, the parsed body."""

    collection: str = ""
    item: str = ""  # point id or field name
    body: Any = None


@dataclass(frozen=True)
class Route:
    """`answer` gives the envelope's `result`; an update's is a status."""

    method: str
    path: str
    answer: Callable[[Engine, Call], Any]
    body: Any = field(default=None)  # the type of the body, None when there is none


def _point(engine: Engine, call: Call) -> Any:
    found = engine.local.retrieve(call.collection, [int(call.item) if call.item.isdigit() else call.item], True, True)
    if not found:
        raise NotFoundError(f"Point with id {call.item} does not exists!")
    return found[0]


def _retrieve(engine: Engine, call: Call) -> Any:
    body: models.PointRequest = call.body
    return engine.local.retrieve(call.collection, body.ids, _or(body.with_payload, True), _or(body.with_vector, False))


def _upsert(engine: Engine, call: Call) -> Any:
    body: models.PointsList | models.PointsBatch = call.body
    points = body.points if isinstance(body, models.PointsList) else body.batch
    return engine.local.upsert(call.collection, points, body.update_filter, body.update_mode)


def _batch(engine: Engine, call: Call) -> Any:
    return engine.local.batch_update_points(call.collection, call.body.operations)


def _delete(engine: Engine, call: Call) -> Any:
    return engine.local.delete(call.collection, call.body)


def _set_payload(engine: Engine, call: Call) -> Any:
    body: models.SetPayload = call.body
    return engine.local.set_payload(call.collection, body.payload, _selector(body), body.key)


def _overwrite_payload(engine: Engine, call: Call) -> Any:
    return engine.local.overwrite_payload(call.collection, call.body.payload, _selector(call.body))


def _delete_payload(engine: Engine, call: Call) -> Any:
    return engine.local.delete_payload(call.collection, call.body.keys, _selector(call.body))


def _clear_payload(engine: Engine, call: Call) -> Any:
    return engine.local.clear_payload(call.collection, call.body)


def _update_vectors(engine: Engine, call: Call) -> Any:
    return engine.local.update_vectors(call.collection, call.body.points, call.body.update_filter)


def _delete_vectors(engine: Engine, call: Call) -> Any:
    return engine.local.delete_vectors(call.collection, call.body.vector, _selector(call.body))


def _scroll(engine: Engine, call: Call) -> Any:
    body: models.ScrollRequest = call.body
    points, following = engine.local.scroll(
        call.collection,
        scroll_filter=body.filter,
        limit=_or(body.limit, DEFAULT_LIMIT),
        order_by=body.order_by,
        offset=body.offset,
        with_payload=_or(body.with_payload, True),
        with_vectors=_or(body.with_vector, False),
    )
    return models.ScrollResult(points=points, next_page_offset=following)


def _count(engine: Engine, call: Call) -> Any:
    return engine.local.count(call.collection, call.body.filter)


def _facet(engine: Engine, call: Call) -> Any:
    body: models.FacetRequest = call.body
    return engine.local.facet(call.collection, body.key, body.filter, _or(body.limit, DEFAULT_LIMIT))


def _query(engine: Engine, call: Call) -> Any:
    return engine.local.query_batch_points(call.collection, [call.body])[0]


def _query_batch(engine: Engine, call: Call) -> Any:
    return engine.local.query_batch_points(call.collection, call.body.searches)


def _query_groups(engine: Engine, call: Call) -> Any:
    body: models.QueryGroupsRequest = call.body
    return engine.local.query_points_groups(
        call.collection,
        group_by=body.group_by,
        query=body.query,
        using=body.using,
        prefetch=body.prefetch,
        query_filter=body.filter,
        search_params=body.params,
        limit=_or(body.limit, DEFAULT_LIMIT),
        group_size=_or(body.group_size, 3),
        with_payload=_or(body.with_payload, False),
        with_vectors=_or(body.with_vector, False),
        score_threshold=body.score_threshold,
        with_lookup=body.with_lookup,
        lookup_from=body.lookup_from,
    )


def _update_collection(engine: Engine, call: Call) -> Any:
    body: models.UpdateCollection = call.body
    return engine.local.update_collection(call.collection, body.sparse_vectors, body.metadata, body.vectors)


def _selector(body: Any) -> Any:
    """Points by id, or by filter."""
    if body.points is None and body.filter is None:
        raise ValueError("No filter or points provided")
    return body.points if body.points is not None else body.filter


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


_ONE = "/collections/{collection}"
_POINTS = _ONE + "/points"

ROUTES = (
    Route("GET", "/collections", lambda engine, _: engine.local.get_collections()),
    Route("GET", "/aliases", lambda engine, _: engine.local.get_aliases()),
    Route(
        "POST",
        "/collections/aliases",
        lambda engine, call: engine.local.update_collection_aliases(call.body.actions),
        models.ChangeAliasesOperation,
    ),
    Route("GET", _ONE, lambda engine, call: engine.info(call.collection)),
    Route("PUT", _ONE, lambda engine, call: engine.create(call.collection, call.body), models.CreateCollection),
    Route("PATCH", _ONE, _update_collection, models.UpdateCollection),
    Route("DELETE", _ONE, lambda engine, call: engine.delete(call.collection)),
    Route("GET", _ONE + "/exists", lambda e, call: {"exists": e.local.collection_exists(call.collection)}),
    Route("GET", _ONE + "/aliases", lambda engine, call: engine.local.get_collection_aliases(call.collection)),
    Route(
        "PUT",
        _ONE + "/index",
        lambda e, call: e.create_index(call.collection, call.body.field_name, call.body.field_schema),
        models.CreateFieldIndex,
    ),
    Route("DELETE", _ONE + "/index/{item}", lambda engine, call: engine.delete_index(call.collection, call.item)),
    Route("PUT", _POINTS, _upsert, models.PointInsertOperations),
    Route("POST", _POINTS, _retrieve, models.PointRequest),
    Route("GET", _POINTS + "/{item}", _point),
    Route("POST", _POINTS + "/batch", _batch, models.UpdateOperations),
    Route("POST", _POINTS + "/delete", _delete, models.PointsSelector),
    Route("POST", _POINTS + "/payload", _set_payload, models.SetPayload),
    Route("PUT", _POINTS + "/payload", _overwrite_payload, models.SetPayload),
    Route("POST", _POINTS + "/payload/delete", _delete_payload, models.DeletePayload),
    Route("POST", _POINTS + "/payload/clear", _clear_payload, models.PointsSelector),
    Route("PUT", _POINTS + "/vectors", _update_vectors, models.UpdateVectors),
    Route("POST", _POINTS + "/vectors/delete", _delete_vectors, models.DeleteVectors),
    Route("POST", _POINTS + "/scroll", _scroll, models.ScrollRequest),
    Route("POST", _POINTS + "/count", _count, models.CountRequest),
    Route("POST", _POINTS + "/query", _query, models.QueryRequest),
    Route("POST", _POINTS + "/query/batch", _query_batch, models.QueryRequestBatch),
    Route("POST", _POINTS + "/query/groups", _query_groups, models.QueryGroupsRequest),
    Route("POST", _ONE + "/facet", _facet, models.FacetRequest),
)
