"""Distillation: a teacher on Gaussianised features becomes a student that takes one step (``models.one_step``), flow
matching one of average velocities (``models.mean_flow``), and CaloFlow's teacher its student (``models.caloflow``)."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .fastsim import Card, FastSim
from .models.base import LayerFlow
from .models.caloflow import CaloFlow, CaloFlowStudentConfig
from .models.flow_matching import FlowMatching
from .models.mean_flow import MeanFlow, MeanFlowConfig
from .models.one_step import REACH, OneStep, OneStepConfig, Pairs, feature_order
from .preprocess import PreprocessConfig, ShowerTransform
from .showers import Showers
from .tilt import Moments
from .train import Progress, TrainConfig, fit
from .transforms import WITH_LARGEST

CHUNK = 1000
LAYER_PAIRS = 3  # pairs of the layers alone for each one of noise and showers
LEAST_UNIT = 0.05  # of the moments, in the spread of a layer's voxels
S_MAX = 2.4  # of the Gaussianised layer energies that the student's tables reach


def student_of(teacher: FastSim, config: OneStepConfig, *, seed: int = 0) -> FastSim:
    """An untrained student with its teacher's conditions, valid range and tables; ValueError where that cannot be."""
    transform = teacher.transform
    if not isinstance(transform, ShowerTransform):
        raise ValueError(
            f"got a teacher with preprocessing {teacher.card.preprocess['voxels']!r}, expected 'gaussian' to distill; "
            "choose another teacher"
        )
    n = transform.n_globals + transform.n_voxels
    if teacher.n_noise != n:
        raise ValueError(
            f"got a teacher of family {teacher.card.family}, whose noise is {teacher.n_noise} numbers, expected {n}, "
            "one for each layer feature and voxel, as of copula or flow_matching; choose another teacher"
        )
    old = PreprocessConfig(**teacher.card.preprocess)
    config = replace(
        config, per_layer=transform.n_globals // transform.n_layers, brightest=old.brightest,
        radial=old.impose == "radial", layers=old.layers,
        correlate=old.correlate, n_read=transform.layers.table.shape[1],
    )  # fmt: skip
    if config.layers_by == "flow":
        flow = _layer_settings(teacher)
        hidden, transforms = flow.pop("layer_hidden"), flow.pop("layer_transforms")
        config = replace(config, layer_width=hidden, layer_depth=transforms, **flow)
    preprocess = replace(old, voxels="linear", scale_mev=1.0, impose="none", brightest=False)
    card = Card("one_step", asdict(config), asdict(preprocess), teacher.geometry, teacher.card.valid, teacher.card.pdg)
    student = FastSim.from_card(card, seed=seed)
    student.encoder.load_state_dict(teacher.encoder.state_dict())
    assert isinstance(student.generator, OneStep)
    _hand_over(transform, student.generator)
    if config.layers_by == "flow":
        student.generator.layers.load_state_dict(teacher.generator.layers.state_dict())  # type: ignore[union-attr]
    return student


def _layer_settings(teacher: FastSim) -> dict[str, Any]:
    """Of the teacher's layer flow, as in its configuration."""
    names = ("layer_hidden", "layer_transforms", "layer_bins", "layer_passes", "layer_fast")
    return {name: teacher.card.config[name] for name in names if name in teacher.card.config}


