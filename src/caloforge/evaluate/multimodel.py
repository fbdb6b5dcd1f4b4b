"""Which of several candidates Geant4 looks like most: one classifier between the candidates, shown Geant4 showers.

A network with K outputs learns p(k | x) = q_k(x)/sum_j q_j(x), the probability that shower x comes from candidate k,
from the same number of showers of each; Geant4 (density p) has no part in the training. The score of candidate k is
the mean log posterior of Geant4 showers (CaloChallenge, 2410.21611),

    S_k = <ln p(k | x)>_p,   and of candidate i's own showers   C_ik = <ln p(k | x)>_q_i.

A guess gives -ln K. For a perfect network S_k - S_j = <ln q_k - ln q_j>_p = KL(p|q_j) - KL(p|q_k): differences of
scores are differences of Kullback-Leibler divergences, in nats, and the best candidate has the highest score. The
network has never seen Geant4: where no candidate has showers like p's it extrapolates, so look at the two-sample tests
too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..geometry import Array
from ..showers import Showers
from . import classifier, observables
from .training import Examples, fit

Means = tuple[Array, Array]  # values, errors


@dataclass(frozen=True)
class Posteriors:
    """Mean log posteriors of K candidates, each with its error: sample error and spread over the trainings.

    names: of the candidates, in the order of all arrays; score: S_k, (K,); difference: S_k - S_j, (K, K), with errors
    from the same Geant4 showers, smaller than those of the scores; cross: C_ik of the candidates' own test showers,
    (K, K), whose diagonal has to be the largest of each row; share: fraction of the Geant4 showers for which k is the
    most probable, (K,); scores: of each training, (R, K); uniform: -ln K; n: showers of each candidate.
    """

    names: tuple[str, ...]
    score: Array
    error: Array
    difference: Array
    difference_error: Array
    cross: Array
    cross_error: Array
    share: Array
    scores: Array
    uniform: float
    n: int

    def ranking(self) -> list[str]:
        """Names, the candidate that Geant4 looks like most first."""
        return [self.names[i] for i in np.argsort(-self.score, kind="stable")]


def compare(
    reference: Showers,
    candidates: Mapping[str, Showers],
    *,
    level: Literal["high", "low"] = "high",
    seed: int | np.random.SeedSequence = 0,
    repeats: int = 3,
    epochs: int = 30,
    hidden: int = classifier.HIDDEN,
    done: Callable[[], None] | None = None,
) -> Posteriors:
    """``log_posteriors`` of showers of one geometry; level: the classifier sees observables ("high") or voxels ("low").

    All samples should have incident particles of one distribution, or the classifier tells the candidates apart by it.
    """
    if level not in ("high", "low"):
        raise ValueError(f"got level {level!r}, expected 'high' or 'low'; choose one")
    for name, showers in candidates.items():
        reference.geometry.require_same(showers.geometry, f"candidate {name}")
    conditions = observables.varying_conditions(reference.incident, *(s.incident for s in candidates.values()))
    inputs = observables.low_level if level == "low" else observables.high_level
    features = {name: inputs(showers, conditions=conditions) for name, showers in candidates.items()}
    return log_posteriors(
        inputs(reference, conditions=conditions), features, seed=seed, repeats=repeats, epochs=epochs, hidden=hidden,
        done=done,
    )  # fmt: skip


def log_posteriors(
    reference: Array,
    candidates: Mapping[str, Array],
    *,
    seed: int | np.random.SeedSequence = 0,
    repeats: int = 3,
    epochs: int = 30,
    whiten: bool | None = None,
    hidden: int = classifier.HIDDEN,
    done: Callable[[], None] | None = None,
) -> Posteriors:
    """Mean log posteriors of reference features (N, F) under a classifier between candidates' features (M_k, F).

    The larger candidates are thinned to the size of the smallest; 60 % train, 20 % choose the epoch, 20 % are the test
    showers of the cross-check. done: called after each training.
    """
    samples = list(candidates.values())
    n = min((len(s) for s in samples), default=0)
    if len(samples) < 2 or n < classifier.FEWEST or len(reference) < 2:
        raise ValueError(
            f"got {len(samples)} candidates, of {n} showers at least, and {len(reference)} reference showers, expected "
            f"2 candidates of {classifier.FEWEST} showers; give more"
        )
    if len({s.shape[1:] for s in (reference, *samples)}) > 1:
        raise ValueError("got features of different length, expected the same inputs for all samples; make them alike")
    whiten = classifier.can_whiten(n, reference.shape[1]) if whiten is None else whiten
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    found = []
    for child in root.spawn(repeats):
        found.append(_train_once(reference, samples, n, epochs, whiten, hidden, child))
        if done is not None:
            done()
    score, error = _mean_over_trainings([one["score"] for one in found])
    difference, difference_error = _mean_over_trainings([one["difference"] for one in found])
    cross, cross_error = _mean_over_trainings([one["cross"] for one in found])
    return Posteriors(
        names=tuple(candidates), score=score, error=error, difference=difference, difference_error=difference_error,
        cross=cross, cross_error=cross_error, share=_mean_over_trainings([one["share"] for one in found])[0],
        scores=np.stack([one["score"][0] for one in found]), uniform=-float(np.log(len(samples))), n=n,
    )  # fmt: skip


def _train_once(
    reference: Array,
    samples: list[Array],
    n: int,
    epochs: int,
    whiten: bool,
    hidden: int,
    seed: np.random.SeedSequence,
) -> dict[str, Means]:
    """One split and one training: score (K,), difference (K, K), cross (K, K), share (K,), each with its error."""
    from scipy.special import log_softmax

    rng = np.random.default_rng(seed)
    cuts = np.round(np.cumsum(classifier.SPLITS) * n).astype(int)
    splits = [np.split(sample[rng.permutation(len(sample))[:n]], cuts) for sample in samples]
    train, held, test = ([split[part] for split in splits] for part in range(3))
    scaled = classifier.scaler(np.concatenate(train), whiten)

    def labelled(parts: list[Array]) -> Examples:
        labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return Examples(scaled(np.concatenate(parts)), labels)

    network = fit(
        labelled(train), labelled(held), len(samples), epochs=epochs, seed=int(rng.integers(2**62)), hidden=hidden
    )

    def posterior(features: Array) -> Array:
        return np.asarray(log_softmax(network(scaled(features)), axis=1))

    log_p = posterior(reference)
    best = (log_p == log_p.max(axis=1, keepdims=True)).astype(np.float64)
    return {
        "score": _mean(log_p),
        "difference": _stacked([_mean(log_p[:, [k]] - log_p) for k in range(len(samples))]),
        "cross": _stacked([_mean(posterior(part)) for part in test]),
        "share": _mean(best),
    }


def _mean(values: Array) -> Means:
    """Mean over the showers of (N, K) and its error, (K,), (K,)."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _stacked(rows: list[Means]) -> Means:
    return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def _mean_over_trainings(found: list[Means]) -> Means:
    """Mean, and the root mean square of the errors in quadrature with the spread over the trainings."""
    values, errors = _stacked(found)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])
    return values.mean(axis=0), np.sqrt((errors**2).mean(axis=0) + spread**2)
