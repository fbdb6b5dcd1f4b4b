"""Distances between two samples of one number per shower; each with its statistical error.

p, q: normalised histograms of reference and candidate; F, G: their cumulative distributions; n, m: numbers of showers.
Errors are standard deviations: from the bootstrap (Efron, 1979) for W1, KS and the distances of two histograms, from
error propagation for the rest. The bins of a histogram are the caller's and have to hold under- and overflow, or the
distance does not see them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..geometry import Array

MOST = 5000  # showers of each sample that the bootstrap of W1 and KS uses at most
N_NODES = 512  # values at which its resampled F and G are compared

Measured = tuple[float, float]  # value, error


def separation(reference: Array, candidate: Array) -> Array:
    """Separation power S = 1/2 sum (p - q)^2 / (p + q) of counts (..., B); 0 identical, 1 disjoint.

    Also called triangular discrimination (Diefenbacher et al., 2009.03796, eq. 15).
    """
    p, q = _normalised(reference), _normalised(candidate)
    both = p + q
    return np.asarray(0.5 * ((p - q) ** 2 / np.where(both > 0, both, 1)).sum(axis=-1))


def total_variation(reference: Array, candidate: Array) -> Array:
    """TV = 1/2 sum |p - q| of counts (..., B): the largest difference of probability of any set of bins; in [0, 1]."""
    return np.asarray(0.5 * np.abs(_normalised(reference) - _normalised(candidate)).sum(axis=-1))


def kullback_leibler(reference: Array, candidate: Array) -> Array:
    """KL(p || q) = sum p log2(p/q) of counts (..., B), in bits, at least 0 (Kullback, Leibler, 1951).

    An empty bin of the candidate under a filled one of the reference would make it infinite. So both histograms get
    half a count in every bin that is filled in one of them: the estimator of Krichevsky and Trofimov (1981).
    """
    filled = reference + candidate > 0
    p, q = (_normalised(np.where(filled, counts + 0.5, 0)) for counts in (reference, candidate))
    return _relative_entropy(p, q)


def jensen_shannon(reference: Array, candidate: Array) -> Array:
    """JSD = (KL(p || c) + KL(q || c))/2, c = (p + q)/2, of counts (..., B), in bits; in [0, 1] (Lin, 1991).

    Always finite: it needs no guard against empty bins, and has none.
    """
    p, q = _normalised(reference), _normalised(candidate)
    centre = 0.5 * (p + q)
    return 0.5 * (_relative_entropy(p, centre) + _relative_entropy(q, centre))


def _normalised(counts: Array) -> Array:
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))


def _relative_entropy(p: Array, q: Array) -> Array:
    """sum p log2(p/q) of probabilities (..., B); q is positive where p is."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log2(ratio)).sum(axis=-1))


def chi2(reference: Array, candidate: Array) -> Measured:
    """Two-sample chi^2 per degree of freedom of counts (B,): 1 is expected where the samples agree.

    chi^2 = sum (sqrt(m/n) n_i - sqrt(n/m) m_i)^2 / (n_i + m_i) over the bins that are filled in one of the two
    (Gagunashvili, physics/0605123), with one degree of freedom less than such bins. Its mean over all ways to deal
    n + m showers to the two samples is dof (n + m)/(n + m - 1), however few showers a bin has. Error: that of a
    noncentral chi^2, sqrt(2 dof + 4 max(chi^2 - dof, 0))/dof. NaN where one bin holds everything.
    """
    n, m = reference.sum(), candidate.sum()
    both = reference + candidate
    dof = int((both > 0).sum()) - 1
    if dof < 1:
        return float("nan"), float("nan")
    pull = np.sqrt(m / n) * reference - np.sqrt(n / m) * candidate
    value = float((pull**2 / np.where(both > 0, both, 1)).sum())
    return value / dof, float(np.sqrt(2 * dof + 4 * max(value - dof, 0)) / dof)


BOOTSTRAPPED: dict[str, Callable[[Array, Array], Array]] = {
    "separation": separation,
    "total_variation": total_variation,
    "kullback_leibler": kullback_leibler,
    "jensen_shannon": jensen_shannon,
}


def histogram_distances(
    reference: Array, candidate: Array, n_bootstrap: int, rng: np.random.Generator
) -> dict[str, Measured]:
    """All distances of two histograms of counts (B,) by name: those of ``BOOTSTRAPPED``, and chi2.

    Errors from the same n_bootstrap multinomial resamplings of both; that of chi2 is analytic.
    """
    resampled = _resample(reference, candidate, n_bootstrap, rng)
    measured = {
        name: (float(distance(reference, candidate)), float(distance(*resampled).std(ddof=1)))
        for name, distance in BOOTSTRAPPED.items()
    }
    return measured | {"chi2": chi2(reference, candidate)}