@torch.no_grad()
def _hand_over(transform: ShowerTransform, student: OneStep) -> None:
    """Give the student the tables of its teacher's preprocessing, and the covariance of its voxels as a start."""
    config, layers = student.config, transform.layers
    ends = torch.tensor([[-S_MAX], [S_MAX]]).expand(2, transform.n_layers)
    low, high = transform.scales.read(ends).double()  # ln(E_l / MeV)
    high = torch.maximum(high, low + 0.1)
    part = torch.linspace(0, 1, config.n_nodes, dtype=torch.float64)
    nodes = low[:, None] + part * (high - low)[:, None]  # (L, J)
    s = transform.scales(nodes.T.float())  # (J, L)
    margins = torch.linspace(0, REACH, config.n_knots)
    rows = []
    index, threshold = transform.fractions.layer_index, transform.fractions.threshold
    for j in range(config.n_nodes):
        border = transform.voxels.borders(s[j : j + 1])  # (1, V)
        at = s[j : j + 1].expand(len(margins), -1)
        w = transform.voxels.inverse(border + margins[:, None] + 1e-6, at)  # (K, V)
        rows.append((w.double() + nodes[:, j][index]).clamp_min(math.log(threshold)).T)
    order, n = _order(transform), transform.n_layers
    lowest, g = layers.border[order], layers.table[order].clone()
    if config.brightest:
        g[-n:] = torch.exp(g[-n:]).clamp_max(1.0)
    if student.imposes:
        reach = [1e-3 * student.places[:, student.members.index == k].square().mean().sqrt() for k in range(n)]
        scale = _scale_radial if config.radial else _scale_moments
        units = scale(g[2 * n : (2 + student.n_moments) * n], LEAST_UNIT * torch.stack(reach))
        student.adopt_units(1e3 * units)
    q = torch.stack(rows)  # (J, V, K)
    shared = torch.zeros(len(q), student.rings.n, q.shape[2], dtype=q.dtype).index_add_(1, student.rings.ring, q)
    shared /= torch.bincount(student.rings.ring)[:, None]
    student.adopt_tables(threshold, float(transform.fractions.ceiling), lowest, g, nodes, shared)
    student.root.copy_(transform.decorrelate.root)
    if config.layers in WITH_LARGEST:
        student.largest.copy_(transform.fractions.largest)


