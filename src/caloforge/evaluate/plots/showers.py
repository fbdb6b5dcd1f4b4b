"""Pictures of showers: the mean one in each layer, and single ones beside their nearest Geant4 neighbours."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ...geometry import Array, Layer
from ...showers import Showers
from .style import DIFFERENCES, ENERGIES, Drawing, log_norm

if TYPE_CHECKING:
    from ..report import Report

N_LAYERS = 6  # layers drawn at most
N_EXAMPLES = 3


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


def mean_showers(reports: "Sequence[Report]") -> Iterator[Drawing]:
    """Mean energy per voxel of each layer: Geant4, candidate, and their relative difference."""
    reference = reports[0].reference
    for layer in drawn_layers(reference.geometry.n_layers):
        mean = reference.image(layer).mean(axis=0, dtype=np.float64)
        for number, report in enumerate(reports):
            other = report.candidate.image(layer).mean(axis=0, dtype=np.float64)
            figure = _mean_shower(reference.geometry.layers[layer], mean, other, report.name)
            caption = f"Layer {layer}" + (f", {report.name}" if len(reports) > 1 else "")
            alt = f"Mean energy per voxel in layer {layer}: Geant4, {report.name}, difference"
            yield Drawing(f"layer-{layer}-{number + 1}", figure, caption, alt, number + 1)


def _mean_shower(layer: Layer, reference: Array, candidate: Array, name: str) -> Figure:
    """Mean images (n_first, n_second) [MeV] side by side on one scale, and their difference in per cent."""
    norm = log_norm([reference, candidate])
    difference = np.full(reference.shape, np.nan)
    np.divide(100 * (candidate - reference), reference, out=difference, where=reference > 0)
    figure = Figure(figsize=(8.6, 2.5), layout="constrained")
    grid = figure.add_gridspec(1, 3)
    for column, (mean, title) in enumerate(((reference, "Geant4"), (candidate, name))):
        axes, mesh = draw_layer(figure, grid[column], layer, mean, norm=norm, cmap=ENERGIES)
        axes.set_title(title)
    figure.colorbar(mesh, ax=figure.axes, label="mean energy [MeV]", shrink=0.85)
    limit = float(np.clip(np.nanquantile(np.abs(difference), 0.95) if reference.any() else 1, 1, 100))
    axes, mesh = draw_layer(figure, grid[2], layer, difference, vmin=-limit, vmax=limit, cmap=DIFFERENCES)
    axes.set_title("difference")
    figure.colorbar(mesh, ax=axes, label="candidate / Geant4 - 1 [%]", shrink=0.85, extend="both")
    return figure


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


def nearest_neighbours(reports: "Sequence[Report]") -> Iterator[Drawing]:
    """Candidate showers, spread over the incident energy, above their nearest Geant4 showers."""
    reference = reports[0].reference
    for number, report in enumerate(reports):
        order = np.argsort(report.candidate.incident.energy, kind="stable")
        chosen = order[((np.arange(N_EXAMPLES) + 0.5) / N_EXAMPLES * len(order)).astype(int)]
        index, distance = nearest(reference, report.candidate.energy[chosen])
        for k, (mine, other, apart) in enumerate(zip(chosen, index, distance, strict=True)):
            pair = report.candidate[np.array([mine])], reference[np.array([other])]
            energies = [f"{showers.incident.energy[0] / 1e3:.3g} GeV" for showers in pair]
            caption = f"{report.name} {energies[0]}, nearest Geant4 shower {energies[1]}, distance {apart:.0f} √MeV"
            figure = _pair(pair, (report.name, "Geant4"))
            yield Drawing(f"example-{k}-{number + 1}", figure, caption, f"Voxel energies: {caption}", number + 1)


def _pair(pair: tuple[Showers, Showers], names: tuple[str, str]) -> Figure:
    """Two showers above each other, layer by layer on the same scale."""
    layers = drawn_layers(pair[0].geometry.n_layers)
    figure = Figure(figsize=(2.3 * len(layers) + 0.7, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, len(layers))
    for column, number in enumerate(layers):
        norm = log_norm([showers.image(number)[0] for showers in pair])
        for row, (showers, name) in enumerate(zip(pair, names, strict=True)):
            values = np.ma.masked_less_equal(showers.image(number)[0], 0)
            layer = showers.geometry.layers[number]
            axes, mesh = draw_layer(figure, grid[row, column], layer, values, norm=norm, cmap=ENERGIES)
            axes.set_title(f"{name}, layer {number}")
        figure.colorbar(mesh, ax=figure.axes[-2:], location="bottom", label="MeV", shrink=0.9, aspect=25)
    return figure
