"""Conditional flow matching in two stages: layer features by a spline flow, voxels by a velocity network.

The path is x_t = (1 - t) eps + t x (Lipman et al. 2022, 2210.02747; for showers CaloDREAM, Favaro et al. 2024,
2405.09629). Features are Gaussianised one by one, so the velocity is written as the exact one of independent normals
plus a correction F that the network learns, of unit variance at every t (in the spirit of Karras et al. 2022):

    v(x_t, t) = (2 t - 1) / s^2 x_t + F(x_t, t, g, c) / s,     s^2 = t^2 + (1 - t)^2

Or the network predicts the clean features X (x-prediction, Li and He 2025, 2511.13720), better where a token holds many
voxels, and with a floor f under the denominator

    v(x_t, t) = (X(x_t, t, g, c) - x_t) / max(1 - t, f)

Both minimise the same loss, E s^2 (v - (x - eps))^2, but for the floor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..solvers import SOLVERS, Bespoke
from .base import Fast, Generator, LayerFlow, Objective, ResidualMLP, Sizes, randn_like, require_sizes
from .tokens import TokenMixer, TokenTransformer, runs

N_FREQUENCIES = 8
FLOOR = 0.05  # f: of 1 - t in x-prediction
SOLVER_SHOWERS = 64  # of each batch that the bespoke solver is trained on


@dataclass(frozen=True)
class FlowMatchingConfig:
    """width, depth, dropout: blocks of the velocity network; n_steps of ``solver`` when generating.

    backbone: the network, "mlp" of all voxels at once, or "mixer" or "transformer" of tokens (``tokens``), each of at
    most ``patch`` voxels from at most ``patch_layers`` layers; heads: of the transformer's attention;
    shared_modulation: one modulation for all blocks of tokens, else one each. prediction: what the network predicts,
    "v" or the clean features "x". t_mean, t_std: the flow time of training is logit-normal, t = sigmoid(t_mean + t_std
    n). solver: "bespoke" learns its coefficients, from step solver_since on, with solver_rate times the learning rate
    (of which a cosine schedule leaves little at the end), and takes one evaluation of the network per step.
    """

    width: int = 576
    depth: int = 4
    dropout: float = 0.1
    solver: Literal["euler", "midpoint", "heun", "rk4", "bespoke"] = "midpoint"
    n_steps: int = 12
    t_mean: float = 0.0
    t_std: float = 1.0
    layer_hidden: int = 64
    layer_transforms: int = 4
    layer_bins: int = 12
    layer_passes: int = 2
    layer_fast: Fast = "density"
    layer_rate: float = 1.0
    backbone: Literal["mlp", "mixer", "transformer"] = "mlp"
    patch: int = 12
    patch_layers: int = 1
    heads: int = 4
    shared_modulation: bool = True
    prediction: Literal["v", "x"] = "v"
    solver_since: int = 0
    solver_rate: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(
            self, "depth", "n_steps", "layer_hidden", "layer_transforms", "layer_bins", "patch", "patch_layers", "heads"
        )
        if not self.t_std > 0:
            raise ValueError(f"got model.t_std = {self.t_std}, expected above 0; raise it")
        if self.backbone == "transformer" and self.width % self.heads:
            raise ValueError(
                f"got model.heads = {self.heads}, expected a divisor of model.width = {self.width}; change one of them"
            )
        if self.solver_since < 0 or not self.solver_rate > 0:
            raise ValueError(
                f"got model.solver_since = {self.solver_since} and solver_rate = {self.solver_rate}, expected >= 0 and "
                "> 0; raise them"
            )


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
            passes=config.layer_passes,
        )
        self.network = _network(config, sizes, sizes.n_conditions + sizes.n_globals + 2 * N_FREQUENCIES)
        self.solver = Bespoke(config.n_steps) if config.solver == "bespoke" else None

    def objectives(self) -> Iterator[Objective]:
        rate = self.config.layer_rate
        yield Objective("layers", list(self.layers.parameters()), self._layer_loss, every=2, rate=rate)
        yield Objective("shape", list(self.network.parameters()), self._shape_loss)
        if self.solver is not None:
            config = self.config
            parameters = list(self.solver.parameters())
            yield Objective("solver", parameters, self._solver_loss, since=config.solver_since, rate=config.solver_rate)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.layers.loss(x[:, : self.sizes.n_globals], c)

    def _shape_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        g, v1 = x[:, : self.sizes.n_globals], x[:, self.sizes.n_globals :]
        eps = randn_like(v1, generator)
        n = torch.randn(len(x), 1, generator=generator).to(x.device)
        t = torch.sigmoid(self.config.t_mean + self.config.t_std * n)
        s2 = t**2 + (1 - t) ** 2
        vt = (1 - t) * eps + t * v1
        if self.config.prediction == "x":
            scale = s2.sqrt() / (1 - t).clamp_min(FLOOR)
            return ((self._output(vt, t, g, c) - v1) * scale).square().mean()
        target = (v1 - eps - (2 * t - 1) / s2 * vt) * s2.sqrt()
        return (self._output(vt, t, g, c) - target).square().mean()

    def _solver_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        assert self.solver is not None
        n = self.sizes.n_globals
        g, c = x[:SOLVER_SHOWERS, :n], c[:SOLVER_SHOWERS]
        eps = randn_like(x[:SOLVER_SHOWERS, n:], generator)
        training = self.network.training
        self.network.eval()  # it follows the network as it generates, without dropout
        with torch.autocast(x.device.type, enabled=False):
            loss = self.solver.loss(lambda v, t: self.velocity(v, t, g, c), eps)
        self.network.train(training)
        return loss

    def _output(self, v: Tensor, t: Tensor, g: Tensor, c: Tensor) -> Tensor:
        """F or X of the module docstring: v (N, V), t (N, 1), g (N, G), c (N, C) -> (N, V)."""
        rate = math.pi * 2.0 ** torch.arange(N_FREQUENCIES, device=v.device, dtype=v.dtype) / 2
        context = torch.cat([c, g, torch.sin(rate * t), torch.cos(rate * t)], dim=1)
        s = (t**2 + (1 - t) ** 2).sqrt()
        f: Tensor = self.network(v / s, context)
        return f.to(v.dtype)

    def velocity(self, v: Tensor, t: float | Tensor, g: Tensor, c: Tensor) -> Tensor:
        """dv/dt at flow time t, a number or a tensor (): (N, V)."""
        times = t * torch.ones_like(v[:, :1])
        out = self._output(v, times, g, c)
        if self.config.prediction == "x":
            return (out - v) / (1 - times).clamp_min(FLOOR)
        s2 = t**2 + (1 - t) ** 2
        return (2 * t - 1) / s2 * v + out / (s2.sqrt() if isinstance(s2, Tensor) else math.sqrt(s2))

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        n, config = self.sizes.n_globals, self.config
        g = self.layers.decode(z[:, :n], c)

        def velocity(v: Tensor, t: float | Tensor) -> Tensor:
            return self.velocity(v, t, g, c)

        if self.solver is not None:
            v = self.solver(velocity, z[:, n:])
        else:
            v = SOLVERS[config.solver](velocity, z[:, n:], config.n_steps)
        return torch.cat([g, v], dim=1)


def _network(config: FlowMatchingConfig, sizes: Sizes, n_context: int) -> nn.Module:
    """The backbone: v (N, V), context (N, n_context) -> (N, V)."""
    shape = (config.width, config.depth, config.dropout)
    if config.backbone == "mlp":
        return ResidualMLP(sizes.n_voxels, n_context, sizes.n_voxels, *shape)
    cuts = runs(sizes.mesh("flow_matching of tokens"), config.patch, config.patch_layers)
    if config.backbone == "mixer":
        return TokenMixer(cuts, n_context, *shape, shared=config.shared_modulation)
    return TokenTransformer(cuts, n_context, *shape, heads=config.heads, shared=config.shared_modulation)
