"""One coupling flow of all features, with their exact likelihood: CaloINN (Ernst et al. 2023, 2312.09290).

Layer and voxel features are modelled together, p(x | c) of x = [g, v], D = G + V numbers. A block takes a scale and a
shift per feature, splits the features into halves (k, m) and moves m by rational-quadratic splines (``splines``) whose
parameters a network makes of the kept half and the condition:

    (k, m) = exp(a) x + b,    m -> spline(m; theta(k, c)),    ln |dz/dx| = sum of a and ln spline' over blocks

Both directions take one pass; density is the closed-form one, decode inverts each spline by its root. The last layer
of every network starts at zero, so an untrained flow is the identity: features are independent normals, the Gaussian
copula of the preprocessing.

The scale and shift are plain parameters that start at the identity, where the paper's ActNorm (Kingma and Dhariwal
2018, 1807.03039) starts at the mean and spread of the first batch: the features come standardised, and a model whose
weights depend on nothing but seed and steps resumes and averages like any other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import Generator, Objective, Sizes, require_sizes
from .splines import MIN_BIN, n_parameters, spline


@dataclass(frozen=True)
class CouplingFlowConfig:
    """n_blocks of splines with ``bins`` bins in [-bound, bound], the identity beyond; ``depth`` linear layers of
    ``width`` in each network.

    rank: 0 for a full last layer, as published, which holds 9 in 10 of all parameters; r > 0 for one of rank r, width
    -> r -> outputs. order_seed: of the random orders in which the features are split, which are stored with the
    weights. CaloINN has 12 blocks, 4 layers of 256, 10 bins, bound 18 and rank 0.
    """

    n_blocks: int = 8
    width: int = 192
    depth: int = 4
    bins: int = 8
    bound: float = 6.0
    rank: int = 32
    order_seed: int = 0

    def __post_init__(self) -> None:
        require_sizes(self, "n_blocks", "depth")
        if not 2 <= self.bins < 1 / MIN_BIN:
            raise ValueError(f"got model.bins = {self.bins}, expected 2 to {1 / MIN_BIN - 1:.0f}; correct it")
        if not self.bound > 0:
            raise ValueError(f"got model.bound = {self.bound}, expected above 0; raise it")
        if self.rank < 0:
            raise ValueError(f"got model.rank = {self.rank}, expected 0 (full) or more; raise it")


class CouplingFlow(Generator):
    """p(x | c) by blocks of couplings, between fixed random orders of the features.

    there, back: places of the features before every block and after the last, and their inverse, (n_blocks + 1, D).
    """

    there: Tensor
    back: Tensor

    def __init__(self, config: CouplingFlowConfig, sizes: Sizes) -> None:
        super().__init__()
        if not sizes.n_globals:
            raise ValueError(
                "got preprocessing of single voxels for coupling_flow, expected features of layers too, "
                "preprocess.voxels = 'gaussian' or 'fractions'; set it in the recipe"
            )
        self.config, self.sizes = config, sizes
        self.n_noise = sizes.n_globals + sizes.n_voxels
        self.blocks = nn.ModuleList(_Coupling(config, self.n_noise, sizes) for _ in range(config.n_blocks))
        there = _moves(self.n_noise, config.n_blocks, config.order_seed)
        self.register_buffer("there", there)
        self.register_buffer("back", there.argsort(1))

    def objectives(self) -> Iterator[Objective]:
        yield Objective("flow", list(self.parameters()), self._loss)

    def _loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return -self.log_prob(x, c).mean() / self.n_noise

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        z, log_slope = self.transform(x, c)
        return log_slope - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return self.transform(z, c, inverse=True)[0]

    def transform(self, x: Tensor, c: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Noise z (N, D) of features x (N, D) and ln |dz/dx| (N,); inverse: features of noise and ln |dx/dz|."""
        total = x.new_zeros(x.shape[0])
        if inverse:
            x = x.index_select(1, self.back[-1])
            for k in reversed(range(len(self.blocks))):
                x, log_slope = self.blocks[k](x, c, inverse=True)
                x, total = x.index_select(1, self.back[k]), total + log_slope
            return x, total
        for k, block in enumerate(self.blocks):
            x, log_slope = block(x.index_select(1, self.there[k]), c)
            total = total + log_slope
        return x.index_select(1, self.there[-1]), total


class _Coupling(nn.Module):
    """One block: scale and shift, then splines of the second half given the first (the larger one) and c."""

    def __init__(self, config: CouplingFlowConfig, n: int, sizes: Sizes) -> None:
        super().__init__()
        self.bound, self.n_kept, n_moved = config.bound, n - n // 2, n // 2
        self.log_scale, self.shift = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))
        widths = [self.n_kept + sizes.n_conditions, *[config.width] * (config.depth - 1)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.LeakyReLU()]
        if config.rank:
            layers.append(nn.Linear(widths[-1], config.rank, bias=False))
        self.shape = (n_parameters(config.bins), n_moved)
        self.last = nn.Linear(config.rank or widths[-1], math.prod(self.shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor, c: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(N, D) and (N, C) -> images (N, D) and ln of the determinant (N,)."""
        if not inverse:
            x = x * self.log_scale.exp() + self.shift
        kept, moved = x[:, : self.n_kept], x[:, self.n_kept :]
        parameters = self.last(self.body(torch.cat([kept, c], dim=1))).to(x.dtype)
        moved, log_slope = spline(moved, parameters.view(-1, *self.shape), self.bound, inverse=inverse)
        x = torch.cat([kept, moved], dim=1)
        if inverse:
            return (x - self.shift) * (-self.log_scale).exp(), log_slope.sum(1) - self.log_scale.sum()
        return x, log_slope.sum(1) + self.log_scale.sum()


def _moves(n: int, n_blocks: int, seed: int) -> Tensor:
    """Places (n_blocks + 1, n) to take the features from, before every block and after the last.

    The order before a block is random, except that the second half, which the block moves, holds the features moved
    least often so far: all are moved equally often. The last order is the first one again.
    """
    random, n_moved = torch.Generator().manual_seed(seed), torch.zeros(n)
    orders = [torch.arange(n)]
    for _ in range(n_blocks):
        orders.append((n_moved + torch.rand(n, generator=random)).argsort(descending=True))
        n_moved[orders[-1][n - n // 2 :]] += 1
    orders.append(orders[0])
    return torch.stack([old.argsort()[new] for old, new in pairwise(orders)])
