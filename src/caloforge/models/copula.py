"""A Gaussian copula: layer features from a spline flow, and voxels as the preprocessing alone makes them from noise.

Gaussianised and decorrelated features (``preprocess``) are nearly independent standard normal numbers, so noise in
place of them is already a model: p(g | c) by the layer flow (Durkan et al. 2019, 1906.04032), v ~ N(0, 1). Only the
flow is trained, in minutes. It is the teacher of the default model, and what a network for the voxels has to beat.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Fast, Generator, LayerFlow, Objective, Sizes, require_sizes


@dataclass(frozen=True)
class CopulaConfig:
    """layer_hidden, layer_transforms, layer_bins, layer_passes, layer_dropout: of the layer flow; layer_fast: its
    direction that takes one pass."""

    layer_hidden: int = 128
    layer_transforms: int = 3
    layer_bins: int = 12
    layer_passes: int = 5
    layer_fast: Fast = "density"
    layer_dropout: float = 0.0

    def __post_init__(self) -> None:
        require_sizes(self, "layer_hidden", "layer_transforms", "layer_bins")


class Copula(Generator):
    """Layer flow p(g | c); the voxels' features are the noise itself."""

    sees_voxels = False

    def __init__(self, config: CopulaConfig, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.n_noise = sizes.n_globals + sizes.n_voxels
        self.layers = LayerFlow(
            sizes, hidden=config.layer_hidden, transforms=config.layer_transforms, bins=config.layer_bins,
            fast=config.layer_fast, passes=config.layer_passes, dropout=config.layer_dropout,
        )  # fmt: skip

    def objectives(self) -> Iterator[Objective]:
        yield Objective("layers", list(self.layers.parameters()), self._layer_loss)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.layers.loss(x[:, : self.sizes.n_globals], c)

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        """ln p(x | c) of features (N, G + V): (N,)."""
        n = self.sizes.n_globals
        voxels = -0.5 * (x[:, n:].square() + math.log(2 * math.pi)).sum(1)
        return self.layers.log_prob(x[:, :n], c).to(x.dtype) + voxels

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        n = self.sizes.n_globals
        return torch.cat([self.layers.decode(z[:, :n], c), z[:, n:]], dim=1)
