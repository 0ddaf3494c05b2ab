"""Raw files of public datasets, in miniature and in their real layout, become dataset folders."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from models import dataset, red_mmu, sources
from models.dataset import Behaviour
from models.errors import BadInput
from stream import cli
from tests.models.test_dataset import told

SECOND = 978_300_760
Output = pytest.CaptureFixture[str]


def converted(tmp_path: Path, source: str, path: Path, **options: Any) -> Behaviour:
    sources.convert(source, path, tmp_path / "out", **options)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")) == ["out"]
    return dataset.read(tmp_path / "out")


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    raw = tmp_path / "ml-1m"
    raw.mkdir()
    (raw / "ratings.dat").write_text(f"1::20::5::{SECOND}\n1::10::3::{SECOND - 1}\r\n\n2::20::1::{SECOND}\n")
    films = "10::Misérables, Les (1995)::Drama|Musical\n20::Heat (1995)::Action\n30::Unseen (2000)::Drama\n"
    (raw / "movies.dat").write_bytes(films.encode("latin-1"))
    return raw


def test_movielens_1m(tmp_path: Path, movielens: Path) -> None:
    data = converted(tmp_path, "movielens-1m", movielens, scenario="discovery")
    assert told(data) == [
        ("1", "10", (SECOND - 1) * 1000, "discovery", "rate"),
        ("1", "20", SECOND * 1000, "discovery", "rate"),
        ("2", "20", SECOND * 1000, "discovery", "rate"),
    ]
    assert data.item_ids == ["10", "20", "30"]
    assert data.texts == ["Misérables, Les (1995) Drama Musical", "Heat (1995) Action", "Unseen (2000) Drama"]
    assert data.categories == ["Drama", "Action", "Drama"]
    events = parquet.read_table(tmp_path / "out" / "events.parquet")
    assert events["item_id"].to_pylist() == ["20", "10", "20"]  # as in the file


def test_movielens_100k(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n")
    flags = [[0] * 19, [0] * 19]
    flags[0][5] = flags[0][14] = flags[1][0] = 1
    rows = ["242|Kolya (1996)|24-Jan-1997||http://us.imdb.com/M|", "267|unknown||||"]
    lines = [row + "|".join(map(str, mine)) for row, mine in zip(rows, flags, strict=True)]
    (tmp_path / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    data = converted(tmp_path, "movielens-100k", tmp_path)
    assert told(data) == [("196", "242", 881250949000, "feed", "rate")]
    assert data.texts == ["Kolya (1996) Comedy Romance", "unknown unknown"]


REVIEWS = {
    "2014": {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1_353_456_000},
    "2018": {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1_353_456_000, "vote": "2"},
    "2023": {"user_id": "A1", "asin": "B0", "parent_asin": "B1", "rating": 5.0, "timestamp": 1_353_456_000_000},
}
PRODUCTS = {
    "2014": {"asin": "B1", "title": "Tom &amp; Co's soap", "categories": [["Beauty", "Bath", "Soap"]]},
    "2018": {"asin": "B1", "title": "Tom &amp; Co's soap", "category": ["Beauty", "Bath", "Soap"]},
    "2023": {"parent_asin": "B1", "title": "Tom & Co's soap", "main_category": "Bath", "categories": []},
}


@pytest.mark.parametrize("year", REVIEWS)
@pytest.mark.parametrize("packed", [False, True])
def test_amazon(tmp_path: Path, year: str, packed: bool) -> None:
    write = gzip.compress if packed else bytes
    suffix = ".json.gz" if packed else ".json"
    reviews, products = tmp_path / f"reviews{suffix}", tmp_path / f"meta{suffix}"
    reviews.write_bytes(write(json.dumps(REVIEWS[year]).encode()))
    dump = repr if year == "2014" else json.dumps  # the metadata of 2014 is Python, not JSON
    products.write_bytes(write("\n".join([dump(PRODUCTS[year]), dump({"asin": "B2"})]).encode()))
    data = converted(tmp_path, "amazon", reviews, metadata=products)
    assert told(data) == [("A1", "B1", 1_353_456_000_000, "feed", "rate")]
    assert data.texts == ["Tom & Co's soap Bath", ""]


def test_amazon_without_metadata(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_text(json.dumps(REVIEWS["2014"]))
    data = converted(tmp_path, "amazon", tmp_path / "reviews.json")
    assert data.texts == [""]
    assert not (tmp_path / "out" / "items.parquet").exists()


def test_items_that_repeat_or_have_no_events_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_text(json.dumps(REVIEWS["2014"]))
    products = [{"asin": name, "title": name + "!"} for name in ("B1", "B2", "B1", "B3")]
    (tmp_path / "meta.json").write_text("\n".join(map(json.dumps, products)))
    arguments = ("amazon", tmp_path / "reviews.json", tmp_path / "out")
    written = sources.convert(*arguments, metadata=tmp_path / "meta.json", only_seen=True)
    assert str(written) == "1 events and 1 items, 1 repeated items left out, 2 items without events left out"
    assert dataset.read(tmp_path / "out").texts == ["B1!"]


def red(folder: Path, fields: list[dict[str, Any]], ads: list[dict[str, Any]]) -> Path:
    (folder / "note_embeddings").mkdir(parents=True)
    notes = {"encrypted_note_id": ["n7", "n8"], "note_idx": [7, 8], "note_feature": [[0.5] * 64, [1.0] * 64]}
    parquet.write_table(pa.table(notes), folder / "note_embeddings" / "part-0.parquet")
    users = {"encrypted_user_id": ["u"], "user_idx": [0], "homefeed_list": [fields], "ads_list": [ads]}
    parquet.write_table(pa.table(users), folder / "multiscene_lastn_0.parquet")
    return folder


def test_red_mmu_without_times(tmp_path: Path) -> None:
    raw = red(tmp_path / "raw", [{"note_idx": 7}, {"note_idx": 9}, {"note_idx": 7}], [{"note_idx": 8}])
    written = sources.convert("red-mmu", raw, tmp_path / "out")
    assert written.note == red_mmu.UNTIMED
    data, end = dataset.read(tmp_path / "out"), red_mmu.NEWEST_MS
    assert told(data) == [
        ("u", "7", end - 2000, "feed", "click"),
        ("u", "9", end - 1000, "feed", "click"),
        ("u", "7", end, "feed", "click"),
        ("u", "8", end, "discovery", "click"),
    ]
    assert data.item_ids == ["7", "8", "9"]
    assert data.images is not None
    assert data.images[:, 63].tolist() == [0.5, 1, 0]


def test_red_mmu_with_times_and_flags(tmp_path: Path) -> None:
    feed = [{"note_idx": 7, "timestamp": SECOND, "is_like": 1, "is_share": 1}]
    feed += [{"note_idx": 8, "timestamp": SECOND + 5, "is_like": 0, "is_share": None}]
    raw = red(tmp_path / "raw", feed, [])
    assert sources.convert("red-mmu", raw, tmp_path / "out").note == ""
    found = [(item, time // 1000, action) for _, item, time, _, action in told(dataset.read(tmp_path / "out"))]
    assert found == [("7", SECOND, "share"), ("8", SECOND + 5, "click")]


def test_red_mmu_users_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [[{"note_idx": user * 10 + n} for n in range(user % 4)] for user in range(9)]
    users = {"encrypted_user_id": [f"u{n}" for n in range(9)], "homefeed_list": lists, "ads_list": [None] * 9}
    schema = pa.schema(
        [("encrypted_user_id", pa.string()), ("homefeed_list", pa.list_(pa.struct([("note_idx", "i8")])))]
    )
    schema = schema.append(pa.field("ads_list", schema.field("homefeed_list").type))
    parquet.write_table(pa.table(users, schema), tmp_path / "multiscene_lastn.parquet")
    monkeypatch.setattr(red_mmu, "BATCH_USERS", 2)
    data = converted(tmp_path, "red-mmu", tmp_path)
    expected = [
        (f"u{n}", str(n * 10 + k), red_mmu.NEWEST_MS - 1000 * (n % 4 - 1 - k)) for n in range(9) for k in range(n % 4)
    ]
    assert [row[:3] for row in told(data)] == expected


@pytest.mark.parametrize(
    ("source", "name", "text", "sentence"),
    [
        ("movielens-1m", "u.data", "", r"has no ratings\.dat; name the folder that holds ratings\.dat and movies\.dat"),
        ("movielens-1m", "ratings.dat", "1::2::3\n", r"ratings\.dat, line 1: has 3 fields parted by '::', not 4"),
        ("movielens-1m", "ratings.dat", "1::2::3::x\n", r"line 1: 'x' is no time in seconds or milliseconds"),
        ("movielens-1m", "ratings.dat", "1::2::3::12\n", r"line 1: the time 12 is not between 1990 and 2100"),
        ("movielens-1m", "ratings.dat", "", r"holds no events"),
        ("amazon", "r.json", '{"asin": "B"}', r"r\.json, line 1: there is no reviewerID and no user_id"),
        ("amazon", "r.json", "asin,user\n", r"r\.json, line 1: is neither a JSON object nor a Python one"),
        ("amazon", "r.json.gz", "{}", r"cannot read .*r\.json\.gz: Not a gzipped file"),
        ("red-mmu", "x.parquet", "", r"has no Parquet files of multiscene_lastn: name RED-MMU's folder"),
        ("red-mmu", "multiscene_lastn.parquet", "x", r"multiscene_lastn\.parquet cannot be read as Parquet"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_left(
    tmp_path: Path, source: str, name: str, text: str, sentence: str
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    if source == "movielens-1m":
        (raw / "movies.dat").write_text("")
    (raw / name).write_text(text)
    with pytest.raises(BadInput, match=sentence) as raised:
        sources.convert(source, raw / name if source == "amazon" else raw, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("structs", [[{"note": 7}], [{"note_idx": None}], [{"note_idx": 7, "ts": 5}]])
def test_mistakes_in_red_mmu(tmp_path: Path, structs: list[dict[str, Any]]) -> None:
    raw = red(tmp_path / "raw", [{"note_idx": 7, "ts": SECOND}], structs)
    with pytest.raises(BadInput, match=r"multiscene_lastn_0\.parquet.*ads_list"):
        sources.convert("red-mmu", raw, tmp_path / "out")


def test_the_command(tmp_path: Path, movielens: Path, capsys: Output) -> None:
    arguments = ["import", "--from", "movielens-1m", str(movielens), "--out", str(tmp_path / "new" / "out")]
    assert cli.run(arguments) == 0
    assert capsys.readouterr().out == f"3 events and 3 items in {tmp_path / 'new' / 'out'}\n"
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err == (
        f"facetstream: {tmp_path / 'new' / 'out'} is there already; name a new folder, or delete it first\n"
    )
    assert cli.run([*arguments[:-1], str(movielens / "ratings.dat" / "x")]) == 2
    assert cli.run([*arguments[:-1], str(tmp_path / "o"), "--items", "x"]) == 2
    assert "a file of items is for amazon" in capsys.readouterr().err


def test_a_missing_extra_is_one_sentence(movielens: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "models.sources")
    monkeypatch.delattr("models.sources", raising=False)
    assert cli.run(["import", "--from", "movielens-1m", str(movielens), "--out", "o"]) == 2
    assert capsys.readouterr().err == "facetstream: pyarrow is missing: pip install 'facetstream[models]'\n"
