"""HyMiRec's residual codebook based on cosine similarity (arXiv:2510.13738, PAPERS "HyMiRec, codebook").

Level i holds K unit codewords c, fitted by balanced k-means on that level's residuals e_i:

    b_i = argmax_x cos(e_i, c_x)        s_i = e_i·c / |c|²        e_{i+1} = e_i - s_i c

so what is left is orthogonal to the codeword just used: |e_i|² = |s_i c|² + |e_{i+1}|². Storing s_i is our reading
(inferred): ê = Σ s_i c_{b_i}. By default no scale is stored and the mean scale of (level, codeword) stands in for it;
with `scale_bits` a code also says by which of 2**scale_bits ratios, per level, that mean is to be multiplied.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from models.bits import pack, packed_bytes, unpack
from models.files import write_tensors
from models.kmeans import balanced_kmeans

FILE = "codebook.safetensors"
CHUNK_ROWS = 65_536  # vectors encoded at once: bounds the score matrix to CHUNK_ROWS × codewords


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
            raise ValueError(f"codewords must be a power of two, not {self.codewords}")

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
    def fit(cls, vectors: Tensor, config: CodebookConfig, iterations: int = 8) -> "ResidualCodebook":
        """A codebook of `vectors` [N, dim], N ≥ codewords; the same vectors and seed give the same codebook."""
        if len(vectors) < config.codewords:
            raise ValueError(f"{len(vectors)} vectors cannot fill {config.codewords} codewords")
        book = cls(config)
        generator = torch.Generator().manual_seed(config.seed)
        residual = vectors.float()
        for level in range(config.levels):
            book.codewords[level] = balanced_kmeans(residual, config.codewords, generator, iterations)
            index, scale, residual = book._step(level, residual)
            book._fit_scales(level, index, scale)
        return book

    def decompose(self, vectors: Tensor) -> Residuals:
        """Every level's choice, exact scale and residual for `vectors` [N, dim]."""
        residuals, indices, scales = [vectors.float()], [], []
        for level in range(self.config.levels):
            index, scale, residual = self._step(level, residuals[-1])
            indices.append(index)
            scales.append(scale)
            residuals.append(residual)
        return Residuals(torch.stack(indices, 1), torch.stack(scales, 1), torch.stack(residuals, 1))

    def encode(self, vectors: Tensor) -> Tensor:
        """Packed codes, uint8 [N, code_bytes], of `vectors` [N, dim]."""
        return torch.cat([self._encode(rows) for rows in vectors.split(CHUNK_ROWS)])

    def decode(self, packed: Tensor) -> Tensor:
        """Unit vectors [..., dim] of `packed` uint8 [..., code_bytes]. Any bytes decode to something finite."""
        levels = self.config.levels
        numbers = unpack(packed.reshape(-1, packed.shape[-1]), self.config.widths)
        total = torch.zeros(len(numbers), self.config.dim, device=self.codewords.device)
        for level in range(levels):
            index, step = numbers[:, level], numbers[:, levels + level]
            scale = self.mean_scales[level, index] * self.ratios[level, step]
            total += scale[:, None] * self.codewords[level, index]
        return F.normalize(total, dim=-1).reshape(*packed.shape[:-1], self.config.dim)

    def fidelity(self, vectors: Tensor) -> Tensor:
        """cos(vector, decode(encode(vector))) [N]."""
        return F.cosine_similarity(vectors, self.decode(self.encode(vectors)), dim=-1)

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
        index = torch.cat([(rows @ self.codewords[level].T).argmax(dim=1) for rows in residual.split(CHUNK_ROWS)])
        codeword = self.codewords[level, index]
        scale = (residual * codeword).sum(dim=1) / codeword.square().sum(dim=1).clamp_min(1e-12)
        return index, scale, residual - scale[:, None] * codeword

    def _encode(self, vectors: Tensor) -> Tensor:
        parts = self.decompose(vectors)
        levels = torch.arange(self.config.levels, device=vectors.device)
        ratio = parts.scales / self.mean_scales[levels, parts.indices].clamp_min(1e-6)
        steps = (ratio[..., None] - self.ratios).abs().argmin(dim=-1)
        return pack(torch.cat([parts.indices, steps], dim=1), self.config.widths)

    def _fit_scales(self, level: int, index: Tensor, scale: Tensor) -> None:
        """Mean scale per codeword (of the level, where no vector chose it) and quantiles of scale / mean."""
        sums = torch.zeros(self.config.codewords).index_add_(0, index, scale)
        counts = index.bincount(minlength=self.config.codewords)
        self.mean_scales[level] = torch.where(counts > 0, sums / counts.clamp_min(1), scale.mean())
        if self.config.scale_bits:
            ratio = scale / self.mean_scales[level, index].clamp_min(1e-6)
            middles = (torch.arange(2**self.config.scale_bits) + 0.5) / 2**self.config.scale_bits
            self.ratios[level] = torch.quantile(ratio[:1_000_000], middles)


def cosine_of_depths(parts: Residuals) -> Tensor:
    """cos(vector, Σ_{i≤depth} s_i c_{b_i}) [N, levels] with exact scales; by Pythagoras sqrt(1 - |e|²/|e_0|²)."""
    left = parts.residuals.square().sum(dim=-1)
    return (1 - left[:, 1:] / left[:, :1].clamp_min(math.ulp(1.0))).clamp_min(0).sqrt()
