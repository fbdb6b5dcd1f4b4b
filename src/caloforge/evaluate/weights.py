"""Weights w = p/q of showers, from a classifier between Geant4 (density p) and a candidate (density q).

A network trained with the binary cross entropy on samples that count the same has the logit s = ln p/q at its optimum
(Cranmer, Pavez, Louppe, 1506.02169), so w = e^s once it is calibrated. What w tells of a generator: Das, Favaro,
Heimel, Krause, Plehn, Shih, 2305.16774. If the samples agree, w = 1 everywhere; a tail to w << 1 on candidate showers
means showers that Geant4 does not make, a tail to w >> 1 on Geant4 showers means showers that the candidate does not.

Pairs of arrays are (reference (n,), candidate (m,)). All scores have to come from showers that the network was not
trained on, such as ``Verdict.scores``. Averages over the reference are <.>_p, over the candidate <.>_q.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..geometry import Array
from . import histograms
from .distances import Measured, separation

Pair = tuple[Array, Array]
CLIP = 1e-6  # of calibrated probabilities
COLDEST = 0.01  # temperature of scores that separate the samples without fail
TAILS = {"low": np.log(0.1), "high": np.log(2.0)}  # ln w beyond which a shower is extreme
EXTREME_SHARE, FEWEST_EXTREME = 0.01, 20
LARGEST_LOG = 150.0  # of a weight, so that its fourth power is a number
FEWEST_IN_BIN = 10  # showers of both samples in a bin that counts in a chi2


def temperature(scores: Pair) -> float:
    """Temperature T of the logits s that makes w = e^(s/T), by maximum likelihood (Guo et al., 1706.04599).

    T minimises BCE = <ln(1 + e^(-s/T))>_p/2 + <ln(1 + e^(s/T))>_q/2, which is convex in 1/T. One number, so weights
    stay smooth. T > 1 where the network was too sure; infinite, that is w = 1, where the scores know nothing.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    reference, candidate = _finite(scores)

    def slope(inverse: float) -> float:
        """Twice the derivative of BCE by 1/T."""
        falling = -(reference * expit(-inverse * reference)).mean()
        return float(falling + (candidate * expit(inverse * candidate)).mean())

    if slope(0.0) >= 0:
        return float("inf")
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    return 1 / float(brentq(slope, 0.0, 1 / COLDEST, xtol=1e-10))


def isotonic(calibration: Pair, scores: Array) -> Array:
    """ln w of logits (N,) by isotonic regression of the labels on the calibration logits: (N,).

    c(s), the rising step function with the least squared error to the labels, both samples counting the same, clipped
    to [1e-6, 1 - 1e-6]; ln w = ln c - ln(1 - c). Steps: good for probabilities, rough as weights.
    """
    from sklearn.isotonic import IsotonicRegression

    reference, candidate = _finite(calibration)
    labels = np.repeat([1.0, 0.0], [len(reference), len(candidate)])
    counts = np.repeat([1 / len(reference), 1 / len(candidate)], [len(reference), len(candidate)])
    model = IsotonicRegression(y_min=CLIP, y_max=1 - CLIP, out_of_bounds="clip")
    model.fit(np.concatenate([reference, candidate]), labels, sample_weight=counts)
    probability = np.clip(np.asarray(model.predict(scores), dtype=np.float64), CLIP, 1 - CLIP)
    return np.asarray(np.log(probability) - np.log1p(-probability))


def log_weights(
    scores: Pair,
    calibration: Pair | None = None,
    *,
    method: Literal["temperature", "isotonic"] = "temperature",
    seed: int | np.random.SeedSequence = 0,
) -> Pair:
    """ln w of both samples from their logits.

    calibration: logits of other showers to calibrate with; without them each random half of ``scores`` is calibrated
    with the other half, so that no shower calibrates itself.
    """
    if method not in ("temperature", "isotonic"):
        raise ValueError(f"got calibration {method!r}, expected 'temperature' or 'isotonic'; choose one")
    if calibration is not None:
        return _calibrated(calibration, scores[0], method), _calibrated(calibration, scores[1], method)
    _finite(scores)
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(sample)), 2) for sample in scores]
    out = np.empty(len(scores[0])), np.empty(len(scores[1]))
    for mine, other in ((0, 1), (1, 0)):
        with_these = scores[0][halves[0][other]], scores[1][halves[1][other]]
        for sample in (0, 1):
            index = halves[sample][mine]
            out[sample][index] = _calibrated(with_these, scores[sample][index], method)
    return out


