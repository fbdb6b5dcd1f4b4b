"""Conditional VAE whose decoder samples every voxel (VAE-R).

A decoder that returns one mean per voxel puts all showers on a thin surface, which a classifier sees at once. Here it
returns mean and width of a normal distribution per Gaussianised voxel and draws from it; a draw below the voxel's
threshold is an empty voxel, so the widths also carry the probability of being hit (Kingma & Welling 2013, 1312.6114).
With y the latents (N, K) and a standard normal prior, the loss is

    -ln p(v | y, g, c) + beta KL(q(y | v, g, c) || N(0, 1))
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Fast, Generator, LayerFlow, Objective, ResidualMLP, Sizes, randn_like, require_sizes


@dataclass(frozen=True)
class VAEConfig:
    """n_latent: K; width, depth, dropout: residual blocks of encoder and decoder; beta: weight of the KL term."""

    n_latent: int = 32
    width: int = 320
    depth: int = 2
    dropout: float = 0.0
    beta: float = 1.0
    layer_hidden: int = 64
    layer_transforms: int = 4
    layer_bins: int = 12
    layer_passes: int = 2
    layer_fast: Fast = "decode"
    layer_rate: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(self, "n_latent", "depth", "layer_hidden", "layer_transforms", "layer_bins")
        if not self.beta >= 0:
            raise ValueError(f"got model.beta = {self.beta}, expected at least 0; raise it")


class VAE(Generator):
    """Layer flow p(g | c), encoder q(y | v, g, c), decoder p(v | y, g, c)."""

    def __init__(self, config: VAEConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.n_noise = sizes.n_globals + config.n_latent + sizes.n_voxels
        n_given = sizes.n_conditions + sizes.n_globals
        self.layers = LayerFlow(
            sizes,
            hidden=config.layer_hidden,
            transforms=config.layer_transforms,
            bins=config.layer_bins,
            fast=config.layer_fast,
            passes=config.layer_passes,
        )
        shape = (config.width, config.depth, config.dropout)
        self.encoder = ResidualMLP(sizes.n_voxels, n_given, 2 * config.n_latent, *shape)
        self.decoder = ResidualMLP(config.n_latent, n_given, 2 * sizes.n_voxels, *shape)

    def objectives(self) -> Iterator[Objective]:
        shape = [*self.encoder.parameters(), *self.decoder.parameters()]
        rate = self.config.layer_rate
        yield Objective("layers", list(self.layers.parameters()), self._layer_loss, every=2, rate=rate)
        yield Objective("shape", shape, self._shape_loss)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.layers.loss(x[:, : self.sizes.n_globals], c)

    def _shape_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Negative ELBO per voxel, up to a constant."""
        g, v = x[:, : self.sizes.n_globals], x[:, self.sizes.n_globals :]
        given = torch.cat([c, g], dim=1)
        mean, log_width = _normal(self.encoder(v, given))
        y = mean + log_width.exp() * randn_like(mean, generator)
        kl = (0.5 * (mean.square() + torch.exp(2 * log_width) - 1) - log_width).sum(1)
        mean_v, log_width_v = _normal(self.decoder(y, given))
        nll = (0.5 * ((v - mean_v) * torch.exp(-log_width_v)).square() + log_width_v).sum(1)
        return (nll + self.config.beta * kl).mean() / self.sizes.n_voxels

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        n_g, n_y = self.sizes.n_globals, self.config.n_latent
        g = self.layers.decode(z[:, :n_g], c)
        mean, log_width = _normal(self.decoder(z[:, n_g : n_g + n_y], torch.cat([c, g], dim=1)))
        return torch.cat([g, mean + log_width.exp() * z[:, n_g + n_y :]], dim=1)


def _normal(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and ln(width) from the two halves of a network's output; ln(width) stays within -3.5..3.5, smoothly."""
    mean, log_width = output.float().chunk(2, dim=1)
    return mean, 3.5 * nn.functional.softsign(log_width / 3.5)
