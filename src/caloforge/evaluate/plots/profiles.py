"""Where the energy is: profiles along the depth and the radius, energies of single voxels, correlations of layers."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ...geometry import Array, Geometry
from ...showers import Showers
from ..correlations import compare_correlations
from ..numbers import format_pair
from ..spectra import Profile, longitudinal_profile, radial_profile, spectrum_edges, voxel_spectrum
from .observables import band, draw_ratio, draw_steps, two_panels
from .style import DIFFERENCES, Drawing, candidate_style

if TYPE_CHECKING:
    from ..report import Report

N_RADII = 15
MOST_VOXELS = 10_000_000  # of each sample, in the radial profile and the spectrum
DECADES = 6
N_SPECTRUM = 60
N_BOOTSTRAP = 20
MOST_NUMBERED = 6  # layers up to which a correlation matrix has its numbers written in


def profiles(reports: "Sequence[Report]") -> Iterator[Drawing]:
    """Longitudinal and radial profile, and the spectrum of voxel energies."""
    geometry = reports[0].reference.geometry
    samples = [reports[0].reference, *(report.candidate for report in reports)]
    names = ["Geant4", *(report.name for report in reports)]
    if geometry.n_layers > 1:
        edges, label = depth_axis(geometry)
        yield _profile("longitudinal", edges, label, [longitudinal_profile(s) for s in samples], names)
    edges = radial_edges(geometry)
    used = [s[: max(1, MOST_VOXELS // s.geometry.n_voxels)] for s in samples]
    if len(edges) > 2:
        curves = [radial_profile(s, edges) for s in used]
        yield _profile("radial", edges, "distance from the shower axis [mm]", curves, names)
    if used[0].energy.any():
        yield _spectrum(used, names)


def depth_axis(geometry: Geometry) -> tuple[Array, str]:
    """Edges of the layers (L+1,) and the label: depth where all layers have one in order, else the layer number."""
    known = [layer.depth for layer in geometry.layers if layer.depth is not None]
    if len(known) == geometry.n_layers and all(a[1] <= b[0] + 1e-6 for a, b in pairwise(known)):
        between = [0.5 * (a[1] + b[0]) for a, b in pairwise(known)]
        return np.array([known[0][0], *between, known[-1][1]]), "depth [mm]"
    return np.arange(geometry.n_layers + 1) - 0.5, "layer"


def radial_edges(geometry: Geometry) -> Array:
    """Edges in radius (B+1,) [mm]: the rings of the mesh where all layers have the same, or equal steps with voxels."""
    rings = {layer.second if layer.kind == "polar" else None for layer in geometry.layers}
    first = next(iter(rings))
    if len(rings) == 1 and first is not None:
        return np.array(first)
    radius = np.hypot(*geometry.centres()[:, :2].T)
    edges = np.linspace(0, float(radius.max()) * (1 + 1e-9) + 1e-9, N_RADII + 1)
    return np.append(edges[:-1][np.histogram(radius, edges)[0] > 0], edges[-1])


def _profile(kind: str, edges: Array, label: str, curves: Sequence[Profile], names: Sequence[str]) -> Drawing:
    """Mean and spread over the showers of E/E_inc in each bin, in per cent; curves: the reference's first."""
    figure, top, bottom = two_panels(4.8, 3.9, f"{kind} profile", label)
    means, spreads = [100 * curve.mean for curve in curves], [100 * curve.spread for curve in curves]
    band(top, edges, means[0], spreads[0], names[0])
    for number, (mean, spread) in enumerate(zip(means[1:], spreads[1:], strict=True)):
        style = candidate_style(number)
        top.stairs(mean, edges, lw=1.3, label=names[number + 1], baseline=None, **style)
        for bound in (mean - spread, mean + spread):
            top.stairs(bound, edges, lw=0.6, alpha=0.7, baseline=None, **style)
    positive = means[0][means[0] > 0]
    if len(positive) and positive.max() > 100 * positive.min():
        top.set_yscale("log")
        top.set_ylim(0.3 * positive.min(), 3 * max((m + s).max() for m, s in zip(means, spreads, strict=True)))
    top.set_ylabel(r"$E\,/\,E_\mathrm{inc}$ [%]")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios, errors = [[100 * values / means[0] for values in columns] for columns in
                          ([c.mean for c in curves], [c.error for c in curves])]  # fmt: skip
    draw_ratio(bottom, edges, ratios[1:], errors[1:], errors[0])
    caption = f"{kind.capitalize()} profile: mean of E/E_inc per bin; band and thin lines: spread of the showers"
    return Drawing(f"profile-{kind}", figure, caption, f"{caption}; Geant4 and {', '.join(names[1:])}")


