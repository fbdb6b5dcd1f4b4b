"""Particle gun: the distribution of incident particles that a sample is made with."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from .. import units
from ..geometry import Array
from ..showers import Incident

MAX_SLOPE = 1.5  # |tan| of normally distributed angles: their tail would graze the front face


@dataclass(frozen=True)
class Distribution:
    """One number per shower, between low and high.

    uniform and log_uniform (fixed where low == high); power: density proportional to x^index; normal: mean, sigma,
    cut at low and high; choice: one of values, equally likely.
    """

    kind: Literal["uniform", "log_uniform", "power", "normal", "choice"]
    low: float
    high: float
    index: float | None = None
    mean: float | None = None
    sigma: float | None = None
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low <= self.high):
            raise ValueError(f"got limits {self.low:g}..{self.high:g}, expected low <= high; swap them")
        if self.kind in ("log_uniform", "power") and self.low <= 0:
            name = self.kind.replace("_", "-")
            raise ValueError(f"got lower limit {self.low:g} for a {name} distribution, expected > 0; raise it")
        needed = {"power": ("index",), "normal": ("mean", "sigma"), "choice": ("values",)}.get(self.kind, ())
        for name in ("index", "mean", "sigma", "values"):
            if (getattr(self, name) is None) == (name in needed):
                raise ValueError(f"got a {self.kind} distribution with {name}={getattr(self, name)}, expected "
                                 f"{' and '.join(needed) or 'low and high only'}; correct it")  # fmt: skip
        if self.sigma is not None and not 0 < self.sigma < np.inf:
            raise ValueError(f"got sigma {self.sigma:g}, expected above 0; correct it")
        if self.values is not None:
            object.__setattr__(self, "values", tuple(float(v) for v in self.values))

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        if self.kind == "uniform":
            return rng.uniform(self.low, self.high, n)
        if self.kind == "choice":
            return rng.choice(np.array(self.values), n)
        if self.kind == "normal":
            return self._normal(n, rng)
        # exp(log(x)) is not always x: without the clip a particle may lie just outside the declared range.
        if self.kind == "log_uniform" or self.index == -1:
            return np.clip(np.exp(rng.uniform(np.log(self.low), np.log(self.high), n)), self.low, self.high)
        k = float(self.index or 0) + 1
        a, b = sorted((self.low**k, self.high**k))
        return np.asarray(np.clip(rng.uniform(a, b, n) ** (1 / k), self.low, self.high))

    def _normal(self, n: int, rng: np.random.Generator) -> Array:
        from scipy.special import ndtr, ndtri

        mean, sigma = float(self.mean or 0), float(self.sigma or 1)
        a, b = ndtr((np.array([self.low, self.high]) - mean) / sigma)
        return np.asarray(np.clip(mean + sigma * ndtri(rng.uniform(a, b, n)), self.low, self.high))

    def describe(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def uniform(low: float, high: float) -> Distribution:
    return Distribution("uniform", low, high)


def log_uniform(low: float, high: float) -> Distribution:
    return Distribution("log_uniform", low, high)


def power(low: float, high: float, index: float) -> Distribution:
    return Distribution("power", low, high, index=index)


def normal(mean: float, sigma: float, low: float, high: float) -> Distribution:
    return Distribution("normal", low, high, mean=mean, sigma=sigma)


def choice(*values: float) -> Distribution:
    if not values:
        raise ValueError("got no values to choose from, expected at least one; add some")
    return Distribution("choice", min(values), max(values), values=values)


def fixed(value: float) -> Distribution:
    return Distribution("uniform", value, value)


ZERO = fixed(0.0)


@dataclass(frozen=True)
class Gun:
    """Incident particles of one kind. energy [MeV], theta and phi [rad], x and y on the front face [mm].

    theta_x, theta_y: angles in the planes xz and yz [rad], instead of theta and phi: tan(theta_x) = dx/dz. aim: x and y
    are drawn in the plane at this depth [mm] and traced back to the front face along the direction.
    """

    pdg: int
    energy: Distribution
    theta: Distribution = ZERO
    phi: Distribution = ZERO
    x: Distribution = ZERO
    y: Distribution = ZERO
    theta_x: Distribution | None = None
    theta_y: Distribution | None = None
    aim: float = 0.0

    def __post_init__(self) -> None:
        if self.energy.low <= 0:
            raise ValueError(f"got gun energy from {self.energy.low:g} MeV, expected above 0; raise the lower limit")
        slopes = [a for a in (self.theta_x, self.theta_y) if a is not None]
        if slopes and (self.theta != ZERO or self.phi != ZERO):
            raise ValueError("got theta or phi with theta_x or theta_y, expected one pair; leave the other away")
        if any(max(-a.low, a.high) >= np.pi / 2 for a in [*slopes, self.theta]) or self.theta.low < 0:
            raise ValueError(
                "got angles from the depth axis outside 0..90 degrees (theta), -90..90 (theta_x, theta_y), expected "
                "particles that move into the detector; correct them"
            )

    def sample(self, n: int, seed: int | np.random.SeedSequence) -> Incident:
        """n incident particles; the same seed gives the same particles."""
        rng = np.random.default_rng(seed)
        energy = self.energy.sample(n, rng)
        slope = self.theta_x is not None or self.theta_y is not None
        first = (self.theta_x or ZERO) if slope else self.theta
        second = (self.theta_y or ZERO) if slope else self.phi
        theta, phi, x, y = (d.sample(n, rng) for d in (first, second, self.x, self.y))
        if slope:
            tx, ty = np.tan(theta), np.tan(phi)
            theta, phi = np.arctan(np.hypot(tx, ty)), np.arctan2(ty, tx)
        if self.aim:
            x = x - self.aim * np.tan(theta) * np.cos(phi)
            y = y - self.aim * np.tan(theta) * np.sin(phi)
        return Incident(energy, theta, phi, x, y, np.full(n, self.pdg))

    def limits(self) -> dict[str, tuple[float, float]]:
        """Range of energy [MeV], theta, phi [rad], x, y [mm] of the particles."""
        out = {name: (getattr(self, name).low, getattr(self, name).high) for name in ("energy", "theta", "phi")}
        tx, ty = (max(-a.low, a.high) if (a := v) is not None else 0.0 for v in (self.theta_x, self.theta_y))
        if self.theta_x is not None or self.theta_y is not None:
            out |= {"theta": (0.0, float(np.arctan(np.hypot(np.tan(tx), np.tan(ty))))), "phi": (-np.pi, np.pi)}
        reach = float(self.aim * np.tan(out["theta"][1]))
        side = (self.aim * np.tan(tx), self.aim * np.tan(ty)) if self.theta_x or self.theta_y else (reach, reach)
        for name, extra in zip(("x", "y"), side, strict=True):
            spread = getattr(self, name)
            out[name] = (spread.low - float(extra), spread.high + float(extra))
        return out

    def describe(self) -> dict[str, Any]:
        """Plain data, as kept in the provenance of files."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not (f.name == "aim" and value == 0):
                out[f.name] = value.describe() if isinstance(value, Distribution) else value
        return out

    @staticmethod
    def from_description(data: Mapping[str, Any]) -> "Gun":
        """The gun that ``describe`` made this of."""
        parts: dict[str, Any] = {k: Distribution(**v) for k, v in data.items() if k not in ("pdg", "aim")}
        return Gun(int(data["pdg"]), **parts, aim=float(data.get("aim", 0.0)))


