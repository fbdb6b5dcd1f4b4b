"""Response and resolution against the incident energy."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...showers import Showers
from ..resolution import ResponseCurve, fit_resolution, response_curve
from .observables import two_panels
from .style import FADED, MARKERS, REFERENCE, Drawing, bars, candidate_style, energy_axis

if TYPE_CHECKING:
    from ..report import Report

GEV = 1e3  # MeV
LABELS = {"response": "mean of E_tot / E_inc", "resolution": "std / mean of E_tot / E_inc"}
WORST_FIT = 5.0  # chi2/ndf beyond which the law of the resolution is not drawn


def response_panels(reports: "Sequence[Report]") -> Iterator[Drawing]:
    """Mean and relative width of E_tot/E_inc against the incident energy, and their ratios to Geant4's."""
    samples = {"Geant4": reports[0].reference} | {report.name: report.candidate for report in reports}
    curves = [_curve(sample) for sample in samples.values()]
    if curves[0] is None:
        return
    for kind, label in LABELS.items():
        figure, top, bottom = two_panels(4.8, 3.9, label, "incident energy [GeV]")
        bottom.axhline(1, color=FADED, lw=0.8)
        for number, (name, curve) in enumerate(zip(samples, curves, strict=True), start=-1):
            if curve is not None:
                law = _law(top, curve, number) if kind == "resolution" else ""
                _points(top, bottom, curve, curves[0], kind, number, name + law)
        top.set_ylabel(kind)
        bottom.set_ylabel("ratio")
        energy_axis(top, np.unique(np.append(curves[0].low, curves[0].high[-1])) / GEV)
        top.legend()
        caption = f"{kind.capitalize()} against the incident energy; below: over Geant4's"
        caption += "; lines: σ/E = a/√(E/GeV) ⊕ c, where it fits" if kind == "resolution" else ""
        yield Drawing(kind, figure, caption, f"{label}. {caption}; {', '.join(samples)}")


def _curve(showers: Showers) -> ResponseCurve | None:
    """The curve of a sample, or None for one without energy or with too few showers."""
    try:
        return response_curve(showers)
    except ValueError:
        return None


def _points(top: Any, bottom: Any, curve: ResponseCurve, reference: ResponseCurve, kind: str, number: int,
            label: str) -> None:  # fmt: skip
    """Points with errors, and below their ratio to the reference's, interpolated between its points."""
    x, y, error = curve.energy / GEV, getattr(curve, kind), getattr(curve, f"{kind}_error")
    known = np.interp(x, reference.energy / GEV, getattr(reference, kind))
    style: dict[str, Any] = {"color": REFERENCE} if number < 0 else candidate_style(number)
    style |= {"marker": MARKERS[(number + 1) % len(MARKERS)], "lw": 1.0}
    if kind == "resolution":
        style["linestyle"] = ""
    top.plot(x, y, ms=3.5, label=label, **style)
    bars(top, x, y - error, y + error, number)
    used = known > 0
    x, ratio, error = x[used], y[used] / known[used], error[used] / known[used]
    bars(bottom, x, ratio - error, ratio + error, number)
    bottom.plot(x, ratio, ms=3, **style)


def _law(axes: Any, curve: ResponseCurve, number: int) -> str:
    """Draws the fitted resolution where the fit is good; its terms as text."""
    try:
        fit = fit_resolution(curve)
    except ValueError:
        return ""
    if fit.ndf < 1 or fit.chi2 > WORST_FIT * fit.ndf:
        return ""
    x = np.geomspace(curve.low[0], curve.high[-1], 60)
    style = {"color": REFERENCE} if number < 0 else candidate_style(number)
    axes.plot(x / GEV, fit.at(x), lw=0.8, **style)
    return f": {100 * fit.stochastic[0]:.2g} %/√E ⊕ {100 * fit.constant[0]:.2g} %"
