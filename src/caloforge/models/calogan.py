"""CaloGAN as published (Paganini, de Oliveira, Nachman 2017, 1705.02355 and 1712.10321), for cartesian layers.

One LAGAN stream per layer makes an image I_l (n_x, n_y) of h = z E/100 GeV. A layer also sees the image of the layer
before it: resampled to its mesh, the two are mixed voxel by voxel with weights that locally connected filters compute
("in-painting"). The discriminator judges features of each image, the similarity of the samples in a batch, occupied
fractions, and energies. Features x of the model are energies in GeV (preprocessing "linear", scale_mev = 1000). Losses:

    L_D = BCE,    L_G = BCE + 0.05 mean |sum_k I_k - E|

For 3x96 + 12x12 + 12x6 voxels: 29,726,280 and 2,744,332 parameters. For a recipe that improves on it see ``gan``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..geometry import Geometry
from .base import Generator, Objective, Sizes, require_sizes
from .local import SLOPE, LocallyConnected, MinibatchDiscrimination, batch_norm, same_convolution, told_apart

UNIT = 1e3  # MeV per unit of the features
REFERENCE = 100.0  # GeV
TOLERANCE = 5.0  # GeV between requested and generated energy, beyond which a feature of the discriminator says so

Shape = tuple[int, int]


@dataclass(frozen=True)
class CaloGANConfig:
    """n_latent: size of z; width: channels after the dense layer of a stream; energy_weight: of |E_tot - E| [1/GeV];
    gate_bias: of the image from the layer before at the start; discriminator_rate: learning rate of the discriminator
    in units of the generator's; n_kernels, n_dims: minibatch discrimination."""

    n_latent: int = 1024
    width: int = 36
    energy_weight: float = 0.05
    gate_bias: float = -10.0
    discriminator_rate: float = 0.1
    n_kernels: int = 10
    n_dims: int = 10

    def __post_init__(self) -> None:
        require_sizes(self, "n_latent", "n_kernels", "n_dims")
        if self.energy_weight < 0 or not self.discriminator_rate > 0:
            raise ValueError(f"got {self}, expected energy_weight >= 0 and discriminator_rate > 0; correct them")


