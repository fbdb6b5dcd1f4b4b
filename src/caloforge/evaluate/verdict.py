"""The verdict in words: one plain sentence per candidate, from its scores alone."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .numbers import format_pair

if TYPE_CHECKING:
    from .report import Report, Score

DISTANCES = (
    "auc_",
    "jsd_",
    "separation/",
    "w1/",
    "ks/",
    "tv/",
    "kl/",
    "js/",
    "chi2/",
    "fpd",
    "kpd",
    "sliced_w1",
    "mean_ks",
)
FAR = 3.0  # excess in sigma from which a score counts as above its floor
GRADES = (
    (0.55, "is almost the same as Geant4 to a neural network"),
    (0.65, "is close to Geant4, but a neural network sees a difference"),
    (0.8, "can be told from Geant4 by a neural network"),
    (math.inf, "is easily told from Geant4 by a neural network"),
)
LEVELS = {"low": "voxels", "high": "observables", "low_normed": "normalised voxels", "resnet": "voxels, by a ResNet"}


def stands_out(name: str, score: "Score") -> bool:
    """Whether a score lies more than three errors from its floor; for distances only above it, where it is worse."""
    excess = score.excess if name.startswith(DISTANCES) else abs(score.excess)
    return excess > FAR


def worst_first(reports: "Sequence[Report]", n: int | None = None) -> list[str]:
    """Observables that stand out of their floor in any candidate, then the others; each part by separation power."""

    def badness(name: str) -> tuple[bool, float]:
        scores = [report.scores[f"separation/{name}"] for report in reports]
        far = [score.value for score in scores if score.excess > FAR]
        return bool(far), max(far or [score.value for score in scores])

    names = [name for name in reports[0].worst(10**6) if all(f"separation/{name}" in r.scores for r in reports)]
    return sorted(names, key=badness, reverse=True)[:n]


def sentence(report: "Report") -> str:
    """What the classifiers, the observables and the response say, to be read behind the candidate's name."""
    return " ".join(part for part in (_classifier(report), _observables(report), _response(report)) if part)


def _classifier(report: "Report") -> str:
    aucs = {name: score for name, score in report.scores.items() if name.startswith("auc_")}
    if not aucs:
        return ""
    name = max(aucs, key=lambda name: aucs[name].excess if math.isfinite(aucs[name].excess) else -math.inf)
    score = aucs[name]
    inputs = level_name(name)
    quoted = f"AUC {format_pair(score.value, score.error)} on {inputs}, {from_floor(score)}"
    if not score.excess > FAR:
        return f"could not be told from Geant4 by a neural network with this many showers ({quoted})."
    return next(words for limit, words in GRADES if score.value < limit) + f" ({quoted})."


def level_name(score: str) -> str:
    """What a classifier sees, from the name of its score: 'voxels' for auc_low."""
    level = score.partition("_")[2]
    return LEVELS.get(level, level)


def _observables(report: "Report") -> str:
    names = worst_first([report])
    if not names:
        return ""
    far = sum(report.scores[f"separation/{name}"].excess > FAR for name in names)
    told = f"the worst is {names[0]}, {from_floor(report.scores[f'separation/{names[0]}'])}"
    if far == 0:
        return f"None of {len(names)} observables stands more than {FAR:g} σ out of its floor; {told}."
    verb = "stands" if far == 1 else "stand"
    return f"{far} of {len(names)} observables {verb} more than {FAR:g} σ out of the floor; {told}."


def _response(report: "Report") -> str:
    score = report.scores.get("response/mean")
    if score is None or not math.isfinite(score.value):
        return ""
    side = "too high" if score.value >= 0 else "too low"
    return f"The mean response is {abs(100 * score.value):.2f} ± {100 * score.error:.2f} % {side}."


def from_floor(score: "Score") -> str:
    """The excess of a score in words: '11.3 σ above its floor'."""
    if not math.isfinite(score.excess):
        return "at an unknown distance from its floor"
    return f"{abs(score.excess):.1f} σ {'above' if score.excess >= 0 else 'below'} its floor"


def beside_floor(score: "Score") -> str:
    """The floor and the excess of a score: 'floor 0.502 ± 0.030, 11 σ above'."""
    floor = f"floor {format_pair(score.floor, score.floor_error)}"
    if not math.isfinite(score.excess):
        return floor
    return f"{floor}, {abs(score.excess):.1f} σ {'above' if score.excess >= 0 else 'below'}"
