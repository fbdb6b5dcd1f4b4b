"""Figures of the report: each a PNG that stands alone, small enough to be tiled by the page.

Matplotlib figures are built without pyplot, so no global figure or style is touched.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..geometry import Array, Layer
from ..showers import Showers
from . import histograms

if TYPE_CHECKING:
    from .report import Report

GEANT4, MODEL, INK, FADED = "#8fa9c4", "#c8401f", "#1d2733", "#6b7785"
ENERGIES, DIFFERENCES = "viridis", "RdBu_r"
N_LAYERS = 6  # layers drawn at most
N_PANELS = 60  # observables drawn at most
N_EXAMPLES = 5
N_ENERGY_BINS = 10
STYLE: dict[Any, Any] = {
    "font.size": 9, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": FADED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": FADED, "ytick.color": FADED,
    "axes.titlesize": 10, "legend.frameon": False, "axes.formatter.limits": (-3, 4), "axes.formatter.useoffset": False,
}  # fmt: skip


@dataclass(frozen=True)
class Image:
    """One figure on the page: src is a data URI, title a caption, alt the same for a screen reader."""

    src: str
    title: str
    alt: str


def figures(report: "Report") -> dict[str, list[Image]]:
    """All figures of a report, by section of the page."""
    with matplotlib.rc_context(STYLE):
        return {
            "layers": list(mean_showers(report)),
            "observables": list(observable_panels(report)),
            "response": list(response_panels(report)),
            "roc": [roc_curves(report)],
            "examples": list(nearest_neighbours(report)),
        }


def _image(figure: Figure, title: str, alt: str = "") -> Image:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Image(f"data:image/png;base64,{text}", title, alt or title)


def drawn_layers(n_layers: int) -> list[int]:
    """Numbers of the layers that are drawn: all, or six spread evenly."""
    return sorted({int(i) for i in np.linspace(0, n_layers - 1, min(n_layers, N_LAYERS)).round()})


def draw_layer(figure: Figure, cell: Any, layer: Layer, values: Array, **style: Any) -> tuple[Any, Any]:
    """Draw voxel values (n_first, n_second) of one layer in true proportions; returns the axes and the colour mesh."""
    if layer.kind == "cartesian":
        axes = figure.add_subplot(cell)
        mesh = axes.pcolormesh(layer.first, layer.second, values.T, rasterized=True, **style)
        axes.set_aspect("equal")
        axes.set_xlabel("x [mm]")
        axes.set_ylabel("y [mm]")
        return axes, mesh
    axes = figure.add_subplot(cell, projection="polar")
    fine = max(1, 72 // layer.shape[0])  # short chords, or few bins are drawn as polygons
    alpha = np.interp(np.arange(layer.shape[0] * fine + 1) / fine, np.arange(layer.shape[0] + 1), layer.first)
    mesh = axes.pcolormesh(alpha, layer.second, np.repeat(values, fine, axis=0).T, rasterized=True, **style)
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    axes.grid(False)
    axes.set_xlabel(f"r < {layer.second[-1]:g} mm")
    return axes, mesh


def _log_norm(*images: Array) -> LogNorm:
    """A logarithmic colour scale over the positive values of all images, one to five decades."""
    positive = np.concatenate([image[image > 0].ravel() for image in images])
    if len(positive) == 0:
        return LogNorm(1e-3, 1.0)
    high = float(positive.max())
    return LogNorm(np.clip(positive.min(), 1e-5 * high, 0.1 * high) * 0.999, high * 1.001)


def mean_showers(report: "Report") -> Iterator[Image]:
    """Mean energy per voxel of each layer: Geant4, candidate, and their relative difference."""
    for number in drawn_layers(report.reference.geometry.n_layers):
        layer = report.reference.geometry.layers[number]
        means = [s.image(number).mean(axis=0, dtype=np.float64) for s in (report.reference, report.candidate)]
        norm = _log_norm(*means)
        difference = np.full(means[0].shape, np.nan)
        np.divide(100 * (means[1] - means[0]), means[0], out=difference, where=means[0] > 0)
        figure = Figure(figsize=(8.6, 2.5), layout="constrained")
        grid = figure.add_gridspec(1, 3)
        for column, (mean, name) in enumerate(zip(means, ("Geant4", report.name), strict=True)):
            axes, mesh = draw_layer(figure, grid[column], layer, mean, norm=norm, cmap=ENERGIES)
            axes.set_title(name)
        figure.colorbar(mesh, ax=figure.axes, label="mean energy [MeV]", shrink=0.85)
        limit = float(np.clip(np.nanquantile(np.abs(difference), 0.95) if means[0].any() else 1, 1, 100))
        style = {"vmin": -limit, "vmax": limit, "cmap": DIFFERENCES}
        axes, mesh = draw_layer(figure, grid[2], layer, difference, **style)
        axes.set_title("difference")
        figure.colorbar(mesh, ax=axes, label=f"{report.name} / Geant4 - 1 [%]", shrink=0.85, extend="both")
        yield _image(
            figure, f"Layer {number}", f"Mean energy per voxel in layer {number}: Geant4, {report.name}, difference"
        )


def observable_panels(report: "Report") -> Iterator[Image]:
    """Histograms of the observables, the largest separation power first."""
    for name in report.worst(N_PANELS):
        yield _observable(report, name)


def _observable(report: "Report", name: str) -> Image:
    samples = [values[name] for values in report.values]
    edges = histograms.drawing_edges(samples[0])
    counts = [np.histogram(values, edges)[0] for values in samples]
    widths = np.diff(edges)
    density = [c / len(v) / widths for c, v in zip(counts, samples, strict=True)]
    figure = Figure(figsize=(3.6, 3.0))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.1))
    figure.subplots_adjust(left=0.17, right=0.97, top=0.9, bottom=0.13, hspace=0.08)
    top.stairs(density[0], edges, fill=True, color=GEANT4, label="Geant4")
    top.stairs(density[1], edges, color=MODEL, lw=1.4, label=report.name)
    top.set_title(name, loc="left", fontweight="bold")
    top.set_ylabel("density")
    filled = density[0][density[0] > 0]
    if len(filled) and filled.max() > 200 * np.median(filled):
        top.set_yscale("log")
    if edges[0] > 0 and edges[-1] > histograms.LOG_RANGE * edges[0]:
        top.set_xscale("log")
    _ratio_panel(bottom, edges, counts, [len(v) for v in samples])
    outside = [100 * (1 - c.sum() / len(v)) for c, v in zip(counts, samples, strict=True)]
    score = report.scores[f"separation/{name}"]
    caption = f"S = {score.value:.4f} ± {score.error:.4f} (floor {score.floor:.4f})"
    if max(outside) > 0.5:
        caption += f"; outside the axis: {outside[0]:.1f} % Geant4, {outside[1]:.1f} % {report.name}"
    return _image(figure, caption, f"{name}: {caption}")


def _ratio_panel(axes: Any, edges: Array, counts: Sequence[Array], totals: Sequence[int]) -> None:
    """Candidate over Geant4 with Poisson errors of both, between 0.5 and 1.5."""
    a, b = (c / n for c, n in zip(counts, totals, strict=True))
    used = (counts[0] > 0) & (counts[1] > 0)
    ratio = b[used] / a[used]
    error = ratio * np.sqrt(1 / counts[0][used] + 1 / counts[1][used])
    centres = 0.5 * (edges[1:] + edges[:-1])[used]
    axes.axhline(1, color=FADED, lw=0.8)
    axes.errorbar(centres, ratio, error, fmt=".", ms=3, lw=0.8, color=MODEL)
    axes.set_ylim(0.5, 1.5)
    axes.set_ylabel("ratio")


def response_panels(report: "Report") -> Iterator[Image]:
    """Mean and relative width of E_tot/E_inc against the incident energy."""
    energy = [s.incident.energy / 1e3 for s in (report.reference, report.candidate)]
    edges = energy_bins(energy[0])
    labels = {"mean": "mean of E_tot / E_inc", "width": "standard deviation / mean of E_tot / E_inc"}
    profiles = [profile(e, values["response"], edges) for e, values in zip(energy, report.values, strict=True)]
    for row, label in enumerate(labels.values()):
        figure = Figure(figsize=(4.8, 3.4), layout="constrained")
        axes = figure.subplots()
        for (x, table), colour, name, marker in zip(
            profiles, ("#4f7196", MODEL), ("Geant4", report.name), "so", strict=True
        ):
            axes.errorbar(x, table[row, 0], table[row, 1], fmt=f"{marker}-", ms=4, lw=1.2, color=colour, label=name)
        axes.set_xlabel("incident energy [GeV]")
        axes.set_ylabel(label)
        if edges[-1] > 30 * edges[0] and edges[0] > 0 and _is_log_spaced(edges):
            axes.set_xscale("log")
        axes.legend()
        yield _image(figure, label[0].upper() + label[1:])


def _is_log_spaced(edges: Array) -> bool:
    return bool(np.std(np.diff(np.log(edges))) < np.std(np.diff(edges)) / np.mean(edges))


def energy_bins(energy: Array) -> Array:
    """Bins of equal population of the incident energies (N,), or one bin per energy where there are few."""
    few = np.unique(energy)
    if len(few) <= 20:
        return histograms.drawing_edges(energy)
    edges = np.quantile(energy, np.linspace(0, 1, N_ENERGY_BINS + 1))
    edges[-1] = np.nextafter(edges[-1], np.inf)
    return np.unique(edges)


def profile(energy: Array, response: Array, edges: Array) -> tuple[Array, Array]:
    """Mean energy per bin (B,), and (2, 2, B): mean of the response and std/mean, each with its error."""
    x, rows = [], []
    bins = np.digitize(energy, edges) - 1
    for index in range(len(edges) - 1):
        values = response[bins == index]
        if len(values) < 5:
            continue
        n, mean, std = len(values), values.mean(), values.std(ddof=1)
        kurtosis = np.mean((values - mean) ** 4) / std**4 if std > 0 else 1.0
        x.append(energy[bins == index].mean())
        error = std / mean * np.sqrt(max(kurtosis - 1, 0) / (4 * n)) if mean > 0 else 0.0
        rows.append([[mean, std / np.sqrt(n)], [std / mean if mean > 0 else 0.0, error]])
    return np.array(x), np.array(rows).reshape(-1, 2, 2).transpose(1, 2, 0)


def roc_curves(report: "Report") -> Image:
    """ROC curves of both classifiers and of their floors."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes = figure.subplots()
    for level, colour in (("low", MODEL), ("high", "#2b6a4d")):
        score = report.scores[f"auc_{level}"]
        axes.plot(*report.roc[level], color=colour, lw=1.6, label=f"{level}: AUC {score.value:.3f} ± {score.error:.3f}")
        label = f"{level} floor: {score.floor:.3f} ± {score.floor_error:.3f}"
        axes.plot(*report.roc[f"{level} floor"], color=colour, lw=1, ls=":", label=label)
    axes.plot([0, 1], [0, 1], color=FADED, lw=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel(f"{report.name} showers taken for Geant4")
    axes.set_ylabel("Geant4 showers taken for Geant4")
    axes.legend(loc="lower right", fontsize=8)
    return _image(figure, "ROC curves of the first training, on its test split")


def nearest(showers: Showers, energies: Array, chunk: int = 4096) -> tuple[Array, Array]:
    """The shower nearest to each row of energies (K, V) and its distance: (K,), (K,) [sqrt(MeV)].

    Distance: |sqrt(e) - sqrt(e')|, Euclidean over voxels; the square root keeps the core from drowning the rest.
    """
    root = np.sqrt(energies.astype(np.float64))
    best = np.full(len(root), np.inf)
    index = np.zeros(len(root), dtype=np.int64)
    for start in range(0, len(showers), chunk):
        part = np.sqrt(showers.energy[start : start + chunk].astype(np.float64))
        for k, row in enumerate(root):
            distance = np.sqrt(((part - row) ** 2).sum(axis=1))
            if distance.min() < best[k]:
                best[k], index[k] = distance.min(), start + int(distance.argmin())
    return index, best


def nearest_neighbours(report: "Report") -> Iterator[Image]:
    """Five candidate showers, spread over the incident energy, above their nearest Geant4 showers."""
    order = np.argsort(report.candidate.incident.energy, kind="stable")
    chosen = order[((np.arange(N_EXAMPLES) + 0.5) / N_EXAMPLES * len(order)).astype(int)]
    index, distance = nearest(report.reference, report.candidate.energy[chosen])
    layers = drawn_layers(report.reference.geometry.n_layers)
    for mine, other, apart in zip(chosen, index, distance, strict=True):
        pair = report.candidate[np.array([mine])], report.reference[np.array([other])]
        figure = Figure(figsize=(2.3 * len(layers) + 0.7, 4.4), layout="constrained")
        grid = figure.add_gridspec(2, len(layers))
        for column, number in enumerate(layers):
            norm = _log_norm(*[showers.image(number)[0] for showers in pair])
            for row, (showers, name) in enumerate(zip(pair, (report.name, "Geant4"), strict=True)):
                values = np.ma.masked_less_equal(showers.image(number)[0], 0)
                layer = showers.geometry.layers[number]
                axes, mesh = draw_layer(figure, grid[row, column], layer, values, norm=norm, cmap=ENERGIES)
                axes.set_title(f"{name}, layer {number}")
            figure.colorbar(mesh, ax=figure.axes[-2:], location="bottom", label="MeV", shrink=0.9, aspect=25)
        energies = [f"{showers.incident.energy[0] / 1e3:.3g} GeV" for showers in pair]
        title = f"{report.name} {energies[0]}, nearest Geant4 shower {energies[1]}, distance {apart:.0f} √MeV"
        yield _image(figure, title)
