"""Distances between two samples of one number per shower; each with its statistical error.

p, q: normalised histograms of reference and candidate; F, G: their cumulative distributions; n, m: numbers of showers.
Errors are standard deviations: from the bootstrap (Efron, 1979) for S and W1, from error propagation for the rest.
"""

from dataclasses import dataclass

import numpy as np

from ..geometry import Array

MOST = 5000  # showers of each sample that the W1 bootstrap uses at most

Measured = tuple[float, float]  # value, error


def separation(reference: Array, candidate: Array) -> Array:
    """Separation power S = 1/2 sum (p - q)^2 / (p + q) of counts (..., B); 0 identical, 1 disjoint.

    Also called triangular discrimination (Diefenbacher et al., 2009.03796, eq. 15). The bins are the caller's and
    have to hold under- and overflow, or S does not see them.
    """
    p = reference / reference.sum(axis=-1, keepdims=True)
    q = candidate / candidate.sum(axis=-1, keepdims=True)
    both = p + q
    return np.asarray(0.5 * ((p - q) ** 2 / np.where(both > 0, both, 1)).sum(axis=-1))


def separation_power(reference: Array, candidate: Array, n_bootstrap: int, rng: np.random.Generator) -> Measured:
    """S of two histograms of counts (B,), and its error from multinomial resampling of both."""
    resampled = [rng.multinomial(c.sum(), c / c.sum(), size=n_bootstrap) for c in (reference, candidate)]
    return float(separation(reference, candidate)), float(separation(*resampled).std(ddof=1))


@dataclass(frozen=True)
class Bootstrap:
    """Resamplings of n reference and m candidate showers, drawn once and used for every observable.

    chosen: the showers used, at most 5000 of each, (n',) and (m',); weights: one column per resampling,
    (n', K) and (m', K), columns sum to 1; scale: from the error at (n', m') to the error at (n, m).
    """

    chosen: tuple[Array, Array]
    weights: tuple[Array, Array]
    scale: float

    @staticmethod
    def draw(n: int, m: int, n_bootstrap: int, rng: np.random.Generator) -> "Bootstrap":
        used = [min(size, MOST) for size in (n, m)]
        chosen = [rng.choice(size, u, replace=False) for size, u in zip((n, m), used, strict=True)]
        weights = [rng.multinomial(u, np.full(u, 1 / u), size=n_bootstrap).T / u for u in used]
        scale = np.sqrt((1 / n + 1 / m) / sum(1 / u for u in used))
        return Bootstrap((chosen[0], chosen[1]), (weights[0], weights[1]), float(scale))


def weighted_wasserstein(reference: Array, candidate: Array, weights: tuple[Array, Array]) -> Array:
    """W1 = integral |F - G| dx for K sets of weights: values (n,), (m,), weights (n, K), (m, K) -> (K,)."""
    values = np.concatenate([reference, candidate])
    order = np.argsort(values, kind="stable")
    difference = np.cumsum(np.concatenate([weights[0], -weights[1]])[order], axis=0)[:-1]
    return np.asarray(np.diff(values[order]) @ np.abs(difference))


def wasserstein(reference: Array, candidate: Array, bootstrap: Bootstrap, std: float) -> Measured:
    """Wasserstein-1 distance of two samples (n,), (m,) in units of ``std``, the reference's standard deviation.

    NaN where the reference is constant (std 0) and the candidate is something else: there is no scale then.
    """
    from scipy.stats import wasserstein_distance

    value = float(wasserstein_distance(reference, candidate))
    if value == 0 and std == 0:
        return 0.0, 0.0
    if std == 0:
        return float("nan"), float("nan")
    chosen = (reference[bootstrap.chosen[0]], candidate[bootstrap.chosen[1]])
    resampled = weighted_wasserstein(*chosen, bootstrap.weights)
    return value / std, float(resampled.std(ddof=1)) * bootstrap.scale / std


def spread(values: Array) -> float:
    """Standard deviation of the values (N,), exactly 0 where they differ only by rounding."""
    std = float(np.std(values))
    return std if std > 1e-12 * float(np.abs(values).max(initial=0.0)) else 0.0


def relative_mean(reference: Array, candidate: Array) -> Measured:
    """mean(candidate)/mean(reference) - 1 of samples (n,), (m,); NaN where the reference mean is 0."""
    if not np.mean(reference):
        return float("nan"), float("nan")
    ratio = float(np.mean(candidate) / np.mean(reference))
    a, b = (np.std(v) / np.sqrt(len(v)) / np.mean(reference) for v in (reference, candidate))
    return ratio - 1, float(np.hypot(ratio * a, b))


def relative_width(reference: Array, candidate: Array) -> Measured:
    """std(candidate)/std(reference) - 1 of samples (n,), (m,); NaN where the reference is constant.

    Error of a standard deviation s from the fourth central moment: var(s)/s^2 = (m4/s^4 - 1)/(4 n).
    """
    if spread(reference) == 0:
        return float("nan"), float("nan")
    ratio = float(np.std(candidate) / np.std(reference))
    return ratio - 1, float(ratio * np.hypot(_relative_width_error(reference), _relative_width_error(candidate)))


def _relative_width_error(values: Array) -> float:
    variance = np.var(values)
    if variance == 0:
        return 0.0
    kurtosis = np.mean((values - values.mean()) ** 4) / variance**2
    return float(np.sqrt(max(kurtosis - 1, 0) / (4 * len(values))))


def relative_core_width(reference: Array, candidate: Array, n_bootstrap: int, rng: np.random.Generator) -> Measured:
    """Half of the central 68.3 % interval, candidate over reference, minus 1, for samples (n,), (m,).

    Unlike the standard deviation it is not made by a few showers that leak; NaN where the reference has no width.
    """
    if _core_width(reference) == 0:
        return float("nan"), float("nan")
    value = _core_width(candidate) / _core_width(reference) - 1
    draws = [
        [_core_width(v[rng.integers(0, len(v), len(v))]) for v in (reference, candidate)] for _ in range(n_bootstrap)
    ]
    widths = np.array(draws)
    ratio = widths[:, 1] / np.where(widths[:, 0] == 0, np.nan, widths[:, 0])
    return value, float(np.nanstd(ratio))


def _core_width(values: Array) -> float:
    low, high = np.quantile(values, (0.15865, 0.84135))
    return float(0.5 * (high - low))


def mean_difference(reference: Array, candidate: Array) -> Measured:
    """mean(candidate) - mean(reference) of samples (n,), (m,)."""
    errors = [np.std(v) / np.sqrt(len(v)) for v in (reference, candidate)]
    return float(np.mean(candidate) - np.mean(reference)), float(np.hypot(*errors))
