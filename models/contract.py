"""What the served models promise the stream: names, dtypes and shapes of tensors. Torch-free: workers import it.

Scenarios and actions are stored as their position in these tuples: append, never reorder.
"""

from dataclasses import dataclass

SCENARIOS = ("search", "feed", "discovery")
ACTIONS = (
    "view",
    "click",
    "like",
    "save",
    "share",
    "comment",
    "follow",
    "cart",
    "purchase",
    "play",
    "finish",
    "rate",
    "skip",
    "hide",
    "dislike",
    "search",
)  # 16 at most: an action is four bits of a history record
DIM = 64  # what training makes of itself (PAPERS: RED-Rec's projection head); what is served says so in config.pbtxt

ITEM_ENCODER = "item_encoder"
USER_INTERESTS = "user_interests"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a served model; `shape` is without the batch axis, -1 is free."""

    name: str
    dtype: str  # Triton's name
    shape: tuple[int, ...]


# item_encoder: text, and the item's id where it is an item's (else empty: the model may know some items better than by
# their text), in; unit embedding [dim], its residual codes (packed bytes) and cos(embedding, decoded codes) out.
ITEM_ENCODER_INPUTS = (Tensor("TEXT", "BYTES", (1,)), Tensor("ITEM_ID", "BYTES", (1,)))
ITEM_ENCODER_OUTPUTS = (
    Tensor("EMBEDDING", "FP32", (-1,)),
    Tensor("CODES", "UINT8", (-1,)),
    Tensor("FIDELITY", "FP32", (1,)),
)

# user_interests: one row per event, in event-time order, oldest first, padded at the end with VALID = 0; a record
# whose codes are pending has VALID = 0 too. TIME is ms since the Unix epoch. KNOWN_COARSE is COARSE of an answer of the
# same version for a little less of the same history, which spares the model most of a long one; all else is looked at.
USER_INTERESTS_INPUTS = (
    Tensor("CODES", "UINT8", (-1, -1)),  # [events, code bytes]
    Tensor("TIME", "INT64", (-1,)),
    Tensor("SCENARIO", "UINT8", (-1,)),
    Tensor("ACTION", "UINT8", (-1,)),
    Tensor("VALID", "UINT8", (-1,)),
    Tensor("KNOWN_COARSE", "FP16", (-1,)),  # a single number, or any that is none: not known
)
# Unit vectors [scenario, K, dim] and, per scenario, weights [scenario, K] that are positive and sum to one.
USER_INTERESTS_OUTPUTS = (
    Tensor("INTERESTS", "FP32", (len(SCENARIOS), -1, -1)),
    Tensor("WEIGHTS", "FP32", (len(SCENARIOS), -1)),
    Tensor("COARSE", "FP16", (-1,)),
)

INPUTS = {ITEM_ENCODER: ITEM_ENCODER_INPUTS, USER_INTERESTS: USER_INTERESTS_INPUTS}
OUTPUTS = {ITEM_ENCODER: ITEM_ENCODER_OUTPUTS, USER_INTERESTS: USER_INTERESTS_OUTPUTS}