def _calibrated(calibration: Pair, scores: Array, method: str) -> Array:
    return np.asarray(scores / temperature(calibration)) if method == "temperature" else isotonic(calibration, scores)


def probabilities(log_w: Pair) -> Pair:
    """Probability of being Geant4, w/(1 + w), of both samples."""
    from scipy.special import expit

    return np.asarray(expit(log_w[0])), np.asarray(expit(log_w[1]))


def effective_size(w: Array) -> Measured:
    """ESS/N = (sum w)^2 / (N sum w^2) of weights (N,) in (0, 1], with its error to first order.

    With the means m1 of w and m2 of w^2, d(ESS/N) = (2 m1 dm1 - m1^2/m2 dm2)/m2.
    """
    m1, m2 = float(w.mean()), float((w**2).mean())
    if not m2 > 0:
        raise ValueError("got weights that are all 0, expected some above 0; check the calibration")
    change = (2 * m1 * w - m1**2 / m2 * w**2) / m2
    return m1**2 / m2, float(change.std(ddof=1) / np.sqrt(len(w)))


def diagnostics(log_w: Pair) -> dict[str, Measured]:
    """What the weights say in numbers, each with its error; log_w: ln w of reference and candidate showers.

    kl = <ln w>_p, the Kullback-Leibler divergence KL(p|q); reverse_kl = -<ln w>_q = KL(q|p); ess = ESS/N over the
    candidate; mean_weight = <w>_q and mean_inverse = <1/w>_p, which are 1 for a calibrated classifier and samples with
    the same support; quantile_999: 99.9 % quantile of w over the candidate; beyond_2_<sample>, beyond_10_<sample>:
    fraction of showers with |ln w| > ln 2, > ln 10.
    """
    p, q = (np.clip(values, -LARGEST_LOG, LARGEST_LOG) for values in _finite(log_w))
    w, inverse = np.exp(q), np.exp(-p)
    out = {
        "kl": _mean(p), "reverse_kl": _mean(-q), "ess": effective_size(w), "mean_weight": _mean(w),
        "mean_inverse": _mean(inverse), "quantile_999": _quantile(w, 0.999),
    }  # fmt: skip
    for name, values in (("reference", p), ("candidate", q)):
        for factor in (2, 10):
            beyond = (np.abs(values) > np.log(factor)).astype(np.float64)
            out[f"beyond_{factor}_{name}"] = float(beyond.mean()), _share_error(float(beyond.mean()), len(beyond))
    return out


def _mean(values: Array) -> Measured:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _share_error(share: float, n: int) -> float:
    """Error of a fraction; for none or all of n showers that of one of them."""
    return float(np.sqrt(max(share * (1 - share), 1 / n * (1 - 1 / n)) / n))


def _quantile(values: Array, level: float) -> Measured:
    """Quantile, and half the distance of the order statistics one binomial sigma away."""
    n, step = len(values), np.sqrt(level * (1 - level) / len(values))
    low, high = np.quantile(values, np.clip([level - step, level + step], 0.5 / n, 1 - 0.5 / n))
    return float(np.quantile(values, level)), float(0.5 * (high - low))


@dataclass(frozen=True)
class Reliability:
    """Calibration in B bins of the predicted probability of being Geant4.

    predicted, observed: mean probability and fraction of Geant4 showers, both samples counting the same; error: of
    observed, if the prediction is right; n: showers, all (B,). chi2 of (observed - predicted)/error over ndf = B bins.
    """

    predicted: Array
    observed: Array
    error: Array
    n: Array
    chi2: float
    ndf: int


