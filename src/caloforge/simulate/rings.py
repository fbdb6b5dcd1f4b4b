"""Aligned showers voxel by voxel: expected spots of every voxel, then one draw per voxel instead of one per spot.

Spots are Poisson processes, so the numbers of spots in the voxels are independent Poisson numbers. Where all showers
fly along the axis of the mesh, their means are linear in the energy that each step in depth gives to each radial scale:

    mean = sum over scales R of energy(layer, R) sum over rings of density(ring | R) share(voxel | ring).

The sum over rings is done once. N showers, L layers, K steps in depth, J radial scales, I rings, C columns (the voxels
of each layer and what falls beside its mesh). Moments are those of the spots in a column: mean number, energy [MeV],
and energy squared [MeV^2].
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import gammainc, gammaincinv

from ..geometry import Array, Geometry, Layer
from ..hits import voxelize
from ..showers import Incident
from .detectors import Detector
from .profiles import R_MAX, TAU_MAX, Particles, Stack, axis_energy, develop, radial
from .spots import STEP, cosine
from .tuning import Tuning

SCALES = np.geomspace(0.01, 12.0, 56)  # R_C and R_T [Moliere radii]; profiles in between are mixed
EDGES = np.unique([0.0, R_MAX, *np.geomspace(0.01, 40.0, 200)])  # of the rings [Moliere radii]
RADII, ANGLES = 3, 480  # points of a ring
SHIFT = 0.03  # [Moliere radii] for the derivative of the shares with the position of the axis
FEWEST, MOST = 0.05, 20.0  # factors on a voxel's expectation by the tilt of the axis: it is a first order
LENGTHS, COSINES = 160, 48  # quantiles of the way of halo spots


@dataclass(frozen=True, eq=False)
class Mesh:
    """A readout seen from the shower axis.

    z: borders of the steps [mm], (K + 1,); layer: of each step, -1 for none, (K,); shares: of each ring in each column
    of a layer, and their derivatives by x and y [1/mm], (3, I, C_l) per layer; start: first column of each layer,
    (L + 1,).
    """

    z: Array
    layer: Array
    shares: tuple[Array, ...]
    start: Array

    @cached_property
    def voxels(self) -> Array:
        """Columns that are voxels, in the order of the geometry, (V,)."""
        return np.delete(np.arange(self.start[-1]), self.start[1:] - 1)


@lru_cache(maxsize=4)
def mesh(d: Detector) -> Mesh:
    """The mesh of a detector whose axis the showers follow."""
    z, number = [0.0], []
    for i, layer in enumerate(d.geometry.layers):
        assert layer.depth is not None  # Parametric has seen to it
        for back, which in ((layer.depth[0], -1), (layer.depth[1], i)):
            if back > z[-1] + 1e-6:
                n = int(np.ceil((back - z[-1]) / (STEP * d.x0) - 1e-6))
                z += np.linspace(z[-1], back, n + 1)[1:].tolist()
                number += [which] * n
    known: dict[tuple[object, ...], Array] = {}
    shares = []
    for layer in d.geometry.layers:
        key = layer.kind, layer.first, layer.second
        if key not in known:
            known[key] = _shares_and_slopes(layer, d)
        shares.append(known[key])
    start = np.cumsum([0, *(s.shape[2] for s in shares)])
    return Mesh(np.array(z), np.array(number), tuple(shares), start)


def _shares_and_slopes(layer: Layer, d: Detector) -> Array:
    h = SHIFT * d.moliere
    at = [_shares(layer, d, x, y) for x, y in ((0, 0), (h, 0), (-h, 0), (0, h), (0, -h))]
    return np.stack([at[0], (at[1] - at[2]) / (2 * h), (at[3] - at[4]) / (2 * h)])


def _shares(layer: Layer, d: Detector, x0: float, y0: float) -> Array:
    """Share of each ring around (x0, y0) [mm] in each voxel of a layer and, last, beside its mesh, (I, C_l)."""
    n, part = len(EDGES) - 1, (np.arange(RADII) + 0.5) / RADII
    r = np.sqrt(EDGES[:-1, None] ** 2 * (1 - part) + EDGES[1:, None] ** 2 * part)[:, :, None] * d.moliere
    psi = 2 * np.pi * (np.arange(ANGLES) + 0.5) / ANGLES
    x, y = (x0 + r * np.cos(psi)).ravel(), (y0 + r * np.sin(psi)).ravel()
    ring = np.arange(n).repeat(RADII * ANGLES)
    inside = np.flatnonzero((np.abs(x) <= d.width / 2) & (np.abs(y) <= d.width / 2))
    point = np.stack([x[inside], y[inside], np.full(len(inside), 0.5)], axis=1)
    one = Geometry("one", (replace(layer, depth=(0.0, 1.0)),))
    weight = np.full(len(inside), 1 / (RADII * ANGLES))
    return np.concatenate(voxelize(one, n, ring[inside], point, weight), axis=1)


def component(stack: Stack, c: Tuning, core: bool) -> Array:
    """Moments of each ring per MeV that is shared with radial scale R, (3, J, I): energy with the density
    q^-(1 + nu), q = 1 + r^2/R^2, in spots of floor + e_0 q^-s MeV."""
    power = c.core_power if core else c.tail_power
    scale = SCALES[:, None]
    q_max = 1 + (R_MAX / scale) ** 2
    q = np.minimum(1 + (EDGES / scale) ** 2, q_max)
    energy = -np.diff(q**-power, axis=1) / (1 - q_max**-power)
    spot = np.full_like(energy, c.spot_floor)
    if core:
        spot += axis_energy(stack, scale, c) * np.sqrt(q[:, 1:] * q[:, :-1]) ** -c.spot_falloff
    return np.stack([energy / spot, energy, energy * spot * np.exp(c.spot_spread**2)])


def wandering(m: Mesh, d: Detector, reach: float, forward: float) -> Array:
    """Where spots end that leave the axis in each step, (K, C): the lengths and directions of ``spots.wandering``."""
    far = gammaincinv(2, (np.arange(LENGTHS) + 0.5) / LENGTHS).repeat(COSINES) * reach * d.moliere
    cos = np.tile(cosine((np.arange(COSINES) + 0.5) / COSINES, forward), LENGTHS)
    ring = np.searchsorted(EDGES, far * np.sqrt(1 - cos**2) / d.moliere, side="right") - 1
    along = (np.arange(len(far)) * 0.6180339887) % 1  # of the step, spread evenly
    front, back = np.array([layer.depth for layer in d.geometry.layers]).T
    n_rings, n_layers, n_steps = len(EDGES) - 1, len(front), len(m.z) - 1
    out = np.zeros((n_steps, m.start[-1]), dtype=np.float32)
    for k in range(n_steps):
        z = m.z[k] + (m.z[k + 1] - m.z[k]) * along + far * cos
        number = np.searchsorted(front, z, side="right") - 1
        hit = np.flatnonzero((number >= 0) & (ring < n_rings))
        hit = hit[z[hit] <= back[number[hit]]]
        flat = np.bincount(number[hit] * n_rings + ring[hit], minlength=n_layers * n_rings) / len(far)
        for i in np.flatnonzero(np.bincount(number[hit], minlength=n_layers)):
            out[k, m.start[i] : m.start[i + 1]] = flat[i * n_rings : (i + 1) * n_rings] @ m.shares[i][0]
    return out


class Rings:
    """Voxel energies of aligned showers of a detector with a tuning."""

    def __init__(self, d: Detector, stack: Stack, spread: float, tuning: Tuning) -> None:
        self.stack, self.spread, self.c = stack, spread, tuning
        self.mesh = mesh(d)
        self.t = stack.radiation(self.mesh.z)
        both = np.concatenate([component(stack, tuning, core) for core in (True, False)], axis=1)  # (3, 2 J, I)
        known: dict[int, Array] = {}
        for s in self.mesh.shares:
            if id(s) not in known:
                slopes = np.concatenate([both[1] @ s[0], both[1] @ s[1], both[1] @ s[2]], axis=1)
                known[id(s)] = np.concatenate([both[0] @ s[0], slopes, both[2] @ s[0]], axis=1).astype(np.float32)
        self.tables = [known[id(s)] for s in self.mesh.shares]  # (2 J, 5 C_l)
        self.halo = wandering(self.mesh, d, tuning.halo_range, tuning.halo_forward) if tuning.halo else None
        self.neutrons = wandering(self.mesh, d, tuning.neutron_range, 0.0) if tuning.neutrons else None

    def draw(self, incident: Incident, rng: np.random.Generator, spot_rng: np.random.Generator) -> tuple[Array, Array]:
        """Energies of the voxels (N, V) and beside the mesh of each layer (N, L) [MeV]."""
        p = develop(self.stack, self.spread, self.c, incident, rng)
        energy, layers, depth = self._steps(p, len(incident))
        moments = self._moments(p, layers, depth)
        if self.halo is not None:
            halo = (energy * np.float32(self.c.halo)) @ self.halo
            e, more = np.float32(self.c.halo_energy), np.float32(np.exp(self.c.spot_spread**2))
            moments += np.stack([halo / e, halo, halo * (e * more)])
        value = compound(moments[0], moments[1], moments[2], spot_rng)
        lost = incident.energy - moments[1].sum(axis=1, dtype=np.float64)  # behind, beside and in front of the detector
        escaped = spot_rng.poisson(np.maximum(lost, 0) / self.c.spot_floor) * self.c.spot_floor
        drawn = value.sum(axis=1, dtype=np.float64) + escaped
        value *= (p.deposited / np.maximum(drawn, 1e-30)).astype(np.float32)[:, None]
        if self.neutrons is not None:
            share = energy / np.maximum(energy.sum(axis=1), np.float32(1e-30))[:, None]
            number = (share * p.disturbed.astype(np.float32)[:, None]) @ self.neutrons
            e, more = np.float32(self.c.neutron_energy), np.float32(np.exp(self.c.neutron_spread**2))
            value += compound(number, number * e, number * (e * e * more), spot_rng)
        return value[:, self.mesh.voxels], value[:, self.mesh.start[1:] - 1]

    def _steps(self, p: Particles, n: int) -> tuple[Array, Array, Array]:
        """Energy of each step (N, K) [MeV]; energy that core and tail give to each radial scale in each layer,
        (N, L, 2 J) [MeV]; depth of each layer's core (N, L) [mm], where it is narrow counting most."""
        live = self.mesh.layer >= 0
        number, n_layers, n_scales = self.mesh.layer[live], len(self.mesh.shares), len(SCALES)
        t = np.maximum(self.t - p.start[:, None], 0.0)
        part = np.diff(gammainc(p.shape.alpha[:, None], p.shape.beta[:, None] * t), axis=1) * p.energy[:, None]
        tau = np.minimum(p.shape.tau_per_t[:, None] * (t[:, 1:] + t[:, :-1]) / 2, TAU_MAX)[:, live]
        core, tail, inner = radial(self.stack, tau.astype(np.float32), p.shape.ln_e[:, None].astype(np.float32), self.c)
        inner, em = np.clip(inner, 0, 1), part[:, live] * (1 - self.c.halo)
        first = (p.parent[:, None] * n_layers + number) * (2 * n_scales)
        flat = np.zeros(n * n_layers * 2 * n_scales)
        for offset, scale, share in ((0, core, inner), (n_scales, tail, 1 - inner)):
            scale = np.clip(scale, SCALES[0], SCALES[-1])
            below = (np.log(scale / SCALES[0]) * (1 / np.log(SCALES[1] / SCALES[0]))).astype(np.int64)
            below = np.minimum(below, n_scales - 2)
            upper = (scale - SCALES[below]) / np.diff(SCALES)[below] * share * em
            index = (first + (offset + below)).ravel()
            flat += np.bincount(index, (share * em - upper).ravel(), minlength=len(flat))
            flat += np.bincount(index + 1, upper.ravel(), minlength=len(flat))
        index, steep = (p.parent[:, None] * n_layers + number).ravel(), em * inner / np.maximum(core, SCALES[0])
        middle = (self.mesh.z[1:] + self.mesh.z[:-1])[live] / 2
        weight = np.bincount(index, steep.ravel(), minlength=n * n_layers)
        depth = np.bincount(index, (steep * middle).ravel(), minlength=n * n_layers) / np.maximum(weight, 1e-30)
        if len(part) > n:
            part = np.add.reduceat(part, np.flatnonzero(np.diff(p.parent, prepend=-1)), axis=0)
        layers = flat.astype(np.float32).reshape(n, n_layers, 2 * n_scales)
        return part.astype(np.float32), layers, depth.reshape(n, n_layers)

    def _moments(self, p: Particles, layers: Array, depth: Array) -> Array:
        """Moments of the spots of core and tail in each column, (3, N, C) float32.

        A tilted axis moves by (x, y) in a layer: its columns change by x d/dx + y d/dy, to first order.
        """
        n, start = len(layers), self.mesh.start
        out = np.empty((3, n, start[-1]), dtype=np.float32)
        for i, table in enumerate(self.tables):
            size = start[i + 1] - start[i]
            used = np.flatnonzero(layers[:, i].any(axis=0))  # a layer has few radial scales
            product = layers[:, i][:, used] @ table[used]
            number, energy, by_x, by_y, square = product.reshape(n, 5, size).transpose(1, 0, 2)
            if self.c.tilt:
                x, y = (p.tilt * depth[:, i]).astype(np.float32)[:, :, None]
                factor = np.clip(1 + (x * by_x + y * by_y) / np.maximum(energy, np.float32(1e-20)), FEWEST, MOST)
                number, energy, square = number * factor, energy * factor, square * factor
            out[:, :, start[i] : start[i + 1]] = number, energy, square
        return out


def compound(number: Array, energy: Array, square: Array, rng: np.random.Generator) -> Array:
    """Summed energies of Poisson numbers of spots with these moments; one shape, float32.

    Given n spots the sum has mean n m and relative variance v/n, v that of one spot; it is taken as log-normal, which
    is exact for one log-normal spot.
    """
    count = rng.poisson(number)
    out = np.zeros(count.shape, dtype=np.float32)
    hit = np.flatnonzero(count)
    n = count.ravel()[hit].astype(np.float32)
    mean = energy.ravel()[hit] / number.ravel()[hit]
    variance = np.log1p(np.maximum(square.ravel()[hit] / energy.ravel()[hit] / mean - 1, 0) / n)
    z = rng.standard_normal(len(hit), dtype=np.float32)
    out.ravel()[hit] = n * mean * np.exp(np.sqrt(variance) * z - variance / 2)
    return out


def aligned(d: Detector, incident: Incident) -> bool:
    """Whether all showers follow the axis of the mesh."""
    return d.frame == "shower" or not any(getattr(incident, name).any() for name in ("theta", "x", "y"))
