"""The VAE of Geant4's example Par04, as published with Geant4 11.4 (examples/extended/parameterisations/Par04).

A dense network each way, with voxels in units of the incident energy and the conditions c beside its input:

    encoder  V + C -> 100, 50, 20, 14 -> mean and ln variance of 10 latents
    decoder  10 + C -> 14, 20, 50, 100 -> V, sigmoid

LeakyReLU and batch normalisation after every hidden layer. The loss is the binary cross-entropy summed over voxels and
batch, plus the mean KL divergence: next to nothing of a prior. One mean per voxel and ten latents make showers on a
thin surface, which a classifier sees at once (``vae`` samples every voxel instead).

18 x 50 x 45 cells with 4 conditions have 4,097,528 parameters in the decoder and 4,057,532 in the encoder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Generator, Objective, Sizes, randn_like, require_sizes

HIDDEN = (14, 20, 50, 100)  # widths of the decoder, of the encoder in reverse


@dataclass(frozen=True)
class Par04VAEConfig:
    """n_latent: latent variables; beta: weight of the KL divergence, divided by the batch as published."""

    n_latent: int = 10
    beta: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(self, "n_latent")
        if not self.beta >= 0:
            raise ValueError(f"got model.beta = {self.beta}, expected at least 0; raise it")


class Par04VAE(Generator):
    """Encoder q(y | v, c) and decoder v(y, c) of voxels v = e/(k E_inc), (N, V)."""

    helpers = ("encoder", "mean", "log_variance")

    def __init__(self, config: Par04VAEConfig, sizes: Sizes) -> None:
        super().__init__()
        if sizes.n_globals:
            raise ValueError(
                "got features of layers for par04_vae, expected preprocess.voxels = 'ratio' with map = 'linear'; set "
                "them in the recipe"
            )
        self.config, self.n_noise = config, config.n_latent
        self.encoder = _dense(sizes.n_voxels + sizes.n_conditions, HIDDEN[::-1])
        self.mean, self.log_variance = (nn.Linear(HIDDEN[0], config.n_latent) for _ in range(2))
        self.decoder = _dense(config.n_latent + sizes.n_conditions, HIDDEN)
        self.leave = nn.Linear(HIDDEN[-1], sizes.n_voxels)

    def objectives(self) -> Iterator[Objective]:
        yield Objective("elbo", list(self.parameters()), self._loss)

    def _loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Per voxel."""
        h = self.encoder(torch.cat([x, c], dim=1))
        mean, log_variance = self.mean(h).float(), self.log_variance(h).float()
        y = mean + torch.exp(0.5 * log_variance) * randn_like(mean, generator)
        # With logits, which autocast allows; as it is, voxels are below 1.
        voxels = functional.binary_cross_entropy_with_logits(self._logits(y, c).float(), x.clamp(0, 1))
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return torch.as_tensor(voxels + self.config.beta * kl / x.numel())

    def _logits(self, y: Tensor, c: Tensor) -> Tensor:
        logits: Tensor = self.leave(self.decoder(torch.cat([y, c], dim=1)))
        return logits

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-self._logits(z, c)))  # ONNX Runtime's own sigmoid is off by 1e-7, a filled voxel


def _dense(n_in: int, widths: tuple[int, ...]) -> nn.Sequential:
    steps: list[nn.Module] = []
    for a, b in pairwise((n_in, *widths)):
        steps += [nn.Linear(a, b), nn.LeakyReLU(0.3), nn.BatchNorm1d(b, eps=1e-3, momentum=0.01)]
        nn.init.normal_(steps[-3].weight, std=0.05)  # type: ignore[arg-type]
        nn.init.zeros_(steps[-3].bias)  # type: ignore[arg-type]
    return nn.Sequential(*steps)
