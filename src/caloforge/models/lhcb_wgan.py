"""The WGAN of the LHCb calorimeter as published (Chekalina et al. 2018, 1812.01319): one layer of cells, oblique e-.

The generator makes images from z and the conditions c; the critic D sees images only. What ties an image to c is a
regressor R that is trained first to tell c from Geant4 images and then frozen. Features x are Box-Cox transformed
cells, scaled to 0..1 (preprocessing "box-cox"). With x~ between real and generated images and lambda = 10
(Gulrajani et al. 2017, 1704.00028),

    L_D = E D(G) - E D(x) + lambda E (|grad D(x~)| - 1)^2,    L_G = -E D(G) + |c - R(G)|_1,    L_R = |c - R(x)|_1
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Generator, Objective, Sizes, require_sizes
from .calogan import image_shapes

STAGES = 3  # doublings of the generator


@dataclass(frozen=True)
class LHCbWGANConfig:
    """n_latent: size of z; width: channels of the critic's first stage; n_critic: updates of the critic per update of
    the generator; penalty: lambda; regressor_steps: steps in which the regressor is trained, before all else;
    regressor_weight: of its term in L_G."""

    n_latent: int = 512
    width: int = 32
    n_critic: int = 2
    penalty: float = 10.0
    regressor_steps: int = 600
    regressor_weight: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(self, "n_latent", "n_critic", "regressor_steps")
        if self.penalty < 0 or self.regressor_weight < 0:
            raise ValueError(f"got {self}, expected penalty and regressor_weight >= 0; correct them")


class LHCbWGAN(Generator):
    """Generator, critic and regressor."""

    helpers = ("critic", "regressor")

    def __init__(self, config: LHCbWGANConfig, sizes: Sizes) -> None:
        super().__init__()
        shapes = image_shapes(sizes, "lhcb_wgan")
        if len(shapes) != 1:
            raise ValueError(f"got {len(shapes)} layers, expected one for lhcb_wgan; use another family")
        self.config, self.sizes, self.n_noise = config, sizes, config.n_latent
        self.generator = _Generator(config, shapes[0], sizes.n_conditions)
        self.critic = _Trunk(config.width, shapes[0], 1)
        self.regressor = _Trunk(config.width, shapes[0], sizes.n_conditions)

    def objectives(self) -> Iterator[Objective]:
        r, d, g = (list(part.parameters()) for part in (self.regressor, self.critic, self.generator))
        first, betas = self.config.regressor_steps, (0.5, 0.9)
        yield Objective("regressor", r, self._regressor_loss, until=first, rate=10.0)
        yield Objective("critic", d, self._critic_loss, since=first, betas=betas)
        yield Objective("generator", g, self._generator_loss, every=self.config.n_critic, since=first, betas=betas)

    def _regressor_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        loss: Tensor = (self.regressor(x) - c).abs().mean()
        return loss

    def _critic_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            fake = self._draw(c, generator)
        part = torch.rand(len(x), 1, generator=generator).to(x.device)
        with torch.enable_grad():  # also where only the loss is asked for
            between = (part * x + (1 - part) * fake).requires_grad_()
            slope = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)[0]
            penalty = (slope.norm(dim=1) - 1).square().mean()
        loss: Tensor = self.critic(fake).mean() - self.critic(x).mean() + self.config.penalty * penalty
        return loss

    def _generator_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        fake = self._draw(c, generator)
        told: Tensor = (self.regressor(fake) - c).abs().sum(1).mean()
        return torch.as_tensor(self.config.regressor_weight * told - self.critic(fake).mean())

    def _draw(self, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.decode(torch.randn(len(c), self.n_noise, generator=generator).to(c.device), c)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.generator(torch.cat([z, c], dim=1))
        return out


class _Generator(nn.Module):
    """[z, c] (N, Z + C) -> cells (N, r c): three doublings from 256 channels, cropped in the middle."""

    def __init__(self, config: LHCbWGANConfig, shape: tuple[int, int], n_conditions: int) -> None:
        super().__init__()
        self.shape = shape
        start = tuple(-(-n // 2**STAGES) for n in shape)
        channels = [8 * config.width // 2**k for k in range(STAGES + 1)]
        self.start = (channels[0], *start)
        self.dense = nn.Linear(config.n_latent + n_conditions, math.prod(self.start))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in channels[1:])
        self.image = nn.Conv2d(channels[-1], 1, 3, padding=1)
        self.crop = tuple((n * 2**STAGES - m) // 2 for n, m in zip(start, shape, strict=True))

    def forward(self, h: Tensor) -> Tensor:
        x = self.dense(h).reshape(-1, *self.start)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(functional.interpolate(x, scale_factor=2))))
        (top, left), (rows, columns) = self.crop, self.shape
        cells: Tensor = self.image(x)[:, 0, top : top + rows, left : left + columns]
        return cells.flatten(1).float()


class _Trunk(nn.Module):
    """Cells (N, r c) -> (N, n_out), or (N,) for one output: four stages of stride 2, LeakyReLU, no normalisation."""

    def __init__(self, width: int, shape: tuple[int, int], n_out: int) -> None:
        super().__init__()
        self.shape = shape
        channels = [1, width, 2 * width, 4 * width, 8 * width]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))
        size = shape
        for _ in self.convolutions:
            size = (-(-size[0] // 2), -(-size[1] // 2))
        self.last = nn.Linear(channels[-1] * math.prod(size), n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 1, *self.shape)
        for convolution in self.convolutions:
            x = functional.leaky_relu(convolution(x), 0.2)
        out: Tensor = self.last(x.flatten(1)).float()
        return out.squeeze(1)
