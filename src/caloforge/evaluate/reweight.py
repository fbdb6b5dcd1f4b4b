"""Reweighting: candidate showers that count with w = p/q of a classifier, or are kept with a probability ~ w.

DCTR (Andreassen, Nachman, 1907.08209), for generated showers DCTRGAN (Diefenbacher et al., 2009.03796). Both samples
are cut into halves. Networks trained on one half weigh the showers of the other, so no shower is weighed by a network
that saw it, and a fresh classifier, trained and tested on that other half, says what is left: its AUC is 0.5 if the
weights are right and all that the inputs show.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from ..geometry import Array
from ..showers import Showers
from . import classifier, observables, weights
from .checks import require_distinct
from .distances import Measured
from .training import Examples, fit

Method = Literal["weights", "rejection"]
Level = Literal["high", "low"]
Progress = Callable[[float, str], None]
Index = tuple[Array, Array]  # which reference and which candidate showers

CAP = 20.0
HELD = 0.25  # share of the training half that chooses the epoch and the temperature
NETWORKS = 3  # whose logits are averaged
FEWEST = 4 * classifier.FEWEST


@dataclass(frozen=True, eq=False)
class Reweighted:
    """Candidate showers after reweighting.

    showers, weight: all candidate showers and their weights (N,), mean 1 ("weights"), or the accepted showers and None
    ("rejection"). auc_before, auc_after: of a fresh classifier, for rejection both on as many showers; ess:
    (sum w)^2/(N sum w^2) of the capped weights; efficiency: <w>/w_max, the share of showers that rejection keeps;
    capped: share of weights above the cap; log_weights: calibrated ln w before the cap, of reference and candidate, in
    their order; diagnostics: of those, see ``weights.diagnostics``.
    """

    showers: Showers
    weight: Array | None
    auc_before: Measured
    auc_after: Measured
    ess: Measured
    efficiency: float
    capped: float
    log_weights: weights.Pair
    diagnostics: dict[str, Measured]


@dataclass(frozen=True)
class _Settings:
    method: str
    level: str
    cap: float
    seed: int
    epochs: int
    repeats: int
    hidden: int


def reweight(
    reference: Showers,
    candidate: Showers,
    *,
    method: Method = "weights",
    level: Level = "high",
    cap: float = CAP,
    seed: int = 0,
    epochs: int = 30,
    repeats: int = 2,
    hidden: int = classifier.HIDDEN,
    progress: Progress | None = None,
) -> Reweighted:
    """Weights that turn the candidate's showers into the reference's, or the showers accepted by them.

    level: inputs of all classifiers, observables ("high") or voxels ("low"); cap: largest weight; repeats: trainings of
    each fresh classifier, each with its own split; hidden: width of all networks. Both samples should have incident
    particles of one distribution: where they differ, the weights correct that too.
    """
    settings = _Settings(method, level, cap, seed, epochs, repeats, hidden)
    _check(reference, candidate, settings)
    tell = progress or (lambda fraction, text: None)
    tell(0.0, "observables")
    conditions = observables.varying_conditions(reference.incident, candidate.incident)
    inputs = observables.low_level if level == "low" else observables.high_level
    features = inputs(reference, conditions=conditions), inputs(candidate, conditions=conditions)
    split, learn, judge, accept = np.random.SeedSequence(seed).spawn(4)
    halves = _halves((len(reference), len(candidate)), split)
    log_w = _cross_weights(features, halves, learn, settings, tell)
    w = np.minimum(np.exp(log_w[1]), cap)
    accepted = np.random.default_rng(accept).random(len(w)) < w / w.max()
    before, after = _before_and_after(features, halves, w, accepted, judge, settings, tell)
    ess = weights.effective_size(w)
    note = asdict(settings) | {
        "conditions": list(conditions), "auc_before": list(before), "auc_after": list(after), "ess": ess[0],
        "n_candidate": len(candidate), "n_reference": len(reference),
    }  # fmt: skip
    kept = candidate if method == "weights" else candidate[accepted]
    tell(1.0, "done")
    return Reweighted(
        showers=replace(kept, provenance=dict(kept.provenance) | {"reweighted": note}),
        weight=w / w.mean() if method == "weights" else None,
        auc_before=before, auc_after=after, ess=ess, efficiency=float(w.mean() / w.max()),
        capped=float((log_w[1] > np.log(cap)).mean()), log_weights=log_w, diagnostics=weights.diagnostics(log_w),
    )  # fmt: skip


def _cross_weights(
    features: weights.Pair, halves: list[Index], seed: np.random.SeedSequence, settings: _Settings, tell: Progress
) -> weights.Pair:
    """Calibrated ln w of all showers, those of each half from networks trained on the other."""
    log_w = np.empty(len(features[0])), np.empty(len(features[1]))
    for half, child in enumerate(seed.spawn(2)):
        tell(0.05 + 0.2 * half, f"weights, half {half + 1} of 2")
        ours, theirs = _pick(features, halves[half]), _pick(features, halves[1 - half])
        for sample, values in enumerate(_log_weights(ours, theirs, child, settings)):
            log_w[sample][halves[1 - half][sample]] = values
    return log_w


def _before_and_after(
    features: weights.Pair, halves: list[Index], w: Array, accepted: Array, seed: np.random.SeedSequence,
    settings: _Settings, tell: Progress,
) -> tuple[Measured, Measured]:  # fmt: skip
    """AUC of fresh classifiers without and with the weights (M,) or the choice (M,): means over the two halves."""
    aucs: list[list[Measured]] = [[], []]
    for half, child in enumerate(seed.spawn(2)):
        tell(0.45 + 0.25 * half, f"fresh classifier, half {half + 1} of 2")
        (p, q), index = _pick(features, halves[half]), halves[half][1]
        pairs: list[tuple[Array, Array | None]] = [(q, None), (q, w[index])]
        if settings.method == "rejection":  # before: as many showers, or the smaller sample alone would lower the AUC
            n_accepted = _enough(int(accepted[index].sum()), settings.cap)
            pairs = [(np.random.default_rng(child).permutation(q)[:n_accepted], None), (q[accepted[index]], None)]
        whiten = classifier.can_whiten(min(len(p), len(pairs[0][0])), p.shape[1])
        for out, (sample, weight) in zip(aucs, pairs, strict=True):
            # One seed and one scaling for both: the difference is the weights, not the split.
            again = np.random.SeedSequence(child.entropy, spawn_key=child.spawn_key)
            auc = fresh_auc(
                p, sample, weight, seed=again, repeats=settings.repeats, epochs=settings.epochs, whiten=whiten,
                hidden=settings.hidden,
            )  # fmt: skip
            out.append(auc)
    return _of_halves(aucs[0]), _of_halves(aucs[1])


def fresh_auc(
    reference: Array,
    candidate: Array,
    weight: Array | None = None,
    *,
    seed: int | np.random.SeedSequence,
    repeats: int = 2,
    epochs: int = 30,
    whiten: bool | None = None,
    hidden: int = classifier.HIDDEN,
) -> Measured:
    """AUC between features (N, F) and features (M, F) whose showers count with ``weight`` (M,), and its error.

    As ``classifier.classify``, for weights and samples of different size: 60 % train, 20 % choose the epoch, 20 % test
    of each sample; both count the same in the loss. error^2 = mean of the test-sample errors^2 + spread^2 of trainings.
    whiten: decorrelate the inputs, by default where ``classifier.can_whiten``.
    """
    samples = reference, candidate
    counts = np.ones(len(reference)), np.ones(len(candidate)) if weight is None else np.asarray(weight, np.float64)
    if min(len(reference), len(candidate)) < classifier.FEWEST:
        raise ValueError(
            f"got {len(reference)} and {len(candidate)} showers, expected at least {classifier.FEWEST} of each to "
            "split; give more showers"
        )
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    if whiten is None:
        whiten = classifier.can_whiten(min(map(len, samples)), reference.shape[1])
    rows = []
    for child in root.spawn(repeats):
        rng = np.random.default_rng(child)
        cuts = [np.round(np.cumsum(classifier.SPLITS) * len(s)).astype(int) for s in samples]
        splits = [np.split(rng.permutation(len(s)), cut) for s, cut in zip(samples, cuts, strict=True)]
        train, held, test = (_examples(samples, counts, pair) for pair in zip(*splits, strict=True))
        scaled = classifier.scaler(train.x, whiten)
        network = fit(_scaled(train, scaled), _scaled(held, scaled), epochs=epochs, seed=_draw(rng), hidden=hidden)
        scores, of_reference = network(scaled(test.x)), test.y == 1
        rows.append(weights.weighted_auc(scores[of_reference], scores[~of_reference], test.weight[~of_reference]))
    table = np.array(rows)
    spread = table[:, 0].std(ddof=1) if repeats > 1 else 0.0
    return float(table[:, 0].mean()), float(np.sqrt((table[:, 1] ** 2).mean() + spread**2))


def _log_weights(
    ours: weights.Pair, theirs: weights.Pair, seed: np.random.SeedSequence, settings: _Settings
) -> weights.Pair:
    """Calibrated ln w of the features ``theirs`` from networks trained on the features ``ours``.

    The networks share their training and held-out showers and differ in their initial weights and batches; the mean of
    their logits is calibrated with one temperature on the showers held out.
    """
    rng = np.random.default_rng(seed)
    splits = [np.split(rng.permutation(len(s)), [round((1 - HELD) * len(s))]) for s in ours]
    ones = np.ones(len(ours[0])), np.ones(len(ours[1]))
    train, held = (_examples(ours, ones, pair) for pair in zip(*splits, strict=True))
    scaled = classifier.scaler(train.x, classifier.can_whiten(min(map(len, ours)), train.x.shape[1]))
    parts = _scaled(train, scaled), _scaled(held, scaled)
    networks = [fit(*parts, epochs=settings.epochs, seed=_draw(rng), hidden=settings.hidden) for _ in range(NETWORKS)]

    def logits(x: Array) -> Array:
        return np.asarray(np.mean([network(x) for network in networks], axis=0))

    of_held = logits(parts[1].x)
    calibration = of_held[held.y == 1], of_held[held.y == 0]
    return weights.log_weights((logits(scaled(theirs[0])), logits(scaled(theirs[1]))), calibration)


def _examples(samples: weights.Pair, counts: weights.Pair, index: Index) -> Examples:
    """The chosen showers of both samples with label 1 and 0, and weights that sum to the same for both."""
    chosen = [count[i] for count, i in zip(counts, index, strict=True)]
    if min(c.sum() for c in chosen) <= 0:
        raise ValueError("got weights that are all 0 in one part of the sample, expected some above 0; lower the cap")
    y = np.repeat([1.0, 0.0], [len(i) for i in index])
    return Examples(np.concatenate(_pick(samples, index)), y, np.concatenate([c / c.sum() for c in chosen]))


def _scaled(examples: Examples, scaled: Callable[[Array], Array]) -> Examples:
    return Examples(scaled(examples.x), examples.y, examples.w)


def _halves(sizes: tuple[int, int], seed: np.random.SeedSequence) -> list[Index]:
    """Two disjoint random halves of both samples: [(reference, candidate), (reference, candidate)], rising indices."""
    rng = np.random.default_rng(seed)
    parts = [[np.sort(part) for part in np.array_split(rng.permutation(size), 2)] for size in sizes]
    return [(parts[0][half], parts[1][half]) for half in (0, 1)]


def _pick(samples: weights.Pair, index: Index) -> weights.Pair:
    return samples[0][index[0]], samples[1][index[1]]


def _of_halves(pair: list[Measured]) -> Measured:
    """Mean of two independent values."""
    (a, a_error), (b, b_error) = pair
    return 0.5 * (a + b), 0.5 * float(np.hypot(a_error, b_error))


def _enough(n_accepted: int, cap: float) -> int:
    if n_accepted < classifier.FEWEST:
        raise ValueError(
            f"got {n_accepted} accepted showers in one half, expected at least {classifier.FEWEST} to judge them; "
            f"lower the cap of {cap:g} or give more showers"
        )
    return n_accepted


def _draw(rng: np.random.Generator) -> int:
    return int(rng.integers(2**62))


def _check(reference: Showers, candidate: Showers, settings: _Settings) -> None:
    reference.geometry.require_same(candidate.geometry, "candidate showers")
    for name, known in (("method", ("weights", "rejection")), ("level", ("high", "low"))):
        if getattr(settings, name) not in known:
            raise ValueError(f"got {name} {getattr(settings, name)!r}, expected {' or '.join(known)}; choose one")
    if not settings.cap >= 1:
        raise ValueError(
            f"got cap {settings.cap:g}, expected at least 1, the weight of showers as frequent as in Geant4; raise it"
        )
    for name, least in (("seed", 0), ("epochs", 1), ("repeats", 1), ("hidden", 1)):
        if getattr(settings, name) < least:
            raise ValueError(f"got {name} {getattr(settings, name)}, expected at least {least}; raise it")
    for name, showers in (("reference", reference), ("candidate", candidate)):
        if len(showers) < FEWEST:
            raise ValueError(f"got {len(showers)} {name} showers, expected at least {FEWEST}; simulate more")
    require_distinct(reference, candidate)
