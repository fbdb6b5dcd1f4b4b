"""The referee: how far a candidate sample of showers is from Geant4, every number beside its Geant4-vs-Geant4 floor.

It judges any two samples of one geometry and knows nothing of the models that made them.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from .._callable import callable_module
from .._version import __version__
from ..geometry import Array
from ..showers import Showers
from . import classifier, distances, histograms, observables
from .report import Report, Score

__all__ = ["Report", "Score", "evaluate"]

FEWEST = 2 * classifier.FEWEST  # showers: each half of the reference must still split into train, calibration, test
P_VALUE = 1e-3
FLOOR_NOTE = (
    "Floors compare two disjoint halves of the reference, so they have half the statistics of the values. For "
    "distributions that agree, separation power and W1 shrink with the sample like 1/n and 1/sqrt(n): their floors "
    "are about 2 and 1.4 times what two full samples would give. Nothing is rescaled."
)

Progress = Callable[[float, str], None]
Measured = dict[str, distances.Measured]


def evaluate(
    reference: Showers,
    candidate: Showers,
    *,
    seed: int = 0,
    repeats: int = 3,
    epochs: int = 30,
    n_bootstrap: int = 100,
    candidate_name: str = "model",
    progress: Progress | None = None,
) -> Report:
    """Compare candidate showers with reference (Geant4) showers of the same geometry.

    Scores: auc_low, auc_high, jsd_low, jsd_high, separation/<observable>, w1/<observable>, response/mean,
    response/width, response/core_width, occupancy/layer_<l>. repeats, epochs: trainings of each classifier;
    n_bootstrap: resamplings behind the errors of the one-dimensional distances; progress: called with the fraction
    done and what comes next. The same samples and seed give the same scores; global random states are left alone.
    """
    _check(reference, candidate, seed, repeats, epochs, n_bootstrap)
    tell = progress or (lambda fraction, text: None)
    seeds = dict(zip(("halves", "bootstrap", "classifier"), np.random.SeedSequence(seed).spawn(3), strict=True))
    tell(0.0, "observables")
    values = observables.observables(reference), observables.observables(candidate)
    order = np.random.default_rng(seeds["halves"]).permutation(len(reference))
    halves = np.array_split(order, 2)

    tell(0.05, "distances")
    rng = np.random.default_rng(seeds["bootstrap"])
    scale = values[0]
    measured = _distances(*values, scale, n_bootstrap, rng)
    half_values = [{name: column[half] for name, column in scale.items()} for half in halves]
    floors = _distances(half_values[0], half_values[1], scale, n_bootstrap, rng)

    conditions = observables.varying_conditions(reference.incident, candidate.incident)
    inputs = {
        "low": [observables.low_level(s, conditions) for s in (reference, candidate)],
        "high": [observables.high_level(s, v, conditions) for s, v in zip((reference, candidate), values, strict=True)],
    }
    verdicts = _train(inputs, halves, seeds["classifier"], repeats, epochs, tell)
    measured, floors = _classifier_scores(verdicts, "") | measured, _classifier_scores(verdicts, " floor") | floors
    scores = {name: Score(*measured[name], *floors[name]) for name in measured}
    provenance = {
        "candidate_name": candidate_name,
        "settings": {"seed": seed, "repeats": repeats, "epochs": epochs, "n_bootstrap": n_bootstrap},
        "classifier": _classifier_facts(verdicts, conditions),
        "notes": _incident_notes(reference, candidate),
        "floor": FLOOR_NOTE,
    } | _sample_facts(reference, candidate, halves)
    tell(1.0, "done")
    return Report(scores, provenance, reference, candidate, values, {k: v.roc for k, v in verdicts.items()})


def _train(
    inputs: Mapping[str, list[Array]],
    halves: list[Array],
    seed: np.random.SeedSequence,
    repeats: int,
    epochs: int,
    tell: Progress,
) -> dict[str, classifier.Verdict]:
    """Classifiers of each level on (reference, candidate), and under "<level> floor" on the halves of the reference."""
    verdicts = {}
    steps = _steps(tell, 2 * len(inputs) * repeats)
    next(steps)
    for (level, pair), child in zip(inputs.items(), seed.spawn(len(inputs)), strict=True):
        # Decided by the smaller sample, or the floor would be another classifier than the one it stands beside.
        whiten = classifier.can_whiten(min(len(halves[1]), len(pair[1])), pair[0].shape[1])
        pairs = {level: pair, f"{level} floor": [pair[0][half] for half in halves]}
        for (name, samples), grandchild in zip(pairs.items(), child.spawn(2), strict=True):
            verdicts[name] = classifier.classify(
                *samples, seed=grandchild, repeats=repeats, epochs=epochs, whiten=whiten, done=lambda: next(steps)
            )
    return verdicts


def _steps(tell: Progress, n: int) -> Iterator[None]:
    """Tells the progress before the first and after each of n trainings."""
    for done in range(n + 1):
        tell(0.1 + 0.9 * done / n, f"classifier training {min(done + 1, n)} of {n}")
        yield


def _distances(
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    scale: Mapping[str, Array],
    n_bootstrap: int,
    rng: np.random.Generator,
) -> Measured:
    """One-dimensional scores of two sets of observables; bins and widths come from ``scale``, the whole reference."""
    bootstrap = distances.Bootstrap.draw(len(reference["response"]), len(candidate["response"]), n_bootstrap, rng)
    separations: Measured = {}
    w1: Measured = {}
    for name, whole in scale.items():
        pair = reference[name], candidate[name]
        edges = histograms.binning(whole)
        counts = (histograms.fill(pair[0], edges), histograms.fill(pair[1], edges))
        separations[f"separation/{name}"] = distances.separation_power(*counts, n_bootstrap, rng)
        w1[f"w1/{name}"] = distances.wasserstein(*pair, bootstrap, distances.spread(whole))
    out = {
        "response/mean": distances.relative_mean(reference["response"], candidate["response"]),
        "response/width": distances.relative_width(reference["response"], candidate["response"]),
        "response/core_width": distances.relative_core_width(
            reference["response"], candidate["response"], n_bootstrap, rng
        ),
    }
    for name in (name for name in scale if name.startswith("occupied_")):
        key = f"occupancy/layer_{name.removeprefix('occupied_')}"
        out[key] = distances.mean_difference(reference[name], candidate[name])
    return out | separations | w1


def _classifier_scores(verdicts: Mapping[str, classifier.Verdict], suffix: str) -> Measured:
    out: Measured = {}
    for level in ("low", "high"):
        out[f"auc_{level}"] = verdicts[level + suffix].auc, verdicts[level + suffix].auc_error
    for level in ("low", "high"):
        out[f"jsd_{level}"] = verdicts[level + suffix].jsd, verdicts[level + suffix].jsd_error
    return out


def _classifier_facts(verdicts: Mapping[str, classifier.Verdict], conditions: tuple[str, ...]) -> dict[str, Any]:
    return {
        "network": f"2 hidden layers of {classifier.HIDDEN}, ReLU, binary cross entropy",
        "learning_rate": classifier.LEARNING_RATE,
        "split": "60 % train, 20 % calibration and choice of the epoch, 20 % test, per class",
        "scaling": {
            name: "whitened" if verdict.whitened else "standardised (too many inputs for whitening)"
            for name, verdict in verdicts.items()
        },
        "conditions": ["energy", *conditions],
        "showers_per_class": {name: verdict.n for name, verdict in verdicts.items()},
        "auc_of_each_training": {name: verdict.aucs for name, verdict in verdicts.items()},
    }


def _sample_facts(reference: Showers, candidate: Showers, halves: list[Array]) -> dict[str, Any]:
    import scipy
    import sklearn
    import torch

    return {
        "geometry": {"name": reference.geometry.name, "digest": reference.geometry.digest()},
        "n_reference": len(reference),
        "n_candidate": len(candidate),
        "n_floor": [len(half) for half in halves],
        "reference": dict(reference.provenance),
        "candidate": dict(candidate.provenance),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "caloforge": __version__, "numpy": np.__version__, "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__, "torch": torch.__version__,
        },
    }  # fmt: skip


def _incident_notes(reference: Showers, candidate: Showers) -> list[str]:
    """A note for each property of the incident particles whose distributions differ (Kolmogorov-Smirnov test)."""
    from scipy.stats import ks_2samp

    notes = []
    for name in ("energy", "theta", "phi", "x", "y", "pdg"):
        pair = getattr(reference.incident, name), getattr(candidate.incident, name)
        p_value = float(ks_2samp(*pair, method="asymp").pvalue)
        if p_value < P_VALUE:
            notes.append(
                f"The incident {name} is distributed differently in the two samples (KS test, p = {p_value:.1e}). "
                "All scores see that too: simulate the candidate with the incident particles of the reference."
            )
    return notes


def _check(reference: Showers, candidate: Showers, seed: int, repeats: int, epochs: int, n_bootstrap: int) -> None:
    reference.geometry.require_same(candidate.geometry, "candidate showers")
    for name, showers in (("reference", reference), ("candidate", candidate)):
        if len(showers) < FEWEST:
            raise ValueError(f"got {len(showers)} {name} showers, expected at least {FEWEST}; simulate more")
    fewest = {"seed": (seed, 0), "repeats": (repeats, 1), "epochs": (epochs, 1), "n_bootstrap": (n_bootstrap, 2)}
    for name, (value, least) in fewest.items():
        if value < least:
            raise ValueError(f"got {name} {value}, expected at least {least}; raise it")


callable_module(__name__)
