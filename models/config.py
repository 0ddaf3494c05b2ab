"""Every choice of a training run, with its unit; `facetstream train --set name=value` changes one."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

from models.errors import BadInput

CODE_BITS = 32  # of a history record, at most
MOST_THREADS = 1_024
Kind = Literal["text", "id", "both", "none"]


@dataclass(frozen=True)
class Training:
    """The defaults are meant for any dataset; what a set has not (texts) is left out by itself."""

    # data
    split: Literal["leave-one-out", "time", "newest-hours"] = "leave-one-out"
    length: int = 256  # events of a training stretch, and of a history in validation
    questions: int = 4_000  # of validation, drawn once
    # items
    text_model: str = ""  # folder or hub name of any encoder or decoder; none: a small one trained on the spot
    max_tokens: int = 96  # of a text
    light_view: Kind = "id"  # what the light branch knows of an item; "none" leaves the branch out
    llm_view: Kind = "both"
    dim: int = 64  # components of a view
    id_start: Literal["cooccurrence", "random"] = "cooccurrence"  # where the vectors of ids begin
    hidden_ids: float = 0.1  # share of items whose id is not added to their text in a step
    # codebook: a code is at most 4 bytes
    levels: int = 2
    codewords: int = 16_384  # per level; fewer where the catalogue cannot fill them
    scale_bits: int = 0  # per level
    codebook_version: int = 0  # 1..65535; 0: from its content
    # user tower
    interests: int = 4  # K, per scenario
    spread: float = 0.0  # how far the interests answered are moved apart; 0: as validation bears, 1: not at all
    light: Literal["sasrec", "comirec"] = "sasrec"
    light_reads: Literal["all", "own", "best"] = "best"  # events, to answer for a scenario: of all, its own; the better
    width: int = 64  # of the light branch
    layers: int = 2
    heads: int = 2
    llm: str = ""  # folder or hub name of any causal LLM; none: a small Llama trained from scratch
    llm_hidden: int = 64
    llm_layers: int = 2
    llm_heads: int = 4
    recent: int = 64  # events that the LLM reads, shared out to scenarios
    dropout: float = 0.5  # of the light branch; the LLM has .6 of it
    # loss
    cuts: int = 2  # of a stretch, where the LLM's queries are asked
    window: int = 10  # W, future items of each scenario
    draws: int = 4_096  # items that stand for all
    share_window: float = 0.3
    share_weights: float = 0.1
    # optimiser
    epochs: int = 10  # of the first round
    rounds: int = 2  # each twice as long as the one before, for as long as its last epochs are the best
    least_steps: int = 750  # a small dataset is read more often than `epochs`
    code_epochs: int = 2  # after those, with histories read through codes and item vectors frozen
    patience: int = 6  # epochs without a better validation after which a phase or a round ends
    tokens: int = 2_048  # events of a batch
    accumulate: int = 1  # batches of a step
    rate: float = 1e-3
    warmup: float = 0.1  # share of the steps
    decay: float = 0.01
    clip: float = 1.0
    precision: Literal["no", "bf16"] = "no"
    text_steps: int = 300  # of the small text encoder
    threads: int = 1  # of each process
    seed: int = 0


# One branch over ids, nothing but next items, exact histories; ids begin as ours do, which is worth most to a baseline.
BASELINE: dict[str, Any] = {
    "llm_view": "none",
    "light_reads": "all",
    "share_window": 0.0,
    "share_weights": 0.0,
    "spread": 1.0,
    "epochs": 15,
    "code_epochs": 0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "sasrec": BASELINE | {"interests": 1},
    "comirec": BASELINE | {"light": "comirec"},
    "light": {"llm_view": "none"},
    "llm": {"light_view": "none"},
    "cold": {"light_view": "text", "llm_view": "text", "dim": 32},  # items that come are new to the model
    "quick": {"epochs": 4, "rounds": 1, "least_steps": 1, "code_epochs": 1},
}


def configured(preset: str, settings: tuple[str, ...], base: Training | None = None, **given: Any) -> Training:
    """`base`, a preset, what is `given` and `name=value` settings, each on top of those before. Raises `BadInput` for
    what is not there or not of its type."""
    if preset not in PRESETS:
        raise BadInput(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    known = {field.name: field.type for field in fields(Training)}
    values = PRESETS[preset] | given
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise BadInput(f"--set {setting}: give name=value with a name of {', '.join(known)}")
        values[name] = _value(name, text, known[name])
    config = replace(base or Training(), **values)
    _refuse(config)
    return config


def _value(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise BadInput(f"{name}={text}: choose one of {', '.join(get_args(kind))}")
        return text
    try:
        return kind(text)
    except ValueError:
        raise BadInput(f"{name}={text}: must be of type {kind.__name__}") from None


def _refuse(config: Training) -> None:
    least = {
        "patience": 1,
        "codebook_version": 0,
        "epochs": 1,
        "code_epochs": 0,
        "seed": 0,
        "text_steps": 0,
        "scale_bits": 0,
    }
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and value < (bound := least.get(field.name, 1)):
            raise BadInput(f"{field.name}={value}: must be at least {bound}")
        if field.type is float and not 0 <= value < float("inf"):
            raise BadInput(f"{field.name}={value}: must be a finite number of at least 0")
    if not config.clip:
        raise BadInput("clip=0.0: gradients of length 0 learn nothing; give a larger one")
    for name in ("hidden_ids", "dropout", "warmup"):
        if getattr(config, name) >= 1:
            raise BadInput(f"{name}={getattr(config, name)}: is a share and must be below 1")
    if config.light_view == config.llm_view == "none":
        raise BadInput("light_view and llm_view are both none: at least one branch is needed")
    if config.interests > 10:
        raise BadInput(f"interests={config.interests}: at most 10 can be matched exactly")
    if config.rounds > 9:
        raise BadInput(f"rounds={config.rounds}: at most 9, as each is twice as long as the one before")
    for name, heads in (("width", config.heads), ("llm_hidden", config.llm_heads)):
        if (size := getattr(config, name)) % (2 * heads):
            raise BadInput(f"{name}={size}: its {heads} heads need a multiple of {2 * heads} for rotary positions")
    if config.threads > MOST_THREADS:
        raise BadInput(f"threads={config.threads}: at most {MOST_THREADS}")
    if config.codewords & (config.codewords - 1) or config.codewords < 2:
        raise BadInput(f"codewords={config.codewords}: must be a power of two, as 256 or 16384")
    bits = config.levels * (config.codewords.bit_length() - 1 + config.scale_bits)
    if bits > CODE_BITS:
        raise BadInput(f"levels, codewords and scale_bits make codes of {bits} bits; a record has {CODE_BITS}")
    if config.length < 2:
        raise BadInput(f"length={config.length}: a stretch needs two events")