def _order(transform: ShowerTransform) -> Tensor:
    imposed = isinstance(transform.imposed, Moments)
    return feature_order(transform.n_layers, transform.n_globals // transform.n_layers, imposed)


def _scale_moments(g: Tensor, least: Tensor) -> Tensor:
    """Change tables (5 L, K) of x, y [m], ln var x, ln var y and correlation into the student's; its units [m], (2, L).

    least: of the units, (L,).
    """
    n = len(g) // 5
    units = torch.exp(0.5 * g[2 * n : 4 * n, g.shape[1] // 2]).reshape(2, n).clamp_min(least)  # about the middle width
    g[: 2 * n] /= units.reshape(-1, 1)
    g[2 * n : 4 * n] = torch.exp(g[2 * n : 4 * n]) / units.reshape(-1, 1) ** 2
    return units


def _scale_radial(g: Tensor, least: Tensor) -> Tensor:
    """The same of tables (2 L, K) of r [m] and ln var r; its units [m], (1, L)."""
    n = len(g) // 2
    units = torch.exp(0.5 * g[n:, g.shape[1] // 2]).clamp_min(least)
    g[:n] /= units[:, None]
    g[n:] = torch.exp(g[n:]) / units[:, None] ** 2
    return units[None]


@torch.no_grad()
def pairs_of(
    teacher: FastSim, c: Tensor, energy: Tensor, n: int, *, seed: int, progress: Progress | None = None
) -> Pairs:
    """n pairs of noise and what the teacher makes of it, for random ones of contexts c (N, C), energies (N,) [MeV]."""
    transform = teacher.transform
    assert isinstance(transform, ShowerTransform)
    contexts, parts, random = c, [], torch.Generator().manual_seed(seed)
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        index = torch.randint(len(c), (size,), generator=random)
        z = torch.randn(size, teacher.n_noise, generator=random)
        given = c[index, 1:] if teacher.encoder.n_given else None
        x = teacher.generator.decode(z, c[index])
        m = transform.margins(x, energy[index], given)
        order = _order(transform)
        g, z = x[:, order], torch.cat([z[:, order], z[:, transform.n_globals :]], dim=1)
        parts.append((z, c[index], g, m))
        if progress:
            progress(start + size, n, "teacher")
    z, c, g, m = (torch.cat(column) for column in zip(*parts, strict=True))
    return Pairs(z.half(), c, g, m.clamp(-4.0, REACH).half(), _layer_pairs(teacher, contexts, LAYER_PAIRS * n, random))


def _layer_pairs(teacher: FastSim, c: Tensor, n: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """n pairs of noise and features of the layers, in the student's order, and their contexts."""
    flow, n_globals = teacher.generator.layers, teacher.transform.n_globals
    assert isinstance(flow, LayerFlow)
    given = c[torch.randint(len(c), (n,), generator=random)]
    z = torch.randn(n, n_globals, generator=random)
    g = torch.cat([flow.decode(*part) for part in zip(torch.split(z, CHUNK), torch.split(given, CHUNK), strict=True)])
    order = _order(teacher.transform)  # type: ignore[arg-type]
    return z[:, order], given, g[:, order]


def caloflow_student_of(teacher: FastSim, config: CaloFlowStudentConfig, *, seed: int = 0) -> FastSim:
    """An untrained student of a CaloFlow teacher with its conditions, valid range and preprocessing."""
    if not isinstance(teacher.generator, CaloFlow):
        raise ValueError(
            f"got a teacher of family {teacher.card.family} for a caloflow_student, expected caloflow; choose another"
        )
    return _adopted(teacher, "caloflow_student", config, seed)


def mean_flow_of(teacher: FastSim, config: MeanFlowConfig, *, seed: int = 0) -> FastSim:
    """An untrained student of average velocities of a flow-matching teacher, with all else that the teacher has."""
    if not isinstance(teacher.generator, FlowMatching):
        raise ValueError(
            f"got a teacher of family {teacher.card.family} for mean_flow, expected flow_matching; choose another"
        )
    return _adopted(teacher, "mean_flow", replace(config, **_layer_settings(teacher)), seed)


def _adopted(teacher: FastSim, family: str, config: MeanFlowConfig | CaloFlowStudentConfig, seed: int) -> FastSim:
    about = teacher.card
    card = Card(family, asdict(config), about.preprocess, teacher.geometry, about.valid, about.pdg)
    student = FastSim.from_card(card, seed=seed)
    student.encoder.load_state_dict(teacher.encoder.state_dict())
    student.transform.load_state_dict(teacher.transform.state_dict())
    student.generator.adopt(teacher.generator)  # type: ignore[operator]
    return student


def distill(
    teacher: FastSim, showers: Showers, config: OneStepConfig | MeanFlowConfig | CaloFlowStudentConfig,
    train: TrainConfig, *, n_pairs: int = 60_000, folder: str | Path | None = None, resume: bool = False,
    progress: Progress | None = None,
) -> FastSim:  # fmt: skip
    """A student of the teacher: one_step, trained on ``n_pairs`` of its pairs and on real showers, or mean_flow or
    caloflow_student, whose loss asks the teacher at every step."""
    teacher.geometry.require_same(showers.geometry, "training showers")
    if isinstance(config, CaloFlowStudentConfig):
        student = caloflow_student_of(teacher, config, seed=train.seed)
    elif isinstance(config, MeanFlowConfig):
        student = mean_flow_of(teacher, config, seed=train.seed)
    else:
        student = student_of(teacher, config, seed=train.seed)
    if isinstance(student.generator, OneStep):
        _, c = student.encode(showers)
        energy = torch.from_numpy(np.asarray(showers.incident.energy, dtype=np.float32))
        student.generator.pairs = pairs_of(teacher, c, energy, n_pairs, seed=train.seed, progress=progress)
    fit(student, showers, train, folder=folder, resume=resume, progress=progress, keep_transform=True)
    if isinstance(student.generator, OneStep):
        student.generator.pairs = None
    if isinstance(student.generator, MeanFlow):
        student.generator.teacher = None
    return student
