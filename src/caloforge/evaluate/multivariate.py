"""Distances between two samples of feature vectors: FPD, KPD, sliced Wasserstein, mean KS; each with its error.

x: features of the reference, (n, F); y: of the candidate, (m, F); one row per shower, and which features is up to the
caller. None of these numbers vanishes for finite samples that agree: read them beside the same distance between two
halves of the reference. A seed is an int or a numpy SeedSequence; the same samples and seed give the same numbers.
"""

import numpy as np

from ..geometry import Array
from .distances import Bootstrap, Measured, ks_distance, spread

Seed = int | np.random.SeedSequence

RATIO = 5  # of the largest to the smallest sample size of the FPD, as in the CaloChallenge: 50,000 and 10,000
FEWEST = 10  # showers of each sample
INTERVAL = (16.275, 83.725)  # per cent; half of it is the error of the KPD
SEED_STEP = 1000  # between the int seeds of two batches of the KPD
BLOCK = 2**19  # kernel values in memory at a time


def feature_pair(reference: Array, candidate: Array, fewest: int, why: str = "") -> tuple[Array, Array]:
    """Both samples as float64 (n, F) and (m, F); ValueError unless alike, finite and of at least ``fewest`` showers."""
    x, y = (np.asarray(sample, dtype=np.float64) for sample in (reference, candidate))
    if x.ndim != 2 or x.shape[1] == 0 or y.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"got features of shapes {x.shape} and {y.shape}, expected (n, F) and (m, F); use the same for both"
        )
    for name, sample in (("reference", x), ("candidate", y)):
        if len(sample) < fewest:
            raise ValueError(f"got {len(sample)} {name} showers, expected at least {fewest}{why}; give more showers")
        if not np.isfinite(sample).all():
            raise ValueError(f"got {name} features that are not finite, expected numbers; check the showers")
    return x, y


def fpd(
    reference: Array,
    candidate: Array,
    *,
    seed: Seed,
    smallest: int | None = None,
    largest: int = 50_000,
    n_sizes: int = 10,
    n_draws: int = 20,
    as_published: bool = False,
) -> Measured:
    """Frechet physics distance of features (n, F), (m, F) (Kansal et al., 2211.10295; Chong, Forsyth, 1911.07023).

    Each feature is divided by its largest |x| in the reference. The ``frechet`` distance is averaged over ``n_draws``
    draws, with replacement, of N showers of each sample, for ``n_sizes`` sizes N evenly spaced in 1/N. A line in 1/N
    with intercept and slope >= 0 is fitted to the averages: the value is its intercept, N to infinity, and the error
    that of the fit. So the error is that of the draws, not of the samples, and means and covariances are all it sees.
    ``as_published``: fit as jetnet does, to compare with published numbers. Its solver starts at intercept = slope = 1
    and stops at a small gradient, before the minimum: an FPD near 1e-4 came out twice too large (docs/metrics.md).

    ``smallest`` is 10,000 in the CaloChallenge and 20,000 by default in jetnet: where it is given, the sizes are those
    from it to ``largest``, whatever the samples. Without, they go from a fifth of the smaller sample to all of it, at
    most ``largest``: 10,000 to 50,000 for samples of 50,000 and more. An int seed draws the showers that jetnet draws.
    """
    x, y = _scaled(*feature_pair(reference, candidate, FEWEST))
    n_features = x.shape[1]
    if smallest is None:
        feature_pair(x, y, RATIO * (n_features + 1), f" = {RATIO} (F + 1) for a covariance of {n_features} features")
        largest = min(len(x), len(y), largest)
        smallest = largest // RATIO
    if not n_features < smallest < largest:
        raise ValueError(
            f"got sizes from {smallest} to {largest}, expected {n_features} features < smallest < largest; change them"
        )
    if n_sizes < 3 or n_draws < 1:
        raise ValueError(f"got {n_sizes} sizes and {n_draws} draws, expected at least 3 and 1; raise them")
    sizes = [int(1 / inverse) for inverse in np.linspace(1 / smallest, 1 / largest, n_sizes)]
    rng = np.random.default_rng(seed)
    averages = []
    for size in sizes:
        draws = [(*_drawn_moments(x, size, rng), *_drawn_moments(y, size, rng)) for _ in range(n_draws)]
        averages.append(np.mean([frechet(*moments) for moments in draws]))
    return _intercept(1 / np.array(sizes), np.array(averages), as_published)


