"""Response and resolution against the incident energy, and the terms of the resolution.

R = E/E_inc is the response of a shower. In a bin of incident energy the mean response is <R>, the relative resolution
sigma/E = std(R)/<R>. Sampling calorimeters follow (Fabjan, Gianotti, Rev. Mod. Phys. 75 (2003) 1243)

    (sigma/E)^2 = a^2/E + c^2,     E in GeV: a stochastic term [sqrt(GeV)], c constant term,

which is a straight line in 1/E. A bin is represented by <1/E_inc>, which makes the line exact for wide bins too.
"""

from dataclasses import dataclass

import numpy as np

from ..geometry import Array
from ..showers import Showers
from .distances import Measured

GEV = 1e3  # MeV
MOST_ENERGIES = 40  # distinct incident energies that are points of their own
FEWEST = 10  # showers of a point
CORE = (0.15865, 0.84135)
N_BOOTSTRAP = 100


@dataclass(frozen=True)
class ResponseCurve:
    """Points at B incident energies.

    energy: mean E_inc [MeV], (B,); low, high: smallest and largest E_inc of the point; inverse_energy: <1/E_inc>
    [1/MeV]; n: showers; response, response_error: <R>; resolution, resolution_error: width of R over <R>.
    """

    energy: Array
    low: Array
    high: Array
    inverse_energy: Array
    n: Array
    response: Array
    response_error: Array
    resolution: Array
    resolution_error: Array


def response_curve(
    showers: Showers, n_bins: int = 10, *, core: bool = False, seed: int | np.random.SeedSequence = 0
) -> ResponseCurve:
    """Response and resolution at every incident energy, or in ``n_bins`` bins with the same number of showers.

    At most 40 distinct energies are points of their own; those with less than 10 showers are left out. core: the width
    is half of the central 68.3 % interval, which a few showers that leak do not make, instead of the standard
    deviation. Errors: var(std)/std^2 = (m4/std^4 - 1)/(4 n) with the fourth central moment m4; of the core, bootstrap.
    """
    energy, ratio = showers.incident.energy, showers.total / showers.incident.energy
    distinct = np.unique(energy)
    if len(distinct) <= MOST_ENERGIES:
        points = [np.flatnonzero(energy == value) for value in distinct]
    else:
        points = np.array_split(np.argsort(energy, kind="stable"), n_bins)
    points = [index for index in points if len(index) >= FEWEST]
    if not points:
        raise ValueError(
            f"got {len(showers)} showers of {len(distinct)} energies, expected {FEWEST} or more of one energy or in a "
            "bin; give more showers or fewer bins"
        )
    rng = np.random.default_rng(seed)
    rows = []
    for index in points:
        values, at = ratio[index], energy[index]
        mean = float(values.mean())
        if mean <= 0:
            raise ValueError(f"got showers without energy at {at.mean():g} MeV, expected a response; check the file")
        width, error = _core(values, rng) if core else _deviation(values)
        # d(width/mean) without the small correlation of the two.
        relative = np.hypot(error / mean, width / mean * values.std() / np.sqrt(len(values)) / mean)
        rows.append((
            at.mean(), at.min(), at.max(), (1 / at).mean(), len(index), mean, values.std() / np.sqrt(len(values)),
            width / mean, relative,
        ))  # fmt: skip
    return ResponseCurve(*(np.array(column) for column in zip(*rows, strict=True)))


def _deviation(values: Array) -> Measured:
    """Standard deviation and its error."""
    std, n = float(values.std(ddof=1)), len(values)
    if std == 0:
        return 0.0, 0.0
    kurtosis = float(((values - values.mean()) ** 4).mean()) / float(values.var()) ** 2
    return std, std * float(np.sqrt(max(kurtosis - 1, 0) / (4 * n)))


def _core(values: Array, rng: np.random.Generator) -> Measured:
    """Half of the central 68.3 % interval and its bootstrap error."""

    def width(sample: Array) -> float:
        low, high = np.quantile(sample, CORE)
        return 0.5 * float(high - low)

    draws = [width(values[rng.integers(0, len(values), len(values))]) for _ in range(N_BOOTSTRAP)]
    return width(values), float(np.std(draws))


@dataclass(frozen=True)
class ResolutionFit:
    """Terms of the resolution: stochastic [sqrt(GeV)] and constant, each with its error; chi2 and ndf of the fit."""

    stochastic: Measured
    constant: Measured
    chi2: float
    ndf: int

    def at(self, energy: Array) -> Array:
        """sigma/E at incident energies [MeV]."""
        return np.sqrt(self.stochastic[0] ** 2 * GEV / np.asarray(energy) + self.constant[0] ** 2)


def fit_resolution(curve: ResponseCurve) -> ResolutionFit:
    """Fit a and c to the points of a curve by least squares, y = a^2 x + c^2 with y = (sigma/E)^2, x = <1/E>.

    Neither term is negative: where the fit wants one below 0 it is 0, its error the largest value within one standard
    deviation, and the other is fitted alone. The error of a is that of a^2 over 2a; a value below its error gets the
    upper end of the interval instead.
    """
    x, y = curve.inverse_energy * GEV, curve.resolution**2
    sigma = 2 * curve.resolution * curve.resolution_error
    used = sigma > 0
    if used.sum() < 2:
        raise ValueError(
            f"got {int(used.sum())} points with a width, expected at least 2; give showers of more energies"
        )
    x, y, sigma = x[used], y[used], sigma[used]
    columns = np.stack([x, np.ones_like(x)], axis=1) / sigma[:, None]
    covariance = np.linalg.inv(columns.T @ columns)
    squares = covariance @ columns.T @ (y / sigma)
    for term, other in ((0, 1), (1, 0)):
        if squares[term] < 0:
            weight = (columns[:, other] ** 2).sum()
            squares[term], squares[other] = 0.0, max(float(columns[:, other] @ (y / sigma)) / weight, 0.0)
    errors = np.sqrt(np.diag(covariance))
    terms = [_root(float(s), float(e)) for s, e in zip(squares, errors, strict=True)]
    chi2 = float((((y - squares[0] * x - squares[1]) / sigma) ** 2).sum())
    return ResolutionFit(terms[0], terms[1], chi2, len(x) - 2)


def _root(square: float, error: float) -> Measured:
    """Square root of square +- error; upwards, where the interval reaches 0."""
    value = float(np.sqrt(square))
    if square > error:
        return value, error / (2 * value)
    return value, float(np.sqrt(square + error)) - value
