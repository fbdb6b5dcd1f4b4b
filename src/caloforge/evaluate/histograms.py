"""Histograms whose bins come from the reference sample and leave nothing out.

n_i, m_i are the counts of reference and candidate in bin i; the first and the last bin are under- and overflow.
"""

import numpy as np

from ..geometry import Array

N_BINS = 50
QUANTILES = (0.001, 0.999)
LOG_RANGE = 100.0  # quantiles further apart than this factor: logarithmic bins
POINT = 1e-3  # half width of the bin around a discrete value, in units of the smallest gap
MOST_LATTICE = 2000  # distinct values
ROUNDING = 1e-9  # values closer than this, relative to the largest, are one value


def binning(reference: Array, n_bins: int = N_BINS) -> Array:
    """Bin edges from the reference values (N,): rising, finite, (B+1,); ``fill`` adds under- and overflow.

    At most ``n_bins`` distinct values: a narrow bin around each, so that values the reference never takes fall into
    bins of their own. Otherwise ``n_bins`` bins between the 0.1 % and the 99.9 % quantile, equally wide, or equally
    wide in the logarithm where these quantiles are positive and more than a factor 100 apart. Values on a lattice
    (k/v, such as an occupied fraction) get at most ``n_bins`` bins of a whole number of lattice steps.
    """
    values = distinct(reference)
    if len(values) <= n_bins:
        return _points(values)
    low, high = np.quantile(reference, QUANTILES)
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        low, high = values[0], values[-1]
    gap = np.diff(values).min()
    steps = np.diff(values) / gap
    if len(values) <= MOST_LATTICE and np.allclose(steps, steps.round(), rtol=0, atol=1e-3):
        low = values[np.searchsorted(values, low)]
        width = gap * np.ceil(((high - low) / gap + 1) / n_bins)
        return np.asarray(low - 0.5 * gap + width * np.arange(np.ceil((high - low + gap) / width) + 1))
    if low > 0 and high > LOG_RANGE * low:
        return np.geomspace(low, high, n_bins + 1)
    return np.linspace(low, high, n_bins + 1)


def distinct(values: Array) -> Array:
    """The distinct values, rising; values that differ by rounding only count as one."""
    unique = np.unique(np.asarray(values, dtype=np.float64))
    if len(unique) == 0 or not np.all(np.isfinite(unique)):
        raise ValueError(
            f"got {len(unique)} distinct values, some not finite or none, expected numbers; check the showers"
        )
    apart = np.diff(unique) > 0.25 * ROUNDING * np.abs(unique).max()
    return np.asarray(unique[np.concatenate([[True], apart])])


def _points(values: Array) -> Array:
    """Edges of a narrow bin around each value; between two values lies one more bin."""
    largest = max(float(np.abs(values).max()), np.finfo(float).tiny / ROUNDING)
    gap = np.diff(values).min() if len(values) > 1 else largest
    half = max(POINT * gap, 0.25 * ROUNDING * largest)
    return np.stack([values - half, values + half], axis=1).ravel()


def fill(values: Array, edges: Array) -> Array:
    """Counts of the values (N,) in underflow, the bins, overflow: (B+2,) int64."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def drawing_edges(reference: Array, n_bins: int = N_BINS) -> Array:
    """Edges to draw with: those of ``binning``, but touching bins around the values of a discrete observable."""
    values = distinct(reference)
    if len(values) > n_bins:
        return binning(reference, n_bins)
    if len(values) == 1:
        return values + np.array([-0.5, 0.5]) * max(1.0, abs(float(values[0])))
    between = 0.5 * (values[:-1] + values[1:])
    return np.concatenate([[2 * values[0] - between[0]], between, [2 * values[-1] - between[-1]]])
