"""Observables of a shower: numbers per shower that physicists look at, and the feature matrices of the classifiers.

Notation: e_k energy of voxel k [MeV], E_l = sum of e_k in layer l, E = sum of E_l, E_inc kinetic energy of the incident
particle; N showers, V voxels, L layers. ``<l>`` in a name is the position of the layer in the geometry, from 0.

The shower shapes are those of CaloGAN (Paganini, de Oliveira, Nachman, 1712.10321 sec. 4), the brightest-voxel
fractions those of CaloFlow (Krause, Shih, 2106.05285), centres and widths those of the CaloChallenge (2410.21611).
A layer or shower without energy gives 0 for every ratio, centre and width, and depth -1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..geometry import Array, Geometry, Layer
from ..showers import Incident, Showers

N_BRIGHTEST = 5
SOFTEST = 1e-8  # MeV, added to energies before the logarithm (CaloChallenge)
CHUNK = 4096  # showers in float64 at a time
CONDITIONS = ("theta", "phi", "x", "y")


def observables(showers: Showers, chunk: int = CHUNK) -> dict[str, Array]:
    """Every observable of every shower: name -> (N,) float64. Energies in MeV, lengths in mm, the rest without unit.

    total_energy, response = E/E_inc, layer_energy_<l>, fraction_<l> = E_l/E, occupied_<l> = fraction of voxels above
    0, depth = largest l with E_l > 0, lateral_depth = sum l E_l, shower_depth s = sum l E_l/E, shower_depth_width =
    sqrt(sum l^2 E_l/E - s^2), e_ratio_<l> = (e_1 - e_2)/(e_1 + e_2) of the two hottest voxels, brightest_<k>_<l> =
    e_k/E_l of the k-th hottest voxel; ec_x_<l>, ec_y_<l>: centre of energy, lateral_width_<l> and width_y_<l>: width
    along x and y, where the mesh resolves that axis; ec_r_<l>, width_r_<l>: the same along r in polar layers.
    """
    starts = range(0, max(len(showers), 1), chunk)
    parts = [_chunk_observables(showers[start : start + chunk]) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chunk_observables(showers: Showers) -> dict[str, Array]:
    out = _longitudinal(showers.layer_energy, showers.incident.energy)
    for number, layer in enumerate(showers.geometry.layers):
        image = showers.image(number).reshape(len(showers), layer.n_voxels).astype(np.float64)
        out |= {f"{name}_{number}": values for name, values in _hottest(image).items()}
        for axis, position in _positions(layer).items():
            centre, width = centre_and_width(image, position)
            out[f"ec_{axis}_{number}"] = centre
            out[f"{'lateral_width' if axis == 'x' else f'width_{axis}'}_{number}"] = width
    return out


def _longitudinal(layer_energy: Array, incident: Array) -> dict[str, Array]:
    """Observables that need only E_l (N, L) and E_inc (N,)."""
    number = np.arange(layer_energy.shape[1])
    total = layer_energy.sum(axis=1)
    fraction = _ratio(layer_energy, total[:, None])
    hit = layer_energy > 0
    shower_depth = fraction @ number
    out = {
        "total_energy": total,
        "response": total / incident,
        "depth": np.where(hit, number, -1).max(axis=1).astype(np.float64),
        "lateral_depth": layer_energy @ number,
        "shower_depth": shower_depth,
        "shower_depth_width": np.sqrt(np.maximum(fraction @ number**2 - shower_depth**2, 0)),
    }
    out |= {f"layer_energy_{i}": layer_energy[:, i] for i in number}
    return out | {f"fraction_{i}": fraction[:, i] for i in number}


def _hottest(image: Array) -> dict[str, Array]:
    """Occupied fraction, E_ratio and brightest-voxel fractions of one layer; image (N, v)."""
    n_top = min(N_BRIGHTEST, image.shape[1])
    top = -np.sort(-np.partition(image, image.shape[1] - n_top, axis=1)[:, -n_top:], axis=1)
    second = top[:, 1] if n_top > 1 else np.zeros(len(image))
    shares = _ratio(top, image.sum(axis=1)[:, None])
    out = {"occupied": (image > 0).mean(axis=1), "e_ratio": _ratio(top[:, 0] - second, top[:, 0] + second)}
    return out | {f"brightest_{k + 1}": shares[:, k] for k in range(n_top)}


def centre_and_width(image: Array, position: Array) -> tuple[Array, Array]:
    """Energy-weighted mean and standard deviation of the position: (N,), (N,) [mm].

    EC = sum x e / E_l, width = sqrt(sum x^2 e / E_l - EC^2); image (N, v) [MeV], position of the voxels (v,) [mm].
    """
    total = image.sum(axis=1)
    centre = _ratio(image @ position, total)
    return centre, np.sqrt(np.maximum(_ratio(image @ position**2, total) - centre**2, 0))


def _positions(layer: Layer) -> dict[str, Array]:
    """Positions of the voxel centres along each axis that the layer resolves: 'x', 'y', 'r' -> (v,) [mm]."""
    first, second = (0.5 * (np.array(e[:-1]) + np.array(e[1:])) for e in (layer.first, layer.second))
    a, b = (grid.ravel() for grid in np.meshgrid(first, second, indexing="ij"))
    if layer.kind == "polar":
        transverse = {"x": b * np.cos(a), "y": b * np.sin(a)} if len(first) > 1 else {}
        return transverse | ({"r": b} if len(second) > 1 else {})
    return ({"x": a} if len(first) > 1 else {}) | ({"y": b} if len(second) > 1 else {})


def _ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, 0 where the denominator is 0."""
    return np.asarray(numerator / np.where(denominator > 0, denominator, 1.0))


