"""Observables of one calorimeter layer under oblique incidence, those of LHCb (Chekalina et al., 1812.01319).

E_k: energy of cell k with its centre at (X_k, Y_k), E = sum E_k; a particle of direction (theta, phi) enters the front
face at (x0, y0). Its trajectory has the slopes t_x = tan(theta) cos(phi), t_y = tan(theta) sin(phi) and passes the
depth z_m of the shower maximum at x_m = x0 + z_m t_x, y_m = y0 + z_m t_y. With the unit vector u along (t_x, t_y) (the
x axis at normal incidence) and v = (-u_y, u_x), cells have the coordinates s = (X - x_m, Y - y_m) u along the projected
momentum and t = (X - x_m, Y - y_m) v across it.

    longitudinal_asymmetry  A_L = (E[s > 0] - E[s < 0])/E     longitudinal_width  sqrt(sum E_k (s - <s>)^2/E)  [mm]
    transverse_asymmetry    A_T = (E[t > 0] - E[t < 0])/E     transverse_width    sqrt(sum E_k (t - <t>)^2/E)  [mm]
    delta_x, delta_y        sum E_k X_k/E - x_m, and the same in y  [mm]

``legacy_observables`` repeats the definitions of the public code behind the paper's figure 4, whose coordinates mix
units. They serve to compare with published curves and with nothing else: never put both kinds in one plot.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..geometry import Array, Layer
from ..showers import Showers

Z_M = 108.0  # mm: the depth at which <A_L> = 0 for LHCb's electrons of 1 to 100 GeV, 6.6 radiation lengths
LEGACY_Z_M = 250.0  # mm, in the public code
LEGACY_CM = 10.0  # mm
LEGACY_POINTS = 100  # of the profile along a line
CHUNK = 2**21  # cells in float64 at a time


def observables(showers: Showers, *, z_m: float | Array = Z_M) -> dict[str, Array]:
    """The clean observables of showers in one cartesian layer: name -> (N,) float64.

    z_m: depth of the shower maximum [mm], one number or one for each shower, (N,). A shower without energy has 0 for
    all of them.
    """
    layer = _only_layer(showers)
    depth = _per_shower(z_m, len(showers))
    parts = [_clean(part, layer, depth[rows]) for rows, part in _chunks(showers)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _clean(showers: Showers, layer: Layer, z_m: Array) -> dict[str, Array]:
    energy = showers.energy.astype(np.float64)
    total = energy.sum(axis=1)
    share = energy / np.where(total > 0, total, 1)[:, None]
    cells = np.stack([grid.ravel() for grid in np.meshgrid(*_centres(layer), indexing="ij")])  # (2, V)
    tx, ty = slopes(showers)
    x_m, y_m = showers.incident.x + z_m * tx, showers.incident.y + z_m * ty
    t = np.hypot(tx, ty)
    ux, uy = (np.where(t > 0, a / np.where(t > 0, t, 1), b) for a, b in ((tx, 1.0), (ty, 0.0)))
    x, y = cells[0] - x_m[:, None], cells[1] - y_m[:, None]
    out = {}
    for name, a, b in (("longitudinal", ux, uy), ("transverse", -uy, ux)):
        along = a[:, None] * x + b[:, None] * y
        mean = (share * along).sum(axis=1)
        out[f"{name}_asymmetry"] = (share * np.sign(along)).sum(axis=1)
        out[f"{name}_width"] = np.sqrt(np.maximum((share * (along - mean[:, None]) ** 2).sum(axis=1), 0))
    return out | {"delta_x": (share * x).sum(axis=1), "delta_y": (share * y).sum(axis=1)}


def slopes(showers: Showers) -> tuple[Array, Array]:
    """t_x = p_x/p_z and t_y = p_y/p_z of the incident particles, (N,) and (N,)."""
    incident = showers.incident
    if np.any(np.abs(np.cos(incident.theta)) < 1e-9):
        raise ValueError("got particles along the layer (theta = pi/2), which have no slope; remove those showers")
    tangent = np.tan(incident.theta)
    return tangent * np.cos(incident.phi), tangent * np.sin(incident.phi)


@dataclass(frozen=True)
class SparsityCurve:
    """Fraction of cells above a threshold: threshold, mean over the showers, its error, spread of the showers, (T,)."""

    threshold: Array
    mean: Array
    error: Array
    spread: Array


def sparsity_curve(showers: Showers, threshold: ArrayLike, *, relative: bool = False) -> SparsityCurve:
    """Mean fraction of cells with E_k > threshold [MeV]; relative: with E_k >= threshold times the shower's energy.

    The public code of 1812.01319 draws the relative one, thresholds 1e-5 to 1, under the label of an energy.
    """
    limits = np.atleast_1d(np.asarray(threshold, dtype=np.float64))
    fraction = np.empty((len(showers), len(limits)))
    for rows, part in _chunks(showers):
        energy = part.energy.astype(np.float64)
        for column, limit in enumerate(limits):
            above = energy >= limit * energy.sum(axis=1)[:, None] if relative else energy > limit
            fraction[rows, column] = above.mean(axis=1)
    spread = fraction.std(axis=0)
    return SparsityCurve(limits, fraction.mean(axis=0), spread / np.sqrt(len(showers)), spread)


def legacy_observables(showers: Showers, *, z_m: float = LEGACY_Z_M) -> dict[str, Array]:
    """The observables as the public code of 1812.01319 computes them: name -> (N,) float64; only for its figure 4.

    Cells have the coordinates g = -14.5 ... 14.5 (30 of them, in cells of 20.2 mm) while x_m, y_m are in cm; they are
    compared as if of one unit.

    legacy_longitudinal_asymmetry, legacy_transverse_asymmetry: energy on the two sides of the line through (x_m, y_m)
    perpendicular to and along the projected momentum. legacy_longitudinal_width, legacy_transverse_width: width of the
    energy along a line y = k (x - x_m) + y_m, from 100 points x in g of a cubic spline through the cells (negative
    values as 0), times sqrt(1 + (p_y/p_x)^2), with k = p_x/p_y and k = -p_y/p_x: slopes that are neither along nor
    across the momentum. legacy_delta_x: sum E_k g_k/E - x_m, g along x.

    The code has z_m = 250 mm. The published panels were not all made so. On Geant4 showers of this detector A_L is
    -0.92 with it and -0.014 +- 0.417 with 130 mm, published -0.015 +- 0.430; delta_x has the published spread of 1.328
    with 98 mm, and the published Gaussian shape, which is the angle that the mixed units leave over; the transverse
    width has the published median with 250 mm; the longitudinal width (median 0.95) has not the published one (2.2).
    NaN where a width has no line (p_x or p_y of 0) or no energy on it.
    """
    layer = _only_layer(showers)
    grid = [np.arange(n) - 0.5 * (n - 1) for n in layer.shape]
    tx, ty = slopes(showers)
    x_m, y_m = ((r + z_m * t) / LEGACY_CM for r, t in ((showers.incident.x, tx), (showers.incident.y, ty)))
    image = showers.image(0).astype(np.float64)
    total = image.sum(axis=(1, 2))
    share = image / np.where(total > 0, total, 1)[:, None, None]
    g_x, g_y = np.meshgrid(*grid, indexing="ij")
    x, y = g_x - x_m[:, None, None], g_y - y_m[:, None, None]  # as if g were in cm
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (ty / tx)[:, None, None]  # along the momentum: y = ratio x
        ahead = np.where(ty[:, None, None] < 0, -1, 1) * (y + x / ratio) >= 0
        left = y - ratio * x >= 0
        scale = np.hypot(1, ty / tx)
        widths = {
            "longitudinal": _line_width(image, grid, tx / ty, x_m, y_m, scale),
            "transverse": _line_width(image, grid, -ty / tx, x_m, y_m, scale),
        }
    return {
        "legacy_longitudinal_asymmetry": (share * np.where(ahead, 1, -1)).sum(axis=(1, 2)),
        "legacy_transverse_asymmetry": (share * np.where(left, 1, -1)).sum(axis=(1, 2)),
        "legacy_longitudinal_width": widths["longitudinal"],
        "legacy_transverse_width": widths["transverse"],
        "legacy_delta_x": (share * x).sum(axis=(1, 2)),
    }


def _line_width(image: Array, grid: list[Array], slope: Array, x_m: Array, y_m: Array, scale: Array) -> Array:
    """Width of the energy along lines y = slope (x - x_m) + y_m through the images (N, n, m): (N,)."""
    from scipy.interpolate import RectBivariateSpline

    x = np.linspace(grid[0][0], grid[0][-1], LEGACY_POINTS)
    out = np.full(len(image), np.nan)
    for i in np.flatnonzero(np.isfinite(slope) & np.isfinite(scale)):
        profile = RectBivariateSpline(*grid, image[i], s=0).ev(x, slope[i] * (x - x_m[i]) + y_m[i])
        profile = np.maximum(profile, 0)
        if profile.sum() > 0:
            along = scale[i] * x
            mean = np.average(along, weights=profile)
            out[i] = np.sqrt(max(np.average(along**2, weights=profile) - mean**2, 0))
    return out


def _centres(layer: Layer) -> tuple[Array, Array]:
    """Cell centres along x and y [mm]."""
    first, second = (0.5 * (np.array(e[:-1]) + np.array(e[1:])) for e in (layer.first, layer.second))
    return first, second


def _only_layer(showers: Showers) -> Layer:
    layers = showers.geometry.layers
    if len(layers) != 1 or layers[0].kind != "cartesian":
        raise ValueError(
            f"got geometry {showers.geometry.name!r} with {len(layers)} layers, the first {layers[0].kind}, expected "
            "one cartesian layer; use caloforge.evaluate.observables"
        )
    return layers[0]


def _per_shower(z_m: float | Array, n: int) -> Array:
    depth = np.asarray(z_m, dtype=np.float64)
    if depth.shape not in ((), (n,)) or not np.all(np.isfinite(depth)):
        raise ValueError(f"got z_m of shape {depth.shape}, expected one finite depth [mm] or {n}; correct it")
    return np.broadcast_to(depth, (n,))


def _chunks(showers: Showers) -> Iterator[tuple[slice, Showers]]:
    step = max(1, CHUNK // showers.geometry.n_voxels)
    for start in range(0, max(len(showers), 1), step):
        rows = slice(start, start + step)
        yield rows, showers[rows]
