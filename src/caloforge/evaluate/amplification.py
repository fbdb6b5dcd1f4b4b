"""Statistical amplification: by how many truth showers would a generated sample have to be replaced?

A generator is trained on N_train showers of the truth and gives N_gen >> N_train showers. Boxes j = 1..B of known
probability p_j are laid over one or several observables; n_j of N showers fall into box j and x_j = n_j/N is their
share. The distance to the truth and its expectation for N independent showers of the truth (multinomial variance) are

    MSE = 1/B sum_j (x_j - p_j)^2,        E[MSE] = c/N,   c = 1/B sum_j p_j (1 - p_j) = (1 - 1/B)/B for p_j = 1/B,

so a sample with MSE has the statistics of N_eq = c/MSE truth showers; N_eq/N_train is its amplification (Butter et al.,
"GANplifying event samples", 2008.06545). The Jensen-Shannon divergence (Bieringer et al., "Calomplification",
2202.07352) has the law E[JSD] = (B - 1)/(8 N) in nats. The mean over independent trainings splits into

    <MSE> = bias^2 + variance(training) + variance(generation),

and only the last part falls with N_gen. A smooth generator beats fine boxes always: its error per box goes like 1/B^2,
that of a sample like 1/B, so N_eq grows with B and is meaningless without it. And no N_eq > N_train adds information
on what the showers are used for beyond the training sample and the generator's smoothness (Matchev, Roman,
Shyamsundar, 2002.06307): docs/amplification.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry import Array


def unit_variance(n_boxes: int, probability: Array | None = None) -> float:
    """c = 1/B sum p (1 - p), the expected MSE of one truth shower; probability (B,), without it all 1/B."""
    if probability is None:
        return (1 - 1 / n_boxes) / n_boxes
    return float((probability * (1 - probability)).mean())


def shares(counts: Array) -> Array:
    """x_j = n_j/N of counts (..., B)."""
    return np.asarray(counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1))


def quantile_mse(counts: Array, probability: Array | None = None) -> Array:
    """MSE = 1/B sum_j (x_j - p_j)^2 of counts (..., B) -> (...); without probability (B,) all boxes have 1/B."""
    p = 1 / counts.shape[-1] if probability is None else probability
    return np.asarray(((shares(counts) - p) ** 2).mean(axis=-1))


def expected_mse(n: float, n_quantiles: int, probability: Array | None = None) -> float:
    """E[MSE] = (1 - 1/N_q)/(N_q N) of n truth showers."""
    return unit_variance(n_quantiles, probability) / n


def equivalent(mse: float, n_quantiles: int, probability: Array | None = None) -> float:
    """N_eq = (1 - 1/N_q)/(N_q <MSE>): truth showers with that expected MSE; mse is a mean over trainings."""
    return unit_variance(n_quantiles, probability) / mse if mse > 0 else math.nan


def jensen_shannon(counts: Array, probability: Array | None = None) -> Array:
    """JSD = 1/2 sum p ln(p/m) + 1/2 sum x ln(x/m), m = (p + x)/2, in nats; counts (..., B) -> (...)."""
    x = shares(counts)
    p = np.broadcast_to(1 / x.shape[-1] if probability is None else probability, x.shape)
    m = 0.5 * (p + x)
    parts = [np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / np.where(m > 0, m, 1)), 0) for a in (p, x)]
    return np.asarray(0.5 * (parts[0] + parts[1]).sum(axis=-1))


def expected_jsd(n: float, n_quantiles: int) -> float:
    """E[JSD] = (N_q - 1)/(8 N) in nats, of n truth showers; from chi^2, so for N >> N_q."""
    return (n_quantiles - 1) / (8 * n)


def equivalent_jsd(jsd: float, n_quantiles: int) -> float:
    """N_eq = (N_q - 1)/(8 JSD)."""
    return (n_quantiles - 1) / (8 * jsd) if jsd > 0 else math.nan


def sampling_noise(counts: Array) -> Array:
    """What the size of a sample adds to its MSE, 1/B sum x (1 - x)/(N - 1), without bias; counts (..., B) -> (...)."""
    x = shares(counts)
    return np.asarray((x * (1 - x)).mean(axis=-1) / np.maximum(counts.sum(axis=-1) - 1, 1))


def extrapolate(n_gen: Sequence[int], mse: Array) -> tuple[Array, Array]:
    """MSE_inf and a of MSE(N_gen) = MSE_inf + a/N_gen for R trainings: n_gen (K,), mse (R, K) -> (R,), (R,).

    A straight line in 1/N_gen with weights N_gen (the variance of generation falls like 1/N_gen). The estimate is
    linear in the MSEs, so the spread of MSE_inf over the trainings is its error whatever their correlations.
    """
    n = np.asarray(n_gen, dtype=np.float64)
    if len(np.unique(n)) < 2:
        raise ValueError(f"got N_gen {list(n_gen)}, expected two different ones for a line; generate more")
    weight = n / n.sum()
    u = 1 / n
    centre = (weight * u).sum()
    lever = weight * (u - centre) / (weight * (u - centre) ** 2).sum()
    slope = mse @ lever
    return np.asarray(mse @ weight - slope * centre), np.asarray(slope)


@dataclass(frozen=True)
class Decomposition:
    """Parts of <MSE> over trainings; ``bias2`` can come out below 0 where there is none."""

    bias2: float
    bias2_error: float
    training: float
    generation: float


def decompose(counts: Array, probability: Array | None = None) -> Decomposition:
    """bias^2, variance(training) and variance(generation) of R trainings; counts (R, B), R >= 2.

    With the mean share m_j and the variance s_j^2 over trainings: bias^2 = 1/B sum (m_j - p_j)^2 - s_j^2/R (the last
    term takes away what the finite R leaves in the mean), training = 1/B sum s_j^2 - generation, generation = mean of
    ``sampling_noise``. They add up to the mean MSE. The error of bias^2 is a jackknife over the trainings.
    """
    r = len(counts)
    if r < 2:
        raise ValueError(f"got {r} training, expected at least 2 to tell bias from variance; train more")
    deviation = shares(counts) - (1 / counts.shape[-1] if probability is None else probability)

    def bias2(sums: Array, squares: Array, n: int) -> Array:
        mean = sums / n
        variance = (squares / n - mean**2) * n / max(n - 1, 1)
        return np.asarray((mean**2 - variance / n).mean(axis=-1))

    sums, squares = deviation.sum(axis=0), (deviation**2).sum(axis=0)
    value = float(bias2(sums, squares, r))
    left_out = bias2(sums - deviation, squares - deviation**2, r - 1) if r > 2 else np.full(r, math.nan)
    error = math.sqrt((r - 1) / r * float(((left_out - left_out.mean()) ** 2).sum()))
    generation = float(sampling_noise(counts).mean())
    return Decomposition(value, error, float((deviation**2).mean()) - value - generation, generation)


def quantile_edges(values: Array, n_quantiles: int) -> Array:
    """Inner edges of N_q boxes of equal probability from truth values (N,): rising, (<= N_q - 1,).

    An observable with few values (an occupied fraction) gives fewer boxes, of unequal probability: no edge lies twice
    at a value, and none at the smallest one. Box of a value: ``np.searchsorted(edges, value, side="right")``.
    """
    if n_quantiles < 2:
        raise ValueError(f"got {n_quantiles} quantiles, expected at least 2; raise it")
    edges = np.unique(np.quantile(values, np.arange(1, n_quantiles) / n_quantiles, method="inverted_cdf"))
    return np.asarray(edges[edges > values.min()])


@dataclass(frozen=True, eq=False)
class HalfSplits:
    """2^n boxes of equal probability in d dimensions by recursive median splits (Bieringer et al., 2202.07352).

    Split k = 0..n-1 cuts every box at its median of observable k mod d: the lower half goes on as node 2i + 1 of a
    tree, the upper one as 2i + 2. threshold: medians, (2^n - 1,).
    """

    threshold: Array
    depth: int

    @staticmethod
    def fit(values: Array, depth: int) -> "HalfSplits":
        """Boxes from truth values (N, d), at least one of them for each of the 2^depth boxes."""
        if depth < 1 or len(values) < 2**depth:
            raise ValueError(
                f"got depth {depth} for {len(values)} showers, expected 1 <= depth and 2^depth showers; lower it"
            )
        threshold = np.zeros(2**depth - 1)
        members = {0: np.arange(len(values))}
        for level in range(depth):
            column = values[:, level % values.shape[1]]
            for node in range(2**level - 1, 2 ** (level + 1) - 1):
                inside = members.pop(node)
                if len(inside):
                    threshold[node] = np.quantile(column[inside], 0.5, method="inverted_cdf")
                upper = column[inside] > threshold[node]
                members[2 * node + 1], members[2 * node + 2] = inside[~upper], inside[upper]
        return HalfSplits(threshold, depth)

    def index(self, values: Array) -> Array:
        """Box 0..2^n-1 of each shower: values (N, d) -> (N,)."""
        node = np.zeros(len(values), dtype=np.int64)
        for level in range(self.depth):
            node = 2 * node + 1 + (values[:, level % values.shape[1]] > self.threshold[node])
        return np.asarray(node - (2**self.depth - 1))

    def counts(self, values: Array) -> Array:
        """Showers in each box: values (N, d) -> (2^n,)."""
        return np.bincount(self.index(values), minlength=2**self.depth)