def gun(particle: str, energy: str, spectrum: str = "uniform", theta: str = "0deg", phi: str = "0deg",
        theta_x: str = "", theta_y: str = "", x: str = "0mm", y: str = "0mm", aim: float = 0.0) -> Gun:  # fmt: skip
    """A gun from text with units.

    energy: ``50GeV``, ``1..100GeV``, ``256,512,1024MeV``; spectrum: uniform, log-uniform or power:INDEX (of a range).
    Angles and positions: ``5deg`` (fixed), ``-5..5deg`` (uniform), ``0+-20deg`` (normal; angles are cut where the
    tangent passes 1.5, positions at five sigma). aim: depth [mm] of the plane in which x and y are drawn.
    """
    slopes = {
        name: parse_spread(text, units.RAD_PER) for name, text in (("theta_x", theta_x), ("theta_y", theta_y)) if text
    }
    return Gun(
        units.pdg_id(particle), parse_spectrum(energy, spectrum), parse_spread(theta, units.RAD_PER),
        parse_spread(phi, units.RAD_PER), parse_spread(x, units.MM_PER), parse_spread(y, units.MM_PER), **slopes,
        aim=float(aim),
    )  # fmt: skip


def adapted(base: Gun | None, *, particle: str | None = None, energy: str | None = None, spectrum: str | None = None,
            theta: str | None = None, phi: str | None = None, theta_x: str | None = None, theta_y: str | None = None,
            x: str | None = None, y: str | None = None) -> Gun:  # fmt: skip
    """The gun ``base`` (of a detector) with what is given replaced; text as in ``gun``.

    A new range of energies keeps the kind of spectrum, unless that is a list. Angles of one pair put out the other.
    """
    if base is None:
        if particle is None or energy is None:
            raise ValueError(
                "got no particle or no energy for a detector without a gun of its own, expected both; "
                "give --particle and --energy"
            )
        base = Gun(units.pdg_id(particle), parse_spectrum(energy, spectrum or "uniform"))
    new: dict[str, Any] = {} if particle is None else {"pdg": units.pdg_id(particle)}
    if energy is not None or spectrum is not None:
        new["energy"] = _new_spectrum(base.energy, energy, spectrum)
    if theta is not None or phi is not None:
        new |= {"theta_x": None, "theta_y": None}
    if theta_x is not None or theta_y is not None:
        new |= {"theta": ZERO, "phi": ZERO}
    spreads = {"theta": theta, "phi": phi, "theta_x": theta_x, "theta_y": theta_y, "x": x, "y": y}
    for name, text in spreads.items():
        if text is not None:
            new[name] = parse_spread(text, units.MM_PER if name in ("x", "y") else units.RAD_PER)
    return replace(base, **new)


