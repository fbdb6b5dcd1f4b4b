"""Conditional flow matching in two stages: layer fractions by a spline flow, voxels by a velocity network.

The path is x_t = (1 - t) eps + t x (Lipman et al. 2022, 2210.02747; for showers CaloDREAM, Favaro et al. 2024,
2405.09629). Features are Gaussianised one by one, so the velocity is written as the exact one of independent normals
plus a correction F that the network learns, of unit variance at every t (in the spirit of Karras et al. 2022):

    v(x_t, t) = (2 t - 1) / s^2 x_t + F(x_t, t, u, c) / s,     s^2 = t^2 + (1 - t)^2
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..solvers import SOLVERS
from .base import EnergyFlow, Generator, Objective, ResidualMLP, Sizes, randn_like

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
    energy_hidden: int = 32
    energy_transforms: int = 3


class FlowMatching(Generator):
    """Energy flow p(u | c), then a flow-matching network p(v | u, c)."""

    def __init__(self, config: FlowMatchingConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.n_noise = sizes.n_layers + sizes.n_voxels
        self.energy = EnergyFlow(sizes.n_layers, sizes.n_conditions, config.energy_hidden, config.energy_transforms)
        n_context = sizes.n_conditions + sizes.n_layers + 2 * N_FREQUENCIES
        shape = (config.width, config.depth, config.dropout)
        self.network = ResidualMLP(sizes.n_voxels, n_context, sizes.n_voxels, *shape)

    def objectives(self) -> Iterator[Objective]:
        yield Objective("energy", list(self.energy.parameters()), self._energy_loss)
        yield Objective("shape", list(self.network.parameters()), self._shape_loss)

    def _energy_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.energy.loss(x[:, : self.sizes.n_layers], c)

    def _shape_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        u, v1 = x[:, : self.sizes.n_layers], x[:, self.sizes.n_layers :]
        eps = randn_like(v1, generator)
        n = torch.randn(len(x), 1, generator=generator).to(x.device)
        t = torch.sigmoid(self.config.t_mean + self.config.t_std * n)
        s2 = t**2 + (1 - t) ** 2
        vt = (1 - t) * eps + t * v1
        target = (v1 - eps - (2 * t - 1) / s2 * vt) * s2.sqrt()
        return (self._correction(vt, t, u, c) - target).square().mean()

    def _correction(self, v: Tensor, t: Tensor, u: Tensor, c: Tensor) -> Tensor:
        """F of the module docstring: v (N, V), t (N, 1), u (N, L), c (N, C) -> (N, V)."""
        rate = math.pi * 2.0 ** torch.arange(N_FREQUENCIES, device=v.device, dtype=v.dtype) / 2
        context = torch.cat([c, u, torch.sin(rate * t), torch.cos(rate * t)], dim=1)
        s = (t**2 + (1 - t) ** 2).sqrt()
        f: Tensor = self.network(v / s, context)
        return f.to(v.dtype)

    def velocity(self, v: Tensor, t: float, u: Tensor, c: Tensor) -> Tensor:
        """dv/dt at flow time t: (N, V)."""
        s2 = t**2 + (1 - t) ** 2
        times = torch.full_like(v[:, :1], t)
        return (2 * t - 1) / s2 * v + self._correction(v, times, u, c) / math.sqrt(s2)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        u = self.energy.decode(z[:, : self.sizes.n_layers], c)
        solve = SOLVERS[self.config.solver]
        v = solve(lambda x, t: self.velocity(x, t, u, c), z[:, self.sizes.n_layers :], self.config.n_steps)
        return torch.cat([u, v], dim=1)
