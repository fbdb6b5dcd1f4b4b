"""Tests that need more than a reference and one candidate: their results join the reports as scores and facts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..showers import Showers
from . import interpolation, memorisation, multimodel
from .report import Report, Score


def with_log_posteriors(
    reports: Sequence[Report], *, seed: int = 0, repeats: int = 3, epochs: int = 30
) -> list[Report]:
    """Scores log_posterior: mean ln p(candidate | Geant4 shower) of a classifier between candidates (2410.21611).

    The larger the more Geant4 looks like this candidate; its floor is a guess, -ln K for K candidates.
    """
    if len(reports) < 2:
        return list(reports)
    found = multimodel.compare(
        reports[0].reference, {r.name: r.candidate for r in reports}, seed=seed, repeats=repeats, epochs=epochs
    )
    cross = {a: dict(zip(found.names, row, strict=True)) for a, row in zip(found.names, found.cross, strict=True)}
    facts = {"ranking": found.ranking(), "guess": found.uniform, "cross_check": cross, "showers": found.n}
    out = []
    for report in reports:
        i = found.names.index(report.name)
        score = Score(float(found.score[i]), float(found.error[i]), found.uniform, 0.0)
        out.append(_with(report, {"log_posterior": score}, {"multi_class": facts}))
    return out


def with_memorisation(report: Report, training: Showers, *, seed: int = 0) -> Report:
    """Scores memorisation/...: how near the candidate's showers are to the training showers of its model."""
    found = memorisation.memorisation(training, report.candidate, report.reference, seed=seed)
    scores = {
        "memorisation/distance_ratio": Score(*found.ratio, *found.ratio_floor),
        "memorisation/very_close": Score(*found.close, *found.close_floor),
        "memorisation/copies": Score(float(found.copies), 0.0, 0.0, 0.0),
    }
    facts = {"training_showers": found.n_train, "ks": found.ks, "p_value": found.p_value}
    return _with(report, scores, {"memorisation": facts})


def with_interpolation(report: Report, windows: Sequence[tuple[float, float]], *, seed: int = 0) -> Report:
    """Scores interpolation/...: separation over floor inside the energy windows that training left out, and outside."""
    found = interpolation.interpolation(report.reference, report.candidate, windows, seed=seed)
    named = {"inside": found.inside_excess, "outside": found.outside_excess, "penalty": found.penalty}
    scores = {f"interpolation/{name}": Score(*value, 0.0, 0.0) for name, value in named.items()}
    facts = {"windows_mev": [list(w) for w in windows], "bins_mev": np.asarray(found.edges).tolist()}
    return _with(report, scores, {"interpolation": facts})


def _with(report: Report, scores: dict[str, Score], facts: dict[str, object]) -> Report:
    return replace(report, scores=dict(report.scores) | scores, provenance=dict(report.provenance) | facts)
