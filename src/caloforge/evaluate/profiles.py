"""The two ways to judge: ``standard`` for any detector and daily use, ``calochallenge`` as the CaloChallenge does it.

A profile turns two samples into named values with errors. It is run twice: on reference and candidate, and for the
floors on two halves of the reference. Names are GROUP/OBSERVABLE, or a single word for what concerns whole showers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..geometry import Array
from ..showers import Showers
from . import challenge, classifier, distances, histograms, jets, lhcb, manifold, multivariate, observables, weights

Measured = dict[str, distances.Measured]
Seeds = Mapping[str, np.random.SeedSequence]
Tell = Callable[[float, str], None]
LEVELS = {"standard": ("low", "high"), "calochallenge": ("low", "low-normed", "high")}
HISTOGRAM = {"separation": "separation", "total_variation": "tv", "kullback_leibler": "kl", "jensen_shannon": "js",
             "chi2": "chi2"}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """repeats, epochs: of each classifier, None for the profile's own; levels: classifiers to train; minimum: least
    voxel energy [MeV] of the challenge profile where the mesh is not one of the Challenge's; learning_curve: also train
    with an eighth, a quarter and a half of the showers."""

    profile: str = "standard"
    repeats: int | None = None
    epochs: int | None = None
    n_bootstrap: int = 100
    levels: tuple[str, ...] | None = None
    minimum: float | None = None
    learning_curve: bool = False

    @property
    def trained(self) -> tuple[str, ...]:
        return LEVELS[self.profile] if self.levels is None else self.levels


@dataclass
class Outcome:
    """Scores of the pair and of the halves, observables of both samples, classifiers, notes and figures' data."""

    measured: Measured
    floors: Measured
    values: tuple[dict[str, Array], dict[str, Array]]
    verdicts: dict[str, classifier.Verdict]
    notes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def run(reference: Showers, candidate: Showers, halves: list[Array], settings: Settings, seeds: Seeds,
        tell: Tell) -> Outcome:  # fmt: skip
    """All scores of a profile, with their floors."""
    official = settings.profile == "calochallenge"
    if official:
        samples = [challenge.threshold(s, settings.minimum) for s in (reference, candidate)]
        values = [challenge.features(s) for s in samples]
        matrices = [challenge.high(s, v) for s, v in zip(samples, values, strict=True)]
    else:
        samples, values = [reference, candidate], [_observables(s) for s in (reference, candidate)]
        conditions = observables.varying_conditions(reference.incident, candidate.incident)
        matrices = [observables.high_level(s, v, conditions) for s, v in zip(samples, values, strict=True)]
    notes: list[str] = []
    facts: dict[str, Any] = {}
    tell(0.05, "distances")
    pairs = [(samples, values, matrices), _halved(samples[0], values[0], matrices[0], halves)]
    results: list[Measured] = []
    # The same seeds serve the pair and the floor, so that both are the same measurement.
    for number, (pair, columns, features) in enumerate(pairs):
        rng = np.random.default_rng(seeds["bootstrap"])
        if official:
            found, outside = _official_distances(pair, columns, settings, seeds["bootstrap"])
            facts |= {} if number else {"outside_of_the_ranges": outside}
        else:
            found = _distances(columns[0], columns[1], values[0], settings.n_bootstrap, rng)
        tell(0.06 + 0.06 * number, "distances of whole showers")
        said: list[str] = []
        found |= _many_dimensional(pair, features, official, seeds["multivariate"], said)
        notes += [f"floor: {note}" for note in said if note not in notes] if number else said
        results.append(found)
    verdicts = _train(samples, values, halves, settings, seeds["classifier"], tell)
    levels = settings.trained
    measured = _classifier_scores(verdicts, levels, "") | results[0]
    floors = _classifier_scores(verdicts, levels, " floor") | results[1]
    extra, weighed = _weights(verdicts, levels, seeds["weights"], notes)
    for level in levels:
        if f"weights/{level}" in extra:
            weighed[0].update(_marginals(level, verdicts[level], extra[f"weights/{level}"], values))
            facts |= _worst_showers(level, verdicts[level], extra[f"weights/{level}"], values, seeds["weights"], notes)
    if settings.learning_curve:
        facts["auc_against_training_showers"] = _learning_curves(samples, values, settings, seeds["classifier"], notes)
    measured, floors = measured | weighed[0], floors | weighed[1]
    missing = {name: (float("nan"), float("nan")) for name in measured if name not in floors}
    return Outcome(measured, floors | missing, (values[0], values[1]), verdicts, notes, facts, extra)


