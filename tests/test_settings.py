"""Settings: read from the environment, refused by name, documented."""

import pytest

from stream.errors import UserError
from stream.settings import PREFIX, Settings, load, masked, unknown, variable


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)


def test_defaults_need_nothing() -> None:
    settings = load()
    assert settings.kafka_url is None
    assert settings.partitions == 4


def test_the_environment_is_read_and_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACETSTREAM_PARTITIONS", "12")
    monkeypatch.setenv("FACETSTREAM_KAFKA_URL", "a:1,b:2")
    monkeypatch.setenv("FACETSTREAM_REDIS_URL", "")
    monkeypatch.setenv("KAFKA_HOME", "/opt/kafka")
    settings = load()
    assert (settings.partitions, settings.kafka_url, settings.redis_url) == (12, "a:1,b:2", None)
    assert str(settings.kafka_home) == "/opt/kafka"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("FACETSTREAM_KAFKA_ULR", "is FACETSTREAM_KAFKA_URL meant?"),
        ("FACETSTREAM_KAFKA_HOME", "is KAFKA_HOME meant?"),
        ("FACETSTREAM_REDIS", "is FACETSTREAM_REDIS_URL meant?"),
        ("FACETSTREAM_COLOUR", "see facetstream config"),
    ],
)
def test_a_variable_that_is_no_setting_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    monkeypatch.setenv(name, "1")
    load()
    assert capsys.readouterr() == ("", f"facetstream: {name} is no setting and does nothing: {says}\n")


def test_settings_and_the_variables_of_the_tests_are_known() -> None:
    ours = ["FACETSTREAM_TEST_KAFKA", "FACETSTREAM_REQUIRE", "facetstream_kafka_url", "PATH"]
    assert unknown([*ours, *map(variable, Settings.model_fields)]) == []


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().partitions = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("PARTITIONS", "0"),
        ("PARTITIONS", "many"),
        ("REFRESH_MIN_INTERVAL", "-1"),
        ("REFRESH_PRIORITY", "radio=1"),
        ("REFRESH_MAX_STALENESS", "0"),
        ("REFRESH_BACKLOG_RATE", "inf"),
        ("KAFKA_URL", "localhost"),
        ("KAFKA_URL", "a:1,b"),
        ("KAFKA_URL", "http://h:9092"),
        ("REDIS_URL", "http://h:1"),
        ("TRITON_URL", "http://h:1"),
        ("QDRANT_URL", "h:6333"),
        ("KAFKA_SECURITY", "TLS"),
        ("WEB_PORT", "70000"),
        ("HISTORY_LENGTH", "1e9"),
        ("MAX_EVENT_BYTES", "10"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, wrong: str) -> None:
    monkeypatch.setenv(PREFIX + name, wrong)
    with pytest.raises(UserError) as caught:
        load()
    assert str(caught.value).startswith(f"{PREFIX}{name}={wrong!r}: ")
    assert "\n" not in str(caught.value)


def test_two_wrong_values_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACETSTREAM_PARTITIONS", "0")
    monkeypatch.setenv("FACETSTREAM_REPLICATION", "0")
    with pytest.raises(UserError, match=r"FACETSTREAM_PARTITIONS.*FACETSTREAM_REPLICATION"):
        load()


def test_a_refused_url_keeps_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACETSTREAM_REDIS_URL", "http://me:s3cret@h:1")
    with pytest.raises(UserError) as caught:
        load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://me:s3@cr/et@h:6379/0", "redis://********@h:6379/0"),
        ("redis://:s3cret@h", "redis://********@h"),
        ("redis+cluster://me:s3cret@h:1,g:2", "redis+cluster://********@h:1,g:2"),
        ("me:s3cret@h:9092", "********@h:9092"),
        ("redis://h/0?db=1&password=s3cret", "redis://h/0?db=1&password=********"),
    ],
)
def test_masking(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stall_seconds", "nan"),
        ("sweep_interval", "inf"),
        ("refresh_min_interval", "inf"),
        ("kafka_url", "h:99999"),
        ("triton_url", "127.0.0.1:99999"),
        ("qdrant_url", "http://h:99999"),
        ("redis_url", "redis://h:70000/0"),
        ("retention_hours", "99999999999999999999"),
    ],
)
def test_values_that_no_service_could_use_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(UserError, match=variable(name)):
        load()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    if field.annotation is float:
        assert "seconds" in field.description
