"""Whether generated showers are copies of training showers: distances to the nearest of them.

d(x) = min_t |u(x) - u(t)| over the training showers t, with u the features in units of their mean and standard
deviation in the training sample (constant ones left out). A generator that learnt the distribution is as far from its
training showers as Geant4 showers it has not seen ("held out"); one that learnt showers by heart is closer (Meehan,
Chaudhuri, Dasgupta, 2004.05675). A poor generator is further away, which can hide copies: the share of very close
showers is what counts.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..geometry import Array
from ..showers import Showers
from . import observables
from .distances import Measured

CLOSE = 0.01  # quantile of the held-out distances below which a shower is very close
SAME = 1e-9  # distance of two showers that are one
N_BOOTSTRAP = 200
CHUNK = 512


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training shower, generated (n,) beside held-out Geant4 (m,) showers.

    ratio: median distance of the generated over that of the held-out showers, 1 or more where nothing is copied; ks,
    p_value: Kolmogorov-Smirnov test that generated showers are closer (one-sided); close: share of the generated
    showers closer than 1 % of the held-out ones are, 0.01 where nothing is copied; copies: number of generated showers
    that are training showers. Floors are the same between two halves of the held-out sample. n_train: training showers.
    """

    ratio: Measured
    ratio_floor: Measured
    ks: float
    p_value: float
    close: Measured
    close_floor: Measured
    copies: int
    distances: tuple[Array, Array]
    n_train: int


def memorisation(
    training: Showers,
    generated: Showers,
    held_out: Showers,
    *,
    level: Literal["high", "low"] = "high",
    seed: int | np.random.SeedSequence = 0,
) -> Memorisation:
    """Compare generated showers with the sample their model was trained on, and with Geant4 showers of neither.

    Generated and held-out showers should have the same incident particles: the distance depends on their energy.
    """
    if level not in ("high", "low"):
        raise ValueError(f"got level {level!r}, expected 'high' or 'low'; choose one")
    for name, showers in (("generated", generated), ("held-out", held_out)):
        training.geometry.require_same(showers.geometry, f"{name} showers")
    samples = training, generated, held_out
    conditions = observables.varying_conditions(*(s.incident for s in samples))
    inputs = observables.low_level if level == "low" else observables.high_level
    return closeness(*(inputs(s, conditions=conditions) for s in samples), seed=seed)


def closeness(
    training: Array, generated: Array, held_out: Array, *, seed: int | np.random.SeedSequence = 0
) -> Memorisation:
    """The test on features: training (T, F), generated (n, F), held-out (m, F)."""
    from scipy.stats import ks_2samp

    if min(len(training), len(generated), len(held_out)) < 4:
        raise ValueError(
            f"got {len(training)} training, {len(generated)} generated and {len(held_out)} held-out showers, expected "
            "at least 4 of each; give more"
        )
    mean, std = training.mean(axis=0, dtype=np.float64), training.std(axis=0, dtype=np.float64)
    varying = std > 1e-7 * np.abs(mean)
    if not varying.any():
        raise ValueError("got training showers that are all alike, expected different ones; check the file")
    units = [(s[:, varying] - mean[varying]) / std[varying] for s in (training, generated, held_out)]
    ours, theirs = nearest(units[1], units[0])[0], nearest(units[2], units[0])[0]
    rng = np.random.default_rng(seed)
    one, two = np.array_split(rng.permutation(theirs), 2)
    test = ks_2samp(ours, theirs, alternative="greater", method="asymp")
    return Memorisation(
        ratio=_ratio(ours, theirs, rng), ratio_floor=_ratio(one, two, rng),
        ks=float(test.statistic), p_value=float(test.pvalue),
        close=_close(ours, theirs), close_floor=_close(one, two),
        copies=int((ours < SAME).sum()), distances=(ours, theirs), n_train=len(training),
    )  # fmt: skip


def nearest(points: Array, others: Array) -> tuple[Array, Array]:
    """Euclidean distance of each point (n, F) to the nearest of ``others`` (m, F), and which it is: (n,), (n,).

    The nearest is looked for with |a|^2 - 2 a b + |b|^2, which rounds; its distance is then taken from the difference.
    """
    square = (others**2).sum(axis=1)
    index = np.empty(len(points), dtype=np.int64)
    for start in range(0, len(points), CHUNK):
        part = points[start : start + CHUNK]
        index[start : start + CHUNK] = (square - 2 * part @ others.T).argmin(axis=1)
    return np.sqrt(((points - others[index]) ** 2).sum(axis=1)), index


def _ratio(ours: Array, theirs: Array, rng: np.random.Generator) -> Measured:
    """Ratio of medians and its bootstrap error; NaN where the second is 0."""
    if np.median(theirs) == 0:
        return float("nan"), float("nan")
    draws = [
        np.median(ours[rng.integers(0, len(ours), len(ours))])
        / np.median(theirs[rng.integers(0, len(theirs), len(theirs))])
        for _ in range(N_BOOTSTRAP)
    ]
    return float(np.median(ours) / np.median(theirs)), float(np.std(draws))


def _close(ours: Array, theirs: Array) -> Measured:
    """Share of ``ours`` (n,) below the 1 % quantile of ``theirs`` (m,).

    error^2 = share (1 - share)/n, where none counts as one, + (half the change of the share as the level of the
    quantile moves by its own binomial error on either side)^2.
    """
    n, step = len(ours), np.sqrt(CLOSE * (1 - CLOSE) / len(theirs))
    levels = np.clip([CLOSE, CLOSE - step, CLOSE + step], 0, 1)
    share, fewer, more = ((ours < limit).mean() for limit in np.quantile(theirs, levels))
    used = min(max(share, 1 / n), 1 - 1 / n)
    return float(share), float(np.hypot(np.sqrt(used * (1 - used) / n), 0.5 * (more - fewer)))