def frechet(mean_x: Array, cov_x: Array, mean_y: Array, cov_y: Array) -> float:
    """|mu_x - mu_y|^2 + Tr(C_x + C_y - 2 (C_x C_y)^1/2) of means (F,) and covariances (F, F); Dowson, Landau (1982).

    The square of the Wasserstein-2 distance of two Gaussians. With C = L L^T, Tr (C_x C_y)^1/2 is the sum of the
    singular values of L_x^T L_y. The eigenvalues of C_x C_y are their squares, and would lose half of the digits.
    """
    root = np.linalg.svd(_factor(cov_x).T @ _factor(cov_y), compute_uv=False).sum()
    return float(((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * root)


def _factor(cov: Array) -> Array:
    """L with L L^T = C of a positive semidefinite C (F, F), singular or not: Cholesky with pivots."""
    from scipy.linalg.lapack import dpstrf

    lower, pivot, rank, _ = dpstrf(cov, lower=1)
    factor = np.empty_like(cov)
    factor[pivot - 1] = np.tril(lower)
    factor[:, rank:] = 0
    return factor


def _drawn_moments(sample: Array, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Mean (F,) and covariance (F, F) of ``size`` rows of the sample, drawn with replacement: each row read once."""
    counts = np.bincount(rng.choice(len(sample), size), minlength=len(sample))
    mean = counts @ sample / size
    drawn = counts > 0
    weighted = (sample[drawn] - mean) * np.sqrt(counts[drawn])[:, None]
    return mean, weighted.T @ weighted / (size - 1)


def _intercept(x: Array, y: Array, as_published: bool) -> Measured:
    """Least-squares line y = a + b x, a and b >= 0, through points (P,): a and its error from the scatter around it."""
    from scipy.optimize import curve_fit, nnls

    if as_published:
        values, covariance = curve_fit(lambda x, a, b: a + b * x, x, y, bounds=([0, 0], [np.inf, np.inf]))
        return float(values[0]), float(np.sqrt(covariance[0, 0]))
    design = np.stack([np.ones_like(x), x / x.max()], axis=1)
    (intercept, _), distance = nnls(design, y)
    variance = distance**2 / (len(x) - 2) * np.linalg.inv(design.T @ design)[0, 0]
    return float(intercept), float(np.sqrt(variance))


def kpd(reference: Array, candidate: Array, *, seed: Seed, batch: int = 10_000, n_batches: int = 10) -> Measured:
    """Kernel physics distance of features (n, F), (m, F): median of ``mmd2`` over batches (Kansal et al., 2211.10295).

    Each feature is divided by its largest |x| in the reference. A batch is ``batch`` showers of each sample, drawn with
    replacement; error: half of the 16.275-83.725 % range over the batches. 10,000 as in the CaloChallenge (jetnet's
    default is 5,000), but never more than the smaller sample, which would only make the error too small. An int seed
    draws the showers that jetnet draws. Can be negative; for samples that agree it is zero up to its error and 1/n.
    """
    x, y = _scaled(*feature_pair(reference, candidate, FEWEST))
    size = min(batch, len(x), len(y))
    if size < 2 or n_batches < 2:
        raise ValueError(f"got {n_batches} batches of {size} showers, expected at least 2 of 2; raise them")
    stream = np.random.default_rng(seed)
    counts = []
    for index in range(n_batches):
        rng = stream if isinstance(seed, np.random.SeedSequence) else np.random.default_rng(seed + SEED_STEP * index)
        counts.append([np.bincount(rng.choice(len(s), size), minlength=len(s)) for s in (x, y)])
    if sum((a > 0).sum() * (b > 0).sum() for a, b in counts) > len(x) * len(y):  # one pass over all pairs is less work
        values = mmd2(x, y, np.stack([a for a, _ in counts], axis=1), np.stack([b for _, b in counts], axis=1))
    else:
        parts = [mmd2(x[a > 0], y[b > 0], a[a > 0, None], b[b > 0, None]) for a, b in counts]
        values = np.concatenate(parts)
    low, high = np.percentile(values, INTERVAL)
    return float(np.median(values)), float(0.5 * (high - low))


def mmd2(x: Array, y: Array, counts_x: Array, counts_y: Array) -> Array:
    """Unbiased squared maximum mean discrepancy of K batches, (K,); kernel k(x, y) = (x.y/F + 1)^4.

    mean of k(x_i, x_j) over i != j, the same of y, minus twice the mean of k(x_i, y_j) (Gretton et al., JMLR 13 (2012)
    723; the kernel: 2211.10295). x (n, F), y (m, F); counts_x (n, K), counts_y (m, K): how often a batch has each row.
    """
    root = np.sqrt(x.shape[1])
    x, y = x / root, y / root
    wx, wy = counts_x.astype(np.float64), counts_y.astype(np.float64)
    n, m = wx.sum(axis=0), wy.sum(axis=0)
    within = [_kernel_sum(s, None, w, w) - _quartic((s**2).sum(axis=1)) @ w for s, w in ((x, wx), (y, wy))]
    across = _kernel_sum(x, y, wx, wy)
    return np.asarray(within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * across / (n * m))


def _kernel_sum(x: Array, y: Array | None, wx: Array, wy: Array) -> Array:
    """Sum of wx_i k(x_i, y_j) wy_j over all pairs, (K,); y None: of x with itself, of which half is computed."""
    total = np.zeros(wx.shape[1])
    other = x if y is None else y
    rows = max(BLOCK // len(other), 1)
    for start in range(0, len(x), rows):
        first = start if y is None else 0
        weights = wy[first:]
        if y is None:
            weights = np.concatenate([weights[:rows], 2 * weights[rows:]])
        kernel = _quartic(x[start : start + rows] @ other[first:].T)
        total += (wx[start : start + rows] * (kernel @ weights)).sum(axis=0)
    return total


def _quartic(products: Array) -> Array:
    """(x.y/F + 1)^4 of scaled products x.y/F, in place."""
    products += 1
    np.square(products, out=products)
    np.square(products, out=products)
    return products


def _scaled(x: Array, y: Array) -> tuple[Array, Array]:
    """Each feature over its largest |x| in the reference; one that is 0 there stays as it is."""
    largest = np.abs(x).max(axis=0)
    largest[largest == 0] = 1
    return x / largest, y / largest


def standardised(x: Array, y: Array) -> tuple[Array, Array]:
    """Each feature minus its mean, over its standard deviation, in the reference.

    A feature that is constant there is divided by its standard deviation in both samples together, if it has one.
    """
    std = np.array(
        [spread(column) or spread(both) or 1.0 for column, both in zip(x.T, np.concatenate([x, y]).T, strict=True)]
    )
    mean = x.mean(axis=0)
    return (x - mean) / std, (y - mean) / std


def sliced_wasserstein(
    reference: Array, candidate: Array, *, seed: Seed, n_directions: int = 100, n_bootstrap: int = 100
) -> Measured:
    """Sliced Wasserstein-1 distance of ``standardised`` features (n, F), (m, F).

    SW = mean over random unit vectors t of the Wasserstein-1 distance of x.t and y.t (Rabin et al., 2012; as a test of
    generators: Grossi, Letizia, Torre, 2409.16336). error^2 = bootstrap of the showers + spread of the directions / D.
    """
    x, y = standardised(*feature_pair(reference, candidate, FEWEST))
    if n_directions < 2 or n_bootstrap < 2:
        raise ValueError(f"got {n_directions} directions and {n_bootstrap} resamplings, expected 2 or more; raise them")
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(x.shape[1], n_directions))
    directions /= np.linalg.norm(directions, axis=0)
    bootstrap = Bootstrap.draw(len(x), len(y), n_bootstrap, rng)
    values, resampled = [], np.zeros(n_bootstrap)
    for direction in directions.T:
        a, b = x @ direction, y @ direction
        values.append(wasserstein_distance(a, b))
        resampled += bootstrap.wasserstein(a, b) / n_directions
    error = np.hypot(resampled.std(ddof=1) * bootstrap.scale, np.std(values, ddof=1) / np.sqrt(n_directions))
    return float(np.mean(values)), float(error)


def mean_ks(reference: Array, candidate: Array, *, seed: Seed, n_bootstrap: int = 100) -> Measured:
    """Mean over the features (n, F), (m, F) of their Kolmogorov-Smirnov distances (Grossi et al., 2409.16336).

    Blind to correlations, and no scale matters. Error: bootstrap of whole showers.
    """
    x, y = feature_pair(reference, candidate, FEWEST)
    if n_bootstrap < 2:
        raise ValueError(f"got {n_bootstrap} resamplings, expected at least 2; raise them")
    bootstrap = Bootstrap.draw(len(x), len(y), n_bootstrap, np.random.default_rng(seed))
    pairs = list(zip(x.T, y.T, strict=True))
    resampled = np.mean([bootstrap.kolmogorov_smirnov(a, b) for a, b in pairs], axis=0)
    return float(np.mean([ks_distance(a, b) for a, b in pairs])), float(resampled.std(ddof=1) * bootstrap.scale)