def varying_conditions(*incidents: Incident) -> tuple[str, ...]:
    """Names among theta, phi, x, y that are not one constant: the classifiers must see them as they see E_inc."""
    joined = {name: np.concatenate([getattr(incident, name) for incident in incidents]) for name in CONDITIONS}
    return tuple(name for name, values in joined.items() if np.ptp(values) > 0)


def low_level(showers: Showers, conditions: Sequence[str] = ()) -> Array:
    """Classifier input 'low' (CaloChallenge): [log10(E_inc/MeV), e_k/E_inc, conditions], (N, 1 + V + C) float32."""
    energy = showers.incident.energy[:, None]
    columns = [np.log10(energy), showers.energy / energy, _condition_columns(showers.incident, conditions)]
    return np.concatenate(columns, axis=1, dtype=np.float32)


def high_level(showers: Showers, values: Mapping[str, Array] | None = None, conditions: Sequence[str] = ()) -> Array:
    """Classifier input 'high' (CaloChallenge): (N, F) float64, columns in the order of ``high_level_names``.

    [log10 E_inc, log10(E_l + 1e-8), EC_x/100, EC_y/100, width_x/100, width_y/100, log10(E + 1e-8), empty fraction,
    EC_r/100, width_r/100, conditions]. ``values``: the observables of these showers, if they are known already.
    """
    known = observables(showers) if values is None else values
    columns = [np.log10(showers.incident.energy)]
    for name in high_level_names(showers.geometry)[1:]:
        if name.startswith(("layer_energy", "total_energy")):
            columns.append(np.log10(known[name] + SOFTEST))
        else:
            columns.append(1 - known[name] if name.startswith("occupied") else known[name] / 100)
    return np.concatenate([np.stack(columns, axis=1), _condition_columns(showers.incident, conditions)], axis=1)


def high_level_names(geometry: Geometry) -> tuple[str, ...]:
    """Observables behind the columns of ``high_level``, the incident energy first."""
    axes = [_positions(layer) for layer in geometry.layers]

    def where(prefix: str, axis: str | None = None) -> list[str]:
        return [f"{prefix}_{i}" for i in range(geometry.n_layers) if axis is None or axis in axes[i]]

    transverse = where("ec_x", "x") + where("ec_y", "y") + where("lateral_width", "x") + where("width_y", "y")
    radial = where("ec_r", "r") + where("width_r", "r")
    names = ["incident_energy", *where("layer_energy"), *transverse, "total_energy", *where("occupied"), *radial]
    return tuple(names)


def _condition_columns(incident: Incident, conditions: Sequence[str]) -> Array:
    """Conditions as numbers without a jump: phi as cos and sin. (N, C)."""
    columns = []
    for name in conditions:
        values = getattr(incident, name)
        columns += [np.cos(values), np.sin(values)] if name == "phi" else [values]
    return np.stack(columns, axis=1) if columns else np.empty((len(incident), 0))
