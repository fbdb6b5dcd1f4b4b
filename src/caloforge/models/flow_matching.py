"""Conditional flow matching in two stages: layer features by a spline flow, voxels by a velocity network.

The path is x_t = (1 - t) eps + t x (Lipman et al. 2022, 2210.02747; for showers CaloDREAM, Favaro et al. 2024,
2405.09629). Features are Gaussianised one by one, so the velocity is written as the exact one of independent normals
plus a correction F that the network learns, of unit variance at every t (in the spirit of Karras et al. 2022):

    v(x_t, t) = (2 t - 1) / s^2 x_t + F(x_t, t, g, c) / s,     s^2 = t^2 + (1 - t)^2
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..solvers import SOLVERS
from .base import Fast, Generator, LayerFlow, Objective, ResidualMLP, Sizes, randn_like, require_sizes

N_FREQUENCIES = 8


@dataclass(frozen=True)
class FlowMatchingConfig:
    """width, depth, dropout: residual blocks of the velocity network; n_steps of ``solver`` when generating.

    t_mean, t_std: the flow time of training is logit-normal, t = sigmoid(t_mean + t_std n).
    """

    width: int = 576
    depth: int = 4
    dropout: float = 0.1
    solver: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint"
    n_steps: int = 12
    t_mean: float = 0.0
    t_std: float = 1.0
    layer_hidden: int = 64
    layer_transforms: int = 4
    layer_bins: int = 12
    layer_fast: Fast = "density"

    def __post_init__(self) -> None:
        require_sizes(self, "depth", "n_steps", "layer_hidden", "layer_transforms", "layer_bins")
        if not self.t_std > 0:
            raise ValueError(f"got model.t_std = {self.t_std}, expected above 0; raise it")


class FlowMatching(Generator):
    """Layer flow p(g | c), then a flow-matching network p(v | g, c)."""

    def __init__(self, config: FlowMatchingConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.n_noise = sizes.n_globals + sizes.n_voxels
        self.layers = LayerFlow(
            sizes,
            hidden=config.layer_hidden,
            transforms=config.layer_transforms,
            bins=config.layer_bins,
            fast=config.layer_fast,
        )
        n_context = sizes.n_conditions + sizes.n_globals + 2 * N_FREQUENCIES
        shape = (config.width, config.depth, config.dropout)
        self.network = ResidualMLP(sizes.n_voxels, n_context, sizes.n_voxels, *shape)

    def objectives(self) -> Iterator[Objective]:
        yield Objective("layers", list(self.layers.parameters()), self._layer_loss, every=2)
        yield Objective("shape", list(self.network.parameters()), self._shape_loss)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.layers.loss(x[:, : self.sizes.n_globals], c)

    def _shape_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        g, v1 = x[:, : self.sizes.n_globals], x[:, self.sizes.n_globals :]
        eps = randn_like(v1, generator)
        n = torch.randn(len(x), 1, generator=generator).to(x.device)
        t = torch.sigmoid(self.config.t_mean + self.config.t_std * n)
        s2 = t**2 + (1 - t) ** 2
        vt = (1 - t) * eps + t * v1
        target = (v1 - eps - (2 * t - 1) / s2 * vt) * s2.sqrt()
        return (self._correction(vt, t, g, c) - target).square().mean()

    def _correction(self, v: Tensor, t: Tensor, g: Tensor, c: Tensor) -> Tensor:
        """F of the module docstring: v (N, V), t (N, 1), g (N, G), c (N, C) -> (N, V)."""
        rate = math.pi * 2.0 ** torch.arange(N_FREQUENCIES, device=v.device, dtype=v.dtype) / 2
        context = torch.cat([c, g, torch.sin(rate * t), torch.cos(rate * t)], dim=1)
        s = (t**2 + (1 - t) ** 2).sqrt()
        f: Tensor = self.network(v / s, context)
        return f.to(v.dtype)

    def velocity(self, v: Tensor, t: float, g: Tensor, c: Tensor) -> Tensor:
        """dv/dt at flow time t: (N, V)."""
        s2 = t**2 + (1 - t) ** 2
        times = torch.full_like(v[:, :1], t)
        return (2 * t - 1) / s2 * v + self._correction(v, times, g, c) / math.sqrt(s2)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        g = self.layers.decode(z[:, : self.sizes.n_globals], c)
        solve = SOLVERS[self.config.solver]
        v = solve(lambda x, t: self.velocity(x, t, g, c), z[:, self.sizes.n_globals :], self.config.n_steps)
        return torch.cat([g, v], dim=1)
