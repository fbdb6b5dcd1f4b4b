"""A GAN on Gaussianised features: what the published GANs became once their known failures were removed.

Layer features g come from the layer flow: energies, occupied fractions and moments are right by construction. The
generator starts as the Gaussian copula of the preprocessing and adds what that lacks,

    v = eps + F(eps, y; g, c),    eps (N, V) and y (N, K) standard normal, F = 0 at the start,

with the condition in every block. The discriminator is a projection discriminator (Miyato and Koyama 2018, 1802.05637),
D = psi(h(v)) + <e(g, c), h(v)>: it sees the condition, and real showers with somebody else's condition are a third,
negative class. Losses are the non-saturating logistic ones with a penalty gamma/2 |grad_v D|^2 on real showers (R1,
Mescheder et al. 2018, 1801.04406), computed on a part of each batch.

Of jet images the features show a discriminator little, since what is imposed changes them afterwards. With ``images`` a
second one, of convolutions, sees the energies of the pixels; the generator also has to bring the momenta of its images,
before they are imposed, near those that are asked (``consistency``), and the mean image of each class, as imposed, to
the real one. Pixels below their threshold then pass gradients on (``ShowerTransform.untilted``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..jet_momentum import JetMomentum
from .base import Fast, Generator, LayerFlow, Objective, ResidualMLP, Sizes, randn_like, require_sizes
from .calogan import require_batch
from .image_judge import ImageJudge

if TYPE_CHECKING:
    from ..preprocess import ShowerTransform


HUBER = 0.2  # of a spread: up to here what is missing counts squared


@dataclass(frozen=True)
class GANConfig:
    """n_latent: K; width, depth, dropout: residual blocks of the generator; judge_width, judge_depth: hidden layers of
    the discriminator; gamma: of R1, on 1/penalty_part of each batch; mismatched: weight of real showers with another's
    condition; generator_rate: learning rate of the generator in units of the discriminator's; layer_hidden to
    layer_dropout: of the layer flow; layer_steps: the steps in which it is trained, with layer_rate times the learning
    rate. images: a discriminator of images too, for jets with imposed momenta; consistency: weight of what is missing
    of these before, in units of their spread; mean_weight: of the difference of the mean images."""

    n_latent: int = 32
    width: int = 256
    depth: int = 2
    dropout: float = 0.0
    judge_width: int = 512
    judge_depth: int = 3
    gamma: float = 1.0
    penalty_part: int = 4
    mismatched: float = 0.25
    generator_rate: float = 0.5
    layer_hidden: int = 64
    layer_transforms: int = 4
    layer_bins: int = 12
    layer_passes: int = 2
    layer_fast: Fast = "decode"
    layer_dropout: float = 0.0
    layer_steps: int = 1200
    layer_rate: float = 4.0
    images: bool = False
    consistency: float = 0.2
    mean_weight: float = 1.0

    def __post_init__(self) -> None:
        require_sizes(
            self, "n_latent", "depth", "judge_width", "judge_depth", "penalty_part", "layer_hidden", "layer_transforms",
            "layer_bins", "layer_steps",
        )  # fmt: skip
        if min(self.gamma, self.mismatched, self.consistency, self.mean_weight) < 0 or not (
            self.generator_rate > 0 and self.layer_rate > 0
        ):
            raise ValueError(f"got {self}, expected weights >= 0 and rates > 0; correct them")


class GAN(Generator):
    """Layer flow p(g | c), generator v(eps, y; g, c), discriminator D(v; g, c)."""

    helpers = ("judge", "image_judge")
    transform: "ShowerTransform"
    imposed: JetMomentum

    def __init__(self, config: GANConfig, sizes: Sizes) -> None:
        super().__init__()
        if not sizes.n_globals:
            raise ValueError(
                "got preprocessing of single voxels for gan, expected preprocess.voxels = 'gaussian'; set it in the "
                "recipe"
            )
        self.config, self.sizes = config, sizes
        self.n_noise = sizes.n_globals + sizes.n_voxels + config.n_latent
        n_given = sizes.n_conditions + sizes.n_globals
        self.layers = LayerFlow(
            sizes, hidden=config.layer_hidden, transforms=config.layer_transforms, bins=config.layer_bins,
            fast=config.layer_fast, passes=config.layer_passes, dropout=config.layer_dropout,
        )  # fmt: skip
        n_in = sizes.n_voxels + config.n_latent
        self.generator = ResidualMLP(n_in, n_given, sizes.n_voxels, config.width, config.depth, config.dropout)
        self.judge = _Judge(sizes.n_voxels, n_given, config.judge_width, config.judge_depth)
        self.image_judge = ImageJudge(sizes.n_voxels, n_given, sizes.n_classes) if config.images else None

    def watch(self, transform: nn.Module) -> None:
        if not self.config.images:
            return
        if not isinstance(getattr(transform, "imposed", None), JetMomentum):
            raise ValueError(
                "got model.images without imposed momenta of jets, expected preprocess.impose = 'jet' or 'subjets'; "
                "turn images off"
            )
        # Not parts of this model: they have no place among its weights.
        object.__setattr__(self, "transform", transform)
        object.__setattr__(self, "imposed", transform.imposed)

    def objectives(self) -> Iterator[Objective]:
        config, betas = self.config, (0.0, 0.99)
        parameters = {name: list(getattr(self, name).parameters()) for name in ("layers", "judge", "generator")}
        if self.image_judge is not None:
            parameters["judge"] += list(self.image_judge.parameters())
        yield Objective(
            "layers", parameters["layers"], self._layer_loss, until=config.layer_steps, rate=config.layer_rate
        )
        yield Objective("discriminator", parameters["judge"], self._judge_loss, betas=betas)
        yield Objective(
            "generator", parameters["generator"], self._generator_loss, rate=config.generator_rate, betas=betas
        )

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        return self.layers.loss(x[:, : self.sizes.n_globals], c)

    def _split(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Voxel features (N, V), and what they are given: c and g, (N, C + G)."""
        n = self.sizes.n_globals
        return x[:, n:], torch.cat([c, x[:, :n]], dim=1)

    def _judge_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        require_batch(x)
        v, given = self._split(x, c)
        with torch.no_grad():
            fake = self._draw(v, given, generator)
        loss = self._told(self.judge, nn.Identity(), v, fake, given)
        if self.image_judge is None:
            return loss
        judge, real = self.image_judge, self._energies(x, c)[0]
        with torch.no_grad():
            energy, q = self._energies(torch.cat([x[:, : self.sizes.n_globals], fake], dim=1), c)
            made = self.imposed.scaled(energy, q)
            if self.training:
                judge.remember(real, self.imposed.impose(energy, q), self._classes(c))
        return loss + self._told(judge, judge.look, judge.channels(real), judge.channels(made), given)

    def _told(
        self, judge: nn.Module, look: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, given: Tensor
    ) -> Tensor:
        """Loss of a discriminator judge(look(showers), given)."""
        seen = look(real)
        loss = functional.softplus(-judge(seen, given)).mean()
        loss = loss + functional.softplus(judge(look(fake), given)).mean()
        loss = loss + self.config.mismatched * functional.softplus(judge(seen, given.roll(1, 0))).mean()
        n = max(1, len(real) // self.config.penalty_part)
        with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
            some = real[:n].detach().requires_grad_()
            slope = torch.autograd.grad(judge(look(some), given[:n]).sum(), some, create_graph=True)[0]
            penalty = slope.flatten(1).square().sum(1).mean()
            return torch.as_tensor(loss.float() + 0.5 * self.config.gamma * penalty)

    def _generator_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        v, given = self._split(x, c)
        made = self._draw(v, given, generator)
        loss: Tensor = functional.softplus(-self.judge(made, given)).mean()
        if self.image_judge is None:
            return loss
        judge, classes = self.image_judge, self._classes(c)
        energy, q = self._energies(torch.cat([x[:, : self.sizes.n_globals], made], dim=1), c, soft=True)
        energy = self.imposed.scaled(energy, q)
        loss = loss + functional.softplus(-judge(judge.look(judge.channels(energy)), given)).mean()
        missing = (self.imposed.missing(energy, q) / q.std(0).clamp_min(1e-9)).float()
        each = functional.smooth_l1_loss(missing, torch.zeros_like(missing), beta=HUBER, reduction="none")
        loss = loss + self.config.consistency * each.mean(0).sum()
        return loss + self.config.mean_weight * judge.mean_loss(energy, classes)

    def _energies(self, x: Tensor, c: Tensor, soft: bool = False) -> tuple[Tensor, Tensor]:
        """Pixels [MeV] (N, V) before momenta are imposed, and the momenta (N, Q)."""
        given = c[:, 1:] if self.transform.n_given else None
        with torch.autocast(x.device.type, enabled=False):
            return self.transform.untilted(x.float(), self.sizes.incident_energy(c), given, soft)

    def _classes(self, c: Tensor) -> Tensor:
        """One-hot kinds of particles (N, K), a column of ones for a single one."""
        n = self.sizes.n_classes
        return c[:, -n:] if n else torch.ones_like(c[:, :1])

    def _draw(self, v: Tensor, given: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.cat([v, v.new_empty(len(v), self.config.n_latent)], dim=1)
        return self._voxels(randn_like(noise, generator), given)

    def _voxels(self, noise: Tensor, given: Tensor) -> Tensor:
        return noise[:, : self.sizes.n_voxels] + torch.as_tensor(self.generator(noise, given), dtype=noise.dtype)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        n = self.sizes.n_globals
        g = self.layers.decode(z[:, :n], c)
        return torch.cat([g, self._voxels(z[:, n:], torch.cat([c, g], dim=1))], dim=1)


class _Judge(nn.Module):
    """Voxel features (N, V) and what they are given (N, D) -> logits (N,)."""

    def __init__(self, n_voxels: int, n_given: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(n_voxels + n_given, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.embed = nn.Sequential(nn.Linear(n_given, width), nn.SiLU(), nn.Linear(width, width))
        self.psi = nn.Linear(width, 1)

    def forward(self, v: Tensor, given: Tensor) -> Tensor:
        h = functional.leaky_relu(self.enter(torch.cat([v, given], dim=1)), 0.2)
        for layer in self.hidden:
            h = h + functional.leaky_relu(layer(h), 0.2)
        return torch.as_tensor(self.psi(h).squeeze(1) + (self.embed(given) * h).mean(1)).float()