class CaloGAN(Generator):
    """Generator and discriminator."""

    helpers = ("discriminator",)

    def __init__(self, config: CaloGANConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes, self.n_noise = config, sizes, config.n_latent
        shapes = image_shapes(sizes, "calogan")
        self.generator = _Generator(config, shapes)
        self.discriminator = _Discriminator(config, shapes)

    def objectives(self) -> Iterator[Objective]:
        d, g = (list(part.parameters()) for part in (self.discriminator, self.generator))
        rate = self.config.discriminator_rate
        yield Objective("discriminator", d, self._discriminator_loss, every=2, rate=rate, betas=(0.5, 0.999))
        yield Objective("generator", g, self._generator_loss, betas=(0.5, 0.999))

    def _discriminator_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        require_batch(x)
        with torch.no_grad():
            fake = self._draw(c, generator)
        energy = self.sizes.incident_energy(c) / UNIT
        return told_apart(self.discriminator(x, energy), self.discriminator(fake, energy))

    def _generator_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        fake, energy = self._draw(c, generator), self.sizes.incident_energy(c) / UNIT
        missing = (fake.sum(1) - energy).abs().mean()
        logits = self.discriminator(fake, energy)
        return functional.softplus(-logits).mean() + self.config.energy_weight * missing

    def _draw(self, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.decode(torch.randn(len(c), self.n_noise, generator=generator).to(c.device), c)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.generator(z * (self.sizes.incident_energy(c) / UNIT / REFERENCE)[:, None])
        return out


def image_shapes(sizes: Sizes, family: str) -> tuple[Shape, ...]:
    """Shapes of the layers; ValueError where a layer is not cartesian or the features are not plain energies."""
    geometry: Geometry = sizes.mesh(family)
    if sizes.n_globals:
        raise ValueError(
            f"got preprocessing 'gaussian' for {family}, which makes images of energies, expected preprocess.voxels = "
            "'linear' (or 'box-cox' for lhcb_wgan); set it in the recipe"
        )
    for number, layer in enumerate(geometry.layers):
        if layer.kind != "cartesian":
            raise ValueError(
                f"got layer {number} of {geometry.name!r}, which is {layer.kind}, expected cartesian layers for "
                f"{family}, whose filters run over x and y; use another family"
            )
    return tuple(layer.shape for layer in geometry.layers)


def require_batch(x: Tensor) -> None:
    """ValueError for batches in which minibatch statistics mean nothing."""
    if len(x) < 2:
        raise ValueError(
            f"got a batch of {len(x)} shower, expected at least 2: this model compares the showers of a batch; raise "
            "train.batch"
        )


def _resampling(source: Shape, target: Shape, number: int) -> nn.Module:
    """Nearest neighbours where the target's mesh is finer, means where it is coarser, axis by axis."""
    up: list[int] = []
    down: list[int] = []
    for axis, (a, b) in enumerate(zip(source, target, strict=True)):
        if a % b and b % a:
            raise ValueError(
                f"got layer {number} with {a} voxels along axis {axis} before one with {b}, expected a whole ratio: "
                "calogan hands the image of a layer to the next; use another family or mesh"
            )
        up.append(max(1, b // a))
        down.append(max(1, a // b))
    return nn.Sequential(nn.Upsample(scale_factor=(up[0], up[1])), nn.AvgPool2d((down[0], down[1])))


class _Stream(nn.Module):
    """h (N, Z) -> image (N, 1, r, c), before the rectifier."""

    def __init__(self, config: CaloGANConfig, shape: Shape) -> None:
        super().__init__()
        wide = (shape[0] + 2, shape[1] + 2)
        self.start = (config.width, *wide)
        self.dense = nn.Linear(config.n_latent, math.prod(self.start))
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        self.convolution = same_convolution(config.width, 16, 2)
        self.norm = batch_norm(16)
        self.local = LocallyConnected(16, 6, wide, 2)
        self.image = LocallyConnected(6, 1, (wide[0] - 1, wide[1] - 1), 2, bias=False, rectified=False)

    def forward(self, h: Tensor) -> Tensor:
        x = self.dense(h).reshape(-1, *self.start)
        x = self.norm(functional.leaky_relu(self.convolution(x), SLOPE))
        out: Tensor = self.image(functional.leaky_relu(self.local(x), SLOPE))
        return out


class _Gate(nn.Module):
    """In-painting: softmax-weighted sum of a stream's image and the one carried over, voxel by voxel."""

    def __init__(self, shape: Shape, bias: float) -> None:
        super().__init__()
        self.local = LocallyConnected(2, 2, shape, 3, padding=1, rectified=False)
        with torch.no_grad():
            self.local.bias[:, 1] = bias  # type: ignore[index]

    def weights(self, image: Tensor, carried: Tensor) -> Tensor:
        """Weights of the two images, (N, 2, r, c)."""
        return torch.softmax(self.local(torch.cat([image, carried], dim=1)), dim=1)

    def forward(self, image: Tensor, carried: Tensor) -> Tensor:
        return (self.weights(image, carried) * torch.cat([image, carried], dim=1)).sum(1, keepdim=True)


class _Generator(nn.Module):
    """h (N, Z) -> voxel energies [GeV] (N, V)."""

    def __init__(self, config: CaloGANConfig, shapes: tuple[Shape, ...]) -> None:
        super().__init__()
        self.streams = nn.ModuleList(_Stream(config, shape) for shape in shapes)
        pairs = list(pairwise(shapes))
        self.carry = nn.ModuleList(_resampling(a, b, number) for number, (a, b) in enumerate(pairs))
        self.gates = nn.ModuleList(_Gate(shape, config.gate_bias) for shape in shapes[1:])

    def forward(self, h: Tensor) -> Tensor:
        images: list[Tensor] = []
        for number, stream in enumerate(self.streams):
            image = stream(h)
            if number:
                image = self.gates[number - 1](image, self.carry[number - 1](images[-1]))
            images.append(image)
        return torch.cat([functional.relu(image).flatten(1) for image in images], dim=1).float()


class _Judge(nn.Module):
    """Image (N, 1, r, c) of one layer -> features (N, F)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.convolution = same_convolution(1, 64, 2)
        plan = ((64, 16, 3, (1, 2)), (16, 8, 2, (1, 1)), (8, 8, 2, (1, 2)))
        self.local, self.norms = nn.ModuleList(), nn.ModuleList()
        for n_in, n_out, kernel, stride in plan:
            layer = LocallyConnected(n_in, n_out, shape, kernel, stride=stride, padding=1)
            self.local.append(layer)
            self.norms.append(batch_norm(n_out))
            shape = (layer.shape[0], layer.shape[1])
        self.n_features = 8 * math.prod(shape)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.leaky_relu(self.convolution(image), SLOPE)
        for layer, norm in zip(self.local, self.norms, strict=True):
            x = norm(functional.leaky_relu(layer(x), SLOPE))
        return x.flatten(1)


class _Discriminator(nn.Module):
    """Voxel energies [GeV] (N, V) and requested energies [GeV] (N,) -> logits of being Geant4 (N,)."""

    def __init__(self, config: CaloGANConfig, shapes: tuple[Shape, ...]) -> None:
        super().__init__()
        n_layers, similar = len(shapes), (config.n_kernels, config.n_dims)
        self.shapes = shapes
        self.judges = nn.ModuleList(_Judge(shape) for shape in shapes)
        widths = [int(judge.n_features) for judge in self.judges]  # type: ignore[arg-type]
        self.similar_images = nn.ModuleList(MinibatchDiscrimination(n, *similar) for n in widths)
        self.similar_sparsity = nn.ModuleList(MinibatchDiscrimination(1, *similar) for _ in shapes)
        self.similar_energies = MinibatchDiscrimination(n_layers, *similar)
        n = sum(widths) + n_layers * (2 * config.n_kernels + 1) + n_layers + 3 + config.n_kernels
        self.last = nn.Linear(n, 1)

    def forward(self, x: Tensor, energy: Tensor) -> Tensor:
        parts, energies = [], []
        images = torch.split(x, [math.prod(shape) for shape in self.shapes], dim=1)
        for k, image in enumerate(images):
            found = self.judges[k](image.reshape(-1, 1, *self.shapes[k]))
            sparsity = (image > 0).float().mean(1, keepdim=True)
            parts += [found, torch.tanh(self.similar_images[k](found)), sparsity]
            parts.append(torch.tanh(self.similar_sparsity[k](sparsity)))
            energies.append(image.sum(1))
        layers = torch.stack(energies, dim=1)
        total = layers.sum(1)
        off = (total - energy).abs()
        globals_ = torch.stack([total / REFERENCE, off, 10 * (off > TOLERANCE).float()], dim=1)
        parts += [layers / 10, globals_, torch.tanh(self.similar_energies(layers))]
        return torch.as_tensor(self.last(torch.cat([part.float() for part in parts], dim=1)).squeeze(1))
