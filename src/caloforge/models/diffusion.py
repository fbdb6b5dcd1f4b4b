"""CaloDiffusion (Amram and Pedro 2023, 2308.03876): diffusion of the voxels by a U-net of cylindrical convolutions.

Voxel features x are noised to y = x + sigma n, n ~ N(0, 1). On the common grid of all layers (``glam``) a network
F(c_in y, sigma; c) sees y beside images of the position (``unet``); c_in = 1/sqrt(1 + sigma^2). It makes a denoiser,

    edm      D = c_in^2 y + sigma c_in F    and is trained by ((D - x)/(sigma c_in))^2, ln sigma ~ N(m, s)
             (Karras et al. 2022, 2206.00364, with data of unit variance; the paper's "hybrid weight")
    cosine   D = y - sigma F                and is trained by (F - n)^2, 400 levels of a cosine schedule, each as often
             (Nichol and Dhariwal 2021, 2102.09672; the paper's process sqrt(abar) x + sqrt(1 - abar) n is c_in y)

which a sampler follows from noise to showers (``samplers``). Before training F = 0, and the deterministic samplers of
edm map normals to normals. Layer features g, where the preprocessing has some, come first, from a spline flow
p(g | c), and are conditions of the voxels.

With the published channels, (16, 16, 16, 32), and preprocess.voxels = "ratio" it has 517,969 parameters for data set 2
of the CaloChallenge. What differs: the ResBlocks are cylindrical too, axes shorter than 4 bins are not halved, the maps
of ``glam`` start without noise and with one constant per layer, and the last layer of the network starts at zero.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..geometry import Geometry
from ..samplers import SAMPLERS, cosine_levels, cosine_steps, ddpm, karras_levels, require_steps
from .base import Fast, Generator, LayerFlow, Objective, Sizes, randn_like, require_sizes
from .glam import GLaM
from .unet import GROUPS, UNet

MOST_ANCESTRAL = 64  # steps: the noise of every one of them is part of z


@dataclass(frozen=True)
class DiffusionConfig:
    """stem, level_1, level_2, level_3: channels of the U-net, multiples of 8; width: of the condition that every block
    sees. first_bins, second_bins: longest axes of the common grid, beyond which neighbours become channels, 0 for any.

    parametrisation: module docstring; sampler: "ddim" (order 1), "heun" (2, twice the evaluations), "dpmpp_2m" (2), or
    "ddpm" (ancestral, at most 64 steps: its noise is part of z), in n_steps. log_sigma_mean, log_sigma_std: of the
    noise levels in training, sigma_min: the smallest one when generating (edm only); sigma_max: the largest one.
    """

    stem: int = 16
    level_1: int = 16
    level_2: int = 16
    level_3: int = 32
    width: int = 128
    first_bins: int = 0
    second_bins: int = 0
    parametrisation: Literal["edm", "cosine"] = "edm"
    sampler: Literal["ddim", "heun", "dpmpp_2m", "ddpm"] = "dpmpp_2m"
    n_steps: int = 24
    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    layer_hidden: int = 64
    layer_transforms: int = 4
    layer_bins: int = 12
    layer_fast: Fast = "density"

    def __post_init__(self) -> None:
        require_sizes(self, "n_steps", "layer_hidden", "layer_transforms", "layer_bins")
        for name in ("stem", "level_1", "level_2", "level_3"):
            n = getattr(self, name)
            if n < GROUPS or n % GROUPS:
                raise ValueError(
                    f"got model.{name} = {n}, expected a multiple of {GROUPS}, the groups of a norm; correct it"
                )
        if self.width % 4:
            raise ValueError(f"got model.width = {self.width}, expected a multiple of 4; correct it")
        if min(self.first_bins, self.second_bins) < 0:
            raise ValueError(f"got {self}, expected first_bins and second_bins >= 0 (0 for any); correct them")
        if not (self.log_sigma_std > 0 and 0 < self.sigma_min < self.sigma_max):
            raise ValueError(f"got {self}, expected log_sigma_std > 0 and 0 < sigma_min < sigma_max; correct them")
        if self.sampler == "ddpm" and self.n_steps > MOST_ANCESTRAL:
            raise ValueError(
                f"got model.n_steps = {self.n_steps} for sampler 'ddpm', expected at most {MOST_ANCESTRAL}: the noise "
                "of every step is part of z; lower it or choose 'ddim'"
            )
        require_steps(self.sampler, self.n_steps)
        self.levels()

    def levels(self) -> list[float]:
        """Noise levels of the sampler, n_steps + 1, the last one 0."""
        if self.parametrisation == "cosine":
            return cosine_steps(self.n_steps, self.sigma_max)
        return karras_levels(self.n_steps, self.sigma_min, self.sigma_max)


class Diffusion(Generator):
    """Layer flow p(g | c) where there are layer features, then a diffusion model p(v | g, c)."""

    table: Tensor  # noise levels of the cosine schedule, smallest first
    positions: Tensor  # images of layer, second axis and, where it counts, first axis, in -1..1: (1, P, *grid)

    def __init__(self, config: DiffusionConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        n_draws = config.n_steps if config.sampler == "ddpm" else 1
        self.n_noise = sizes.n_globals + n_draws * sizes.n_voxels
        self.layers: LayerFlow | None = None
        if sizes.n_globals:
            self.layers = LayerFlow(
                sizes, hidden=config.layer_hidden, transforms=config.layer_transforms, bins=config.layer_bins,
                fast=config.layer_fast,
            )  # fmt: skip
        geometry = sizes.mesh("diffusion")
        self.grid = GLaM(geometry, (config.first_bins, config.second_bins))
        self.register_buffer("positions", _positions(geometry, self.grid), persistent=False)
        self.register_buffer("table", torch.tensor(cosine_levels()[1:]), persistent=False)
        n = self.grid.n_channels
        channels = (config.stem, config.level_1, config.level_2, config.level_3)
        self.network = UNet(
            n + self.positions.shape[1], n, sizes.n_conditions + sizes.n_globals, channels, config.width,
            self.grid.shape, self.grid.circular,
        )  # fmt: skip

    def objectives(self) -> Iterator[Objective]:
        if self.layers is not None:
            yield Objective("layers", list(self.layers.parameters()), self._layer_loss, every=2)
        yield Objective("shape", [*self.grid.parameters(), *self.network.parameters()], self._shape_loss)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        assert self.layers is not None  # it would be no objective
        return self.layers.loss(x[:, : self.sizes.n_globals], c)

    def _shape_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        n = self.sizes.n_globals
        v, given = x[:, n:], torch.cat([c, x[:, :n]], dim=1)
        noise, sigma = randn_like(v, generator), self._levels(v, generator)
        y = v + sigma * noise
        f = self._network(y, sigma, given)
        if self.config.parametrisation == "cosine":
            return (f - noise).square().mean()
        target = torch.rsqrt(1 + sigma.square()) * (sigma * v - noise)  # (x - c_in^2 y) / (sigma c_in)
        return (f - target).square().mean()

    def _levels(self, v: Tensor, generator: torch.Generator) -> Tensor:
        """Random noise levels of training, (N, 1)."""
        if self.config.parametrisation == "cosine":
            index = torch.randint(len(self.table), (len(v),), generator=generator)
            return self.table[index.to(v.device)][:, None]
        n = torch.randn(len(v), 1, generator=generator).to(v.device)
        return torch.exp(self.config.log_sigma_mean + self.config.log_sigma_std * n)

    def _network(self, y: Tensor, sigma: Tensor, given: Tensor) -> Tensor:
        """F of the module docstring: y (N, V), sigma (N, 1), given (N, C + G) -> (N, V)."""
        scale = torch.rsqrt(1 + sigma.square())
        image = self.grid.encode(scale * y)
        image = torch.cat([image, self.positions.expand(y.shape[0], -1, -1, -1, -1)], dim=1)
        # What the network is told of the noise: sqrt(1 - abar), or the logarithm where levels span decades.
        level = sigma * scale if self.config.parametrisation == "cosine" else 0.5 * torch.log(sigma)
        return self.grid.decode(self.network(image, level, given)).to(y.dtype)

    def denoise(self, y: Tensor, sigma: float, given: Tensor) -> Tensor:
        """D of the module docstring, the estimate of x: y (N, V), given (N, C + G) -> (N, V)."""
        f = self._network(y, torch.full_like(y[:, :1], sigma), given)
        if self.config.parametrisation == "cosine":
            return y - sigma * f
        scale = 1 / math.sqrt(1 + sigma**2)
        return scale**2 * y + sigma * scale * f

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        n = self.sizes.n_globals
        g = z[:, :n] if self.layers is None else self.layers.decode(z[:, :n], c)
        given, levels = torch.cat([c, g], dim=1), self.config.levels()
        start, *noise = torch.split(z[:, n:], self.sizes.n_voxels, dim=1)
        y = levels[0] * start

        def denoise(y: Tensor, sigma: float) -> Tensor:
            return self.denoise(y, sigma, given)

        if self.config.sampler == "ddpm":
            v = ddpm(denoise, y, levels, noise)
        else:
            v = SAMPLERS[self.config.sampler](denoise, y, levels)
        return torch.cat([g, v], dim=1)


def _positions(geometry: Geometry, grid: GLaM) -> Tensor:
    """Module docstring of ``unet``: what breaks its symmetries. The angle only where layers differ in it."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in grid.shape]
    images = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    kept = [0, 2] if grid.circular and grid.regular else [0, 1, 2]
    return images[kept][None]
