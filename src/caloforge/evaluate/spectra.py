"""Spectra, profiles, correlations and resolution: curves of a sample, each point with its error.

e_k: energy of voxel k [MeV], E_l: energy in layer l, E: energy in all voxels, E_inc: kinetic energy of the incident
particle; N showers, V voxels, L layers, B bins. Errors of means are the standard deviation over the showers divided by
sqrt(N): voxels of one shower fluctuate together and are never counted as independent.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..geometry import Array, Layer
from ..showers import Showers

N_BINS = 50
CHUNK = 2**22  # voxels at a time


@dataclass(frozen=True)
class Spectrum:
    """Voxels per shower against voxel energy.

    edges: [MeV], (B+1,); mean, error: mean number of voxels of one shower in each bin, under- and overflow first and
    last, (B+2,); exact zeros are in none of them but in empty, empty_error: mean fraction of voxels without energy.
    """

    edges: Array
    mean: Array
    error: Array
    empty: float
    empty_error: float


def spectrum_edges(reference: Showers, n_bins: int = N_BINS) -> Array:
    """Edges [MeV], equal in the logarithm, from the smallest to the largest voxel energy above 0: (n_bins + 1,)."""
    low, high = np.inf, 0.0
    for _, part in _chunks(reference):
        hit = part.energy[part.energy > 0]
        if len(hit):
            low, high = min(low, float(hit.min())), max(high, float(hit.max()))
    if high == 0:
        raise ValueError("got showers without energy, expected some; check the file")
    if low == high:
        low, high = 0.5 * low, 2 * high
    edges = np.geomspace(low, high, n_bins + 1)
    edges[0], edges[-1] = low, np.nextafter(high, np.inf)
    return edges


def voxel_spectrum(showers: Showers, edges: Array, layer: int | None = None) -> Spectrum:
    """Spectrum of the voxel energies of a sample, in all layers or in one; edges as from ``spectrum_edges``."""
    counts = np.zeros((len(showers), len(edges) + 1))
    empty = np.zeros(len(showers))
    for rows, part in _chunks(showers):
        energy = part.energy if layer is None else part.image(layer).reshape(len(part), -1)
        hit = energy > 0
        index = np.searchsorted(edges, energy[hit], side="right")
        number = np.nonzero(hit)[0] * (len(edges) + 1) + index
        size = len(part) * (len(edges) + 1)
        counts[rows] = np.bincount(number, minlength=size).reshape(len(part), -1)
        empty[rows] = 1 - hit.mean(axis=1)
    mean, error = _mean(counts)
    share, share_error = _mean(empty)
    return Spectrum(np.asarray(edges), mean, error, float(share), float(share_error))


def leading_voxels(showers: Showers, n: int = 10) -> Array:
    """Share of the k-th hottest voxel of the whole shower in its energy, e_(k)/E for k = 1 ... n: (N, n).

    Showers without energy have 0; ``observables`` holds the same for each layer.
    """
    if not 1 <= n <= showers.geometry.n_voxels:
        raise ValueError(f"got {n} voxels, expected 1 to {showers.geometry.n_voxels}; change the number")
    out = np.empty((len(showers), n))
    for rows, part in _chunks(showers):
        top = -np.sort(-np.partition(part.energy, -n, axis=1)[:, -n:], axis=1).astype(np.float64)
        total = part.total[:, None]
        out[rows] = top / np.where(total > 0, total, 1)
    return out


def voxels_holding(showers: Showers, share: float = 0.9) -> Array:
    """Smallest number of voxels that together hold ``share`` of the shower's energy: (N,) int64, 0 without energy."""
    if not 0 < share <= 1:
        raise ValueError(f"got share {share:g}, expected above 0 and at most 1; change it")
    out = np.empty(len(showers), dtype=np.int64)
    for rows, part in _chunks(showers):
        held = np.cumsum(-np.sort(-part.energy.astype(np.float64), axis=1), axis=1)
        wanted = share * held[:, -1] * (1 - 1e-12)
        out[rows] = np.where(held[:, -1] > 0, (held < wanted[:, None]).sum(axis=1) + 1, 0)
    return out


