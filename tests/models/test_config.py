"""Settings of a training run: presets, `name=value`, and what is refused."""

from dataclasses import asdict, fields

import pytest

from models.config import PRESETS, Training, configured
from models.errors import BadInput


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_whole_configuration(preset: str) -> None:
    config = configured(preset, (), seed=3)
    assert asdict(config) == asdict(Training()) | PRESETS[preset] | {"seed": 3}


def test_settings_stand_above_the_preset_and_that_above_the_base() -> None:
    base = Training(dim=16, rate=0.5, epochs=9)
    config = configured("quick", ("rate=0.25", "split=time", "llm=a=b"), base, seed=1)
    assert config == Training(
        dim=16, rate=0.25, epochs=4, rounds=1, least_steps=1, code_epochs=1, split="time", llm="a=b", seed=1
    )
    assert configured("default", ("seed=7",), seed=0).seed == 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "--set epochs: give name=value with a name of split, length,"),
        ("colour=red", "--set colour=red: give name=value"),
        ("epochs=many", "epochs=many: must be of type int"),
        ("epochs=1.5", "epochs=1.5: must be of type int"),
        ("epochs=0", "epochs=0: must be at least 1"),
        ("length=1", "length=1: a stretch needs two events"),
        ("rate=nan", "rate=nan: must be a finite number"),
        ("rate=-1", "rate=-1.0: must be a finite number"),
        ("rate=inf", "rate=inf: must be a finite number"),
        ("dropout=1", "dropout=1.0: is a share and must be below 1"),
        ("split=random", "split=random: choose one of leave-one-out, time, newest-hours"),
        ("precision=fp16", "precision=fp16: choose one of no, bf16"),
        ("interests=11", "interests=11: at most 10 can be matched exactly"),
        ("clip=0", "clip=0.0: gradients of length 0 learn nothing"),
        ("rounds=10", "rounds=10: at most 9, as each is twice as long"),
        ("width=10", "width=10: its 2 heads need a multiple of 4"),
        ("threads=100000000", "threads=100000000: at most 1024"),
        ("codewords=3", "codewords=3: must be a power of two"),
        ("codewords=1", "codewords=1: must be a power of two"),
        ("levels=9", "levels, codewords and scale_bits make codes of 126 bits; a record has 32"),
        ("scale_bits=5", "levels, codewords and scale_bits make codes of 38 bits"),
        ("llm_hidden=12", "llm_hidden=12: its 4 heads need a multiple of 8"),
    ],
)
def test_what_cannot_be_is_one_sentence(setting: str, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        configured("default", (setting,))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_no_branch_and_no_preset_are_refused() -> None:
    with pytest.raises(BadInput, match="at least one branch is needed"):
        configured("sasrec", ("light_view=none",))
    with pytest.raises(BadInput, match="there is no preset 'best'; there are default, sasrec"):
        configured("best", ())


def test_the_least_of_every_number_is_allowed() -> None:
    least = {"epochs": 1, "code_epochs": 0, "seed": 0, "text_steps": 0, "scale_bits": 0, "rate": 0.0, "dropout": 0.0}
    config = configured("default", tuple(f"{name}={value}" for name, value in least.items()))
    assert {name: getattr(config, name) for name in least} == least
    assert {field.type for field in fields(Training)} >= {int, float, str}
