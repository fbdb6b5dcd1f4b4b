"""How much of one sample lies where the other one is: precision, recall, density, coverage, and the PRD curve.

x: features of the reference, (n, F); y: of the candidate, (m, F). Precision and density fall where the candidate makes
showers that the reference does not have; recall and coverage where it leaves out some that the reference has. All of
them depend on the sample size, and in many dimensions far from 1 is normal: read them beside the same numbers for two
halves of the reference.
"""

import numpy as np

from ..geometry import Array
from .distances import Measured
from .multivariate import Seed, feature_pair, standardised

EMPTY = 0.1  # MeV, energy of an empty voxel before the logarithm (CaloChallenge)
NAMES = ("precision", "recall", "density", "coverage")
BLOCK = 2**21  # distances in memory at a time
END = 1e-10  # rad, from the ends of (0, pi/2) to the first and the last angle of the PRD curve


def log_voxels(energy: Array, empty: float = EMPTY) -> Array:
    """log10 of voxel energies [MeV] (N, V), empty voxels set to ``empty`` [MeV]: the features for ``prdc``.

    0.1 MeV as in the CaloChallenge. Without a readout threshold before, voxels of 1e-6 MeV weigh more than all others.
    """
    return np.log10(np.where(energy > 0, energy, empty), dtype=np.float64)


def prdc(
    reference: Array, candidate: Array, *, seed: Seed, k: int = 5, most: int = 10_000, n_parts: int = 10
) -> dict[str, Measured]:
    """Precision, recall, density and coverage of features (n, F), (m, F), by these names.

    B(x_i): open ball around x_i up to its k-th nearest neighbour in the reference; B(y_j) the same in the candidate.
    precision = fraction of the y_j in at least one B(x_i), recall = fraction of the x_i in at least one B(y_j)
    (Kynkaanniemi et al., 1904.06991); density = mean over j of the number of B(x_i) that hold y_j, over k; coverage =
    fraction of the B(x_i) that hold at least one y_j (Naeem et al., 2002.09797).

    Distances are Euclidean and features are not scaled. Of both samples the same number of showers is used, at most
    ``most``, drawn with the seed. Error: standard deviation over ``n_parts`` disjoint parts of the samples, over the
    root of ``n_parts``. Showers that occur more than k times have a ball of radius 0, which is empty.
    """
    if k < 1 or n_parts < 2:
        raise ValueError(f"got k = {k} and {n_parts} parts, expected at least 1 and 2; raise them")
    fewest = n_parts * 2 * (k + 1)
    x, y = feature_pair(reference, candidate, fewest, f" = 2 (k + 1) in each of {n_parts} parts")
    size = min(len(x), len(y), most)
    if size < fewest:
        raise ValueError(f"got most = {most}, expected at least {fewest}; raise it")
    rng = np.random.default_rng(seed)
    x, y = (sample[rng.permutation(len(sample))[:size]] for sample in (x, y))
    centre = x.mean(axis=0)
    x, y = x - centre, y - centre
    parts = zip(np.array_split(x, n_parts), np.array_split(y, n_parts), strict=True)
    errors = np.std([_prdc(*part, k) for part in parts], axis=0, ddof=1) / np.sqrt(n_parts)
    return {name: (float(v), float(e)) for name, v, e in zip(NAMES, _prdc(x, y, k), errors, strict=True)}


def _prdc(x: Array, y: Array, k: int) -> Array:
    """Precision, recall, density, coverage of x (n, F), y (m, F): (4,)."""
    from sklearn.metrics.pairwise import euclidean_distances

    radius_x, radius_y = (_radii(sample, k) for sample in (x, y))
    holders = np.zeros(len(y), dtype=np.int64)  # number of B(x_i) that hold y_j
    recalled, covered = [], []
    rows = max(BLOCK // len(y), 1)
    for start in range(0, len(x), rows):
        block = slice(start, start + rows)
        distances = euclidean_distances(x[block], y, squared=True)
        inside = distances < radius_x[block, None]
        holders += inside.sum(axis=0)
        covered.append(inside.any(axis=1))
        recalled.append((distances < radius_y).any(axis=1))
    recall, coverage = (np.concatenate(found).mean() for found in (recalled, covered))
    return np.array([(holders > 0).mean(), recall, holders.mean() / k, coverage])


def _radii(sample: Array, k: int) -> Array:
    """Squared distance of each shower (n, F) to its k-th nearest neighbour in the same sample, (n,)."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean").fit(sample)
    return np.asarray(neighbours.kneighbors()[0][:, -1])


def prd_auc(
    reference: Array,
    candidate: Array,
    *,
    seed: Seed,
    n_clusters: int = 20,
    n_angles: int = 1001,
    repeats: int = 10,
    n_bootstrap: int = 100,
) -> Measured:
    """Area under the precision-recall curve of two distributions (Sajjadi et al., 1806.00035); 1 is perfect.

    Features (n, F), (m, F) are ``standardised`` and the larger sample is thinned to the smaller. k-means puts both
    together into ``n_clusters`` clusters; p and q are the fractions of reference and candidate in each. For slopes
    l = tan(angle) with angles in (0, pi/2), precision = sum min(l p, q) and recall = sum min(p, q/l). The value is the
    mean area of ``repeats`` k-means. error^2 = multinomial resampling of p and q + spread over the k-means / repeats.
    """
    if n_clusters < 2 or n_angles < 3 or repeats < 2 or n_bootstrap < 2:
        raise ValueError(
            f"got {n_clusters} clusters, {n_angles} angles, {repeats} repeats and {n_bootstrap} resamplings, "
            "expected at least 2, 3, 2 and 2; raise them"
        )
    x, y = standardised(*feature_pair(reference, candidate, n_clusters, f" for {n_clusters} clusters"))
    rng = np.random.default_rng(seed)
    size = min(len(x), len(y))
    pooled = np.concatenate([sample[rng.permutation(len(sample))[:size]] for sample in (x, y)])
    n_clusters = min(n_clusters, len(np.unique(pooled, axis=0)))
    areas, errors = [], []
    for _ in range(repeats):
        cluster = _k_means(pooled, n_clusters, int(rng.integers(2**31)))
        p, q = (np.bincount(part, minlength=n_clusters) / size for part in (cluster[:size], cluster[size:]))
        areas.append(float(prd_area(p, q, n_angles)))
        resampled = [rng.multinomial(size, fractions, size=n_bootstrap) / size for fractions in (p, q)]
        errors.append(prd_area(resampled[0], resampled[1], n_angles).std(ddof=1))
    error = np.sqrt(np.mean(np.square(errors)) + np.var(areas, ddof=1) / repeats)
    return float(np.mean(areas)), float(error)


def prd_area(p: Array, q: Array, n_angles: int = 1001) -> Array:
    """Area between the recall axis and the curve of ``prd_auc``, for probabilities (..., B): (...)."""
    slope = np.tan(np.linspace(END, 0.5 * np.pi - END, n_angles))
    precision = np.stack([np.minimum(s * p, q).sum(axis=-1) for s in slope], axis=-1)
    return np.asarray(np.trapezoid(precision[..., ::-1], (precision / slope)[..., ::-1], axis=-1))


def _k_means(features: Array, n_clusters: int, seed: int) -> Array:
    """Cluster number of each shower (N, F), (N,): mini-batch k-means, the best of 10 starts, as Sajjadi et al."""
    from sklearn.cluster import MiniBatchKMeans

    return np.asarray(MiniBatchKMeans(n_clusters, n_init=10, random_state=seed).fit_predict(features))
