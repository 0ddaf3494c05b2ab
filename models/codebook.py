"""HyMiRec's residual codebook based on cosine similarity (arXiv:2510.13738, PAPERS "HyMiRec, codebook").

Level i holds K unit codewords c, fitted by balanced k-means on that level's residuals e_i:

    b_i = argmax_x cos(e_i, c_x)        s_i = e_i·c / |c|²        e_{i+1} = e_i - s_i c

so what is left is orthogonal to the codeword just used: |e_i|² = |s_i c|² + |e_{i+1}|². Storing s_i is our reading
(inferred): ê = Σ s_i c_{b_i}. By default no scale is stored and the mean scale of (level, codeword) stands in for it;
with `scale_bits` a code also says by which of 2**scale_bits ratios, per level, that mean is to be multiplied.

Ours, because decoded vectors come nearer by it at the same bytes: encoding follows the `beam` best choices per level
instead of the best one, and takes the one that decodes nearest; and after the levels are fitted one after another,
codewords and mean scales are refined together, by least squares for given codes (`_refine`).
"""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from models.bits import pack, packed_bytes, unpack
from models.errors import BadInput
from models.files import write_tensors
from models.kmeans import balanced_kmeans

FILE = "codebook.safetensors"
BEAM, LEAST_BEAM = 8, 2  # choices followed per level when encoding: fewer where the best of many codewords is near
BEAM_SCORES = 2**15  # choices × codewords
CHUNK_SCORES = 2**20  # vectors × beam × codewords scored at once: stays in the cache
FIT_ROWS = 65_536  # vectors a codebook is fitted on, at most; more where there are many codewords
FIT_ROWS_PER_CODEWORD = 16
ROWS_PER_CODEWORD = 2  # at least, where the catalogue decides how many codewords there are
REFINEMENTS = 4
SWEEPS = 10  # over the levels, per refinement
RIDGE = 2.0  # vectors' worth of trust in a codeword as it was: rare ones are not fitted to chance


