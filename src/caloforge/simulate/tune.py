"""Tuning of the parametric simulator to a detector: constants from statistics of a small Geant4 sample.

The constants x, logarithms of those that are positive, minimise

    sum_i 2 c^2 (sqrt(1 + r_i^2/c^2) - 1) + sum_k ((x_k - prior_k)/width_k)^2

over the residuals r_i of a ``Summary``, in units of their errors: least squares that single statistics, which the model
cannot describe, do not decide. Constants that the sample says nothing about stay at their prior. The steps are those of
Levenberg and Marquardt with numerical derivatives; every simulation uses the same random numbers. Longitudinal profile,
response, and everything across the axis are found in turn: they hardly depend on each other.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .._version import __version__
from ..geometry import Array
from ..showers import Incident, Showers
from .detectors import Detector
from .parametric import Parametric, require_known
from .profiles import deposit
from .rings import aligned
from .summary import Summary
from .tuning import LIMITS, Tuning

FEWEST, MOST = 200, 2000  # showers of the sample that are used
SIMULATED, VOXELS, OBLIQUE = 3000, 1 << 22, 800  # showers per simulation, at most so many voxels; of oblique showers
RESPONSES = 100_000
ROUNDS = 2
ROBUST = 5.0  # residual c from which statistics count less
STEP, REACH = 0.15, 0.7  # of a constant's prior width: for derivatives, and at most in one step
TRIALS = 4


@dataclass(frozen=True)
class Prior:
    """Start and prior of a constant, its width, and whether its logarithm is fitted."""

    value: float
    width: float
    log: bool = True

    def to_x(self, value: float) -> float:
        return float(np.log(value)) if self.log else value

    def from_x(self, x: float) -> float:
        return float(np.exp(x)) if self.log else float(x)


PRIORS = {
    "depth": Prior(1, 0.3), "depth_shift": Prior(0, 1, False), "alpha": Prior(1, 0.3),
    "alpha_shift": Prior(0, 1, False), "depth_spread": Prior(1, 0.5), "alpha_spread": Prior(1, 0.5),
    "correlation": Prior(0, 0.3, False),
    "response": Prior(1, 0.3), "response_slope": Prior(0, 0.02, False), "stochastic": Prior(0.1, 2),
    "reactions": Prior(0.1, 1), "reaction_loss": Prior(8, 0.3), "reaction_index": Prior(1.5, 0.2),
    "core": Prior(1, 0.7), "core_growth": Prior(1, 0.5), "core_power": Prior(1, 0.3), "tail": Prior(1, 0.7),
    "tail_early": Prior(0.5, 0.7), "tail_power": Prior(1.2, 0.3), "share": Prior(1, 0.2),
    "follow": Prior(0.8, 0.3, False), "tilt": Prior(0.008, 1),
    "spot_energy": Prior(25, 1.5), "spot_falloff": Prior(0.6, 0.3, False), "spot_growth": Prior(1, 0.5, False),
    "spot_spread": Prior(0.9, 0.3), "spot_floor": Prior(1.5, 1), "halo": Prior(0.06, 1), "halo_energy": Prior(0.8, 1),
    "halo_range": Prior(1.1, 0.5), "halo_forward": Prior(0.3, 0.4, False), "neutrons": Prior(3, 1),
    "neutron_energy": Prior(0.005, 1.5), "neutron_spread": Prior(1, 0.3), "neutron_range": Prior(4, 0.5),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Constants that are fitted together, to the statistics whose names begin with ``kinds``."""

    name: str
    constants: tuple[str, ...]
    kinds: tuple[str, ...]
    steps: int = 6


STAGES = (
    Stage("depth", ("depth", "depth_shift", "alpha", "alpha_shift", "depth_spread", "alpha_spread", "correlation",
                    "halo_forward"), ("fraction",)),
    Stage("response", ("response", "response_slope", "stochastic", "reactions", "reaction_loss", "reaction_index"),
          ("response",)),
    Stage("radius", ("core", "core_growth", "core_power", "tail", "tail_early", "tail_power", "share", "follow", "tilt",
                     "spot_energy", "spot_falloff", "spot_growth", "spot_spread", "spot_floor", "halo", "halo_energy",
                     "halo_range", "neutrons", "neutron_energy", "neutron_spread", "neutron_range"),
          ("ring", "dipole", "count", "bright", "second", "width"), 8),
)  # fmt: skip


