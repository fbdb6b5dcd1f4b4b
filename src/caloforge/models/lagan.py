"""LAGAN as published (de Oliveira, Paganini, Nachman 2017, 1701.05927): jet images of two classes.

One cartesian layer of 25 x 25 pixels, two kinds of particles; the class enters by a Hadamard product, h = z * Emb(k).
The discriminator also tells the class (an auxiliary classifier, Odena et al. 2016, 1610.09585). Features x of the model
are pixel pT in units of 100 GeV (preprocessing "linear", scale_mev = 1e5). 3,586,932 and 1,398,986 parameters.

    L = BCE(real or generated) + BCE(class), with targets exchanged at random:

real or generated 5 % when the discriminator is trained; the class of generated images 5 % there and 9 % when the
generator is trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Generator, Objective, Sizes, require_sizes
from .calogan import image_shapes, require_batch
from .local import SLOPE, LocallyConnected, MinibatchDiscrimination, batch_norm, flipped, same_convolution

SIDE = 25
bce = functional.binary_cross_entropy_with_logits


@dataclass(frozen=True)
class LAGANConfig:
    """n_latent: size of z; flip_real, flip_class, flip_class_generator: probabilities of exchanged targets; dropout: of
    the discriminator; n_kernels, n_dims: minibatch discrimination."""

    n_latent: int = 200
    flip_real: float = 0.05
    flip_class: float = 0.05
    flip_class_generator: float = 0.09
    dropout: float = 0.2
    n_kernels: int = 20
    n_dims: int = 10

    def __post_init__(self) -> None:
        require_sizes(self, "n_latent", "n_kernels", "n_dims")
        for name in ("flip_real", "flip_class", "flip_class_generator"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"got model.{name} = {getattr(self, name)}, expected within 0..1; correct it")


class LAGAN(Generator):
    """Generator and discriminator."""

    helpers = ("discriminator",)

    def __init__(self, config: LAGANConfig, sizes: Sizes) -> None:
        super().__init__()
        shapes = image_shapes(sizes, "lagan")
        if shapes != ((SIDE, SIDE),):
            raise ValueError(
                f"got layers of shapes {shapes}, expected one of {SIDE} x {SIDE} for lagan, where its upsampling ends; "
                "use another family"
            )
        if sizes.n_classes != 2:
            raise ValueError(
                f"got {max(1, sizes.n_classes)} kinds of particles, expected 2 classes for lagan, told apart by pdg; "
                "train on a sample with both"
            )
        self.config, self.sizes, self.n_noise = config, sizes, config.n_latent
        self.generator, self.discriminator = _Generator(config), _Discriminator(config)

    def objectives(self) -> Iterator[Objective]:
        d, g = (list(part.parameters()) for part in (self.discriminator, self.generator))
        yield Objective("discriminator", d, self._discriminator_loss, every=2, betas=(0.5, 0.999))
        yield Objective("generator", g, self._generator_loss, betas=(0.5, 0.999))

    def classes(self, c: Tensor) -> Tensor:
        """1 for the second kind of particle, 0 for the first: (N,)."""
        return c[:, -1]

    def _discriminator_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        require_batch(x)
        label = torch.randint(2, (len(x),), generator=generator).to(x)
        with torch.no_grad():
            fake = self._draw(label, generator)
        losses, config = [], self.config
        for image, real, of_class in (
            (x, 1.0, self.classes(c)),
            (fake, 0.0, flipped(label, config.flip_class, generator)),
        ):
            source, kind = self.discriminator(image, generator)
            target = flipped(torch.full_like(label, real), config.flip_real, generator)
            losses.append(bce(source, target) + bce(kind, of_class))
        return 0.5 * torch.stack(losses).sum()

    def _generator_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        label = torch.randint(2, (len(x),), generator=generator).to(x)
        source, kind = self.discriminator(self._draw(label, generator), generator)
        target = flipped(label, self.config.flip_class_generator, generator)
        return bce(source, torch.ones_like(source)) + bce(kind, target)

    def _draw(self, label: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(len(label), self.n_noise, generator=generator).to(label.device)
        out: Tensor = self.generator(z, label)
        return out

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.generator(z, self.classes(c))
        return out


class _Generator(nn.Module):
    """z (N, Z) and class (N,) in {0, 1} -> pixels (N, 625)."""

    def __init__(self, config: LAGANConfig) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.empty(2, config.n_latent))
        nn.init.xavier_normal_(self.classes)
        self.dense = nn.Linear(config.n_latent, 128 * 7 * 7)
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        self.convolution, self.norm = same_convolution(128, 64, 5), batch_norm(64)
        self.local_14, self.norm_14 = LocallyConnected(64, 6, (14, 14), 5, padding=2), batch_norm(6)
        self.local_28 = LocallyConnected(6, 6, (28, 28), 3)
        self.image = LocallyConnected(6, 1, (26, 26), 2, bias=False, rectified=False)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        h = z * (self.classes[0] + label[:, None] * (self.classes[1] - self.classes[0]))
        x = self.dense(h).reshape(-1, 128, 7, 7)
        x = self.norm(functional.leaky_relu(self.convolution(x), SLOPE))
        x = functional.interpolate(x, scale_factor=2)
        x = self.norm_14(functional.leaky_relu(self.local_14(x), SLOPE))
        x = functional.interpolate(x, scale_factor=2)
        x = functional.leaky_relu(self.local_28(x), SLOPE)
        return functional.relu(self.image(x)).flatten(1).float()


class _Discriminator(nn.Module):
    """Pixels (N, 625) -> logits of being real and of class 1, (N,) and (N,)."""

    def __init__(self, config: LAGANConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.convolution = same_convolution(1, 32, 5)
        self.local = nn.ModuleList([
            LocallyConnected(32, 8, (25, 25), 5, stride=(2, 2), padding=2),
            LocallyConnected(8, 8, (13, 13), 5, padding=2),
            LocallyConnected(8, 8, (13, 13), 3, stride=(2, 2), padding=1),
        ])  # fmt: skip
        self.norms = nn.ModuleList(batch_norm(8) for _ in self.local)
        self.similar = MinibatchDiscrimination(72, config.n_kernels, config.n_dims)
        self.heads = nn.Linear(72 + config.n_kernels, 2)

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = functional.leaky_relu(self.convolution(x.reshape(-1, 1, SIDE, SIDE)), SLOPE)
        x = functional.dropout(x, self.dropout, self.training)
        for layer, norm in zip(self.local, self.norms, strict=True):
            x = functional.dropout(norm(functional.leaky_relu(layer(x), SLOPE)), self.dropout, self.training)
        found = functional.avg_pool2d(x, 2).flatten(1)
        source, kind = self.heads(torch.cat([found.float(), self.similar(found)], dim=1)).float().unbind(1)
        return source, kind
