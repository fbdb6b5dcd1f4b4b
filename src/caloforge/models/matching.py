"""Distances between samples that a generator can be trained on."""

import torch
from torch import Tensor


def whitened(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, D) in units in which the real ones have mean 0 and covariance 1, within +-6."""
    with torch.no_grad():
        mean, std = real.mean(0), real.std(0).clamp_min(1e-6)
        values, vectors = torch.linalg.eigh(torch.cov(((real - mean) / std).double().T))
        white = (vectors / values.clamp_min(1e-3).sqrt()).to(real.dtype)
    first, second = (((x - mean) / std).clamp(-8.0, 8.0) @ white for x in (real, fake))
    return first, second


def energy_distance(real: Tensor, fake: Tensor, n_slices: int, generator: torch.Generator) -> Tensor:
    """Mean over random directions of 2 E|x - y| - E|x - x'| - E|y - y'|, without bias; real x, fake y (N, D).

    Szekely and Rizzo, J. Stat. Plan. Inference 143 (2013) 1249.
    """
    n, n_features = real.shape
    directions = torch.randn(n_features, n_slices, generator=generator).to(real)
    directions = directions / directions.norm(dim=0)
    x, y = real @ directions, fake @ directions
    ordered = [torch.sort(v, dim=0).values for v in (x, y, torch.cat([x, y]))]
    pairs = [_pair_distances(v) for v in ordered]  # sums of |difference| over all pairs
    cross = (pairs[2] - pairs[0] - pairs[1]) / (n * n)
    within = (pairs[0] + pairs[1]) / (0.5 * n * (n - 1))
    return (2 * cross - within).mean()


def _pair_distances(ordered: Tensor) -> Tensor:
    """Sum over pairs i < j of x_j - x_i of columns in rising order (N, S): (S,)."""
    n = len(ordered)
    rank = torch.arange(n, device=ordered.device, dtype=ordered.dtype)
    return ((2 * rank - (n - 1))[:, None] * ordered).sum(0)
