"""The default model of any detector: sizes by rules, a teacher, its one-step student, and the better of the two.

The rules, for V voxels in L layers:

* voxels below 1 keV count as empty, or below the faintest (FAINTEST) of the filled ones, if that is 0.1 to 1 keV;
* positions count at the depth where the straight lines of the particles meet the centres of energy best;
* layer energies are features as logarithms where the response fluctuates by more than 20 %, as that of hadrons does;
  as ratios to one layer beside the deposited fraction where there are more than eight; as logarithms beside that
  fraction where one layer always (99.9 %) holds more than 3 % of a shower and there are several; and as fractions
  otherwise;
* moments are imposed (``tilt``), of r where every layer has at least 3 bins in r, or of x and y where they have 3 along
  both axes and V is at most 2,048; the brightest voxel of each layer too, where moments of r are imposed in up to eight
  layers, and where those of x and y are and the layer energies are logarithms, there in place of the correlations that
  the features do not explain, which saves half of its time; mirror images and rotations augment a detector hit in its
  centre at normal incidence;
* the teacher is a Gaussian copula with a spline flow for the layers, of three transforms with five groups of features
  each, or two where the student keeps it; up to 40 layer features it has 256 hidden units with dropout and is trained
  for 1,500 steps, and beyond, where a step takes several times as long and a few thousand showers are soon known by
  heart, 128 units and 500 steps;
* the student imposes what its teacher does, moments of r beside brightest voxels with one tilt, and none of r where
  there are more than eight layers, where it keeps its teacher's layer flow; it has hidden layers of 128 up to 600
  voxels, 192 up to 1,000, and 256 beyond, and of 256 for the layers, and counts filled voxels twice beyond 600 voxels
  or with one tilt; it takes 5,000 steps of 512 pairs, or 2,500 of 128 beyond 2,048 voxels.

A tenth of the showers takes no part in any training. On their particles teacher and student are judged: the student is
kept unless a classifier (AUC on high-level observables) finds it more than WORSE above the teacher.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .config import Recipe
from .distill import distill
from .fastsim import FastSim
from .geometry import mirrors
from .models.copula import CopulaConfig
from .models.one_step import OneStepConfig
from .preprocess import PreprocessConfig
from .showers import Incident, Showers
from .simulate.gun import Gun
from .train import Progress, TrainConfig, fit, require_trainable
from .transforms import FEW_LAYERS, Layers

if TYPE_CHECKING:
    from .evaluate import Report

LARGEST_IMPOSED = 2048  # voxels
FEW_VOXELS, MANY_VOXELS, MANY_FEATURES = 600, 2048, 40
N_PAIRS, LARGEST_PAIRS = 60_000, 80_000_000  # pairs of noise and showers, and numbers in their showers
HELD_OUT = 0.1
FEWEST = 50  # showers to judge on
THRESHOLDS = (1e-4, 1e-3)  # MeV
FAINTEST = 0.005  # quantile of the energies of filled voxels
WORSE = 0.05
FLUCTUATES = 0.2
LEAST_LARGEST = 0.03


@dataclass(frozen=True)
class Default:
    """Recipes of teacher and student."""

    teacher: Recipe
    student: Recipe


def choose(showers: Showers, *, steps: int | None = None, seed: int = 0) -> Default:
    """Recipes for a detector by the rules of this module; steps: of teacher and student, instead of their own."""
    geometry = showers.geometry
    resolved = len({layer.kind for layer in geometry.layers}) == 1 and all(
        min(len(axis) for axis in ([v.second] if v.kind == "polar" else [v.first, v.second])) > 3
        for v in geometry.layers
    )
    polar = geometry.layers[0].kind == "polar"
    impose = resolved and (polar or geometry.n_voxels <= LARGEST_IMPOSED)
    kind: Literal["radial", "moments"] = "radial" if polar else "moments"
    incident, layers = showers.incident, _layers(showers)
    straight = bool(max(abs(v).max() for v in (incident.theta, incident.x, incident.y)) == 0)
    mirror = straight and len(mirrors(geometry)) > 1
    deep = geometry.n_layers > FEW_LAYERS
    brightest = impose and (not deep if polar else layers == "logs")
    once = brightest and polar
    n_features = geometry.n_layers * ((7 if impose and not polar else 4) + brightest)
    few = n_features <= MANY_FEATURES
    n = (1500 if few else 500) if steps is None else steps
    teacher = Recipe(
        CopulaConfig(
            layer_hidden=256 if few else 128, layer_dropout=0.1 if few else 0.0, layer_transforms=2 if deep else 3,
            layer_bins=12 if few else 8,
        ),
        PreprocessConfig(
            impose=kind if impose else "none", layers=layers, brightest=brightest, correlate=polar or not brightest,
            threshold_mev=_threshold(showers), depth_mm=_depth(showers),
        ),
        TrainConfig(
            steps=n, batch=512, lr=3e-3, weight_decay=0.02, warmup=min(200, n // 4), mirror=mirror,
            log_every=min(100, n), seed=seed,
        ),
    )  # fmt: skip
    many = geometry.n_voxels > MANY_VOXELS
    width = 128 if geometry.n_voxels <= FEW_VOXELS else 192 if geometry.n_voxels <= 1000 else 256
    n = (2500 if many else 5000) if steps is None else steps
    student = Recipe(
        OneStepConfig(
            impose=impose and not (polar and deep), twice=not once, centred=not straight, width=width,
            layer_width=256, layer_depth=3, layer_activation="silu", layer_rate=4.0,
            layers_by="flow" if deep else "regression",
            rings=mirror and polar and impose,
            recount=once or geometry.n_voxels > FEW_VOXELS, pair_steps=n,
        ),
        PreprocessConfig(),
        TrainConfig(
            steps=n, batch=128 if many else 512, lr=2e-3, weight_decay=0.0, warmup=min(100, n // 4), ema=0.995,
            mirror=mirror, keep="last", log_every=min(100, n), seed=seed,
        ),
    )  # fmt: skip
    return Default(teacher, student)


def _layers(showers: Showers) -> Layers:
    response, layers = showers.total / showers.incident.energy, showers.layer_energy
    if response.std() > FLUCTUATES * response.mean():
        return "logs"
    if layers.shape[1] > FEW_LAYERS:
        return "ratios"
    largest = layers[:, layers.mean(0).argmax()] / np.maximum(showers.total, 1e-9)
    return "rest" if layers.shape[1] > 1 and np.quantile(largest, 0.001) > LEAST_LARGEST else "fractions"


def _threshold(showers: Showers) -> float:
    """Least energy of a filled voxel [MeV], with two digits."""
    part = showers.energy[:2000]
    filled = part[part > 0]
    faintest = float(np.quantile(filled, FAINTEST)) if len(filled) else THRESHOLDS[1]
    return float(f"{np.clip(faintest, *THRESHOLDS):.1e}")


def _depth(showers: Showers) -> float:
    """Depth [mm] at which the straight lines of inclined particles meet the centres of energy, by least squares."""
    incident = showers.incident
    slope = np.tan(incident.theta)[:, None] * np.stack([np.cos(incident.phi), np.sin(incident.phi)], axis=1)
    total = showers.total
    use = total > 0
    centre = showers.energy[use] @ showers.geometry.centres()[:, :2] / total[use, None]
    away = centre - np.stack([incident.x, incident.y], axis=1)[use]
    square = float((slope[use] ** 2).sum())
    return round(max(0.0, float((slope[use] * away).sum()) / square), 1) if square > 0 else 0.0


@dataclass(frozen=True)
class Judged:
    """Teacher and student, and their reports on showers that no training saw, in this order."""

    teacher: FastSim
    student: FastSim
    reports: "tuple[Report, Report]"

    @property
    def best(self) -> FastSim:
        """The student, unless a classifier finds it worse than its teacher by more than WORSE."""
        teacher, student = (report.scores["auc_high"].value for report in self.reports)
        return self.student if student <= teacher + WORSE else self.teacher

    @property
    def report(self) -> "Report":
        """Of the better one."""
        return self.reports[self.best is self.student]

    def scores(self) -> dict[str, Any]:
        """For the card of the better one."""
        kept = {k: asdict(self.report.scores[k]) for k in ("auc_low", "auc_high")}
        return {"sample": "held out", "n_test": len(self.report.reference), "seed": 0} | kept


def train_default(
    showers: Showers, *, valid: Gun | Incident, recipes: Default, folder: Path, progress: Progress | None = None
) -> Judged:
    """Train teacher and student, save them in folder/teacher and folder/student, judge both on the showers held out."""
    from .evaluate import evaluate

    order = np.random.default_rng(recipes.teacher.train.seed).permutation(len(showers))
    n_held = int(HELD_OUT * len(showers))
    if n_held < FEWEST:
        raise ValueError(
            f"got {len(showers)} showers, expected at least {round(FEWEST / HELD_OUT)} for the default, judged on a "
            "tenth of them; give more, or a recipe"
        )
    held, kept = showers[order[:n_held]], showers[order[n_held:]]
    settings = recipes.teacher
    teacher = FastSim.create(
        showers.geometry, settings.model, valid=valid, preprocess=settings.preprocess, seed=settings.train.seed
    )
    require_trainable(teacher, kept, settings.train)
    for name in ("teacher", "student"):
        (folder / name).mkdir()
    fit(teacher, kept, settings.train, folder=folder / "teacher", progress=progress)
    teacher.save(folder / "teacher")
    assert isinstance(recipes.student.model, OneStepConfig)
    student = distill(
        teacher, kept, recipes.student.model, recipes.student.train,
        n_pairs=min(N_PAIRS, LARGEST_PAIRS // showers.geometry.n_voxels), folder=folder / "student", progress=progress,
    )  # fmt: skip
    student.save(folder / "student")
    first, second = (
        evaluate(held, fast.simulate(held.incident, seed=0), seed=0, candidate_name=name)
        for name, fast in (("teacher", teacher), ("student", student))
    )
    return Judged(teacher, student, (first, second))
