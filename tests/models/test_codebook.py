"""The residual codebook's invariants, as PAPERS.md states them."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from models import codebook, kmeans
from models.bits import pack, packed_bytes, unpack
from models.codebook import FILE, CodebookConfig, ResidualCodebook
from models.errors import BadInput
from models.kmeans import balanced_assign, balanced_kmeans

VECTORS = st.builds(
    lambda seed, n: torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)),
    st.integers(0, 2**32),
    st.integers(1, 40),
)


@pytest.fixture(scope="module")
def book() -> ResidualCodebook:
    vectors = F.normalize(torch.randn(600, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    return ResidualCodebook.fit(vectors, CodebookConfig(dim=16, levels=4, codewords=32), iterations=5)


@given(vectors=VECTORS)
@settings(max_examples=50, deadline=None)
def test_residual_is_orthogonal_to_the_chosen_codeword(book: ResidualCodebook, vectors: torch.Tensor) -> None:
    parts = book.decompose(vectors)
    for level in range(book.config.levels):
        chosen = book.codewords[level, parts.indices[:, level]]
        assert (parts.residuals[:, level + 1] * chosen).sum(-1).abs().max() < 1e-4


@given(vectors=VECTORS)
@settings(max_examples=50, deadline=None)
def test_pythagoras_and_error_never_grows_with_depth(book: ResidualCodebook, vectors: torch.Tensor) -> None:
    parts = book.decompose(vectors)
    left = parts.residuals.square().sum(-1)
    torch.testing.assert_close(left[:, :-1], parts.scales.square() + left[:, 1:], rtol=1e-4, atol=1e-5)
    assert (left[:, 1:] <= left[:, :-1] + 1e-5).all()


@given(vectors=VECTORS)
@settings(max_examples=50, deadline=None)
def test_the_chosen_codeword_has_the_largest_cosine(book: ResidualCodebook, vectors: torch.Tensor) -> None:
    parts = book.decompose(vectors)
    for level in range(book.config.levels):
        cosines = F.cosine_similarity(parts.residuals[:, level, None], book.codewords[level][None], dim=-1)
        chosen = cosines.gather(1, parts.indices[:, level, None])[:, 0]
        assert (chosen >= cosines.max(dim=1).values - 1e-5).all()


@given(vectors=VECTORS)
@settings(max_examples=50, deadline=None)
def test_codes_are_opaque_bytes_that_decode_alike_every_time(book: ResidualCodebook, vectors: torch.Tensor) -> None:
    codes = book.encode(vectors)
    assert codes.dtype == torch.uint8
    assert codes.shape == (len(vectors), book.config.code_bytes)
    decoded = book.decode(codes)
    assert torch.equal(decoded, book.decode(codes.clone()))
    assert torch.equal(codes, torch.cat([book.encode(row[None]) for row in vectors]))
    torch.testing.assert_close(decoded.norm(dim=-1), torch.ones(len(vectors)))


def test_any_bytes_decode_to_finite_unit_vectors(book: ResidualCodebook) -> None:
    codes = torch.randint(0, 256, (3, 50, book.config.code_bytes), dtype=torch.uint8)
    decoded = book.decode(codes)
    assert decoded.shape == (3, 50, 16)
    assert decoded.isfinite().all()


@given(
    widths=st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(lambda w: sum(w) > 0),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_packing_round_trip(widths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.stack([torch.randint(0, 2**width, (7,), generator=generator) for width in widths], dim=1)
    packed = pack(numbers, widths)
    assert packed.shape == (7, packed_bytes(widths))
    assert torch.equal(unpack(packed, widths), numbers)


@given(n=st.integers(1, 300), k=st.integers(1, 20), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_clusters_are_balanced_within_one(n: int, k: int, seed: int) -> None:
    scores = torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) + 3 * torch.eye(k)[0]
    sizes = balanced_assign(scores).bincount(minlength=k)
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1


def test_kmeans_finds_planted_clusters() -> None:
    generator = torch.Generator().manual_seed(3)
    centres = F.normalize(torch.randn(8, 16, generator=generator), dim=-1)
    points = centres.repeat(30, 1) + 0.05 * torch.randn(240, 16, generator=generator)
    found = balanced_kmeans(points, 8, generator, iterations=30)
    assert (F.normalize(points, dim=-1) @ found.T).max(dim=1).values.mean() > 0.9


def test_clusters_of_clusters_are_about_as_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as cannot be found at once."""
    points = _unit(3_000)

    def nearest() -> float:
        found = balanced_kmeans(points, 64, torch.Generator().manual_seed(3), iterations=8)
        assert found.shape == (64, 16)
        return float((points @ found.T).amax(dim=1).mean())

    at_once, sizes = nearest(), list[int]()
    usual = kmeans.balanced_assign
    monkeypatch.setattr(kmeans, "balanced_assign", lambda scores: sizes.append(scores.shape[1]) or usual(scores))
    monkeypatch.setattr(kmeans, "MOST_AT_ONCE", 8)
    assert nearest() > 0.98 * at_once
    assert set(sizes) == {8}, "8 clusters, and 8 in each"


def test_a_small_cluster_of_many_fills_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "MOST_AT_ONCE", 8)
    points = _unit(64)
    found = balanced_kmeans(points, 64, torch.Generator().manual_seed(3), iterations=8)
    assert (points @ found.T).amax(dim=1).min() > 0.999, "as many centroids as vectors: each is one"


def test_depth_and_stored_scales_bring_the_decoded_vector_nearer() -> None:
    vectors = F.normalize(torch.randn(1_000, 16, generator=torch.Generator().manual_seed(5)), dim=-1)

    def fidelity(levels: int, scale_bits: int) -> float:
        config = CodebookConfig(dim=16, levels=levels, codewords=32, scale_bits=scale_bits)
        return float(ResidualCodebook.fit(vectors, config, iterations=5).fidelity(vectors).mean())

    assert fidelity(1, 0) < fidelity(2, 0) < fidelity(3, 0) < fidelity(3, 3)


