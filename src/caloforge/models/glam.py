"""GLaM, geometry latent mapping (Amram and Pedro 2023, 2308.03876): any layers <-> one regular grid for convolutions.

The common grid has, along each axis, the union of the bin edges of all layers. A layer with voxels v (a, b) gets there
by one linear map per axis, and back:

    h = A v B^T,    v = A^+ h (B^+)^T

A splits a bin over the cells inside it in proportion to their size (ring area along r, length otherwise), times one
constant that keeps unit variance of the features; A^+ starts as its pseudo-inverse, so that back and forth is the
identity; then both are trained. Maps of an angle are not: rotations stay symmetries. Layers that are equal are only
reshaped. Polar layers are matched in mm along r and in parts of the turn along alpha, cartesian ones in mm; where both
kinds meet, everything is matched in parts of its range.

A grid finer than ``limits`` is folded: blocks of k neighbouring cells along an axis become k channels, so that a narrow
layer (3 x 96 voxels beside 12 x 12) needs no 12 x 96 grid, and nothing is lost.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry import Array, Geometry

Limits = tuple[int, int]


class GLaM(nn.Module):
    """Voxel features (N, V) <-> grid (N, K, L, n_first, n_second), the last two at most ``limits`` long, 0 for any.

    circular: whether the first axis is an angle; polar layers that end before a full turn are not closed.
    """

    def __init__(self, geometry: Geometry, limits: Limits = (0, 0)) -> None:
        super().__init__()
        self.shapes = [layer.shape for layer in geometry.layers]
        self.starts = [int(v) for v in geometry.offsets]
        kinds = {layer.kind for layer in geometry.layers}
        polar = kinds == {"polar"}
        self.circular = polar and all(v.first[-1] - v.first[0] > 2 * np.pi - 1e-6 for v in geometry.layers)
        self.regular = len({(v.first, v.second) for v in geometry.layers}) == 1
        maps = []
        edges = [[np.array(layer.first), np.array(layer.second)] for layer in geometry.layers]
        grids = []
        for axis in (0, 1):
            parts = [layer[axis] for layer in edges]
            if len(kinds) > 1 or (polar and axis == 0):
                parts = [(e - e[0]) / (e[-1] - e[0]) for e in parts]
            grids.append(union(parts))
            if not self.regular:
                splits = [split(e, grids[axis], power=2 if polar and axis == 1 else 1) for e in parts]
                maps.append(_Axis(splits, trained=not (polar and axis == 0)))
        self.maps = nn.ModuleList(maps)
        self.fine = (len(grids[0]) - 1, len(grids[1]) - 1)
        self.folds = _fold(self.fine[0], limits[0], self.circular), _fold(self.fine[1], limits[1], False)
        n_first, n_second = (-(-n // k) for n, k in zip(self.fine, self.folds, strict=True))
        self.shape = (len(self.shapes), n_first, n_second)
        self.n_channels = self.folds[0] * self.folds[1]

    def encode(self, v: Tensor) -> Tensor:
        """v (N, V) -> (N, K, L, n_first, n_second)."""
        n_layers, n_first, n_second = self.shape
        if self.regular:
            h = v.reshape(-1, n_layers, *self.fine)
        else:
            parts = [v[:, a:b] for a, b in zip(self.starts, self.starts[1:], strict=False)]
            images = [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
            h = torch.stack([self._map(k, "up", image) for k, image in enumerate(images)], dim=1)
        a, b = self.folds
        h = nn.functional.pad(h, (0, b * n_second - self.fine[1], 0, a * n_first - self.fine[0]))
        h = h.reshape(-1, n_layers, n_first, a, n_second, b).permute(0, 3, 5, 1, 2, 4)
        return h.reshape(-1, self.n_channels, *self.shape)

    def decode(self, h: Tensor) -> Tensor:
        """The way back: (N, K, L, n_first, n_second) -> (N, V)."""
        n_layers, n_first, n_second = self.shape
        a, b = self.folds
        h = h.reshape(-1, a, b, *self.shape).permute(0, 3, 4, 1, 5, 2)
        h = h.reshape(-1, n_layers, n_first * a, n_second * b)[:, :, : self.fine[0], : self.fine[1]]
        if self.regular:
            return h.reshape(-1, self.starts[-1])
        return torch.cat([self._map(k, "down", h[:, k]).flatten(1) for k in range(n_layers)], dim=1)

    def _map(self, layer: int, way: str, image: Tensor) -> Tensor:
        """The images (N, a, b) of one layer, "up" to the grid or "down" from it."""
        first, second = (getattr(axis, f"{way}_{layer}") for axis in self.maps)
        out: Tensor = first @ image @ second.T
        return out


class _Axis(nn.Module):
    """The maps of one axis: for layer l up_l, A (n, b_l), and down_l, A^+ (b_l, n); buffers where they stay fixed."""

    def __init__(self, splits: list[Array], *, trained: bool) -> None:
        super().__init__()
        for layer, matrix in enumerate(splits):
            for name, value in ((f"up_{layer}", matrix), (f"down_{layer}", np.linalg.pinv(matrix))):
                tensor = torch.from_numpy(value).float()
                if trained:
                    self.register_parameter(name, nn.Parameter(tensor))
                else:
                    self.register_buffer(name, tensor, persistent=False)


def union(parts: list[Array]) -> Array:
    """All edges of the parts, rising; those closer than a millionth of the range are one."""
    edges: Array = np.sort(np.concatenate(parts))
    apart = np.diff(edges, prepend=-np.inf) > 1e-6 * (edges[-1] - edges[0])
    kept: Array = edges[apart]
    return kept


def split(edges: Array, grid: Array, power: int) -> Array:
    """(cells of ``grid``, bins of ``edges``): parts of the bins in the cells, for sizes edge^power, of unit variance.

    Cells of the grid beyond the edges get nothing.
    """
    edges, grid = np.sign(edges) * np.abs(edges) ** power, np.sign(grid) * np.abs(grid) ** power
    low = np.maximum(grid[:-1, None], edges[None, :-1])
    high = np.minimum(grid[1:, None], edges[None, 1:])
    part = np.clip(high - low, 0, None) / np.diff(edges)
    part[part < 1e-6] = 0.0  # edges that are one up to rounding
    used = part.any(axis=1)
    return np.asarray(part / np.sqrt((part[used] ** 2).sum(axis=1).mean()))


def _fold(n: int, limit: int, circular: bool) -> int:
    """Neighbours that become channels: as few as possible with n/k <= limit; a circle needs a divisor of n."""
    k = 1
    while limit and (-(-n // k) > limit or (circular and n % k)):
        k += 1
    return k
