"""Hits to voxels: energy deposits at points in space, summed in the voxels of a mesh."""

from collections.abc import Sequence

import numpy as np

from .geometry import Array, Geometry, Layer


def bin_index(edges: Sequence[float], value: Array) -> Array:
    """Bin of each value: i where edges[i] <= value < edges[i + 1], -1 below and n from the last edge on, (M,) int64."""
    bounds = np.array([-np.inf, *edges, np.inf])
    low, n = bounds[1], len(edges) - 1
    width = (bounds[-2] - low) / n
    if not np.allclose(np.diff(edges), width, rtol=1e-6, atol=0):
        return np.asarray(np.searchsorted(edges, value, side="right") - 1)
    # Equal bins: a division is four times faster than a search; it may be one bin off at an edge, which is put right.
    guess: Array = np.floor(np.clip((value - low) / width, -1, n)).astype(np.int64)
    guess += value >= bounds[guess + 2]
    guess -= value < bounds[guess + 1]
    return guess


def voxelize(geometry: Geometry, n: int, event: Array, position: Array, value: Array) -> tuple[Array, Array]:
    """Sum deposits of n showers in the voxels of a geometry with depths, which must not overlap.

    event: shower of each deposit, (M,) int; position: (M, 3) [mm], z from the front face; value: (M,) [MeV].
    Returns voxel energies (n, V) and the energy that fell beside each layer's mesh, overflow (n, L), in MeV. Deposits
    in no layer's depth count as overflow of the nearest layer in front; energy is conserved.
    """
    number, inside_depth = _layer_of(geometry, np.asarray(position)[:, 2])
    energy = np.zeros((n, geometry.n_voxels))
    overflow = np.zeros((n, geometry.n_layers))
    for i, layer in enumerate(geometry.layers):
        here = np.flatnonzero(number == i)
        x, y, e, w = position[here, 0], position[here, 1], event[here], value[here]
        first, second = (_alpha(layer, x, y), np.hypot(x, y)) if layer.kind == "polar" else (x, y)
        a, b = bin_index(layer.first, first), bin_index(layer.second, second)
        (na, nb), start = layer.shape, geometry.offsets[i]
        ok = inside_depth[here] & (a >= 0) & (a < na) & (b >= 0) & (b < nb)
        flat = e[ok] * layer.n_voxels + a[ok] * nb + b[ok]
        sums = np.bincount(flat, w[ok], minlength=n * layer.n_voxels)
        energy[:, start : start + layer.n_voxels] = sums.reshape(n, layer.n_voxels)
        overflow[:, i] = np.bincount(e[~ok], w[~ok], minlength=n)
    return energy, overflow


def _layer_of(geometry: Geometry, z: Array) -> tuple[Array, Array]:
    """Layer of each depth z [mm], (M,) int, and whether z lies inside that layer, (M,) bool."""
    depths = [layer.depth for layer in geometry.layers if layer.depth is not None]
    if len(depths) < geometry.n_layers:
        raise ValueError(f"got geometry {geometry.name!r} without depths, expected a depth for every layer; add them")
    fronts, backs = np.array(depths).T
    if np.any(fronts[1:] < backs[:-1]):
        raise ValueError(f"got geometry {geometry.name!r} with layers that overlap or are not in order of depth, "
                         "expected one behind the other; sort them or correct the depths")  # fmt: skip
    number = np.clip(np.searchsorted(fronts, z, side="right") - 1, 0, None)
    return number, (z >= fronts[number]) & (z <= backs[number])


def _alpha(layer: Layer, x: Array, y: Array) -> Array:
    """Angle of the points, moved by 2 pi into the layer's range; the end of a full circle is its beginning."""
    low, high = layer.first[0], layer.first[-1]
    alpha = np.arctan2(y, x)
    alpha = np.where(alpha < low, alpha + 2 * np.pi, alpha)
    return np.where(alpha >= high, alpha - 2 * np.pi, alpha)
