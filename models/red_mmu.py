"""RED-MMU (RED-Rec's data, PAPERS "RED-MMU on disk") as events and items, a batch of users or notes at a time.

multiscene_lastn: a user's `homefeed_list` (scenario feed) and `ads_list` (discovery), lists of structs with `note_idx`,
oldest first. The public description names no other field; where there are some, the time is `timestamp` or `ts` (in
seconds or ms) and the action comes from flags like `is_like`, as in the authors' loader; without a flag it is a click.
Without time the events of a list are a second apart and both lists of a user end together (`UNTIMED`).

note_embeddings: `note_feature` is the item's image vector. An item's id is its `note_idx`, so no table from one id to
the other is held in memory; `note_id` keeps the encrypted one.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
from numpy.typing import NDArray

from models.errors import BadInput
from models.tables import EARLIEST_MS, INTEGER, LATEST_MS, STRING, STRUCTS, VECTOR, Batch, batches, schema

LISTS = {"homefeed_list": "feed", "ads_list": "discovery"}
USERS = {"encrypted_user_id": STRING, **dict.fromkeys(LISTS, STRUCTS)}
NOTES = {"note_idx": INTEGER, "encrypted_note_id": STRING, "note_feature": VECTOR}
BATCH_USERS = 1_024  # of some hundred events each
TIMES = ("timestamp", "ts")
FLAGS = {"like": "like", "follow": "follow", "collect": "save", "comment": "comment", "share": "share", "hide": "hide"}
NEWEST_MS = 1_748_736_000_000  # 2025-06-01, of every list without times
UNTIMED = "there are no times in the lists: events are a second apart in their list's order, both lists end together"


def timed(path: Path) -> bool:
    """Whether the lists in a multiscene_lastn file say when."""
    lists = [column.type.value_type for column in schema(path) if column.name in LISTS and column.type.num_fields]
    return any(struct.get_field_index(name) >= 0 for struct in lists if pa.types.is_struct(struct) for name in TIMES)


def read_users(paths: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """The events in multiscene_lastn files: user_id, item_id, ts, scenario, action."""
    for path in paths:
        for batch in batches(path, USERS, required=tuple(USERS), full=("encrypted_user_id",), size=BATCH_USERS):
            for column, scenario in LISTS.items():
                yield from _events(batch, column, scenario)


def read_notes(paths: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """The items in note_embeddings files: item_id, note_id, image."""
    for path in paths:
        for batch in batches(path, NOTES, required=("note_idx", "note_feature"), full=("note_idx",)):
            yield pa.record_batch(
                {
                    "item_id": batch.rows.column("note_idx").cast(pa.string()),
                    "note_id": pa.array(batch.texts("encrypted_note_id"), pa.string()),
                    "image": batch.rows.column("note_feature").cast(pa.list_(pa.float32())),
                }
            )


def _events(batch: Batch, column: str, scenario: str) -> Iterator[pa.RecordBatch]:
    lists = batch.rows.column(column)
    events = compute.list_flatten(lists)
    if not len(events):
        return
    owner = compute.list_parent_indices(lists).to_numpy().astype(np.int64)
    number = _field(events, ("note_idx",))
    if number is None:
        raise BadInput(f"{batch.path}: the structs in {column} have no note_idx; they are {events.type}")
    if number.null_count:
        raise batch.bad(column, _rows(batch, owner, number.is_null()), "has an event without note_idx")
    yield pa.record_batch(
        {
            "user_id": batch.rows.column("encrypted_user_id").take(pa.array(owner)).cast(pa.string()),
            "item_id": number.cast(pa.string()),
            "ts": pa.array(_times(batch, column, events, owner)),
            "scenario": pa.array([scenario] * len(owner)),
            "action": pa.array(_actions(events)),
        }
    )


def _times(batch: Batch, column: str, events: pa.StructArray, owner: NDArray[np.int64]) -> NDArray[np.int64]:
    field = _field(events, TIMES)
    if field is None:
        ends = np.bincount(owner, minlength=len(batch)).cumsum()
        return NEWEST_MS - 1_000 * (ends[owner] - 1 - np.arange(len(owner)))
    times: NDArray[np.int64] = field.cast(pa.int64()).fill_null(0).to_numpy()
    times = np.where(times < LATEST_MS // 1_000, times * 1_000, times)
    outside = (times < EARLIEST_MS) | (times >= LATEST_MS)
    if outside.any():
        raise batch.bad(column, _rows(batch, owner, outside), "has an event whose time is not between 1990 and 2100")
    return times


def _actions(events: pa.StructArray) -> NDArray[np.str_]:
    """The strongest action whose flag is set: the later in FLAGS."""
    actions = np.full(len(events), "click", dtype="<U8")
    for flag, action in FLAGS.items():
        field = _field(events, (f"is_{flag}",))
        if field is not None:
            actions[field.cast(pa.int8()).fill_null(0).to_numpy() > 0] = action
    return actions


def _field(events: pa.StructArray, names: tuple[str, ...]) -> pa.Array | None:
    """The first field that is there; null where the struct is."""
    there = [name for name in names if events.type.get_field_index(name) >= 0]
    return compute.struct_field(events, there[0]) if there else None


def _rows(batch: Batch, owner: NDArray[np.int64], wrong: NDArray[np.bool_] | pa.Array) -> NDArray[np.bool_]:
    """The users of the `wrong` events."""
    return np.isin(np.arange(len(batch)), owner[np.asarray(wrong)])
