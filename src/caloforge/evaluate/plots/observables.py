"""Histograms of the observables, all candidates over the reference, with a ratio panel."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ...geometry import Array
from .. import histograms
from ..verdict import worst_first
from .style import FADED, REFERENCE, REFERENCE_FILL, Drawing, bars, candidate_style

if TYPE_CHECKING:
    from ..report import Report

N_PANELS = 60  # observables drawn at most
RATIO_RANGE = (0.5, 1.5)


def observable_panels(reports: "Sequence[Report]") -> Iterator[Drawing]:
    """One figure per observable, the worst of any candidate first."""
    drawn = [name for name in worst_first(reports) if all(name in values for r in reports for values in r.values)]
    for name in drawn[:N_PANELS]:  # spectra and curves have a separation too, but no value for each shower
        yield _observable(reports, name)


def _observable(reports: "Sequence[Report]", name: str) -> Drawing:
    reference = reports[0].values[0][name]
    samples = [report.values[1][name] for report in reports]
    edges = histograms.drawing_edges(reference)
    figure, top, bottom = two_panels(3.6, 3.0, f"{name}{unit(name)}")
    draw_histograms(top, bottom, edges, [reference, *samples], ["Geant4", *(report.name for report in reports)])
    if edges[0] > 0 and edges[-1] > histograms.LOG_RANGE * edges[0]:
        top.set_xscale("log")
    scores = [report.scores[f"separation/{name}"] for report in reports]
    parts = [f"S = {s.value:.4f} ± {s.error:.4f} (floor {s.floor:.4f})" for s in scores]
    if len(reports) > 1:
        parts = [f"{report.name}: {part}" for report, part in zip(reports, parts, strict=True)]
    caption = "\n".join([*parts, *_outside(edges, [reference, *samples])])
    return Drawing(f"observable-{name}", figure, caption, f"Histogram of {name}. {'; '.join(parts)}")


def unit(name: str) -> str:
    """Unit of an observable in brackets, or nothing where it has none."""
    if name.startswith(("total_energy", "layer_energy", "lateral_depth", "E_tot", "E_layer")):
        return " [MeV]"
    return " [mm]" if name.lower().startswith(("ec_", "lateral_width", "width_")) else ""


def _outside(edges: Array, samples: Sequence[Array]) -> list[str]:
    """A remark where more than half a per cent of a sample lies beyond the axis."""
    percent = [100 * float(np.mean((values < edges[0]) | (values > edges[-1]))) for values in samples]
    if max(percent) <= 0.5:
        return []
    return [f"outside the axis: {percent[0]:.1f} % of Geant4, " + ", ".join(f"{p:.1f} %" for p in percent[1:])]


def two_panels(width: float, height: float, title: str, x_label: str = "") -> tuple[Figure, Any, Any]:
    """A figure with a title and a panel for ratios below the main one. Laid out by hand: an engine costs more time."""
    figure = Figure(figsize=(width, height))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.1))
    left, right, above, below = 0.68, 0.1, 0.42, 0.44 if x_label else 0.36  # inches
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, top=1 - above / height, bottom=below / height, hspace=0.09
    )
    figure.text(left / width, 1 - 0.05 / height, title, fontweight="bold", fontsize=10, va="top")
    bottom.set_xlabel(x_label)
    for axes in (top, bottom):
        axes.yaxis.set_label_coords(-0.56 / (width - left - right), 0.5)
        axes.locator_params(axis="x", nbins=6)
    return figure, top, bottom


def draw_histograms(
    top: Any, bottom: Any, edges: Array, samples: Sequence[Array], names: Sequence[str], density: bool = True
) -> None:
    """Normalised histograms of samples (N_i,), the reference first and filled, and their ratio to it."""
    counts = [np.histogram(values, edges)[0] for values in samples]
    totals = [max(len(values), 1) for values in samples]  # an empty sample is a flat line at 0
    widths = np.diff(edges) if density else np.ones(len(edges) - 1)
    heights = [c / n / widths for c, n in zip(counts, totals, strict=True)]
    draw_steps(top, edges, heights, names)
    top.set_ylabel("density" if density else "share")
    filled = heights[0][heights[0] > 0]
    if len(filled) and filled.max() > 200 * np.median(filled):
        top.set_yscale("log")
    ratio_panel(bottom, edges, counts, totals)


def draw_steps(axes: Any, edges: Array, heights: Sequence[Array], names: Sequence[str]) -> None:
    """Step lines of the candidates over the filled steps of the reference, which comes first."""
    axes.stairs(heights[0], edges, fill=True, color=REFERENCE_FILL, label=names[0])
    for number, (values, name) in enumerate(zip(heights[1:], names[1:], strict=True)):
        axes.stairs(values, edges, lw=1.3, label=name, **candidate_style(number))


def ratio_panel(axes: Any, edges: Array, counts: Sequence[Array], totals: Sequence[int]) -> None:
    """Candidates over reference; error bars: the candidate's Poisson error, band: the reference's."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = [c / n for c, n in zip(counts, totals, strict=True)]
        errors = [np.sqrt(c) / n for c, n in zip(counts, totals, strict=True)]
        ratios = [s / share[0] for s in share]
        spreads = [e / share[0] for e in errors]
    draw_ratio(axes, edges, ratios[1:], spreads[1:], spreads[0])


def draw_ratio(axes: Any, edges: Array, ratios: Sequence[Array], errors: Sequence[Array], band: Array) -> None:
    """Ratios (B,) of the candidates with errors (B,), over the relative error of the reference (B,) as a band."""
    centres, low, high = 0.5 * (edges[1:] + edges[:-1]), *RATIO_RANGE
    width = np.clip(np.nan_to_num(band, nan=1.0, posinf=1.0), 0, 1)
    axes.stairs(1 + width, edges, baseline=1 - width, fill=True, color=REFERENCE_FILL, alpha=0.6, lw=0)
    axes.axhline(1, color=FADED, lw=0.8)
    for number, (ratio, error) in enumerate(zip(ratios, errors, strict=True)):
        used = np.isfinite(ratio) & np.isfinite(error) & (ratio > 0)
        x, y, e = centres[used], ratio[used], error[used]
        style = candidate_style(number) | {"linestyle": ""}
        inside = (y >= low) & (y <= high)
        bars(axes, x, np.clip(y - e, low, high), np.clip(y + e, low, high), number)
        axes.plot(x[inside], y[inside], marker=".", ms=3, **style)
        for beyond, marker in ((y > high, "^"), (y < low, "v")):
            axes.plot(x[beyond], np.clip(y[beyond], low + 0.04, high - 0.04), marker=marker, ms=2.5, **style)
    axes.set_ylim(*RATIO_RANGE)
    axes.set_yticks([RATIO_RANGE[0], 1, RATIO_RANGE[1]])
    axes.set_ylabel("ratio")


def band(axes: Any, edges: Array, mean: Array, spread: Array, label: str) -> None:
    """Mean and spread of the reference (B,) as a line in a band."""
    axes.stairs(mean + spread, edges, baseline=mean - spread, fill=True, color=REFERENCE_FILL, alpha=0.6, lw=0)
    axes.stairs(mean, edges, color=REFERENCE, lw=1.3, label=label, baseline=None)
