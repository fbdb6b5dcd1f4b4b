"""Hits: energy deposits at points in space, and how they are summed in the voxels of a mesh.

Two frames. In the detector frame x and y lie in the front face and z is the depth behind it. In the shower frame the
origin is the entrance point of the incident particle (x, y, 0), z runs along its direction, x along the unit vector
theta-hat and y along phi-hat (the frame of the Geant4 example Par04 and of the CaloChallenge). N is the number of
showers, M the number of deposits, V of voxels, L of layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .geometry import Array, Geometry, Layer
from .showers import Incident, Showers

Frame = Literal["detector", "shower"]


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
