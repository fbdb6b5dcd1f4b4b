"""Geometry: the readout mesh of a layered detector.

A layer is a grid of voxels over two axes: (alpha, r) for a polar layer, (x, y) for a cartesian one. Voxels are
numbered by layer, then first axis, then second axis (fastest): the CaloChallenge order, which is also the C order of
CaloGAN and LHCb images. L is the number of layers, V the number of voxels. Lengths in mm, angles in rad.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One readout layer. ``first``, ``second``: rising bin edges; ``depth``: (front, back) [mm] from the front face."""

    kind: Literal["polar", "cartesian"]
    first: tuple[float, ...]
    second: tuple[float, ...]
    depth: tuple[float, float] | None = None
    number: int | None = None  # the detector's own layer id, if it has one

    def __post_init__(self) -> None:
        if self.kind not in ("polar", "cartesian"):
            raise ValueError(f"got layer kind {self.kind!r}, expected 'polar' or 'cartesian'; choose one")
        for name in ("first", "second"):
            edges = tuple(float(v) for v in getattr(self, name))
            object.__setattr__(self, name, edges)
            if len(edges) < 2 or not np.all(np.isfinite(edges)) or not np.all(np.diff(edges) > 0):
                raise ValueError(f"got {name} edges {edges}, expected at least two finite rising numbers; correct them")
        if self.kind == "polar" and (self.second[0] < 0 or self.first[-1] - self.first[0] > 2 * np.pi + 1e-9):
            raise ValueError(
                f"got polar layer with alpha {self.first[0]:g}..{self.first[-1]:g} and r from {self.second[0]:g}, "
                "expected at most one turn and r >= 0; correct the edges (first is alpha, second is r)"
            )
        if self.depth is not None:
            front, back = (float(v) for v in self.depth)
            object.__setattr__(self, "depth", (front, back))
            if not -np.inf < front < back < np.inf:
                raise ValueError(f"got depth {self.depth}, expected finite front < back in mm; correct it")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of voxels along the first and the second axis."""
        return len(self.first) - 1, len(self.second) - 1

    @property
    def n_voxels(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Geometry:
    """A named stack of layers; frozen, and carried inside every data and model file."""

    name: str
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("got a geometry without layers, expected at least one; add a Layer")

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def n_voxels(self) -> int:
        return sum(layer.n_voxels for layer in self.layers)

    @cached_property
    def offsets(self) -> Array:
        """Index of the first voxel of each layer, and V at the end: (L+1,) int64."""
        return np.concatenate([[0], np.cumsum([layer.n_voxels for layer in self.layers])]).astype(np.int64)

    @cached_property
    def layer_index(self) -> Array:
        """Layer of each voxel: (V,) int64."""
        return np.repeat(np.arange(self.n_layers), np.diff(self.offsets))

    @cached_property
    def _centres(self) -> Array:
        parts = []
        for number, layer in enumerate(self.layers):
            first, second = (0.5 * (np.array(e[:-1]) + np.array(e[1:])) for e in (layer.first, layer.second))
            a, b = (grid.ravel() for grid in np.meshgrid(first, second, indexing="ij"))
            z = np.full(a.shape, float(number) if layer.depth is None else 0.5 * sum(layer.depth))
            parts.append(np.stack([b * np.cos(a), b * np.sin(a), z] if layer.kind == "polar" else [a, b, z], axis=1))
        return np.concatenate(parts)

    def centres(self) -> Array:
        """Voxel centres (x, y, z) [mm], (V, 3); z is the layer number where the geometry gives no depth."""
        return self._centres.copy()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the content of ``to_json``."""
        return {
            "name": self.name,
            "layers": [
                {"kind": v.kind, "first": v.first, "second": v.second, "depth": v.depth, "number": v.number}
                for v in self.layers
            ],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Geometry":
        data = json.loads(text)
        return Geometry(data["name"], tuple(Layer(**layer) for layer in data["layers"]))

    def digest(self) -> str:
        """Sixteen hex digits that name the mesh (edges, depths, order), not what it is called."""
        mesh = [[v.kind, v.first, v.second, v.depth] for v in self.layers]
        return hashlib.sha256(json.dumps(mesh).encode()).hexdigest()[:16]

    def require_same(self, other: "Geometry", what: str) -> None:
        """Raise ValueError unless ``other`` has the same mesh; ``what`` says where ``other`` comes from."""
        if self.digest() != other.digest():
            raise ValueError(
                f"got {what} with geometry {other.name!r} (digest {other.digest()}), expected {self.name!r} "
                f"(digest {self.digest()}); use files of the same detector"
            )


def regular(low: float, high: float, n: int) -> tuple[float, ...]:
    """n equal bins from low to high, as edges."""
    return tuple(float(v) for v in np.linspace(low, high, n + 1))


def mirrors(geometry: Geometry) -> Array:
    """Voxel permutations (S, V), the identity first: mirror images in x and y of a cartesian geometry, rotations and
    their mirror images of a polar one; the identity alone where the layers have no such symmetry in common.

    They are exact symmetries of a detector hit in its centre at normal incidence.
    """
    if all(layer.kind == "polar" for layer in geometry.layers):
        return _rotations(geometry)
    even = all(
        layer.kind == "cartesian"
        and np.allclose(layer.first, -np.array(layer.first)[::-1])
        and np.allclose(layer.second, -np.array(layer.second)[::-1])
        for layer in geometry.layers
    )
    if not even:
        return np.arange(geometry.n_voxels)[None]
    flips = [(1, 1), (-1, 1), (1, -1), (-1, -1)]
    return np.stack([np.concatenate([g[::a, ::b].ravel() for g in _grids(geometry)]) for a, b in flips])


def _rotations(geometry: Geometry) -> Array:
    start = geometry.layers[0].first[0]
    for layer in geometry.layers:
        if not np.allclose(layer.first, start + np.linspace(0, 2 * np.pi, len(layer.first))):
            return np.arange(geometry.n_voxels)[None]
    grids = _grids(geometry)
    n = math.gcd(*(len(grid) for grid in grids if len(grid) > 1)) or 1
    turned = [[np.roll(grid, k * len(grid) // n, axis=0) for grid in grids] for k in range(n)]
    return np.stack([np.concatenate([g[::a].ravel() for g in turn]) for a in (1, -1) for turn in turned])


def _grids(geometry: Geometry) -> list[Array]:
    """Numbers of the voxels of each layer, in its shape."""
    return [
        start + np.arange(v.n_voxels).reshape(v.shape)
        for v, start in zip(geometry.layers, geometry.offsets, strict=False)
    ]
