"""Hits: energy deposits at points in space, and how they are summed in the voxels of a mesh.

Two frames. In the detector frame x and y lie in the front face and z is the depth behind it. In the shower frame the
origin is the entrance point of the incident particle (x, y, 0), z runs along its direction, x along the unit vector
theta-hat and y along phi-hat (the frame of the Geant4 example Par04 and of the CaloChallenge). N is the number of
showers, M the number of deposits, V of voxels, L of layers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .geometry import Array, Geometry, Layer
from .showers import Incident, Showers

Frame = Literal["detector", "shower"]
BLOCK = 1 << 14  # deposits at once: their arrays stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Hits:
    """Point clouds of N showers, in the detector frame.

    event: shower of each deposit, (M,) int64; position: (M, 3) [mm], z from the front face; energy: (M,) [MeV];
    time: after the particle started, (M,) [ns], zero where unknown; provenance: as in ``Showers``.
    """

    incident: Incident
    event: Array
    position: Array
    energy: Array
    time: Array = field(default=None)  # type: ignore[assignment, arg-type]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        event = np.array(self.event, dtype=np.int64)
        shapes = {"position": (len(event), 3), "energy": event.shape, "time": event.shape}
        for name, shape in shapes.items():
            given = getattr(self, name)
            value = np.zeros(shape) if given is None else np.array(given)
            if value.shape != shape or event.ndim != 1:
                raise ValueError(f"got hit {name} of shape {value.shape}, expected {shape}; give one per hit")
            if not np.all(np.isfinite(value)):
                raise ValueError(f"got a non-finite hit {name}, expected finite numbers; remove those hits")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if len(event) and not (event.min() >= 0 and event.max() < len(self.incident)):
            raise ValueError(
                f"got hits of showers {event.min()}..{event.max()}, expected 0..{len(self.incident) - 1}; "
                "give one incident particle per shower"
            )
        event.setflags(write=False)
        object.__setattr__(self, "event", event)
        object.__setattr__(self, "provenance", dict(self.provenance))

    def __len__(self) -> int:
        return len(self.incident)

    def showers(self, geometry: Geometry, *, frame: Frame = "detector") -> Showers:
        """The deposits summed in the voxels of a geometry that lies in the given frame; energy is conserved."""
        position = self.position if frame == "detector" else to_shower_frame(self.incident, self.event, self.position)
        energy, overflow = voxelize(geometry, len(self), self.event, position, self.energy)
        return Showers(geometry, self.incident, energy, overflow, self.provenance)

    @staticmethod
    def of(showers: Showers, *, frame: Frame = "detector") -> "Hits":
        """One deposit at the centre of each filled voxel; ``frame``: where the mesh lies. Overflow is left out."""
        event, voxel = np.nonzero(showers.energy)
        position = showers.geometry.centres()[voxel]
        if frame == "shower":
            position = to_detector_frame(showers.incident, event, position)
        energy = showers.energy[event, voxel]
        return Hits(showers.incident, event, position, energy, np.zeros(len(event)), showers.provenance)

    def merged(self, size: float) -> "Hits":
        """Deposits of one shower in the same cube of ``size`` mm joined at their centre of energy, earliest time."""
        if not size > 0:
            raise ValueError(f"got cubes of {size:g} mm, expected above 0; raise it")
        cube = np.floor(self.position / size).astype(np.int64)
        key = np.column_stack([self.event, cube])
        _, inverse = np.unique(key, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        n = int(inverse.max()) + 1 if len(inverse) else 0
        energy = np.bincount(inverse, self.energy, minlength=n)
        weight = np.where(energy[inverse] > 0, self.energy / np.where(energy[inverse] > 0, energy[inverse], 1), 0)
        position = np.stack([np.bincount(inverse, weight * x, minlength=n) for x in self.position.T], axis=1)
        event, time = np.zeros(n, dtype=np.int64), np.full(n, np.inf)
        event[inverse] = self.event
        np.minimum.at(time, inverse, self.time)
        keep = energy > 0
        return Hits(self.incident, event[keep], position[keep], energy[keep], time[keep], self.provenance)


def axes(incident: Incident) -> Array:
    """Unit vectors theta-hat, phi-hat and direction of each particle, (N, 3, 3): rows are the shower-frame axes."""
    ct, st, cp, sp = np.cos(incident.theta), np.sin(incident.theta), np.cos(incident.phi), np.sin(incident.phi)
    zero = np.zeros_like(ct)
    rows = [[ct * cp, ct * sp, -st], [-sp, cp, zero], [st * cp, st * sp, ct]]
    return np.moveaxis(np.array(rows), 2, 0)


def to_shower_frame(incident: Incident, event: Array, position: Array) -> Array:
    """Positions (M, 3) [mm] of deposits of the showers ``event`` (M,), from the detector to the shower frame."""
    entrance = _entrance(incident)
    if not entrance.any() and not incident.theta.any() and not incident.phi.any():
        return position
    return _rotated(axes(incident), event, position - entrance[event])


def to_detector_frame(incident: Incident, event: Array, position: Array) -> Array:
    """Inverse of ``to_shower_frame``."""
    return _rotated(axes(incident).transpose(0, 2, 1), event, position) + _entrance(incident)[event]


def _entrance(incident: Incident) -> Array:
    return np.stack([incident.x, incident.y, np.zeros(len(incident))], axis=1)


def _rotated(matrix: Array, event: Array, position: Array) -> Array:
    """matrix (N, 3, 3) applied to the positions (M, 3), one component at a time: M may be ten million."""
    out = np.empty_like(position, dtype=np.float64)
    for i in range(3):
        out[:, i] = sum(matrix[:, i, j][event] * position[:, j] for j in range(3))
    return out


def bin_index(edges: Sequence[float], value: Array) -> Array:
    """Bin of each value: i where edges[i] <= value < edges[i + 1], -1 below and n from the last edge on, (M,) int64."""
    bounds = np.array([-np.inf, *edges, np.inf])
    low, n = bounds[1], len(edges) - 1
    width = (bounds[-2] - low) / n
    if not np.allclose(np.diff(edges), width, rtol=1e-6, atol=0):
        return np.asarray(np.searchsorted(edges, value, side="right") - 1)
    # Equal bins: a division is four times faster than a search; where it may be one bin off, the search decides.
    place: Array = np.clip((value - low) / width, -1.0, float(n))
    guess: Array = np.floor(place).astype(np.int64)
    near = np.flatnonzero(np.abs(place - np.rint(place)) < 1e-6)
    guess[near] = np.searchsorted(edges, value[near], side="right") - 1
    return guess


def voxelize(geometry: Geometry, n: int, event: Array, position: Array, value: Array) -> tuple[Array, Array]:
    """Sum deposits of n showers in the voxels of a geometry with depths, which must not overlap.

    event: shower of each deposit, (M,) int; position: (M, 3) [mm], z from the front face; value: (M,) [MeV].
    Returns voxel energies (n, V) and the energy that fell beside each layer's mesh, overflow (n, L), in MeV. Deposits
    in no layer's depth count as overflow of the nearest layer in front; energy is conserved.
    """
    steps = range(0, len(event), BLOCK)
    return voxelize_parts(
        geometry, n, ((event[i : i + BLOCK], position[i : i + BLOCK], value[i : i + BLOCK]) for i in steps)
    )


def voxelize_parts(geometry: Geometry, n: int, parts: Iterable[tuple[Array, Array, Array]]) -> tuple[Array, Array]:
    """The same for deposits that come in parts (event, position, value); the order of the deposits decides the last
    bit of the sums, the parts do not."""
    energy, overflow = np.zeros(n * geometry.n_voxels), np.zeros(n * geometry.n_layers)
    fronts, backs = _depths(geometry)
    for event, position, value in parts:
        event = np.asarray(event, dtype=np.int64)
        x, y, z = np.asarray(position).T
        number = np.clip(np.searchsorted(fronts, z, side="right") - 1, 0, None)
        inside = (z >= fronts[number]) & (z <= backs[number])
        for i in np.flatnonzero(np.bincount(number, minlength=geometry.n_layers)):
            here = np.flatnonzero(number == i) if len(event) and not (number == i).all() else slice(None)
            layer, e, w = geometry.layers[i], event[here], value[here]
            voxel, on_mesh = _voxel(layer, x[here], y[here])
            on_mesh &= inside[here]
            flat = e * geometry.n_voxels + (geometry.offsets[i] + voxel)
            if on_mesh.all():
                np.add.at(energy, flat, w)
            else:
                np.add.at(energy, flat[on_mesh], w[on_mesh])
                np.add.at(overflow, e[~on_mesh] * geometry.n_layers + i, w[~on_mesh])
    return energy.reshape(n, -1), overflow.reshape(n, -1)


def _voxel(layer: Layer, x: Array, y: Array) -> tuple[Array, Array]:
    """Number of the voxel in its layer (M,), and whether there is one (M,) bool."""
    first, second = (_alpha(layer, x, y), np.hypot(x, y)) if layer.kind == "polar" else (x, y)
    a, b = bin_index(layer.first, first), bin_index(layer.second, second)
    na, nb = layer.shape
    return a * nb + b, (a >= 0) & (a < na) & (b >= 0) & (b < nb)


def _depths(geometry: Geometry) -> tuple[Array, Array]:
    """Fronts and backs of the layers [mm], (L,) each; ValueError where they do not follow each other."""
    depths = [layer.depth for layer in geometry.layers if layer.depth is not None]
    if len(depths) < geometry.n_layers:
        raise ValueError(f"got geometry {geometry.name!r} without depths, expected a depth for every layer; add them")
    fronts, backs = np.array(depths).T
    if np.any(fronts[1:] < backs[:-1]):
        raise ValueError(f"got geometry {geometry.name!r} with layers that overlap or are not in order of depth, "
                         "expected one behind the other; sort them or correct the depths")  # fmt: skip
    return fronts, backs


def _alpha(layer: Layer, x: Array, y: Array) -> Array:
    """Angle of the points, moved by 2 pi into the layer's range; the end of a full circle is its beginning."""
    low, high = layer.first[0], layer.first[-1]
    alpha = np.arctan2(y, x)
    alpha = np.where(alpha < low, alpha + 2 * np.pi, alpha)
    return np.where(alpha >= high, alpha - 2 * np.pi, alpha)
