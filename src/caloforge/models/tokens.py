"""Velocity networks that see a shower as tokens: patches of voxels, of any geometry.

Consecutive layers of the same shape form a run; each run is cut into patches of D layers x A x B bins, padded with
zeros where they do not divide it, and a patch is one token. Layers of the same shape share their embedding: a detector
of 3 x 96, 12 x 12 and 12 x 6 voxels has three. T tokens of width d then pass blocks that mix between the tokens, by
attention (diffusion transformer, Peebles and Xie 2022, 2212.09748) or by an MLP over them (Tolstikhin et al. 2021,
2105.01601), and within each token by an MLP:

    h <- h + gate_1 mix(norm(h) (1 + scale_1) + shift_1),    h <- h + gate_2 mlp(norm(h) (1 + scale_2) + shift_2)

The six modulations come from the context (adaLN-zero): from one linear layer shared by all blocks, with an offset per
block (Chen et al. 2023, 2310.00426), or from one per block. Both gates and the output start at zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..geometry import Geometry


@dataclass(frozen=True)
class Run:
    """Consecutive layers of one shape: first voxel, mesh (layers, first axis, second axis) and patch (D, A, B)."""

    start: int
    mesh: tuple[int, int, int]
    patch: tuple[int, int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of patches along the three axes."""
        d, a, b = (-(-n // p) for n, p in zip(self.mesh, self.patch, strict=True))
        return d, a, b

    @property
    def n_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def _padding(self) -> tuple[int, int, int]:
        d, a, b = (g * p - n for g, p, n in zip(self.grid, self.patch, self.mesh, strict=True))
        return d, a, b

    def split(self, v: Tensor) -> Tensor:
        """Voxels of the whole shower (N, V) -> patches of the run (N, T, D A B)."""
        (gd, ga, gb), (d, a, b), (pd, pa, pb) = self.grid, self.patch, self._padding
        x = v[:, self.start : self.start + math.prod(self.mesh)].reshape(-1, *self.mesh)
        if pd or pa or pb:
            x = functional.pad(x, (0, pb, 0, pa, 0, pd))
        x = x.reshape(-1, gd, d, ga, a, gb, b).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(-1, self.n_tokens, d * a * b)

    def join(self, patches: Tensor) -> Tensor:
        """Patches (N, T, D A B) -> voxels of the run (N, n), without the padding."""
        (gd, ga, gb), (d, a, b) = self.grid, self.patch
        x = patches.reshape(-1, gd, ga, gb, d, a, b).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, gd * d, ga * a, gb * b)
        n, m, k = self.mesh
        return x[:, :n, :m, :k].reshape(-1, n * m * k)


def runs(geometry: Geometry, most: int, n_layers: int = 1) -> tuple[Run, ...]:
    """The runs of a geometry, with patches of at most ``most`` voxels that reach over at most ``n_layers`` layers."""
    found, number = [], 0
    for shape, group in groupby(layer.shape for layer in geometry.layers):
        n = len(list(group))
        depth = min(n, n_layers)
        found.append(Run(int(geometry.offsets[number]), (n, *shape), (depth, *patch_shape(shape, most // depth))))
        number += n
    return tuple(found)


def patch_shape(shape: tuple[int, int], most: int) -> tuple[int, int]:
    """A x B of at most ``most`` bins that cuts a layer into the fewest patches; then the least padded, then the most
    square, then that with the larger A."""

    def order(patch: tuple[int, int]) -> tuple[float, ...]:
        grid = [-(-n // p) for n, p in zip(shape, patch, strict=True)]
        a, b = patch
        return math.prod(grid), math.prod(grid) * a * b, max(a, b) / min(a, b), -a

    sides = [(a, b) for a in range(1, shape[0] + 1) for b in range(1, shape[1] + 1) if a * b <= max(1, most)]
    return min(sides, key=order)


class Attention(nn.Module):
    """Self-attention with ``heads`` heads: (N, T, d) -> (N, T, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        n, t, d = h.shape
        q, k, v = self.qkv(h).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(y.transpose(1, 2).reshape(n, t, d))
        return out


class AcrossTokens(nn.Module):
    """MLP over the tokens, the same for every channel: (N, T, d) -> (N, T, d)."""

    def __init__(self, n_tokens: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(n_tokens, hidden)
        self.down = nn.Linear(hidden, n_tokens)

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = self.down(functional.gelu(self.up(h.transpose(1, 2))))
        return y.transpose(1, 2)


class Block(nn.Module):
    """One block of the module docstring around ``mix``: tokens (N, T, d), modulation (N, 6 d) -> (N, T, d)."""

    def __init__(self, mix: nn.Module, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.mix = mix
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.to(h.dtype)[:, None].chunk(6, dim=2)
        y = torch.addcmul(shift1, self.norms[0](h).to(h.dtype), 1 + scale1)
        h = torch.addcmul(h, gate1, self.mix(y).to(h.dtype))
        y = torch.addcmul(shift2, self.norms[1](h).to(h.dtype), 1 + scale2)
        y = self.down(self.dropout(functional.gelu(self.up(y))))
        return torch.addcmul(h, gate2, y.to(h.dtype))


class Modulations(nn.Module):
    """Context (N, n) -> one modulation (N, 6 d) per block; all zero at the start."""

    def __init__(self, n_in: int, width: int, depth: int, shared: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n_in, 6 * width) for _ in range(1 if shared else depth))
        for layer in self.layers:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.offsets = nn.Parameter(torch.zeros(depth, 6 * width)) if shared else None

    def forward(self, context: Tensor) -> list[Tensor]:
        every = [layer(context) for layer in self.layers]
        if self.offsets is None:
            return every
        return [every[0] + offset for offset in self.offsets.to(every[0].dtype)]


class _TokenNetwork(nn.Module):
    """Embedding, ``depth`` blocks around what ``mix(T)`` makes, output. Interface of ResidualMLP."""

    def __init__(
        self, cuts: tuple[Run, ...], n_context: int, mix: Callable[[int], nn.Module], width: int, depth: int,
        hidden: int, dropout: float, shared: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cuts = cuts
        kinds = list(dict.fromkeys((run.mesh[1:], run.patch) for run in cuts))
        self.kinds = [kinds.index((run.mesh[1:], run.patch)) for run in cuts]
        n_tokens = sum(run.n_tokens for run in cuts)
        self.enter = nn.ModuleList(nn.Linear(math.prod(patch), width) for _, patch in kinds)
        self.positions = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.context = nn.Sequential(nn.Linear(n_context, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulations = Modulations(width, width, depth, shared)
        self.blocks = nn.ModuleList(Block(mix(n_tokens), width, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.leave = nn.ModuleList(nn.Linear(width, math.prod(patch)) for _, patch in kinds)
        for layer in self.leave:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, v: Tensor, context: Tensor) -> Tensor:
        """v (N, V), context (N, C) -> (N, V)."""
        h = torch.cat([self.enter[k](run.split(v)) for k, run in zip(self.kinds, self.cuts, strict=True)], dim=1)
        h = h + self.positions.to(h.dtype)
        for block, modulation in zip(self.blocks, self.modulations(self.context(context)), strict=True):
            h = block(h, modulation)
        parts = self.norm(h).to(h.dtype).split([run.n_tokens for run in self.cuts], dim=1)
        joined = zip(self.kinds, self.cuts, parts, strict=True)
        return torch.cat([run.join(self.leave[k](part)) for k, run, part in joined], dim=1)


class TokenTransformer(_TokenNetwork):
    """Attention between the tokens; MLPs of 4 times the width."""

    def __init__(
        self, cuts: tuple[Run, ...], n_context: int, width: int, depth: int, dropout: float, *, heads: int = 4,
        shared: bool = True,
    ) -> None:  # fmt: skip
        def mix(n_tokens: int) -> nn.Module:
            return Attention(width, heads)

        super().__init__(cuts, n_context, mix, width, depth, 4 * width, dropout, shared)


class TokenMixer(_TokenNetwork):
    """An MLP between the tokens; MLPs of twice the number of tokens and twice the width."""

    def __init__(
        self, cuts: tuple[Run, ...], n_context: int, width: int, depth: int, dropout: float, *, shared: bool = True
    ) -> None:
        def mix(n_tokens: int) -> nn.Module:
            return AcrossTokens(n_tokens, 2 * n_tokens)

        super().__init__(cuts, n_context, mix, width, depth, 2 * width, dropout, shared)