@dataclass(frozen=True)
class Profile:
    """A mean profile: position of the bins [mm], (B,) (layer number where the geometry has no depth); mean over the
    showers, its error, and spread from shower to shower, (B,)."""

    position: Array
    mean: Array
    error: Array
    spread: Array


def longitudinal_profile(showers: Showers) -> Profile:
    """Energy in each layer over the incident energy, E_l/E_inc, against the depth of its middle."""
    layers = showers.geometry.layers
    known = all(layer.depth is not None for layer in layers)
    depth = [0.5 * sum(layer.depth or (0, 0)) if known else float(i) for i, layer in enumerate(layers)]
    return _profile(np.array(depth), showers.layer_energy / showers.incident.energy[:, None])


def radial_profile(showers: Showers, edges: Array, layer: int | None = None) -> Profile:
    """Energy between two distances from the shower axis over the incident energy, in all layers or in one.

    edges: [mm], rising, (B+1,). The distance of a voxel is that of its centre: r in polar layers, whose axis is that of
    the shower; in cartesian layers from the point where the incident particle's line crosses the middle of the layer
    (the front face, where the geometry has no depth). Energy outside the edges is left out.
    """
    chosen = range(showers.geometry.n_layers) if layer is None else [layer]
    energy = np.zeros((len(showers), len(edges) - 1))
    for number in chosen:
        mesh = showers.geometry.layers[number]
        for rows, part in _chunks(showers):
            image = part.image(number).reshape(len(part), mesh.n_voxels).astype(np.float64)
            energy[rows] += _rings(image, mesh, part, np.asarray(edges))
    edges = np.asarray(edges, dtype=np.float64)
    return _profile(0.5 * (edges[1:] + edges[:-1]), energy / showers.incident.energy[:, None])


def _rings(image: Array, layer: Layer, showers: Showers, edges: Array) -> Array:
    """Energy of images (n, v) of one layer between the edges: (n, B)."""
    first, second = (0.5 * (np.array(e[:-1]) + np.array(e[1:])) for e in (layer.first, layer.second))
    a, b = (grid.ravel() for grid in np.meshgrid(first, second, indexing="ij"))
    if layer.kind == "polar":
        distance = b[None, :]
    else:
        depth = 0.0 if layer.depth is None else 0.5 * sum(layer.depth)
        incident = showers.incident
        tangent = np.tan(incident.theta)
        x, y = incident.x + depth * tangent * np.cos(incident.phi), incident.y + depth * tangent * np.sin(incident.phi)
        if np.ptp(x) == 0 and np.ptp(y) == 0:
            x, y = x[:1], y[:1]
        distance = np.hypot(a - x[:, None], b - y[:, None])
    size = len(edges) + 1
    index = np.searchsorted(edges, distance, side="right")
    if len(index) == 1:  # one axis for all showers
        return np.asarray(image @ np.eye(size)[index[0]])[:, 1:-1]
    number = np.arange(len(image))[:, None] * size + index
    sums = np.bincount(number.ravel(), weights=image.ravel(), minlength=len(image) * size)
    return np.asarray(sums.reshape(len(image), size)[:, 1:-1])


def _profile(position: Array, values: Array) -> Profile:
    mean, error = _mean(values)
    return Profile(position, mean, error, values.std(axis=0))


def _mean(values: Array) -> tuple[Array, Array]:
    """Mean over the showers and its error."""
    return values.mean(axis=0), values.std(axis=0) / np.sqrt(len(values))


def _chunks(showers: Showers) -> Iterator[tuple[slice, Showers]]:
    step = max(1, CHUNK // showers.geometry.n_voxels)
    for start in range(0, max(len(showers), 1), step):
        rows = slice(start, start + step)
        yield rows, showers[rows]