def _new_spectrum(old: Distribution, energy: str | None, spectrum: str | None) -> Distribution:
    if energy is None:
        if old.kind == "choice":
            raise ValueError(f"got spectrum {spectrum!r} for a list of energies, expected a range too; give --energy")
        return parse_spectrum(f"{old.low!r}..{old.high!r}MeV", spectrum or "uniform")
    if spectrum is None and "," not in energy and old.kind in ("log_uniform", "power"):
        spectrum = "log-uniform" if old.kind == "log_uniform" else f"power:{old.index:g}"
    return parse_spectrum(energy, spectrum or "uniform")


def parse_spectrum(energy: str, spectrum: str) -> Distribution:
    """Distribution of the kinetic energy from text, as in ``gun``."""
    values = units.parse_energies(energy)
    if "," in energy:
        if spectrum != "uniform":
            raise ValueError(f"got spectrum {spectrum!r} with a list of energies, expected uniform; leave it away")
        return choice(*values)
    low, high = values[0], values[-1]
    if spectrum in ("uniform", "log-uniform"):
        return Distribution("uniform" if spectrum == "uniform" else "log_uniform", low, high)
    match = re.fullmatch(r"power:([+-]?\d+\.?\d*)", spectrum)
    if match is None:
        raise ValueError(f"got spectrum {spectrum!r}, expected uniform, log-uniform or power:INDEX; choose one")
    return power(low, high, float(match[1]))


def parse_spread(text: str, unit_of: Mapping[str, float]) -> Distribution:
    """Distribution of an angle or a position from text, as in ``gun``; ``unit_of``: units known here."""
    number = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    match = re.fullmatch(rf"\s*{number}\s*(?:(\.\.|\+-|±)\s*{number})?\s*([a-z]+)\s*", text)
    if match is None or match[4] not in unit_of:
        raise ValueError(
            f"got {text!r}, expected a number, a range LOW..HIGH or MEAN+-SIGMA with one of the units "
            f"{', '.join(unit_of)}; correct it"
        )
    unit = unit_of[match[4]]
    first, second = float(match[1]) * unit, float(match[3] or match[1]) * unit
    if match[2] in ("+-", "±"):
        reach = float(np.arctan(MAX_SLOPE)) if "rad" in unit_of else 5 * second
        centre = 0.0 if "rad" in unit_of else first
        return normal(first, second, centre - reach, centre + reach)
    return uniform(first, second)