def _observables(showers: Showers) -> dict[str, Array]:
    """The observables of any shower, those of jet images, and of LHCb where one layer sees particles at an angle."""
    out = observables.observables(showers)
    if jets.is_jets(showers):
        return out | jets.observables(showers)
    layers = showers.geometry.layers
    if len(layers) == 1 and layers[0].kind == "cartesian" and np.ptp(showers.incident.theta) > 0:
        out |= lhcb.observables(showers)
    return out


def _halved(sample: Showers, values: dict[str, Array], matrix: Array, halves: list[Array]
            ) -> tuple[list[Showers], list[dict[str, Array]], list[Array]]:  # fmt: skip
    columns = [{name: column[half] for name, column in values.items()} for half in halves]
    return [sample[half] for half in halves], columns, [matrix[half] for half in halves]


def _distances(reference: Mapping[str, Array], candidate: Mapping[str, Array], scale: Mapping[str, Array],
               n_bootstrap: int, rng: np.random.Generator) -> Measured:  # fmt: skip
    """One-dimensional scores of two sets of observables; bins and widths come from ``scale``, the whole reference."""
    bootstrap = distances.Bootstrap.draw(len(reference["response"]), len(candidate["response"]), n_bootstrap, rng)
    binned: dict[str, Measured] = {short: {} for short in HISTOGRAM.values()}
    w1: Measured = {}
    ks: Measured = {}
    for name, whole in scale.items():
        pair = reference[name], candidate[name]
        edges = histograms.binning(whole)
        counts = (histograms.fill(pair[0], edges), histograms.fill(pair[1], edges))
        found = distances.histogram_distances(*counts, n_bootstrap, rng)
        for long, short in HISTOGRAM.items():
            binned[short][f"{short}/{name}"] = found[long]
        w1[f"w1/{name}"] = distances.wasserstein(*pair, bootstrap, distances.spread(whole))
        ks[f"ks/{name}"] = distances.kolmogorov_smirnov(*pair, bootstrap)
    out = _response(reference["response"], candidate["response"], n_bootstrap, rng)
    for name in (name for name in scale if name.startswith("occupied_")):
        key = f"occupancy/layer_{name.removeprefix('occupied_')}"
        out[key] = distances.mean_difference(reference[name], candidate[name])
    out |= binned.pop("separation") | w1 | ks
    for group in binned.values():
        out |= group
    return out


def _response(reference: Array, candidate: Array, n_bootstrap: int, rng: np.random.Generator) -> Measured:
    return {
        "response/mean": distances.relative_mean(reference, candidate),
        "response/width": distances.relative_width(reference, candidate),
        "response/core_width": distances.relative_core_width(reference, candidate, n_bootstrap, rng),
    }


def _official_distances(pair: list[Showers], values: list[dict[str, Array]], settings: Settings,
                        seed: np.random.SeedSequence) -> tuple[Measured, dict[str, Any]]:  # fmt: skip
    """Separation powers in the published bins, and what lies outside of them."""
    found = challenge.separation_powers(
        pair[0], pair[1], (values[0], values[1]), minimum=settings.minimum, n_bootstrap=settings.n_bootstrap, seed=seed
    )
    rng = np.random.default_rng(seed)
    out = _response(values[0]["response"], values[1]["response"], settings.n_bootstrap, rng)
    out |= {f"separation/{name}": (s.value, s.error) for name, s in found.items()}
    outside = {n: {"underflow": s.underflow, "overflow": s.overflow} for n, s in found.items()
               if max(*s.underflow, *s.overflow) > 0}  # fmt: skip
    return out, outside


def _many_dimensional(pair: list[Showers], features: list[Array], official: bool, seed: np.random.SeedSequence,
                      notes: list[str]) -> Measured:  # fmt: skip
    """Distances of whole showers; one that these samples are too small for is left out, and a note says so."""
    seeds = np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key).spawn(5)  # the same at every call
    published: dict[str, Any] = {"smallest": 10_000, "as_published": True} if official else {}
    near = [manifold.log_voxels(s.energy) for s in pair] if official else list(multivariate.standardised(*features))
    tasks: dict[str, Callable[[], distances.Measured | dict[str, distances.Measured]]] = {
        "fpd": lambda: multivariate.fpd(features[0], features[1], seed=seeds[0], **published),
        "kpd": lambda: multivariate.kpd(features[0], features[1], seed=seeds[1]),
        "sliced_w1": lambda: multivariate.sliced_wasserstein(features[0], features[1], seed=seeds[2]),
        "mean_ks": lambda: multivariate.mean_ks(features[0], features[1], seed=seeds[2]),
        "prdc": lambda: manifold.prdc(near[0], near[1], seed=seeds[3]),
        "prd_auc": lambda: manifold.prd_auc(features[0], features[1], seed=seeds[4]),
    }
    out: Measured = {}
    for name, task in tasks.items():
        try:
            found = task()
        except ValueError as error:
            notes.append(f"{name} is left out: {error}.")
            continue
        out |= found if isinstance(found, dict) else {name: found}
    return out


