"""A discriminator of images, beside that of features: it sees what the preprocessing makes of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

FAINT, BRIGHT = 1e-4, 0.1  # of the mean energy of an image: where pixels begin to count, and where they are large
UNIT = 1e-2  # of the mean energy of an image, in which mean images are compared
MEMORY = 0.02  # of the running mean images per step


class ImageJudge(nn.Module):
    """Energies of a square image (N, V) and what they are given (N, D) -> logits (N,), a projection discriminator.

    Also keeps the mean images of real and generated ones, of every class, (2, K, V): what a convolution sees least.
    """

    places: Tensor  # x and y of the pixels, (1, 2, side, side)
    scale: Tensor  # mean energy of an image [MeV]
    means: Tensor
    seen: Tensor  # how much of them there is, (K,)

    def __init__(self, n_voxels: int, n_given: int, n_classes: int, channels: int = 32, width: int = 256) -> None:
        super().__init__()
        self.side = round(n_voxels**0.5)
        if self.side**2 != n_voxels:
            raise ValueError(f"got {n_voxels} voxels for a discriminator of images, expected a square; turn images off")
        self.first = nn.Conv2d(4, channels, 5, stride=2, padding=2)
        self.second = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        n_pixels = ((self.side + 3) // 4) ** 2
        self.third = nn.Linear(2 * channels * n_pixels + n_given, width)
        self.psi = nn.Linear(width, 1)
        self.embed = nn.Sequential(nn.Linear(n_given, width // 2), nn.SiLU(), nn.Linear(width // 2, width))
        place = torch.linspace(-1, 1, self.side).expand(self.side, -1)
        self.register_buffer("places", torch.stack([place, place.T])[None], persistent=False)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("means", torch.zeros(2, max(1, n_classes), n_voxels))
        self.register_buffer("seen", torch.zeros(max(1, n_classes)))

    def channels(self, energy: Tensor) -> Tensor:
        """Faint and bright pixels, both about 1: (N, 2, side, side)."""
        e = energy.reshape(-1, 1, self.side, self.side) / self.scale
        return torch.cat([0.25 * torch.log1p(e / FAINT), e / BRIGHT], dim=1)

    def look(self, channels: Tensor) -> Tensor:
        """What the convolutions see of it, (N, H)."""
        h = torch.cat([channels, self.places.expand(len(channels), -1, -1, -1)], dim=1)
        h = functional.leaky_relu(self.first(h), 0.2)
        return functional.leaky_relu(self.second(h), 0.2).flatten(1)

    def forward(self, seen: Tensor, given: Tensor) -> Tensor:
        """Logits (N,) of what ``look`` returned."""
        h = functional.leaky_relu(self.third(torch.cat([seen, given], dim=1)), 0.2)
        return torch.as_tensor(self.psi(h).squeeze(1) + (self.embed(given) * h).mean(1)).float()

    @torch.no_grad()
    def remember(self, real: Tensor, fake: Tensor, classes: Tensor) -> None:
        """Move the mean images towards those of this batch, (N, V) each; classes: one-hot (N, K)."""
        if not self.seen.any():
            self.scale.copy_(real.sum(1).mean())
        counts = classes.sum(0)
        rate = torch.where(counts > 0, MEMORY / (1 - (1 - MEMORY) ** (self.seen + 1)), 0.0)
        for k, energy in enumerate((real, fake)):
            mean = classes.T @ energy / counts.clamp_min(1.0)[:, None]
            self.means[k] += rate[:, None] * (mean - self.means[k])
        self.seen += (counts > 0).to(self.seen.dtype)

    def mean_loss(self, fake: Tensor, classes: Tensor) -> Tensor:
        """Has the gradient of the squared difference of the mean images, summed over pixels and classes."""
        mean = classes.T @ fake / classes.sum(0).clamp_min(1.0)[:, None]
        unit = UNIT * self.scale
        return ((self.means[1] - self.means[0]) / unit * mean / unit).sum()
