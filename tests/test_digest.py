"""The digest: of all histories, every byte of them, and nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import cli
from stream.adapters import redis_connection
from stream.adapters.memory_stores import MemoryHistories
from stream.adapters.redis import RedisRegistry, history_key
from stream.digest import Digest, digest
from stream.events import OLDEST_MS
from stream.history import History, Record, encode
from stream.settings import load, variable
from stream.stores import Codebook

packed = st.dictionaries(st.text(max_size=3), st.binary(max_size=5), max_size=8)
Pages = Sequence[Sequence[tuple[str, bytes]]]


@dataclass
class Shown(MemoryHistories):
    """A store that shows what it holds in some order, some of it twice."""

    pages: Pages = ()

    async def scan(self) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
        for page in self.pages:
            yield page


def of(pages: Pages) -> Digest:
    return asyncio.run(digest(Shown(4, 1, pages=pages)))


@given(histories=packed, data=st.data())
def test_neither_order_nor_repetition_counts(histories: dict[str, bytes], data: st.DataObject) -> None:
    pairs = list(histories.items())
    again = data.draw(st.lists(st.sampled_from(pairs), max_size=3)) if pairs else []
    shuffled = data.draw(st.permutations(pairs + again))
    assert of([pairs]) == of([[pair] for pair in shuffled])


@given(one=packed, other=packed)
def test_other_histories_have_another_digest(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (of([list(one.items())]) == of([list(other.items())])) == (one == other)


def history(*codes: bytes | None) -> bytes:
    records = tuple(Record(OLDEST_MS + n, 1, 1, n, code) for n, code in enumerate(codes))
    version = sum(1 if code is None else 2 for code in codes)
    return encode(History(4, 1, version + 2, {}, records))  # and one event that was trimmed


def test_what_it_says() -> None:
    found = of([[("u", history(b"abcd", None)), ("v", history())], [("w", b"\x07of a format to come")]])
    assert (found.users, found.events, found.unreadable) == (3, 4, 1)
    assert of([[("u", b"x")]]).hash == blake2b(b"\0\0\0\x01ux", digest_size=32).hexdigest()
    assert of([]) == Digest(0, 0, 0, "0" * 64)


def test_the_command_sees_one_byte(
    redis_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable("redis_url"), "redis://127.0.0.1:1")
    assert cli.run(["digest", "--redis", redis_db]) == 2
    assert "provision" in capsys.readouterr().err
    data = history(b"abcd", b"efgh")
    asyncio.run(fill(redis_db, {f"u{n}": data for n in range(1_000)}))
    assert cli.run(["digest", "--redis", redis_db, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    expected = of([[(f"u{n}", data) for n in range(1_000)]])
    assert before == {"users": 1_000, "events": 3_000, "unreadable": 0, "dirty": 0, "hash": expected.hash}
    asyncio.run(fill(redis_db, {"u500": data[:-1] + bytes([data[-1] ^ 1])}))
    monkeypatch.setenv(variable("redis_url"), redis_db)
    assert cli.run(["digest"]) == 0
    after = capsys.readouterr().out
    assert before["hash"] not in after
    assert "(1,000 users, 3,000 events)\n0 users are dirty\n" in after


async def fill(url: str, packed: dict[str, bytes]) -> None:
    client = redis_connection.connect(url, load())
    await RedisRegistry(client).put_codebook(Codebook(1, 4, b"file"))
    for user, data in packed.items():
        await client.set(history_key(user), data)

    await client.aclose()