def reliability(probability: Pair, n_bins: int = 10) -> Reliability:
    """Reliability curve of calibrated probabilities c of being Geant4, in at most ``n_bins`` bins of equal content."""
    reference, candidate = _finite(probability)
    values = np.concatenate([reference, candidate])
    labels = np.repeat([1.0, 0.0], [len(reference), len(candidate)])
    counts = np.repeat([0.5 / len(reference), 0.5 / len(candidate)], [len(reference), len(candidate)]) * len(values)
    inner = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1]))
    index = np.searchsorted(inner, values, side="right")
    used = np.unique(index)
    sums = [np.bincount(index, weights=v, minlength=len(inner) + 1)[used] for v in (counts, counts * values)]
    observed = np.bincount(index, weights=counts * labels, minlength=len(inner) + 1)[used] / sums[0]
    variance = np.bincount(index, weights=counts**2 * values * (1 - values), minlength=len(inner) + 1)[used]
    predicted, error = sums[1] / sums[0], np.sqrt(variance) / sums[0]
    pull = (observed - predicted) / np.where(error > 0, error, np.inf)
    n = np.bincount(index, minlength=len(inner) + 1)[used]
    return Reliability(predicted, observed, error, n, float((pull**2).sum()), len(used))


@dataclass(frozen=True)
class Marginal:
    """Mean weight along one observable; bins as ``histograms.fill`` makes them, under- and overflow included.

    edges: (B+1,); weight, weight_error: mean w of the candidate showers in each bin, (B+2,), NaN where there is none:
    1 where the candidate is right; ratio, ratio_error: p_i/q_i of the two histograms, which the mean weight has to
    equal; chi2, ndf: of their difference, over bins with ten showers of both.
    """

    edges: Array
    weight: Array
    weight_error: Array
    ratio: Array
    ratio_error: Array
    chi2: float
    ndf: int


def marginal(log_w: Array, reference: Array, candidate: Array, n_bins: int = 20) -> Marginal:
    """Mean weight of the candidate in bins of an observable; log_w, candidate: (m,), reference: (n,)."""
    w = np.exp(_numbers(log_w))
    edges = histograms.binning(reference, n_bins)
    index = np.searchsorted(edges, candidate, side="right")
    size = len(edges) + 1
    n, m = histograms.fill(reference, edges), np.bincount(index, minlength=size)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(index, weights=w, minlength=size) / m
        scatter = np.bincount(index, weights=(w - mean[index]) ** 2, minlength=size)
        error = np.sqrt(scatter / np.where(m > 1, m - 1, np.nan) / m)
        ratio = (n / len(reference)) / (m / len(candidate))
        ratio_error = ratio * np.sqrt(1 / n + 1 / m)
    ratio, ratio_error = (np.where((m > 0) & (n > 0), v, np.nan) for v in (ratio, ratio_error))
    counted = (n >= FEWEST_IN_BIN) & (m >= FEWEST_IN_BIN)
    chi2 = ((mean - ratio)[counted] ** 2 / (error**2 + ratio_error**2)[counted]).sum()
    return Marginal(edges, mean, error, ratio, ratio_error, float(chi2), int(counted.sum()))


@dataclass(frozen=True)
class Difference:
    """How extreme showers differ from all others in one observable.

    separation: power between the two, with its floor: the mean, and the standard deviation, for as many showers drawn
    at random; shift: mean of the extreme minus mean of the others, in standard deviations of the others.
    """

    observable: str
    separation: float
    floor: Measured
    shift: float


@dataclass(frozen=True)
class Extremes:
    """Showers with extreme weights, and in what they differ from the others, worst observable first.

    chosen: which showers, (n,); log_threshold: the ln w they lie beyond.
    """

    chosen: Array
    log_threshold: float
    differences: tuple[Difference, ...]


