"""MeanFlow: one step of average velocity (Geng et al. 2025, 2505.13447), distilled from flow matching or trained alone.

The average velocity of paths x_t between flow times t and r (``flow_matching``: t = 0 is noise, 1 the
shower) is u(x_t, t, r) = int_t^r v / (r - t). Its derivative along the path gives

    u = v + (r - t) du/dt,    du/dt = v du/dx + du/dt at fixed x

which is the regression target, without gradient, by one Jacobian-vector product; v is the teacher's velocity, or
without one that of the straight path from noise to shower, which scatters more. A shower is x = eps + u(eps, 0, 1). u
is written as that of independent normals and a correction by the network,

    u = 2 (r + t - 1) / (s_t (s_r + s_t)) x_t + F(x_t / s_t, t, r, g, c) / s_t,     s^2 = t^2 + (1 - t)^2,

so that an untrained network gives the Gaussian copula of the preprocessing. Layer features come from a layer flow, the
teacher's if there is one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Fast, Generator, LayerFlow, Objective, ResidualMLP, Sizes, randn_like, require_sizes
from .flow_matching import N_FREQUENCIES, FlowMatching

SMALLEST = 1e-3  # mean square of the difference to the target that still counts less than larger ones


@dataclass(frozen=True)
class MeanFlowConfig:
    """width, depth: residual blocks of the network; n_steps: equal steps from noise to shower; same: part of the
    training at r = t, where the target is the velocity itself; layer_...: of the layer flow, which distill sets to the
    teacher's, but for layer_rate, its learning rate in units of the network's."""

    width: int = 256
    depth: int = 2
    n_steps: int = 1
    same: float = 0.25
    layer_hidden: int = 64
    layer_transforms: int = 4
    layer_bins: int = 12
    layer_passes: int = 2
    layer_fast: Fast = "density"
    layer_rate: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(self, "width", "depth", "n_steps", "layer_hidden", "layer_transforms", "layer_bins")
        if not 0 <= self.same <= 1:
            raise ValueError(f"got model.same = {self.same}, expected a part of the training, 0 to 1; correct it")


@dataclass
class _Teacher:
    """Keeps the teacher out of the student's weights, averages and checkpoints."""

    flow: FlowMatching

    def __deepcopy__(self, memo: Any) -> "_Teacher":
        return self


class MeanFlow(Generator):
    """Layer flow p(g | c) of the teacher, then average velocities of the voxels."""

    def __init__(self, config: MeanFlowConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.n_noise = sizes.n_globals + sizes.n_voxels
        self.layers = LayerFlow(
            sizes, hidden=config.layer_hidden, transforms=config.layer_transforms, bins=config.layer_bins,
            fast=config.layer_fast, passes=config.layer_passes,
        )  # fmt: skip
        n_context = sizes.n_conditions + sizes.n_globals + 4 * N_FREQUENCIES
        self.network = ResidualMLP(sizes.n_voxels, n_context, sizes.n_voxels, config.width, config.depth, 0.0)
        self.teacher: _Teacher | None = None

    def adopt(self, teacher: FlowMatching) -> None:
        """Follow this teacher, and take over its layer flow."""
        self.layers.load_state_dict(teacher.layers.state_dict())
        self.teacher = _Teacher(teacher.eval())

    def objectives(self) -> Iterator[Objective]:
        if self.teacher is None:
            rate = self.config.layer_rate
            yield Objective("layers", list(self.layers.parameters()), self._layer_loss, every=2, rate=rate)
        yield Objective("average velocity", list(self.network.parameters()), self._loss)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.layers.loss(x[:, : self.sizes.n_globals], c)

    def _loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        n = self.sizes.n_globals
        g, v1 = x[:, :n], x[:, n:]
        eps = randn_like(v1, generator)
        times = torch.rand(len(x), 2, generator=generator).sort(dim=1).values
        same = torch.rand(len(x), 1, generator=generator) < self.config.same
        t, r = times[:, :1].to(x), torch.where(same, times[:, :1], times[:, 1:]).to(x)
        vt = (1 - t) * eps + t * v1
        with torch.autocast(x.device.type, enabled=False):
            velocity = v1 - eps
            if self.teacher is not None:
                with torch.no_grad():
                    velocity = self.teacher.flow.to(x.device).velocity(vt, t, g, c)
            ahead = (velocity, torch.ones_like(t))
            made, slope, *_ = torch.func.jvp(lambda v, at: self.velocity(v, at, r, g, c), (vt, t), ahead)
            off = (made - (velocity + (r - t) * slope).detach()).square().mean(1)
            return torch.as_tensor((off / (off.detach() + SMALLEST)).mean())

    def velocity(self, v: Tensor, t: Tensor, r: Tensor, g: Tensor, c: Tensor) -> Tensor:
        """u(v, t, r): v (N, V), t and r (N, 1), g (N, G), c (N, C) -> (N, V)."""
        s_t, s_r = ((u**2 + (1 - u) ** 2).sqrt() for u in (t, r))
        rate = math.pi * 2.0 ** torch.arange(N_FREQUENCIES, device=v.device, dtype=v.dtype) / 2
        waves = [f(rate * at) for at in (t, r - t) for f in (torch.sin, torch.cos)]
        correction = self.network(v / s_t, torch.cat([c, g, *waves], dim=1))
        return torch.as_tensor(2 * (r + t - 1) / (s_t * (s_r + s_t)) * v + correction / s_t)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        n, n_steps = self.sizes.n_globals, self.config.n_steps
        g, v = self.layers.decode(z[:, :n], c), z[:, n:]
        for k in range(n_steps):
            t, r = (torch.full_like(v[:, :1], at / n_steps) for at in (k, k + 1))
            v = v + self.velocity(v, t, r, g, c) / n_steps
        return torch.cat([g, v], dim=1)