def tune(showers: Showers, detector: Detector, *, seed: int = 0, rounds: int = ROUNDS,
         progress: Callable[..., None] | None = None) -> Parametric:  # fmt: skip
    """The parametric simulator of a detector, tuned to (Geant4) showers in it; ``origin`` says how and how well.

    Uses at most 2,000 of the showers, drawn with the seed. progress: called with (steps done, of how many, note).
    """
    detector.geometry.require_same(showers.geometry, "sample")
    require_known(showers.incident)
    if len(showers) < FEWEST or rounds < 1:
        raise ValueError(f"got {len(showers)} showers and {rounds} rounds, expected {FEWEST} and 1 at least; add some")
    began = time.monotonic()
    n_given = len(showers)
    if n_given > MOST:
        showers = showers[np.sort(np.random.default_rng(seed).permutation(n_given)[:MOST])]
    fit = _Fit(showers, detector, seed)
    model = fit.start()
    stages = [s for s in STAGES if any(k.startswith(s.kinds) for k in fit.summary.names)]
    total, done = rounds * sum(s.steps for s in stages), 0
    tell = progress or (lambda *_: None)
    for _ in range(rounds):
        model = fit.with_layers(model)
        for stage in stages:
            tell(done, total, stage.name)
            model = fit.improve(model, stage, partial(_tell_step, tell, done, total, stage.name))
            done += stage.steps
    model = fit.with_layers(model)
    tell(total, total, "")
    energy = showers.incident.energy
    origin = {
        "n_showers": len(showers), "seed": seed, "rounds": rounds, "pdg": sorted(set(showers.incident.pdg.tolist())),
        "energy_mev": [float(energy.min()), float(energy.max())], "misfit": "rms of (simulated - sample)/error",
        "misfit_textbook": fit.misfit(Parametric(detector)), "misfit_tuned": fit.misfit(model),
        "n_statistics": len(fit.summary.names), "caloforge": __version__, "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    return replace(model, origin=origin)


def _tell_step(tell: Callable[..., None], before: int, total: int, note: str, done: int) -> None:
    tell(before + done, total, note)


class _Fit:
    """A sample and the simulations that are compared with it."""

    def __init__(self, showers: Showers, detector: Detector, seed: int) -> None:
        self.showers, self.detector, self.seed = showers, detector, seed
        self.summary = Summary(showers, detector.moliere, detector.frame)
        n = SIMULATED if aligned(detector, showers.incident) else OBLIQUE
        n = max(FEWEST, min(n, 2 * len(showers), VOXELS // showers.geometry.n_voxels))
        self.incident = showers.incident[np.arange(n) % len(showers)]

    def start(self) -> Parametric:
        """First guess: the priors, spots as energetic as faint voxels, response and its spread from the sample."""
        d, energy = self.detector, self.showers.incident.energy
        scale = np.array(d.layer_scale)[d.geometry.layer_index]
        _, voxel = np.nonzero(self.showers.energy)
        faint = np.quantile(self.showers.energy[self.showers.energy > 0] / scale[voxel], 0.3) / d.sampling_fraction
        response = self.showers.total / energy
        soft = energy <= np.quantile(energy, 0.1)  # where 1/sqrt(E) counts most
        low, middle, high = np.quantile(response[soft], [0.16, 0.5, 0.84])
        stochastic = float(np.clip((high - low) / 2 / middle * np.sqrt(energy[soft].mean() / 1e3), 1e-3, 1))
        values: dict[str, Any] = {name: prior.value for name, prior in PRIORS.items()} | {
            "halo_energy": 0.8 * float(faint), "spot_floor": 1.5 * float(faint), "stochastic": stochastic,
            "spot_energy": max(25.0, 1e3 * stochastic**2 / 3),
        }  # fmt: skip
        ratio = middle / d.sampling_fraction / np.mean(d.layer_scale)
        values["response"] = float(np.clip(ratio, 0.01, 100))
        self.priors = {name: replace(PRIORS[name], value=values[name]) for name in PRIORS}
        del values["stochastic"]
        model = Parametric(d, stochastic, tuning=Tuning(**values))
        made = np.median(self.simulate(model).total / self.incident.energy)  # with what is lost and leaks
        values["response"] *= float(np.median(response) / made)
        self.priors["response"] = replace(self.priors["response"], value=values["response"])
        return replace(model, tuning=Tuning(**values))

    def simulate(self, model: Parametric, incident: Incident | None = None) -> Showers:
        a, b = (np.random.default_rng(s) for s in np.random.SeedSequence(self.seed).spawn(2))
        return model.draw(self.incident if incident is None else incident, a, b, {})

    def misfit(self, model: Parametric) -> float:
        """Root mean square of all residuals, with at most 1,000 simulated showers."""
        n = min(1000, len(self.incident))
        return float(np.sqrt(np.mean(self.summary.residuals(self.simulate(model, self.incident[:n])) ** 2)))

    def with_layers(self, model: Parametric) -> Parametric:
        """Factors on the layers where the medium is not the same everywhere: those that the mean energies ask for."""
        if len(self.detector.sections) == 1:
            return model
        now = np.array(model.tuning.layers or (1.0,) * self.detector.geometry.n_layers)
        mean = self.simulate(model).layer_energy.mean(axis=0)
        ratio = np.where(mean > 0, self.showers.layer_energy.mean(axis=0) / np.maximum(mean, 1e-30), 1.0)
        return replace(model, tuning=replace(model.tuning, layers=tuple(np.clip(now * ratio, 1e-3, 1e3).tolist())))

    def improve(self, model: Parametric, stage: Stage, tell: Callable[[int], None]) -> Parametric:
        """Model with the constants of a stage fitted."""
        priors = [self.priors[name] for name in stage.constants]
        current = model.constants()
        x = np.array([p.to_x(current[name]) for name, p in zip(stage.constants, priors, strict=True)])
        compare = self._responses(model) if stage.name == "response" else self._shapes(stage.kinds)

        def built(x: Array) -> Parametric:
            values: dict[str, Any] = {
                name: _limited(name, p.from_x(v)) for name, p, v in zip(stage.constants, priors, x, strict=True)
            }
            stochastic = values.pop("stochastic", model.stochastic)
            tuning = {name: getattr(model.tuning, name) for name in ("core_power", "spot_falloff")} | values
            values["spot_falloff"] = min(tuning["spot_falloff"], tuning["core_power"] - 0.02)
            return replace(model, stochastic=stochastic, tuning=replace(model.tuning, **values))

        centre = np.array([p.to_x(p.value) for p in priors])
        width = np.array([p.width for p in priors])
        return built(descend(lambda x: compare(built(x)), x, centre, width, stage.steps, tell))

    def _shapes(self, kinds: tuple[str, ...]) -> Callable[[Parametric], Array]:
        return lambda model: self.summary.residuals(self.simulate(model), kinds).ravel()

    def _responses(self, model: Parametric) -> Callable[[Parametric], Array]:
        """Residuals of the response alone, from many deposited energies and the mean share of them in the mesh."""
        energy = np.resize(self.incident.energy, RESPONSES)
        rng = np.random.SeedSequence(self.seed)
        seen = self.simulate(model).total / self.incident.energy
        made = deposit(model.stack, model.spread, model.tuning, energy, np.random.default_rng(rng))[0] / energy
        share = float(np.median(seen) / np.median(made))

        def compare(model: Parametric) -> Array:
            made = deposit(model.stack, model.spread, model.tuning, energy, np.random.default_rng(rng))[0]
            return self.summary.response_residuals(made / energy * share, energy).ravel()

        return compare


def _limited(name: str, value: float) -> float:
    low, high = LIMITS.get(name, (1e-9, np.inf))
    return min(max(value, low), high)


def descend(residuals: Callable[[Array], Array], x: Array, centre: Array, width: Array, steps: int,
            tell: Callable[[int], None] = lambda done: None) -> Array:  # fmt: skip
    """The x that minimises the sum of the module's docstring, from x on, in at most ``steps`` steps."""

    def cost(r: Array, x: Array) -> float:
        robust = 2 * ROBUST**2 * np.sum(np.sqrt(1 + (r / ROBUST) ** 2) - 1)
        return float(robust + np.sum(((x - centre) / width) ** 2))

    r = residuals(x)
    value, damping = cost(r, x), 1.0
    step = STEP * np.minimum(width, 0.7)
    for done in range(steps):
        shifts = np.diag(step)
        slope = np.stack([(residuals(x + h) - residuals(x - h)) / (2 * h.sum()) for h in shifts], axis=1)
        weight = 1 / np.sqrt(1 + (r / ROBUST) ** 2)
        curve = slope.T @ (slope * weight[:, None]) + np.diag(1 / width**2)
        gradient = slope.T @ (weight * r) + (x - centre) / width**2
        for _ in range(TRIALS):
            move = np.linalg.solve(curve + damping * np.diag(np.diag(curve)), -gradient)
            move = np.clip(move, -REACH * width, REACH * width)
            new = residuals(x + move)
            if cost(new, x + move) < value:
                break
            damping = max(damping, 0.01) * 4
        else:
            return x
        x, r, before, value = x + move, new, value, cost(new, x + move)
        damping /= 5
        tell(done + 1)
        if before - value < 1e-3 * value:
            return x
    return x