@dataclass(frozen=True)
class CodebookConfig:
    """The shape of a codebook and, with `version`, its identity: codes of another version mean nothing to it."""

    dim: int = 64
    levels: int = 3
    codewords: int = 256  # per level, a power of two
    scale_bits: int = 0  # per level
    version: int = 1  # 1..65535
    seed: int = 0

    def __post_init__(self) -> None:
        if self.codewords < 2 or self.codewords & (self.codewords - 1):
            raise BadInput(f"codewords must be a power of two, not {self.codewords}; take 256 or 1024")
        if self.levels < 1 or self.scale_bits < 0:
            raise BadInput(f"a codebook of {self.levels} levels and {self.scale_bits} scale bits cannot be; levels ≥ 1")
        if not 1 <= self.version <= 65_535:
            raise BadInput(f"codebook version {self.version} is not between 1 and 65535, the room a history has for it")

    def for_items(self, items: int) -> "CodebookConfig":
        """The same with as many codewords as a catalogue of `items` can fill, at most those of this one."""
        fillable = max(1, items // ROWS_PER_CODEWORD).bit_length() - 1
        return replace(self, codewords=min(self.codewords, max(2, 2**fillable)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of every number of a code: the index of each level, then the scale step of each level."""
        return (self.codewords.bit_length() - 1,) * self.levels + (self.scale_bits,) * self.levels

    @property
    def code_bytes(self) -> int:
        return packed_bytes(self.widths)


class Residuals(NamedTuple):
    """A greedy decomposition, with exact scales."""

    indices: Tensor  # [N, levels], b_i
    scales: Tensor  # [N, levels], s_i
    residuals: Tensor  # [N, levels + 1, D], e_0 (the vector itself) .. e_levels (what is left)


class ResidualCodebook(nn.Module):
    """Encodes vectors into `config.code_bytes` bytes and decodes them into unit vectors, on the buffers' device."""

    codewords: Tensor  # [levels, K, D], unit
    mean_scales: Tensor  # [levels, K]
    ratios: Tensor  # [levels, 2**scale_bits], ascending

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codewords", torch.zeros(config.levels, config.codewords, config.dim))
        self.register_buffer("mean_scales", torch.ones(config.levels, config.codewords))
        self.register_buffer("ratios", torch.ones(config.levels, 2**config.scale_bits))

    @classmethod
    @torch.no_grad()
    def fit(
        cls, vectors: Tensor, config: CodebookConfig, iterations: int = 8, refinements: int = REFINEMENTS
    ) -> "ResidualCodebook":
        """A codebook of `vectors` [N, dim], N ≥ codewords, on their device. The same vectors and seed give the same
        codebook on a CPU. Of many vectors a sample is taken, so memory is bounded."""
        if len(vectors) < config.codewords:
            fillable = (
                f"set codewords to {config.for_items(len(vectors)).codewords} or less" if len(vectors) > 1 else ""
            )
            way_out = fillable or "a codebook needs at least 2"
            raise BadInput(f"{len(vectors)} items cannot fill {config.codewords} codewords; {way_out}")
        generator = torch.Generator().manual_seed(config.seed)
        rows = max(FIT_ROWS, FIT_ROWS_PER_CODEWORD * config.codewords)
        sample = torch.randperm(len(vectors), generator=generator)[:rows].to(vectors.device)
        book = cls(config).to(vectors.device)
        points = F.normalize(vectors[sample].float(), dim=-1)
        book._fit_levels(points, generator, iterations)
        for _ in range(refinements):
            book._refine(points)
        return book

    @property
    def beam(self) -> int:
        """Choices followed per level when encoding."""
        return max(LEAST_BEAM, min(BEAM, BEAM_SCORES // self.config.codewords))

    def shortened(self, levels: int) -> "ResidualCodebook":
        """The first `levels` alone: coarser vectors of fewer bytes."""
        book = ResidualCodebook(replace(self.config, levels=levels))
        book.codewords, book.mean_scales = self.codewords[:levels], self.mean_scales[:levels]
        book.ratios = self.ratios[:levels]
        return book

    def decompose(self, vectors: Tensor) -> Residuals:
        """Every level's best choice, exact scale and residual for `vectors` [N, dim]."""
        residuals, indices, scales = [vectors.float()], [], []
        for level in range(self.config.levels):
            index, scale, residual = self._step(level, residuals[-1])
            indices.append(index)
            scales.append(scale)
            residuals.append(residual)
        return Residuals(torch.stack(indices, 1), torch.stack(scales, 1), torch.stack(residuals, 1))

    def encode(self, vectors: Tensor) -> Tensor:
        """Packed codes, uint8 [N, code_bytes], of `vectors` [N, dim]."""
        chunk = max(1, CHUNK_SCORES // (self.beam * self.config.codewords))
        return torch.cat([pack(self._numbers(rows), self.config.widths) for rows in vectors.split(chunk)])

    def decode(self, packed: Tensor) -> Tensor:
        """Unit vectors [..., dim] of `packed` uint8 [..., code_bytes]. Any bytes decode to something finite."""
        numbers = unpack(packed.reshape(-1, packed.shape[-1]), self.config.widths)
        return F.normalize(self._sum(numbers), dim=-1).reshape(*packed.shape[:-1], self.config.dim)

    def fidelity(self, vectors: Tensor) -> Tensor:
        """cos(vector, decode(encode(vector))) [N]."""
        return F.cosine_similarity(vectors, self.decode(self.encode(vectors)), dim=-1)

    @torch.no_grad()
    def report(self, vectors: Tensor) -> dict[str, Any]:
        """What the codes of `vectors` [N, dim] keep, how evenly they use the codewords (perplexity per level, at most
        K) and what they take."""
        packed = self.encode(vectors)
        cosines = F.cosine_similarity(vectors, self.decode(packed), dim=-1)
        used = unpack(packed, self.config.widths)[:, : self.config.levels]
        return {
            "cosine_mean": cosines.mean().item(),
            "cosine_p5": cosines.sort().values[int(0.05 * len(cosines))].item(),
            "perplexity": [_perplexity(column.bincount()) for column in used.T],
            "code_bytes": self.config.code_bytes,
            "times_smaller": 4 * self.config.dim / self.config.code_bytes,  # than float32
        }

    def content_version(self) -> int:
        """1..65535, from what the codes mean: other codewords, another version, but for one chance in 65,535."""
        digest = blake2b(digest_size=8)
        for tensor in (self.codewords, self.mean_scales, self.ratios):
            digest.update(tensor.cpu().numpy().tobytes())
        return 1 + int.from_bytes(digest.digest(), "big") % 65_535

    def save(self, folder: Path) -> None:
        """Writes `codebook.safetensors` in `folder`, whole or not at all; version and config are its metadata."""
        write_tensors(folder / FILE, dict(self.state_dict()), {"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, folder: Path) -> "ResidualCodebook":
        with safe_open(folder / FILE, framework="pt") as file:
            book = cls(CodebookConfig(**json.loads(file.metadata()["config"])))
            book.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return book

    def _step(self, level: int, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One level: (index [N], scale [N], next residual [N, D]). Codewords are unit, so argmax dot is argmax cos."""
        chunk = CHUNK_SCORES // self.config.codewords
        index = torch.cat([(rows @ self.codewords[level].T).argmax(dim=1) for rows in residual.split(chunk)])
        codeword = self.codewords[level, index]
        scale = (residual * codeword).sum(dim=1) / codeword.square().sum(dim=1).clamp_min(1e-12)
        return index, scale, residual - scale[:, None] * codeword

    def _numbers(self, vectors: Tensor) -> Tensor:
        """The numbers of the code [N, 2 * levels] that, of a beam, decodes nearest to `vectors` [N, D]."""
        vectors = F.normalize(vectors.float(), dim=-1)
        indices, scales = self._search(vectors)
        levels = torch.arange(self.config.levels, device=vectors.device)
        ratio = scales / self.mean_scales[levels, indices].clamp_min(1e-6)
        steps = (ratio[..., None] - self.ratios).abs().argmin(dim=-1)
        numbers = torch.cat([indices, steps], dim=-1)
        decoded = self._sum(numbers.flatten(0, 1)).unflatten(0, numbers.shape[:2])
        nearest = F.cosine_similarity(decoded, vectors[:, None], dim=-1).argmax(dim=1)
        return numbers[torch.arange(len(vectors), device=vectors.device), nearest]

    def _search(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The indices and exact scales [N, beam, levels] of the choices that leave least of `vectors` [N, D]."""
        left = vectors[:, None]  # [N, B, D]
        indices = torch.zeros(*left.shape[:2], 0, dtype=torch.long, device=vectors.device)
        scales = torch.zeros(*left.shape[:2], 0, device=vectors.device)
        for codewords in self.codewords:
            along = left @ codewords.T  # [N, B, K]
            explained = along.clamp_min(0).square_().sub_(left.square().sum(dim=-1, keepdim=True))
            beam = min(self.beam, explained[0].numel())
            best = explained.flatten(1).topk(beam).indices  # [N, beam], of B × K
            parent, index = best // len(codewords), best % len(codewords)
            scale = along.flatten(1).gather(1, best)
            left = _of(left, parent) - scale[..., None] * codewords[index]
            indices = torch.cat([_of(indices, parent), index[..., None]], dim=-1)
            scales = torch.cat([_of(scales, parent), scale[..., None]], dim=-1)
        return indices, scales

    def _sum(self, numbers: Tensor) -> Tensor:
        """Σ s_i c_{b_i} [N, D] of the numbers of codes [N, 2 * levels]."""
        total = torch.zeros(len(numbers), self.config.dim, device=self.codewords.device)
        indices, steps = numbers.split(self.config.levels, dim=-1)
        for level in range(self.config.levels):
            index = indices[:, level]
            scale = self.mean_scales[level, index] * self.ratios[level, steps[:, level]]
            total += scale[:, None] * self.codewords[level, index]
        return total

    def _fit_levels(self, residual: Tensor, generator: torch.Generator, iterations: int) -> None:
        """Codewords, scales and ratios of one level after another, from residuals [N, D]."""
        for level in range(self.config.levels):
            self.codewords[level] = balanced_kmeans(residual, self.config.codewords, generator, iterations)
            index, scale, residual = self._step(level, residual)
            self._fit_scales(level, index, scale)

    def _fit_scales(self, level: int, index: Tensor, scale: Tensor) -> None:
        """Mean scale per codeword (of the level, where no vector chose it) and quantiles of scale / mean."""
        sums = torch.zeros_like(self.mean_scales[level]).index_add_(0, index, scale)
        counts = index.bincount(minlength=self.config.codewords)
        self.mean_scales[level] = torch.where(counts > 0, sums / counts.clamp_min(1), scale.mean())
        if self.config.scale_bits:
            ratio = scale / self.mean_scales[level, index].clamp_min(1e-6)
            middles = (torch.arange(2**self.config.scale_bits) + 0.5) / 2**self.config.scale_bits
            self.ratios[level] = torch.quantile(ratio, middles.to(ratio.device))

    def _refine(self, vectors: Tensor) -> None:
        """For the codes that `vectors` [N, D] have now, the scaled codewords s c of least Σ |vector - Σ r s c|² (r the
        stored ratio), one level after another (Gauss-Seidel), then split into mean scale and unit codeword again."""
        codes = unpack(self.encode(vectors), self.config.widths)
        indices, steps = (numbers.T for numbers in codes.split(self.config.levels, dim=1))
        ratios = self.ratios.gather(1, steps)[..., None]  # [levels, N, 1]
        scaled = self.mean_scales[..., None] * self.codewords
        left = vectors - self._sum(codes)
        for level in [*range(self.config.levels)] * SWEEPS:
            index, ratio = indices[level], ratios[level]
            weight = torch.zeros_like(scaled[level, :, :1]).index_add_(0, index, ratio.square())
            moved = torch.zeros_like(scaled[level]).index_add_(0, index, ratio * left) / (weight + RIDGE)
            scaled[level] += moved
            left -= ratio * moved[index]
        self.mean_scales, self.codewords = scaled.norm(dim=-1), F.normalize(scaled, dim=-1)


def _of(beam: Tensor, parent: Tensor) -> Tensor:
    """The rows of `beam` [N, B, ...] at `parent` [N, beam]."""
    return beam.gather(1, parent[..., None].expand(-1, -1, beam.shape[-1]))


def _perplexity(counts: Tensor) -> float:
    """exp(entropy) of the shares of `counts`: as many codewords, used evenly, would be as informative."""
    share = counts / counts.sum()
    return float(torch.special.entr(share).sum().exp())