def extremes(
    log_w: Array,
    values: Mapping[str, Array],
    side: Literal["low", "high"],
    *,
    seed: int | np.random.SeedSequence = 0,
    n_floor: int = 20,
) -> Extremes:
    """In which observables the showers of one sample with extreme weights differ from its others.

    log_w: ln w of the sample, (N,); values: its observables, name -> (N,). side "low": w < 0.1, meant for candidate
    showers that Geant4 does not make; "high": w > 2, for Geant4 showers that the candidate does not make. Where less
    than one per cent (or 20 showers) lie there, the extreme per cent (or 20) are taken. Ranked by separation power
    over its floor.
    """
    if side not in TAILS:
        raise ValueError(f"got side {side!r}, expected 'low' or 'high'; choose one")
    sign = -1.0 if side == "low" else 1.0
    size = max(FEWEST_EXTREME, round(EXTREME_SHARE * len(log_w)))
    if len(log_w) < 2 * size:
        raise ValueError(f"got {len(log_w)} weights, expected at least {2 * size}; give more showers")
    ordered = np.argsort(-sign * _numbers(log_w), kind="stable")
    n = max(size, int((sign * log_w > sign * TAILS[side]).sum()))
    n = min(n, len(log_w) - size)  # there must be others to compare with
    mask = np.zeros(len(log_w), dtype=bool)
    mask[ordered[:n]] = True
    rng = np.random.default_rng(seed)
    random = [rng.permutation(mask) for _ in range(n_floor)]
    n_bins = int(np.clip(round(np.sqrt(n)), 5, 20))
    found = [_difference(name, column, mask, random, n_bins) for name, column in values.items()]
    found.sort(key=lambda d: d.floor[0] - d.separation)
    return Extremes(np.flatnonzero(mask), float(log_w[ordered[n - 1]]), tuple(found))


def _difference(name: str, values: Array, mask: Array, random: list[Array], n_bins: int) -> Difference:
    edges = histograms.binning(values, n_bins)

    def power(chosen: Array) -> float:
        return float(separation(histograms.fill(values[chosen], edges), histograms.fill(values[~chosen], edges)))

    floors = np.array([power(chosen) for chosen in random])
    others = values[~mask]
    width = float(others.std())
    shift = (float(values[mask].mean()) - float(others.mean())) / width if width > 0 else float("nan")
    return Difference(name, power(mask), (float(floors.mean()), float(floors.std())), shift)


def weighted_auc(positive: Array, negative: Array, weights: Array) -> Measured:
    """AUC of scores (n,) against scores (m,) with weights (m,), and its error.

    AUC = sum_j W_j chi_j, W_j = w_j/sum w, chi_j = share of the positives above negative j, ties counting half. With
    psi_i = sum of the W_j below positive i, var = var(psi)/n + sum_j W_j^2 (chi_j - AUC)^2 m/(m - 1): DeLong's error
    (Biometrics 44, 1988) with that of a ratio of sums for the weighted sample; equal to it for equal weights.
    """
    n, m = len(positive), len(negative)
    if n < 2 or m < 2 or len(weights) != m:
        raise ValueError(
            f"got {n} and {m} scores with {len(weights)} weights, expected at least 2 of each class and a weight for "
            "each of the second; give more showers"
        )
    if not (np.all(weights >= 0) and weights.sum() > 0):
        raise ValueError("got weights below 0 or all 0, expected some above 0; check the calibration")
    share = weights / weights.sum()
    chi = 1 - _below(np.sort(positive), np.full(n, 1 / n), negative)
    order = np.argsort(negative)
    psi = _below(negative[order], share[order], positive)
    auc = float(psi.mean())
    variance = psi.var(ddof=1) / n + (share**2 * (chi - auc) ** 2).sum() * m / (m - 1)
    return auc, float(np.sqrt(variance))


def _below(ordered: Array, share: Array, at: Array) -> Array:
    """Sum of the shares of ordered values (n,) below the values ``at`` (N,), equal ones counting half: (N,)."""
    total = np.concatenate([[0.0], np.cumsum(share)])
    left, right = (np.searchsorted(ordered, at, side=side) for side in ("left", "right"))
    return np.asarray(0.5 * (total[left] + total[right]))


def _finite(pair: Pair) -> Pair:
    """The pair as float64; ValueError where a sample has fewer than two showers or numbers that are none."""
    reference, candidate = (_numbers(sample) for sample in pair)
    if min(len(reference), len(candidate)) < 2:
        raise ValueError(
            f"got {len(reference)} and {len(candidate)} scores, expected at least 2 of each sample; give more showers"
        )
    return reference, candidate


def _numbers(values: Array) -> Array:
    out = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(out)):
        raise ValueError("got scores or weights that are not finite, expected numbers; check the classifier's inputs")
    return out
