"""What the classifiers saw: ROC curves, calibration, and the weights that they imply.

``Report.extra`` may hold "calibration/<level>": (predicted, observed, error), (B,) each, and "weights/<level>":
(ln w of the reference, ln w of the candidate), (N,) and (M,), with w the estimated density ratio Geant4 / candidate.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ...geometry import Array
from .observables import draw_histograms, two_panels
from .style import FADED, MARKERS, Drawing, bars, candidate_style

if TYPE_CHECKING:
    from ..report import Report

FLOOR = " floor"
N_WEIGHT_BINS = 50


def judge_panels(reports: "Sequence[Report]") -> Iterator[Drawing]:
    """ROC curves of each classifier, and calibration and weights where a report has them."""
    for level in dict.fromkeys(key for r in reports for key in r.roc if not key.endswith(FLOOR)):
        yield _roc(reports, level)
    for level in _levels(reports, "calibration"):
        yield _calibration(reports, level)
    for level in _levels(reports, "weights"):
        for number, report in enumerate(reports):
            if f"weights/{level}" in report.extra:
                yield _weights(report, level, number)


def _levels(reports: "Sequence[Report]", kind: str) -> list[str]:
    keys = (key for report in reports for key in report.extra if key.startswith(f"{kind}/"))
    return list(dict.fromkeys(key.removeprefix(f"{kind}/") for key in keys))


def _square(title: str, x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FADED, lw=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_aspect("equal")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _roc(reports: "Sequence[Report]", level: str) -> Drawing:
    who = reports[0].name if len(reports) == 1 else "candidate"
    figure, axes = _square(f"ROC, {level}", f"{who} showers taken for Geant4", "Geant4 showers taken for Geant4")
    told = []
    for number, report in enumerate(reports):
        if level not in report.roc:
            continue
        style = candidate_style(number)
        score = report.scores.get(f"auc_{level.replace('-', '_')}")
        told.append(report.name if score is None else f"{report.name}: AUC {score.value:.3f} ± {score.error:.3f}")
        axes.plot(*report.roc[level], lw=1.5, label=told[-1], **style)
        if level + FLOOR in report.roc:
            label = "floor" if score is None else f"floor: {score.floor:.3f} ± {score.floor_error:.3f}"
            axes.plot(*report.roc[level + FLOOR], **(style | {"linestyle": ":", "lw": 1.0, "label": label}))
    axes.legend(loc="lower right")
    caption = f"ROC curve of the classifier '{level}', first training, test split; dotted: floor"
    return Drawing(f"roc-{level}", figure, caption, f"{caption}. {'; '.join(told)}")


def _calibration(reports: "Sequence[Report]", level: str) -> Drawing:
    figure, axes = _square(f"calibration, {level}", "predicted probability of Geant4", "share of Geant4")
    for number, report in enumerate(reports):
        if f"calibration/{level}" in report.extra:
            x, y, e = (np.asarray(column, dtype=np.float64) for column in report.extra[f"calibration/{level}"])
            bars(axes, x, y - e, y + e, number)
            marker = MARKERS[(number + 1) % len(MARKERS)]
            axes.plot(x, y, marker=marker, ms=3.5, lw=1.0, label=report.name, **candidate_style(number))
    axes.legend(loc="upper left")
    caption = f"Calibration of the classifier '{level}' on its test split; a calibrated one lies on the diagonal"
    return Drawing(f"calibration-{level}", figure, caption, caption)


def _weights(report: "Report", level: str, number: int) -> Drawing:
    pair = [np.asarray(column, dtype=np.float64) for column in report.extra[f"weights/{level}"]]
    finite = [column[np.isfinite(column)] for column in pair]
    figure, top, bottom = two_panels(4.8, 3.9, f"weights, {level}", "ln w")
    edges = weight_edges(np.concatenate(finite))
    empty = [np.empty(0)] * number  # keeps the colour of the candidate
    draw_histograms(top, bottom, edges, [finite[0], *empty, finite[1]], ["Geant4", *[""] * number, report.name])
    top.legend()
    effective = (
        float(np.exp(finite[1]).sum() ** 2 / np.exp(2 * finite[1]).sum() / len(finite[1])) if len(finite[1]) else 0
    )
    caption = f"Weights w = p(Geant4)/p({report.name}) from the classifier '{level}'; they keep "
    caption += f"{100 * effective:.0f} % of {report.name}'s statistics"
    return Drawing(f"weights-{level}-{number + 1}", figure, caption, caption, number + 1)


def weight_edges(values: Array) -> Array:
    """Equal bins that hold 99.8 % of the logarithms of the weights (N,), zero among their edges."""
    if len(values) == 0:
        return np.linspace(-1, 1, N_WEIGHT_BINS + 1)
    end = max(float(np.quantile(np.abs(values), 0.998)), 1e-3)
    return np.linspace(-end, end, N_WEIGHT_BINS + 1)
