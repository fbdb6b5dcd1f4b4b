"""Particle gun: the distribution of incident particles that a sample is made with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..geometry import Array
from ..showers import Incident


@dataclass(frozen=True)
class Distribution:
    """One number per shower: uniform or log-uniform between low and high; fixed where low == high."""

    kind: Literal["uniform", "log_uniform"]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low <= self.high):
            raise ValueError(f"got limits {self.low:g}..{self.high:g}, expected low <= high; swap them")
        if self.kind == "log_uniform" and self.low <= 0:
            raise ValueError(f"got lower limit {self.low:g} for a log-uniform distribution, expected > 0; raise it")

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        if self.kind == "uniform":
            return rng.uniform(self.low, self.high, n)
        # exp(log(x)) is not always x: without the clip a particle may lie just outside the declared range.
        return np.clip(np.exp(rng.uniform(np.log(self.low), np.log(self.high), n)), self.low, self.high)


def uniform(low: float, high: float) -> Distribution:
    return Distribution("uniform", low, high)


def log_uniform(low: float, high: float) -> Distribution:
    return Distribution("log_uniform", low, high)


def fixed(value: float) -> Distribution:
    return Distribution("uniform", value, value)


ZERO = fixed(0.0)


@dataclass(frozen=True)
class Gun:
    """Incident particles of one kind. energy [MeV], theta and phi [rad], x and y on the front face [mm]."""

    pdg: int
    energy: Distribution
    theta: Distribution = ZERO
    phi: Distribution = ZERO
    x: Distribution = ZERO
    y: Distribution = ZERO

    def __post_init__(self) -> None:
        if self.energy.low <= 0:
            raise ValueError(f"got gun energy from {self.energy.low:g} MeV, expected above 0; raise the lower limit")

    def sample(self, n: int, seed: int | np.random.SeedSequence) -> Incident:
        """n incident particles; the same seed gives the same particles."""
        rng = np.random.default_rng(seed)
        values = {name: getattr(self, name).sample(n, rng) for name in ("energy", "theta", "phi", "x", "y")}
        return Incident(**values, pdg=np.full(n, self.pdg))

    def describe(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_description(data: Mapping[str, Any]) -> "Gun":
        """The gun that ``describe`` made this of, as kept in the provenance of files."""
        spreads = {name: Distribution(**value) for name, value in data.items() if name != "pdg"}
        return Gun(int(data["pdg"]), **spreads)