def _train(samples: list[Showers], values: list[dict[str, Array]], halves: list[Array], settings: Settings,
           seed: np.random.SeedSequence, tell: Tell) -> dict[str, classifier.Verdict]:  # fmt: skip
    """Classifiers of each level on (reference, candidate), and under "<level> floor" on the halves of the reference."""
    official = settings.profile == "calochallenge"
    verdicts: dict[str, classifier.Verdict] = {}
    levels = settings.trained
    base = classifier.CHALLENGE if official else classifier.STANDARD
    steps = _steps(tell, 2 * len(levels) * (settings.repeats or base.repeats))
    next(steps)
    for level, child in zip(levels, seed.spawn(len(levels)), strict=True):
        pair = _inputs(samples, values, level, official, settings.minimum)
        options: dict[str, Any] = {"repeats": settings.repeats, "epochs": settings.epochs, "done": lambda: next(steps)}
        if official:
            resnet = level == "resnet"
            options["config"] = classifier.CHALLENGE_RESNET if resnet else classifier.CHALLENGE
            options["shape"] = challenge.image_shape(samples[0].geometry) if resnet else None
        else:
            # Decided by the smaller sample, or the floor would be another classifier than the one it stands beside.
            options["whiten"] = classifier.can_whiten(min(len(halves[1]), len(pair[1])), pair[0].shape[1])
        both = {level: pair, f"{level} floor": [pair[0][half] for half in halves]}
        for (name, inputs), grandchild in zip(both.items(), child.spawn(2), strict=True):
            verdicts[name] = classifier.classify(inputs[0], inputs[1], seed=grandchild, **options)
    return verdicts


def _inputs(samples: list[Showers], values: list[dict[str, Array]], level: str, official: bool,
            minimum: float | None) -> list[Array]:  # fmt: skip
    if official:
        return [challenge.inputs(s, level, minimum=minimum) for s in samples]
    conditions = observables.varying_conditions(samples[0].incident, samples[1].incident)
    if level == "low":
        return [observables.low_level(s, conditions) for s in samples]
    return [observables.high_level(s, v, conditions) for s, v in zip(samples, values, strict=True)]


def _steps(tell: Tell, n: int) -> Iterator[None]:
    """Tells the progress before the first and after each of n trainings."""
    for done in range(n + 1):
        tell(0.2 + 0.8 * done / n, f"classifier training {min(done + 1, n)} of {n}")
        yield


def _classifier_scores(verdicts: Mapping[str, classifier.Verdict], levels: tuple[str, ...], suffix: str) -> Measured:
    out: Measured = {f"auc_{n.replace('-', '_')}": (v.auc, v.auc_error) for n, v in _of(verdicts, levels, suffix)}
    return out | {f"jsd_{n.replace('-', '_')}": (v.jsd, v.jsd_error) for n, v in _of(verdicts, levels, suffix)}


def _of(verdicts: Mapping[str, classifier.Verdict], levels: tuple[str, ...], suffix: str
        ) -> list[tuple[str, classifier.Verdict]]:  # fmt: skip
    return [(level, verdicts[level + suffix]) for level in levels]


def _weights(verdicts: Mapping[str, classifier.Verdict], levels: tuple[str, ...], seed: np.random.SeedSequence,
             notes: list[str]) -> tuple[dict[str, Any], tuple[Measured, Measured]]:  # fmt: skip
    """Weights of the first training of each level: their diagnostics for pair and floor, and what figures show."""
    extra: dict[str, Any] = {}
    out: tuple[Measured, Measured] = ({}, {})
    for level in levels:
        for number, name in enumerate((level, f"{level} floor")):
            try:
                log_w = weights.log_weights(verdicts[name].scores, seed=seed)
                found = weights.diagnostics(log_w)
            except ValueError as error:
                notes.append(f"Weights ({name}) are left out: {error}.")
                continue
            for key, value in found.items():
                out[number][f"weights_{level.replace('-', '_')}/{key}"] = value
            if number == 0:
                curve = weights.reliability(weights.probabilities(log_w))
                extra[f"calibration/{level}"] = (curve.predicted, curve.observed, curve.error)
                extra[f"weights/{level}"] = log_w
    return extra, out


