"""CaloFlow: two autoregressive flows, and a student that generates in one pass.

Features x = [u, v] are those of preprocess.voxels = "fractions" with map = "logit" and standardise = "none": L layer
energies, and V voxels relative to their layer. Teacher (Krause & Shih 2021, 2106.05285), trained by its likelihood:

    flow I    p(u | c)       MAF on L features, layer_transforms blocks, random orders in between
    flow II   p(v | u, c)    MAF on V features, n_blocks blocks; in between, voxels of a layer are reversed or shuffled,
                             but layers stay in depth order; its context is [c, log10 of the layer energies]

A MAF generates in V steps. The student (Krause & Shih 2021, 2110.11377) is an IAF with the same orders that generates
in one, trained by fully guided probability density distillation. With states s_0 = v, .., s_n = z and parameters
p_0, .., p_{n-1} of the teacher on its way to the noise, and r_0 = z, .., r_n, q_0, .., q_{n-1} of the student on its
way back, the loss is beta L_v + (1 - beta) L_z,

    L = |end - start|^2 + sum_k |r_k - s_{n-k}|^2 + sum_k |q_k - p_{n-1-k}|^2

L_v starts from voxels, teacher first, and L_z from noise, student first; squares are summed over features and
averaged over showers.

Other than published: q and p are compared as the splines take them, after the division that depends on the width; bins
and slopes of the splines are at least 1e-3, not 1e-6, so that float32 inverts them; energies of the contexts have other
units; the teacher's losses are per feature.
For CaloGAN's 504 voxels: 37,914,414 parameters of the teacher, 51,003,294 of the student, 79,134 of flow I in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .base import Generator, Objective, Sizes, randn_like, require_sizes
from .made import MADE, AutoregressiveFlow, Degrees, Path
from .splines import MIN_BIN


@dataclass(frozen=True)
class CaloFlowConfig:
    """n_blocks of flow II with networks of ``width`` and ``dropout``; ``bins`` bins of splines in [-bound, bound];
    layer_transforms blocks of flow I with networks of layer_hidden; degrees: of hidden units (``MADE``).

    Published widths: 378 for CaloGAN's voxels and the photons of the CaloChallenge, 533 for its pions.
    """

    n_blocks: int = 8
    width: int = 378
    dropout: float = 0.05
    bins: int = 8
    bound: float = 14.0
    layer_hidden: int = 64
    layer_transforms: int = 6
    degrees: Degrees = "cyclic"

    def __post_init__(self) -> None:
        require_sizes(self, "n_blocks", "layer_hidden", "layer_transforms")
        _require_splines(self.bins, self.bound)


@dataclass(frozen=True)
class CaloFlowStudentConfig:
    """width, dropout: networks of the student; teacher_width: those of its teacher, whose other sizes are the same;
    beta: weight of L_v in the loss.

    Published widths: 504 for CaloGAN's voxels, 736 and 500 for photons and pions of the CaloChallenge.
    """

    n_blocks: int = 8
    width: int = 504
    dropout: float = 0.0
    bins: int = 8
    bound: float = 14.0
    layer_hidden: int = 64
    layer_transforms: int = 6
    degrees: Degrees = "cyclic"
    teacher_width: int = 378
    teacher_dropout: float = 0.05
    beta: float = 0.5

    def __post_init__(self) -> None:
        require_sizes(self, "n_blocks", "layer_hidden", "layer_transforms", "teacher_width")
        _require_splines(self.bins, self.bound)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"got model.beta = {self.beta}, expected 0 <= beta <= 1; correct it")

    def teacher(self) -> CaloFlowConfig:
        """Configuration of the teacher that this student can learn from."""
        return CaloFlowConfig(
            self.n_blocks, self.teacher_width, self.teacher_dropout, self.bins, self.bound, self.layer_hidden,
            self.layer_transforms, self.degrees,
        )  # fmt: skip


def _require_splines(bins: int, bound: float) -> None:
    if not 2 <= bins < 1 / MIN_BIN:
        raise ValueError(f"got model.bins = {bins}, expected 2 to {1 / MIN_BIN - 1:.0f}; correct it")
    if not bound > 0:
        raise ValueError(f"got model.bound = {bound}, expected above 0; raise it")


class CaloFlow(Generator):
    """The teacher: density in one pass, showers in as many steps as there are voxels."""

    def __init__(self, config: CaloFlowConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes, self.n_noise = config, sizes, sizes.n_globals + sizes.n_voxels
        self.layers, self.voxels = _layer_flow(config, sizes, "caloflow"), _voxel_flow(config, sizes)

    def objectives(self) -> Iterator[Objective]:
        yield Objective("layers", list(self.layers.parameters()), self._layer_loss)
        yield Objective("voxels", list(self.voxels.parameters()), self._voxel_loss)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Mean of -ln p(u | c) per feature."""
        with torch.autocast(x.device.type, enabled=False):
            return -self.layers.log_prob(x[:, : self.sizes.n_globals], c).mean() / self.sizes.n_globals

    def _voxel_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Mean of -ln p(v | u, c) per feature."""
        u, v = x[:, : self.sizes.n_globals], x[:, self.sizes.n_globals :]
        with torch.autocast(x.device.type, enabled=False):
            return -self.voxels.log_prob(v, voxel_context(u, c, self.sizes)).mean() / self.sizes.n_voxels

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        """ln p(x | c) of features x (N, L + V), (N,)."""
        return _log_prob(self, x, c)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return _decode(self, z, c)


class CaloFlowStudent(Generator):
    """The student: showers in one pass, density in as many steps as there are voxels.

    Flow I is the teacher's. ``adopt`` a trained teacher before training: the loss compares with what is in ``teacher``.
    """

    helpers = ("teacher",)

    def __init__(self, config: CaloFlowStudentConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes, self.n_noise = config, sizes, sizes.n_globals + sizes.n_voxels
        self.teacher = CaloFlow(config.teacher(), sizes).requires_grad_(False).eval()
        self.layers = _layer_flow(config, sizes, "caloflow_student").requires_grad_(False)
        self.voxels = _voxel_flow(config, sizes)
        self.adopt(self.teacher)

    def adopt(self, teacher: CaloFlow) -> None:
        """Take a teacher's weights, flow I, and orders of the voxels."""
        own = self.teacher
        if teacher.config != own.config or teacher.sizes != own.sizes:
            raise ValueError(
                f"got a teacher with {teacher.config}, {teacher.sizes}, expected {own.config}, {own.sizes}; set the "
                "student's teacher_width and other sizes to the teacher's"
            )
        if teacher is not own:
            own.load_state_dict(teacher.state_dict())
        self.layers.load_state_dict(own.layers.state_dict())
        self.voxels.orders.copy_(own.voxels.orders)
        self.voxels.places.copy_(own.voxels.places)

    def train(self, mode: bool = True) -> "CaloFlowStudent":
        super().train(mode)
        self.teacher.eval()  # no dropout in what the student imitates
        return self

    def objectives(self) -> Iterator[Objective]:
        yield Objective("distillation", list(self.voxels.parameters()), self._loss)

    def _loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        from_voxels, from_noise = self.losses(x, c, generator)
        return self.config.beta * from_voxels + (1 - self.config.beta) * from_noise

    def losses(self, x: Tensor, c: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """L_v of features x (N, L + V), and L_z of drawn noise with layer energies drawn by flow I; scalars."""
        u, v = x[:, : self.sizes.n_globals], x[:, self.sizes.n_globals :]
        with torch.autocast(x.device.type, enabled=False):
            context = voxel_context(u, c, self.sizes)
            with torch.no_grad():
                there = self.teacher.voxels.encode(v, context)
                drawn = self.layers.decode(randn_like(u, generator), c).end
            back = self.voxels.decode(there.end, context)
            from_voxels = _squared(back.end - v) + _guidance(back, there)
            z, context = randn_like(v, generator), voxel_context(drawn, c, self.sizes)
            back = self.voxels.decode(z, context)
            there = self.teacher.voxels.encode(back.end, context)
            return from_voxels, _squared(there.end - z) + _guidance(back, there)

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        """ln p(x | c) of features x (N, L + V), (N,)."""
        return _log_prob(self, x, c)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return _decode(self, z, c)


def caloflow_student_from(teacher: CaloFlow, config: CaloFlowStudentConfig) -> CaloFlowStudent:
    """An untrained student of a trained teacher."""
    student = CaloFlowStudent(config, teacher.sizes)
    student.adopt(teacher)
    return student


def voxel_context(u: Tensor, c: Tensor, sizes: Sizes) -> Tensor:
    """Context of flow II, (N, C + L): c and log10(E_l/E_max + 1e-8) + 1, with E_l up to the factor by which u_0 is < 1.

    E_max: the largest incident energy. ln E_l is a sum of ln u and ln(1 - u), which logits u give without cancellation.
    """
    keep, passed = functional.logsigmoid(u), functional.logsigmoid(-u[:, 1:]).cumsum(1)
    before, own = functional.pad(passed, (1, 0)), functional.pad(keep[:, 1:], (0, 1))  # the last layer takes the rest
    total = torch.log(sizes.incident_energy(c) / sizes.energy[1])[:, None] + keep[:, :1]
    return torch.cat([c, torch.log10(torch.exp(total + before + own) + 1e-8) + 1], dim=1)


def _log_prob(model: CaloFlow | CaloFlowStudent, x: Tensor, c: Tensor) -> Tensor:
    u, v = x[:, : model.sizes.n_globals], x[:, model.sizes.n_globals :]
    return model.layers.log_prob(u, c) + model.voxels.log_prob(v, voxel_context(u, c, model.sizes))


def _decode(model: CaloFlow | CaloFlowStudent, z: Tensor, c: Tensor) -> Tensor:
    n = model.sizes.n_globals
    u = model.layers.decode(z[:, :n], c).end
    return torch.cat([u, model.voxels.decode(z[:, n:], voxel_context(u, c, model.sizes)).end], dim=1)


def _squared(difference: Tensor) -> Tensor:
    """Sum of squares over features, mean over showers."""
    return difference.square().flatten(1).sum(1).mean()


def _guidance(back: Path, there: Path) -> Tensor:
    """Squared differences of the states and spline parameters of both models, met from opposite ends."""
    pairs = [*zip(back.states, reversed(there.states), strict=True)]
    pairs += zip(back.thetas, reversed(there.thetas), strict=True)
    return torch.stack([_squared(a - b) for a, b in pairs]).sum()


def _layer_flow(config: CaloFlowConfig | CaloFlowStudentConfig, sizes: Sizes, family: str) -> AutoregressiveFlow:
    """Flow I, in any order of the layers."""
    n_layers = sizes.mesh(family).n_layers
    if sizes.n_globals != n_layers:
        raise ValueError(
            f"got {sizes.n_globals} features of layers for {family}, expected {n_layers}, one per layer; set "
            "preprocess.voxels = 'fractions' in the recipe"
        )
    blocks = [
        MADE(
            n_layers, sizes.n_conditions, width=config.layer_hidden, n_hidden=2, bins=config.bins, dropout=0.0,
            degrees=config.degrees,
        )
        for _ in range(config.layer_transforms)
    ]  # fmt: skip
    orders = torch.stack([torch.randperm(n_layers) for _ in blocks])
    return AutoregressiveFlow(blocks, orders, bound=config.bound, fast="density")


def _voxel_flow(config: CaloFlowConfig | CaloFlowStudentConfig, sizes: Sizes) -> AutoregressiveFlow:
    """Flow II; voxels change places within their layer only."""
    offsets = [int(start) for start in sizes.mesh("caloflow").offsets]
    blocks = [
        MADE(
            sizes.n_voxels, sizes.n_conditions + sizes.n_globals, width=config.width, n_hidden=1, bins=config.bins,
            dropout=config.dropout, degrees=config.degrees,
        )
        for _ in range(config.n_blocks)
    ]  # fmt: skip
    orders = []
    for k in range(config.n_blocks):
        parts = [torch.arange(a, b) for a, b in pairwise(offsets)]
        if k < config.n_blocks - 1:
            parts = [part[torch.randperm(len(part))] if k % 2 else part.flip(0) for part in parts]
        orders.append(torch.cat(parts))
    fast: Literal["density", "decode"] = "decode" if isinstance(config, CaloFlowStudentConfig) else "density"
    return AutoregressiveFlow(blocks, torch.stack(orders), bound=config.bound, fast=fast)
