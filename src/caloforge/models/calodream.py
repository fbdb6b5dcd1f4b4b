"""CaloDREAM as published (Favaro et al. 2024, 2405.09629): flow matching of layer energies, then of voxels.

Features x = [u, v] of preprocessing "fractions" (logit, standardised): u of the L layers, v of the voxels. Both
networks learn the velocity of straight paths x_t = (1 - t) eps + t x with t uniform, E (f(x_t, t, .) - (x - eps))^2.

voxels   a vision transformer of patches of D layers x A x B bins, given [c, u]; sizes of the two published ones,
         patch, width, MLP width, parameters:  data set 2: 3 x 16 x 1, 480, 1920, 26,042,688
                                               data set 3: 3 x 5 x 2, 240, 720, 5,868,870
layers   "transfermer", p(u | c) = prod p(u_l | u_0 .. u_{l-1}, c): an encoder of c and a causal decoder of the earlier
         u give 64 numbers per layer, which a velocity network of one dimension is told (2,384,705 parameters); it draws
         layer after layer, and its unrolled graph grows with L energy_steps: export is for few layers. "spline": the
         layer flow of the other families, one pass for all layers
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..solvers import SOLVERS, Bespoke, rk4
from .base import Generator, LayerFlow, Objective, Sizes, randn_like, require_sizes
from .tokens import Attention, Block, Run

N_SINUSOIDS = 256
SOLVER_SHOWERS = 64  # of each batch that the bespoke solver is trained on


@dataclass(frozen=True)
class CaloDREAMConfig:
    """patch_layers, patch_first, patch_second: D, A and B, divisors of the mesh; width, depth, heads, hidden, dropout:
    of the transformer and its MLPs. energy: network of the layers; energy_steps: of Runge and Kutta per layer that the
    transfermer draws. n_steps of ``solver`` per shower; "bespoke" (one evaluation per step) learns its coefficients
    from step solver_since on, with solver_rate times the learning rate."""

    patch_layers: int = 3
    patch_first: int = 16
    patch_second: int = 1
    width: int = 480
    depth: int = 6
    heads: int = 6
    hidden: int = 1920
    dropout: float = 0.0
    energy: Literal["transfermer", "spline"] = "transfermer"
    energy_steps: int = 50
    solver: Literal["euler", "midpoint", "heun", "rk4", "bespoke"] = "rk4"
    n_steps: int = 50
    solver_since: int = 0
    solver_rate: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(
            self, "patch_layers", "patch_first", "patch_second", "depth", "heads", "hidden", "energy_steps", "n_steps"
        )
        if self.width % 2 or self.width % self.heads:
            raise ValueError(
                f"got model.width = {self.width}, expected an even multiple of model.heads = {self.heads}; change one"
            )
        if self.solver_since < 0 or not self.solver_rate > 0:
            raise ValueError(
                f"got model.solver_since = {self.solver_since} and solver_rate = {self.solver_rate}, expected >= 0 and "
                "> 0; raise them"
            )


class CaloDREAM(Generator):
    """Energy network p(u | c), vision transformer p(v | u, c)."""

    def __init__(self, config: CaloDREAMConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        mesh = require_regular(config, sizes)
        self.n_noise = sizes.n_globals + sizes.n_voxels
        self.layers: Transfermer | LayerFlow
        if config.energy == "transfermer":
            self.layers = Transfermer(sizes.n_globals, sizes.n_conditions, config.energy_steps)
        else:
            self.layers = LayerFlow(sizes, hidden=64, transforms=4, bins=12, fast="density")
        run = Run(0, mesh, (config.patch_layers, config.patch_first, config.patch_second))
        self.network = VisionTransformer(config, run, sizes.n_conditions + sizes.n_globals)
        self.solver = Bespoke(config.n_steps) if config.solver == "bespoke" else None

    def objectives(self) -> Iterator[Objective]:
        yield Objective("layers", list(self.layers.parameters()), self._layer_loss)
        yield Objective("shape", list(self.network.parameters()), self._shape_loss)
        if self.solver is not None:
            since, rate = self.config.solver_since, self.config.solver_rate
            yield Objective("solver", list(self.solver.parameters()), self._solver_loss, since=since, rate=rate)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        u = x[:, : self.sizes.n_globals]
        if isinstance(self.layers, LayerFlow):
            return self.layers.loss(u, c)
        return self.layers.loss(u, c, generator)

    def _shape_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        v = x[:, self.sizes.n_globals :]
        eps = randn_like(v, generator)
        t = torch.rand(len(v), 1, generator=generator).to(v.device)
        velocity = self.network((1 - t) * eps + t * v, t, self._given(x, c))
        return torch.as_tensor((velocity.to(v.dtype) - (v - eps)).square().mean())

    def _solver_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        assert self.solver is not None
        x, c = x[:SOLVER_SHOWERS], c[:SOLVER_SHOWERS]
        given, training = self._given(x, c), self.network.training
        eps = randn_like(x[:, self.sizes.n_globals :], generator)
        self.network.eval()  # it follows the network as it generates, without dropout
        with torch.autocast(x.device.type, enabled=False):
            loss = self.solver.loss(lambda v, t: self.velocity(v, t, given), eps)
        self.network.train(training)
        return loss

    def _given(self, x: Tensor, c: Tensor) -> Tensor:
        """What the transformer is given, [c, u] (N, C + L)."""
        return torch.cat([c, x[:, : self.sizes.n_globals]], dim=1)

    def velocity(self, v: Tensor, t: float | Tensor, given: Tensor) -> Tensor:
        """dv/dt at flow time t, a number or a tensor (), given [c, u] (N, C + L): (N, V)."""
        out: Tensor = self.network(v, t * torch.ones_like(v[:, :1]), given)
        return out.to(v.dtype)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        n = self.sizes.n_globals
        u = self.layers.decode(z[:, :n], c)
        given = torch.cat([c, u], dim=1)

        def velocity(v: Tensor, t: float | Tensor) -> Tensor:
            return self.velocity(v, t, given)

        if self.solver is not None:
            v = self.solver(velocity, z[:, n:])
        else:
            v = SOLVERS[self.config.solver](velocity, z[:, n:], self.config.n_steps)
        return torch.cat([u, v], dim=1)


def require_regular(config: CaloDREAMConfig, sizes: Sizes) -> tuple[int, int, int]:
    """The mesh (L, first axis, second axis); ValueError unless the patches divide it and u is one number per layer."""
    geometry = sizes.mesh("calodream")
    shapes = {layer.shape for layer in geometry.layers}
    if len(shapes) > 1:
        raise ValueError(
            f"got layers of {len(shapes)} shapes in {geometry.name!r}, expected one for calodream; use flow_matching "
            "with backbone 'transformer'"
        )
    mesh = (geometry.n_layers, *shapes.pop())
    patch = (config.patch_layers, config.patch_first, config.patch_second)
    if any(n % p for n, p in zip(mesh, patch, strict=True)):
        raise ValueError(
            f"got patches of {_times(patch)} for a mesh of {_times(mesh)} voxels, expected divisors; set "
            "model.patch_layers, patch_first and patch_second"
        )
    if sizes.n_globals != geometry.n_layers:
        raise ValueError(
            f"got {sizes.n_globals} layer features for {geometry.n_layers} layers, expected one per layer for "
            "calodream; set preprocess.voxels = 'fractions'"
        )
    return mesh


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))


class VisionTransformer(nn.Module):
    """v (N, V), t (N, 1), given (N, C + L) -> velocity (N, V); 0 before training."""

    def __init__(self, config: CaloDREAMConfig, run: Run, n_given: int) -> None:
        super().__init__()
        d, n_values = config.width, math.prod(run.patch)
        self.run = run
        self.enter = nn.Linear(n_values, d)
        self.positions = Positions(run.grid, d)
        self.time = nn.Sequential(nn.Linear(N_SINUSOIDS, d), nn.SiLU(), nn.Linear(d, d))
        self.given = nn.Sequential(nn.Linear(n_given, d), nn.SiLU(), nn.Linear(d, d))
        depth = range(config.depth)
        self.blocks = nn.ModuleList(Block(Attention(d, config.heads), d, config.hidden, config.dropout) for _ in depth)
        self.modulations = nn.ModuleList(nn.Linear(d, 6 * d) for _ in depth)
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.last = nn.Linear(d, 2 * d)
        self.leave = nn.Linear(d, n_values)
        zero = {id(layer) for layer in (*self.modulations, self.last, self.leave)}
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight) if id(layer) in zero else nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, v: Tensor, t: Tensor, given: Tensor) -> Tensor:
        context = functional.silu(self.time(sinusoids(t)) + self.given(given))
        h = self.enter(self.run.split(v))
        h = h + self.positions().to(h.dtype)
        for block, modulation in zip(self.blocks, self.modulations, strict=True):
            h = block(h, modulation(context))
        shift, scale = self.last(context).to(h.dtype)[:, None].chunk(2, dim=2)
        return self.run.join(self.leave(torch.addcmul(shift, self.norm(h).to(h.dtype), 1 + scale)))


class Positions(nn.Module):
    """Embedding (T, d) of a token's place: sines and cosines along the three axes, d/2 frequencies learned."""

    grid: Tensor

    def __init__(self, grid: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(width // 2))
        axes = torch.meshgrid(*(torch.arange(n) / n for n in grid), indexing="ij")
        self.register_buffer("grid", torch.stack([axis.flatten() for axis in axes], dim=1), persistent=False)

    def forward(self) -> Tensor:
        parts = [2 * math.pi * self.grid[:, k, None] * f for k, f in enumerate(self.frequencies.tensor_split(3))]
        angles = torch.cat(parts, dim=1)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def sinusoids(t: Tensor) -> Tensor:
    """Flow time (N, 1) -> sines and cosines of 1000 t/1 .. 1000 t/10^4 (N, 256)."""
    n = N_SINUSOIDS // 2
    angles = 1000 * t * torch.exp(-math.log(1e4) / n * torch.arange(n, device=t.device, dtype=t.dtype))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Transfermer(nn.Module):
    """p(u | c), one layer after the other, each by flow matching of one number.

    A token of d = 64 numbers is its value, the one-hot place in its sequence, and zeros.
    """

    WIDTH, HEADS, BLOCKS, FEED_FORWARD, HIDDEN, DEPTH = 64, 4, 4, 512, 512, 6

    frequencies: Tensor

    def __init__(self, n_layers: int, n_conditions: int, n_steps: int) -> None:
        super().__init__()
        d = self.WIDTH
        if max(n_layers, n_conditions) >= d:
            raise ValueError(
                f"got {n_layers} layers and {n_conditions} conditions, expected fewer than {d} for the transfermer; "
                "set model.energy = 'spline'"
            )
        self.n_layers, self.n_steps = n_layers, n_steps
        self.transformer = nn.Transformer(
            d, self.HEADS, self.BLOCKS, self.BLOCKS, self.FEED_FORWARD, dropout=0.0, batch_first=True
        )
        frequencies = 30 * torch.randn(d // 2, generator=torch.Generator().manual_seed(0))  # the same in every model
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Linear(d, d)
        self.enter = nn.Linear(1 + 2 * d, self.HIDDEN)
        self.hidden = nn.ModuleList(nn.Linear(self.HIDDEN, self.HIDDEN) for _ in range(self.DEPTH))
        self.norms = nn.ModuleList(nn.LayerNorm(self.HIDDEN) for _ in range(self.DEPTH))
        self.leave = nn.Linear(self.HIDDEN, 1)

    def loss(self, u: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocities; u (N, L), c (N, C); every layer has its own flow time."""
        eps = randn_like(u, generator)
        t = torch.rand(u.shape, generator=generator).to(u.device)
        velocity = self._velocity((1 - t) * eps + t * u, t, self._told(u[:, :-1], self._encoded(c)))
        return (velocity - (u - eps)).square().mean()

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """z (N, L) -> u (N, L)."""
        u, encoded = z[:, :0], self._encoded(c)
        for layer in range(self.n_layers):
            told = self._told(u, encoded)[:, -1:]

            def velocity(x: Tensor, t: float, told: Tensor = told) -> Tensor:
                return self._velocity(x, torch.full_like(x, t), told)

            u = torch.cat([u, rk4(velocity, z[:, layer : layer + 1], self.n_steps)], dim=1)
        return u

    def _encoded(self, c: Tensor) -> Tensor:
        """Conditions c (N, C) as the decoder sees them, (N, C, d)."""
        out: Tensor = self.transformer.encoder(self._tokens(c))
        return out

    def _told(self, u: Tensor, encoded: Tensor) -> Tensor:
        """What earlier layers u (N, K) and the conditions tell about layers 0 .. K: (N, K + 1, d)."""
        tokens = self._tokens(functional.pad(u, (1, 0)))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=u.device, dtype=u.dtype)
        out: Tensor = self.transformer.decoder(tokens, encoded, tgt_mask=mask, tgt_is_causal=True)
        return out

    def _tokens(self, values: Tensor) -> Tensor:
        """Values (N, K) -> tokens (N, K, d)."""
        places = torch.eye(values.shape[1], self.WIDTH - 1, device=values.device, dtype=values.dtype)
        return torch.cat([values[:, :, None], places.expand(values.shape[0], -1, -1)], dim=2)

    def _velocity(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        """x, t (N, K), told (N, K, d) -> (N, K)."""
        angles = 2 * math.pi * t[:, :, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=2))
        h = functional.silu(self.enter(torch.cat([x[:, :, None], time.to(x.dtype), told.to(x.dtype)], dim=2)))
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            h = functional.silu(norm(layer(h)))
        out: Tensor = self.leave(h).squeeze(2)
        return out.to(x.dtype)