def _marginals(level: str, verdict: classifier.Verdict, log_w: weights.Pair, values: list[dict[str, Array]]
               ) -> Measured:  # fmt: skip
    """chi2/ndf of the mean weight of the candidate against p/q in bins of each observable: 1 for a good classifier."""
    out: Measured = {}
    for name, column in values[0].items():
        found = weights.marginal(log_w[1], column[verdict.index[0]], values[1][name][verdict.index[1]])
        if found.ndf > 0:
            key = f"weights_{level.replace('-', '_')}_marginal/{name}"
            out[key] = (found.chi2 / found.ndf, float(np.sqrt(2 / found.ndf)))
    return out


def _worst_showers(level: str, verdict: classifier.Verdict, log_w: weights.Pair, values: list[dict[str, Array]],
                   seed: np.random.SeedSequence, notes: list[str]) -> dict[str, Any]:  # fmt: skip
    """In what the candidate showers least like Geant4, and the Geant4 showers least like the candidate, differ."""
    facts = {}
    for number, (side, what) in enumerate((("high", "Geant4 showers that the candidate lacks most"),
                                           ("low", "candidate showers that Geant4 lacks most"))):  # fmt: skip
        chosen = {name: column[verdict.index[number]] for name, column in values[number].items()}
        try:
            found = weights.extremes(log_w[number], chosen, side, seed=seed)  # type: ignore[arg-type]
        except ValueError:  # too few showers for an extreme per cent
            continue
        worst = [d for d in found.differences if d.separation > d.floor[0] + 3 * d.floor[1]][:5]
        facts[f"{side}_weights"] = {
            "showers": len(found.chosen), "weight_beyond": float(np.exp(found.log_threshold)),
            "observables": [{"name": d.observable, "separation": d.separation, "floor": d.floor[0],
                             "shift_in_sigma": d.shift} for d in worst],
        }  # fmt: skip
        if worst:
            shifts = ", ".join(f"{d.observable} ({d.shift:+.1f} sigma)" for d in worst)
            notes.append(
                f"{what} (classifier {level}, {len(found.chosen)} of {len(log_w[number])}) differ in {shifts}."
            )
    return {f"worst_showers_{level}": facts}


def _learning_curves(samples: list[Showers], values: list[dict[str, Array]], settings: Settings,
                     seed: np.random.SeedSequence, notes: list[str]) -> dict[str, Any]:  # fmt: skip
    """AUC of each level against the number of training showers per class."""
    official = settings.profile == "calochallenge"
    out: dict[str, Any] = {}
    for level in (level for level in settings.trained if level != "resnet"):
        pair = _inputs(samples, values, level, official, settings.minimum)
        most = round(0.6 * min(len(part) for part in pair))
        sizes = sorted({max(2, most // k) for k in (8, 4, 2, 1)})
        config = classifier.CHALLENGE if official else classifier.STANDARD
        found = classifier.learning_curve(pair[0], pair[1], sizes, seed=seed, config=config,
                                          repeats=settings.repeats, epochs=settings.epochs)  # fmt: skip
        out[level] = {str(n): [v.auc, v.auc_error] for n, v in found.items()}
        text = ", ".join(f"{v.auc:.3f} with {n:,}" for n, v in found.items())
        notes.append(f"AUC ({level}) against training showers per class: {text}.")
    return out


def require_settings(settings: Settings) -> Settings:
    """The settings, if they make sense; ValueError otherwise."""
    if settings.profile not in LEVELS:
        raise ValueError(f"got profile {settings.profile!r}, expected one of {', '.join(LEVELS)}; choose one")
    known = (*LEVELS[settings.profile], *(("resnet",) if settings.profile == "calochallenge" else ()))
    odd = [level for level in settings.trained if level not in known]
    if odd or not settings.trained:
        raise ValueError(
            f"got level {odd[0] if odd else ''!r} for profile {settings.profile}, expected some of {', '.join(known)}; "
            "choose from them"
        )
    least = {"repeats": (settings.repeats, 1), "epochs": (settings.epochs, 1), "n_bootstrap": (settings.n_bootstrap, 2)}
    for name, (value, fewest) in least.items():
        if value is not None and value < fewest:
            raise ValueError(f"got {name} {value}, expected at least {fewest}; raise it")
    return replace(settings, levels=settings.trained)
