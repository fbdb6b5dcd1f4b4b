"""The referee: how far a candidate sample of showers is from Geant4, every number beside its Geant4-vs-Geant4 floor.

It judges any two samples of one geometry and knows nothing of the models that made them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from .._callable import callable_module
from .._version import __version__
from ..geometry import Array
from ..showers import Showers
from . import classifier, profiles
from .checks import require_distinct
from .observables import varying_conditions
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


def evaluate(
    reference: Showers,
    candidate: Showers,
    *,
    profile: str = "standard",
    seed: int = 0,
    repeats: int | None = None,
    epochs: int | None = None,
    n_bootstrap: int = 100,
    levels: tuple[str, ...] | None = None,
    minimum: float | None = None,
    learning_curve: bool = False,
    candidate_name: str = "model",
    progress: Progress | None = None,
) -> Report:
    """Compare candidate showers with reference (Geant4) showers of the same geometry.

    profile: "standard" for any detector, "calochallenge" for the conventions of the CaloChallenge (2410.21611).
    Scores: auc_<level>, jsd_<level>; separation/<observable>, and with w1, ks, tv, kl, js, chi2 in its place;
    response/mean, response/width, response/core_width; occupancy/layer_<l>; fpd, kpd, sliced_w1, mean_ks, precision,
    recall, density, coverage, prd_auc; weights_<level>/<diagnostic> (docs/metrics.md has the formulas).
    repeats, epochs: trainings of each classifier (3 and 30; 10 and 50 in the challenge); levels: classifiers to train
    (low, high; challenge: low, low-normed, high, resnet); minimum: least voxel energy [MeV] of the challenge profile
    for other meshes than its own; learning_curve: AUC against the number of training showers too; n_bootstrap:
    resamplings behind the errors of the one-dimensional distances;
    progress: called with the fraction done and what comes next. The same samples and seed give the same scores; global
    random states are left alone.
    """
    settings = profiles.require_settings(
        profiles.Settings(profile, repeats, epochs, n_bootstrap, levels, minimum, learning_curve)
    )
    _check(reference, candidate, seed)
    tell = progress or (lambda fraction, text: None)
    names = ("halves", "bootstrap", "classifier", "multivariate", "weights")
    seeds = dict(zip(names, np.random.SeedSequence(seed).spawn(len(names)), strict=True))
    tell(0.0, "observables")
    order = np.random.default_rng(seeds["halves"]).permutation(len(reference))
    halves = np.array_split(order, 2)
    out = profiles.run(reference, candidate, halves, settings, seeds, tell)
    scores = {name: Score(*out.measured[name], *out.floors[name]) for name in out.measured}
    provenance = {
        "candidate_name": candidate_name,
        "settings": {"seed": seed} | asdict(settings),
        "classifier": _classifier_facts(out.verdicts, reference, candidate),
        "notes": _incident_notes(reference, candidate) + out.notes,
        "floor": FLOOR_NOTE,
    } | out.facts | _sample_facts(reference, candidate, halves)  # fmt: skip
    tell(1.0, "done")
    roc = {name: verdict.roc for name, verdict in out.verdicts.items()}
    return Report(scores, provenance, reference, candidate, out.values, roc, out.extra)


def _classifier_facts(
    verdicts: Mapping[str, classifier.Verdict], reference: Showers, candidate: Showers
) -> dict[str, Any]:
    config = next(iter(verdicts.values())).config
    network = "3 hidden layers, LeakyReLU" if config.network == "challenge" else "2 hidden layers, ReLU"
    return {
        "network": f"{network}, width {config.width}, binary cross entropy",
        "learning_rate": config.learning_rate,
        "split": "60 % train, 20 % calibration and choice of the epoch, 20 % test, per class (the CaloChallenge's own "
                 "numbers for its own sizes)" if config.network == "challenge" else
                 "60 % train, 20 % calibration and choice of the epoch, 20 % test, per class",
        "scaling": {
            name: "none" if config.scale == "none" else "whitened" if verdict.whitened
            else "standardised (too many inputs for whitening)"
            for name, verdict in verdicts.items()
        },
        "conditions": ["energy", *varying_conditions(reference.incident, candidate.incident)],
        "showers_per_class": {name: verdict.n for name, verdict in verdicts.items()},
        "auc_of_each_training": {name: verdict.aucs for name, verdict in verdicts.items()},
    }  # fmt: skip


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


def _check(reference: Showers, candidate: Showers, seed: int) -> None:
    reference.geometry.require_same(candidate.geometry, "candidate showers")
    for name, showers in (("reference", reference), ("candidate", candidate)):
        if len(showers) < FEWEST:
            raise ValueError(f"got {len(showers)} {name} showers, expected at least {FEWEST}; simulate more")
    if seed < 0:
        raise ValueError(f"got seed {seed}, expected at least 0; raise it")
    require_distinct(reference, candidate)


callable_module(__name__)