def _spectrum(samples: Sequence[Showers], names: Sequence[str]) -> Drawing:
    """Voxels above zero per shower and bin of the logarithm of their energy."""
    edges = spectrum_edges(samples[0], N_SPECTRUM)
    edges = np.geomspace(max(edges[0], edges[-1] * 10.0**-DECADES), edges[-1], N_SPECTRUM + 1)
    spectra = [voxel_spectrum(s, edges) for s in samples]
    means, errors = [s.mean[1:-1] for s in spectra], [s.error[1:-1] for s in spectra]
    figure, top, bottom = two_panels(4.8, 3.9, "energy of single voxels", "voxel energy [MeV]")
    draw_steps(top, edges, means, names)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios, spreads = [m / means[0] for m in means], [e / means[0] for e in errors]
    draw_ratio(bottom, edges, ratios[1:], spreads[1:], spreads[0])
    top.set_xscale("log")
    if means[0].any():
        top.set_yscale("log", nonpositive="clip")
    top.set_ylabel("voxels per shower")
    empty = ", ".join(f"{name} {100 * s.empty:.1f} %" for name, s in zip(names, spectra, strict=True))
    caption = f"Spectrum of the voxel energies above zero, {len(samples[0]):,} Geant4 showers; empty voxels: {empty}"
    return Drawing("voxel-spectrum", figure, caption, caption)


def correlations(reports: "Sequence[Report]") -> Iterator[Drawing]:
    """Pearson correlations of E_l / E_inc of all pairs of layers: Geant4, candidate, difference."""
    if reports[0].reference.geometry.n_layers < 2:
        return
    for number, report in enumerate(reports):
        found = compare_correlations(
            report.reference, report.candidate, over_incident=True, n_bootstrap=N_BOOTSTRAP, seed=0
        )
        figure = Figure(figsize=(8.6, 2.7), layout="constrained")
        limit = max(0.02, float(np.abs(found.difference).max()))
        matrices = ((found.reference, "Geant4", 1.0), (found.candidate, report.name, 1.0))
        for axes, (matrix, title, end) in zip(
            figure.subplots(1, 3), (*matrices, (found.difference, "difference", limit)), strict=True
        ):
            mesh = _matrix(axes, matrix, end)
            axes.set_title(title)
            if title != "Geant4":
                figure.colorbar(mesh, ax=axes, shrink=0.9, label="correlation" if end == 1 else "difference")
        caption = f"{report.name}: correlations between E_l / E_inc of the layers; mean absolute difference "
        caption += f"{format_pair(*found.distance)} (floor {format_pair(*found.floor)})"
        yield Drawing(f"correlations-{number + 1}", figure, caption, caption, number + 1)


def _matrix(axes: Any, matrix: Array, end: float) -> Any:
    edges = np.arange(len(matrix) + 1) - 0.5
    mesh = axes.pcolormesh(edges, edges, matrix, vmin=-end, vmax=end, cmap=DIFFERENCES, rasterized=True)
    axes.set_aspect("equal")
    axes.set_xlabel("layer")
    if len(matrix) <= MOST_NUMBERED:
        axes.set_xticks(range(len(matrix)))
        axes.set_yticks(range(len(matrix)))
        for (row, column), value in np.ndenumerate(matrix):
            colour = "white" if abs(value) > 0.7 * end else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    return mesh