def test_same_seed_same_codebook_and_saved_one_is_the_same(book: ResidualCodebook, tmp_path) -> None:
    vectors = F.normalize(torch.randn(600, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    again = ResidualCodebook.fit(vectors, book.config, iterations=5)
    assert torch.equal(book.codewords, again.codewords)
    again.save(tmp_path)
    loaded = ResidualCodebook.load(tmp_path)
    assert loaded.config == book.config
    assert torch.equal(loaded.decode(book.encode(vectors)), book.decode(book.encode(vectors)))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def _unit(n: int, seed: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_beam_decodes_nearer_than_the_greedy_choice(book: ResidualCodebook, seed: int) -> None:
    vectors = _unit(40, seed)
    parts = book.decompose(vectors)
    greedy = pack(torch.cat([parts.indices, torch.zeros_like(parts.indices)], dim=1), book.config.widths)
    assert book.fidelity(vectors).mean() > F.cosine_similarity(vectors, book.decode(greedy), dim=-1).mean()


@pytest.mark.parametrize("scale_bits", [0, 2])
def test_refinement_brings_the_decoded_vectors_nearer(scale_bits: int) -> None:
    vectors = _unit(2_000)
    config = CodebookConfig(dim=16, levels=3, codewords=32, scale_bits=scale_bits)
    found = [ResidualCodebook.fit(vectors, config, 5, refinements=n).fidelity(vectors).mean().item() for n in range(3)]
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.005
    book = ResidualCodebook.fit(vectors, config, 5)
    torch.testing.assert_close(book.codewords.norm(dim=-1), torch.ones(3, 32))


def test_fewer_choices_are_followed_of_more_codewords() -> None:
    beams = {k: ResidualCodebook(CodebookConfig(dim=2, codewords=k)).beam for k in (256, 4_096, 8_192, 16_384, 65_536)}
    assert beams == {256: 8, 4_096: 8, 8_192: 4, 16_384: 2, 65_536: 2}


def test_lengths_do_not_count(book: ResidualCodebook) -> None:
    vectors = _unit(200)
    assert torch.equal(book.encode(vectors), book.encode(vectors * 4))
    assert torch.equal(
        ResidualCodebook.fit(vectors, book.config).codewords, book.fit(vectors * 4, book.config).codewords
    )


def test_many_vectors_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "FIT_ROWS", 100)
    monkeypatch.setattr(codebook, "FIT_ROWS_PER_CODEWORD", 25)
    seen = []
    kmeans = codebook.balanced_kmeans
    monkeypatch.setattr(
        codebook, "balanced_kmeans", lambda points, *rest: seen.append(len(points)) or kmeans(points, *rest)
    )
    for codewords in (2, 8):
        ResidualCodebook.fit(_unit(500), CodebookConfig(dim=16, levels=1, codewords=codewords))
    assert seen == [100, 200]


def test_the_report_says_what_is_kept_used_and_taken(book: ResidualCodebook) -> None:
    vectors = _unit(500)
    report = book.report(vectors)
    fidelity = book.fidelity(vectors)
    assert report["cosine_mean"] == pytest.approx(fidelity.mean().item())
    assert report["cosine_p5"] == pytest.approx(fidelity.quantile(0.05).item(), abs=0.01)
    assert report["cosine_p5"] < report["cosine_mean"]
    assert (report["code_bytes"], report["times_smaller"]) == (3, pytest.approx(64 / 3))
    assert all(16 < perplexity <= 32 for perplexity in report["perplexity"])
    one = book.report(vectors[:1].repeat(9, 1))
    assert one["perplexity"] == pytest.approx([1.0] * 4)


@given(items=st.integers(0, 10**7))
def test_a_small_catalogue_gets_as_many_codewords_as_it_can_fill(items: int) -> None:
    config = CodebookConfig(codewords=1_024)
    fitting = config.for_items(items)
    assert 2 <= fitting.codewords <= 1_024
    assert fitting.codewords <= max(2, items // 2)
    assert (items < 4) or fitting.codewords == 1_024 or fitting.codewords * 2 > items // 2


def test_what_cannot_be_a_codebook_is_refused() -> None:
    with pytest.raises(BadInput, match="10 items cannot fill 16 codewords; set codewords to 4 or less"):
        ResidualCodebook.fit(torch.randn(10, 16), CodebookConfig(dim=16, codewords=16))
    with pytest.raises(BadInput, match="1 items cannot fill 2 codewords; a codebook needs at least 2"):
        ResidualCodebook.fit(torch.randn(1, 16), CodebookConfig(dim=16, codewords=2))
    with pytest.raises(BadInput, match="codewords must be a power of two, not 100"):
        CodebookConfig(codewords=100)
    with pytest.raises(BadInput, match="0 levels"):
        CodebookConfig(levels=0)
    with pytest.raises(BadInput, match="version 0 is not between"):
        CodebookConfig(version=0)


@given(vectors=VECTORS)
@settings(max_examples=20, deadline=None)
def test_a_shortened_codebook_is_the_first_levels(book: ResidualCodebook, vectors: torch.Tensor) -> None:
    short, parts = book.shortened(2), book.decompose(vectors)
    torch.testing.assert_close(short.decompose(vectors).residuals, parts.residuals[:, :3])
    assert short.config.code_bytes < book.config.code_bytes
    torch.testing.assert_close(book.shortened(4).decode(book.encode(vectors)), book.decode(book.encode(vectors)))
