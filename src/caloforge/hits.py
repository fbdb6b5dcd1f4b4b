"""Hits to voxels: energy deposits at points in space, summed in the voxels of a mesh."""

import numpy as np

from .geometry import Array, Geometry


def voxelize(geometry: Geometry, n: int, event: Array, position: Array, value: Array) -> tuple[Array, Array]:
    """Sum deposits of n showers in the voxels of a geometry with depths.

    event: shower of each deposit, (M,) int; position: (M, 3) [mm], z from the front face; value: (M,) [MeV].
    Returns voxel energies (n, V) and the energy that fell beside each layer's mesh, overflow (n, L), in MeV. Deposits
    in no layer's depth count as overflow of the nearest layer in front; energy is conserved.
    """
    for layer in geometry.layers:
        if layer.depth is None:
            raise ValueError(f"got geometry {geometry.name!r} without depths, expected a depth for every layer; add them")
    fronts = np.array([layer.depth[0] for layer in geometry.layers if layer.depth])
    backs = np.array([layer.depth[1] for layer in geometry.layers if layer.depth])
    number = np.clip(np.searchsorted(fronts, position[:, 2], side="right") - 1, 0, None)
    inside_depth = (position[:, 2] >= fronts[number]) & (position[:, 2] <= backs[number])
    energy = np.zeros((n, geometry.n_voxels))
    overflow = np.zeros((n, geometry.n_layers))
    for i, layer in enumerate(geometry.layers):
        here = number == i
        x, y = position[here, 0], position[here, 1]
        first, second = (np.arctan2(y, x), np.hypot(x, y)) if layer.kind == "polar" else (x, y)
        a = np.searchsorted(layer.first, first, side="right") - 1
        b = np.searchsorted(layer.second, second, side="right") - 1
        (na, nb), start = layer.shape, geometry.offsets[i]
        if layer.kind == "polar":
            a = np.where(first == layer.first[-1], 0, a)  # alpha = pi is alpha = -pi
        ok = inside_depth[here] & (a >= 0) & (a < na) & (b >= 0) & (b < nb)
        e, w = event[here], value[here]
        flat = e[ok] * layer.n_voxels + a[ok] * nb + b[ok]
        sums = np.bincount(flat, w[ok], minlength=n * layer.n_voxels)
        energy[:, start : start + layer.n_voxels] = sums.reshape(n, layer.n_voxels)
        overflow[:, i] = np.bincount(e[~ok], w[~ok], minlength=n)
    return energy, overflow
