"""Showers: what a full or fast simulation returns, and Incident: the particles it was given. numpy only.

N is the number of showers, V the number of voxels, L the number of layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .geometry import Array, Geometry

FIELDS = ("energy", "theta", "phi", "x", "y", "pdg")


@dataclass(frozen=True, eq=False)
class Incident:
    """Incident particles on the front face; every field is (N,).

    energy: kinetic [MeV]; theta, phi: direction [rad], theta = 0 along the depth; x, y: position [mm]; pdg: PDG id.
    """

    energy: Array
    theta: Array = field(default=None)  # type: ignore[assignment, arg-type]
    phi: Array = field(default=None)  # type: ignore[assignment, arg-type]
    x: Array = field(default=None)  # type: ignore[assignment, arg-type]
    y: Array = field(default=None)  # type: ignore[assignment, arg-type]
    pdg: Array = field(default=None)  # type: ignore[assignment, arg-type]

    def __post_init__(self) -> None:
        energy = np.atleast_1d(np.array(self.energy, dtype=np.float64))
        if energy.ndim != 1:
            raise ValueError(f"got incident energies of shape {energy.shape}, expected (N,); flatten them")
        for name in FIELDS:
            given = getattr(self, name)
            dtype = np.int64 if name == "pdg" else np.float64
            value = np.full(energy.shape, 0, dtype) if given is None else np.array(given, dtype=dtype)
            if value.ndim == 0:
                value = np.full(energy.shape, value)
            if value.shape != energy.shape:
                raise ValueError(
                    f"got incident {name} of shape {value.shape}, expected {energy.shape}; give one value per shower"
                )
            if not np.all(np.isfinite(value)):
                raise ValueError(f"got a non-finite incident {name}, expected finite numbers; remove those showers")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if np.any(self.energy <= 0):
            raise ValueError(
                f"got incident energy {self.energy.min():g} MeV, expected energies above 0; remove those showers"
            )

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, index: slice | Array) -> "Incident":
        return Incident(**{name: getattr(self, name)[index] for name in FIELDS})

    @staticmethod
    def concat(parts: Sequence["Incident"]) -> "Incident":
        return Incident(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in FIELDS})


@dataclass(frozen=True, eq=False)
class Showers:
    """Voxel energies of N showers.

    energy: (N, V) float32 [MeV]; overflow: energy beyond the mesh per layer, (N, L) float32 [MeV], or None where it
    was not recorded; provenance: where the showers come from (engine, seed, command, ...), plain strings and numbers.
    """

    geometry: Geometry
    incident: Incident
    energy: Array
    overflow: Array | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, v = len(self.incident), self.geometry.n_voxels
        object.__setattr__(self, "energy", _checked(self.energy, (n, v), "voxel energies"))
        if self.overflow is not None:
            expected = (n, self.geometry.n_layers)
            object.__setattr__(self, "overflow", _checked(self.overflow, expected, "overflow energies"))
        object.__setattr__(self, "provenance", dict(self.provenance))

    def __len__(self) -> int:
        return len(self.incident)

    def __getitem__(self, index: slice | Array) -> "Showers":
        """Showers chosen by slice, index array or mask; geometry and provenance stay."""
        overflow = None if self.overflow is None else self.overflow[index]
        return Showers(self.geometry, self.incident[index], self.energy[index], overflow, self.provenance)

    @property
    def layer_energy(self) -> Array:
        """Energy in each layer [MeV], (N, L) float64."""
        return np.add.reduceat(self.energy.astype(np.float64), self.geometry.offsets[:-1], axis=1)

    @property
    def total(self) -> Array:
        """Energy in all voxels [MeV], (N,) float64."""
        return np.asarray(self.energy.sum(axis=1, dtype=np.float64))

    def image(self, layer: int) -> Array:
        """Voxel energies of one layer [MeV], (N, n_first, n_second)."""
        start, stop = self.geometry.offsets[layer : layer + 2]
        return np.asarray(self.energy[:, start:stop].reshape(len(self), *self.geometry.layers[layer].shape))

    @staticmethod
    def concat(parts: Sequence["Showers"]) -> "Showers":
        """Showers of several parts with one geometry; provenance of the first."""
        for part in parts[1:]:
            parts[0].geometry.require_same(part.geometry, "showers")
        overflows = [p.overflow for p in parts if p.overflow is not None]
        return Showers(
            parts[0].geometry,
            Incident.concat([p.incident for p in parts]),
            np.concatenate([p.energy for p in parts]),
            np.concatenate(overflows) if len(overflows) == len(parts) else None,
            parts[0].provenance,
        )


def _checked(values: ArrayLike, shape: tuple[int, int], what: str) -> Array:
    out = np.array(values, dtype=np.float32)
    if out.shape != shape:
        raise ValueError(f"got {what} of shape {out.shape}, expected {shape} (showers, bins); check the geometry")
    if not np.all(np.isfinite(out)):
        bad = np.flatnonzero((~np.isfinite(out)).any(axis=1))
        raise ValueError(
            f"got NaN or infinite {what} in {len(bad)} showers (first: shower {bad[0]}), expected finite MeV; "
            "remove those showers"
        )
    if out.size and out.min() < 0:
        bad = np.flatnonzero((out < 0).any(axis=1))
        raise ValueError(
            f"got negative {what} in {len(bad)} showers (first: shower {bad[0]}; smallest {out.min():g} MeV), "
            "expected >= 0; check the reader's units"
        )
    out.setflags(write=False)
    return out