def separation_power(reference: Array, candidate: Array, n_bootstrap: int, rng: np.random.Generator) -> Measured:
    """S of two histograms of counts (B,), and its error from multinomial resampling of both."""
    resampled = _resample(reference, candidate, n_bootstrap, rng)
    return float(separation(reference, candidate)), float(separation(*resampled).std(ddof=1))


def _resample(reference: Array, candidate: Array, n_bootstrap: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Multinomial resamplings of two histograms of counts (B,): twice (K, B)."""
    first, second = (rng.multinomial(c.sum(), c / c.sum(), size=n_bootstrap) for c in (reference, candidate))
    return first, second


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
        weights = [np.ascontiguousarray(rng.multinomial(u, np.full(u, 1 / u), n_bootstrap).T / u) for u in used]
        scale = np.sqrt((1 / n + 1 / m) / sum(1 / u for u in used))
        return Bootstrap((chosen[0], chosen[1]), (weights[0], weights[1]), float(scale))

    def differences(self, reference: Array, candidate: Array) -> tuple[Array, Array]:
        """F - G of every resampling of the samples (n,), (m,), at some of their values: values (C,), F - G (C, K).

        Every value that occurs among the chosen showers, or, where there are more than 512, as many order statistics:
        at equal steps of the logit of their rank, so that the tails are resolved as well as the core.
        """
        from scipy.sparse import csr_array

        chosen = reference[self.chosen[0]], candidate[self.chosen[1]]
        nodes = _nodes(np.concatenate(chosen))
        below = []
        for values, weights in zip(chosen, self.weights, strict=True):
            cell = np.searchsorted(nodes, values)
            entries = (np.ones(len(values)), (cell, np.arange(len(values))))
            below.append(np.cumsum(csr_array(entries, shape=(len(nodes), len(values))) @ weights, axis=0))
        return nodes, below[0] - below[1]

    def wasserstein(self, reference: Array, candidate: Array) -> Array:
        """W1 of every resampling, (K,): the integral of |F - G| as a sum over the steps between the nodes."""
        nodes, difference = self.differences(reference, candidate)
        return np.asarray(np.diff(nodes) @ np.abs(difference[:-1]))

    def kolmogorov_smirnov(self, reference: Array, candidate: Array) -> Array:
        """KS of every resampling, (K,): the largest |F - G| at the nodes."""
        return np.asarray(np.abs(self.differences(reference, candidate)[1]).max(axis=0))


def _nodes(values: Array) -> Array:
    """At most N_NODES of the values (N,), rising, with the smallest and the largest."""
    distinct = np.unique(values)
    if len(distinct) <= N_NODES:
        return distinct
    end = np.log(2 * len(values))
    rank = len(values) / (1 + np.exp(-np.linspace(-end, end, N_NODES)))
    return np.unique(np.sort(values)[np.append(rank.astype(int), len(values) - 1)])


def wasserstein(reference: Array, candidate: Array, bootstrap: Bootstrap, std: float) -> Measured:
    """Wasserstein-1 distance of two samples (n,), (m,) in units of ``std``, the reference's standard deviation.

    W1 = integral |F - G| dx; error: bootstrap. NaN where the reference is constant (std 0) and the candidate is
    something else: there is no scale then.
    """
    from scipy.stats import wasserstein_distance

    value = float(wasserstein_distance(reference, candidate))
    if value == 0 and std == 0:
        return 0.0, 0.0
    if std == 0:
        return float("nan"), float("nan")
    error = float(bootstrap.wasserstein(reference, candidate).std(ddof=1)) * bootstrap.scale
    return value / std, error / std


def kolmogorov_smirnov(reference: Array, candidate: Array, bootstrap: Bootstrap) -> Measured:
    """``ks_distance`` of two samples (n,), (m,), and its error from the bootstrap."""
    error = float(bootstrap.kolmogorov_smirnov(reference, candidate).std(ddof=1)) * bootstrap.scale
    return ks_distance(reference, candidate), error


def ks_distance(reference: Array, candidate: Array) -> float:
    """KS = max |F - G| of two samples (n,), (m,), in [0, 1] (Kolmogorov, 1933; Smirnov, 1939)."""
    values = np.concatenate([reference, candidate])
    below = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (reference, candidate)]
    return float(np.abs(below[0] - below[1]).max())


def ks_p_value(value: float, n: int, m: int) -> float:
    """Probability of a KS distance of at least ``value`` between samples of n and m showers of one distribution.

    Asymptotic: that of one sample of nm/(n + m) showers; too large for discrete observables.
    """
    from scipy.stats import kstwo

    return float(kstwo.sf(value, max(round(n * m / (n + m)), 1)))


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
