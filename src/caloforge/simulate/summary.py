"""What a sample looks like to the tuning: statistics that any layered mesh has, in units of their errors.

Layers are joined to at most GROUPS groups of about equal energy. Features of a shower, for each group: the share of the
energy; its shares in rings around the axis, and how far the centre of each ring's energy lies from the axis, which
tells how many spots it is made of; the width; numbers of voxels above levels; the two brightest voxels. And E/E_inc. A
feature q becomes z = (q - mean(E_inc))/spread(E_inc), both of the reference. Statistics are means over the showers in a
bin of energy, of z, z^2, some products, and of being beyond quantiles of the response.

N showers, M filled voxels, L layers, G groups, R rings, B bins of energy, T statistics.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..geometry import Array
from ..hits import to_shower_frame
from ..showers import Showers

GROUPS, BINS = 6, 5
CONTAINED = (0.5, 0.8, 0.93, 0.98, 0.995)  # of a group's energy, inside the borders of the rings
LEVELS = (0.1, 0.3, 0.6, 0.9)  # quantiles of the energies of filled voxels; level 0 comes in addition
QUANTILES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95)  # of the response
FEWEST = 40  # showers in a bin
Z_MAX, Z2_MAX = 6.0, 9.0  # rare showers must not decide

Columns = dict[str, Array]


@dataclass(frozen=True, eq=False)
class Summary:
    """Statistics of the reference ``showers``, in a mesh that lies in the given frame; moliere: unit of radius [mm]."""

    showers: Showers
    moliere: float
    frame: str

    def residuals(self, simulated: Showers, kinds: tuple[str, ...] = ("",)) -> Array:
        """(simulated - reference)/error of the statistics whose names begin with one of ``kinds``, (B, T')."""
        return self._residuals(self.features(simulated), simulated.incident.energy, kinds)

    def response_residuals(self, response: Array, energy: Array) -> Array:
        """The same for values of E/E_inc alone, (N,), of showers of the incident energies [MeV]."""
        return self._residuals({"response": response}, energy, ("response",))

    def _residuals(self, features: Columns, energy: Array, kinds: tuple[str, ...]) -> Array:
        mean, _, n = self._statistics(features, energy)
        reference, spread, m = self._reference
        chosen = [k for k in mean if k.startswith(kinds)]
        a, b, s = (np.stack([values[k] for k in chosen], axis=1) for values in (mean, reference, spread))
        return np.asarray((a - b) / np.sqrt(s * (1 / n + 1 / m)[:, None]))

    @property
    def names(self) -> list[str]:
        """Names of the statistics: a feature, a feature with ^2, two with *, or response> with a quantile."""
        return list(self._reference[0])

    @cached_property
    def _group(self) -> Array:
        """Group of each layer, (L,)."""
        cumulative = np.cumsum(self.showers.layer_energy.mean(axis=0))
        n = self.showers.geometry.n_layers
        if n <= GROUPS:
            return np.arange(n)
        group = np.minimum((cumulative / cumulative[-1] * GROUPS - 1e-9).astype(int), GROUPS - 1)
        return np.asarray(np.unique(group, return_inverse=True)[1])

    @cached_property
    def _meshes(self) -> tuple[Array, Array]:
        """Borders of the rings [Moliere radii] and levels [MeV] of each group, (G, R - 1) and (G, levels)."""
        f = self._filled(self.showers)
        rings, levels = [], []
        for g in range(self._group.max() + 1):
            here = np.flatnonzero(f.group == g)
            order = here[np.argsort(f.r[here], kind="stable")]
            inside = np.cumsum(f.energy[order], dtype=np.float64)
            at = np.minimum(np.searchsorted(inside, np.array(CONTAINED) * inside[-1]), len(order) - 1)
            rings.append(f.r[order][at])
            levels.append([0.0, *np.quantile(f.energy[here], LEVELS)])
        return np.array(rings), np.array(levels)

    def _filled(self, s: Showers) -> "_Filled":
        return _Filled.of(s, self._group, self.moliere, self.frame)

    def features(self, s: Showers) -> Columns:
        """Features of showers, name -> (N,)."""
        f, (rings, levels) = self._filled(s), self._meshes
        n, n_groups, n_rings = len(s), len(rings), rings.shape[1] + 1
        ring = np.zeros(len(f.r), dtype=np.int64)
        for k in range(n_rings - 1):
            ring += f.r > rings[f.group, k]
        cell = f.event * n_groups + f.group
        flat = cell * n_rings + ring

        def total(index: Array, weight: Array, *shape: int) -> Array:
            return np.bincount(index, weight, minlength=n * int(np.prod(shape))).reshape(n, *shape)

        energy = total(cell, f.energy, n_groups)
        in_ring = total(flat, f.energy, n_groups, n_rings)
        off = np.hypot(*(total(flat, f.energy * v, n_groups, n_rings) for v in (f.x, f.y)))
        first, second = f.brightest(cell, n * n_groups)
        safe = np.maximum(energy, 1e-30)
        out = {"response": energy.sum(axis=1) / s.incident.energy}
        columns: Columns = {
            "fraction": np.sqrt(energy / np.maximum(energy.sum(axis=1), 1e-30)[:, None]),
            "width": np.sqrt(total(cell, f.energy * f.r**2, n_groups) / safe),
            "bright": first.reshape(n, n_groups) / safe, "second": second.reshape(n, n_groups) / safe,
        }  # fmt: skip
        for k in range(n_rings):
            columns[f"ring{k}"] = np.sqrt(in_ring[:, :, k] / safe)
            columns[f"dipole{k}"] = off[:, :, k] / np.maximum(in_ring[:, :, k], 1e-30)
        for k in range(levels.shape[1]):
            columns[f"count{k}"] = total(cell, (f.energy > levels[f.group, k]).astype(float), n_groups)
        return out | {f"{name}_{g}": v[:, g] for name, v in columns.items() for g in range(n_groups)}

    @cached_property
    def _bins(self) -> Array:
        """Inner borders of the bins in ln E_inc, (B - 1,), with at least FEWEST showers in each."""
        value = np.sort(np.log(self.showers.incident.energy))
        least = max(FEWEST, len(value) // (2 * BINS))
        borders: list[float] = []
        done = 0
        for border in np.linspace(value[0], value[-1], BINS + 1)[1:-1]:
            at = int(np.searchsorted(value, border))
            if at - done >= least and len(value) - at >= least:
                borders.append(float(border))
                done = at
        return np.array(borders)

    @cached_property
    def _scaling(self) -> dict[str, tuple[Array, Array]]:
        """Of each feature that varies: coefficients of its mean, cubic in ln E_inc, and its spread in each bin."""
        features, energy = self.features(self.showers), self.showers.incident.energy
        basis, bins = self._basis(energy), self._bin(energy)
        out = {}
        for name, q in features.items():
            weights = np.linalg.lstsq(basis, q, rcond=None)[0]
            rest = q - basis @ weights
            spread = np.array([rest[bins == b].std() for b in range(len(self._bins) + 1)])
            if spread.min() > 1e-3 * np.abs(q).mean() + 1e-12 or (name == "response" and spread.min() > 0):
                out[name] = weights, spread
        return out

    def _basis(self, energy: Array) -> Array:
        x = np.log(energy / np.sqrt(self.showers.incident.energy.min() * self.showers.incident.energy.max()))
        return np.stack([np.ones_like(x), x, x**2, x**3], axis=1)

    def _bin(self, energy: Array) -> Array:
        return np.asarray(np.searchsorted(self._bins, np.log(energy), side="right"))

    def _normal(self, features: Columns, energy: Array) -> Columns:
        """z of the features, (N,) each."""
        basis, bins = self._basis(energy), self._bin(energy)
        return {
            name: np.clip((features[name] - basis @ weights) / spread[bins], -Z_MAX, Z_MAX)
            for name, (weights, spread) in self._scaling.items()
            if name in features
        }

    @cached_property
    def _quantiles(self) -> Array:
        z = self._normal({"response": self.showers.total / self.showers.incident.energy}, self._energy)["response"]
        return np.asarray(np.quantile(z, QUANTILES))

    @property
    def _energy(self) -> Array:
        return self.showers.incident.energy

    @cached_property
    def _reference(self) -> tuple[Columns, Columns, Array]:
        return self._statistics(self.features(self.showers), self._energy)

    def _statistics(self, features: Columns, energy: Array) -> tuple[Columns, Columns, Array]:
        """Means and variances of what is averaged, name -> (B,), and showers in each bin (B,)."""
        z = self._normal(features, energy)
        columns = dict(z) | {f"{name}^2": np.minimum(v**2, Z2_MAX) for name, v in z.items()}
        if "response" in z:
            columns |= {f"response>{q}": z["response"] > cut for q, cut in zip(QUANTILES, self._quantiles, strict=True)}
        for g in range(self._group.max() + 1):
            pairs = (("fraction", g, "width", g), ("fraction", g, "fraction", g + 1))
            names = [(f"{a}_{i}", f"{b}_{j}") for a, i, b, j in pairs] + [(f"count0_{g}", "response")]
            columns |= {f"{a}*{b}": z[a] * z[b] for a, b in names if a in z and b in z}
        bins = self._bin(energy)
        n = np.maximum(np.bincount(bins, minlength=len(self._bins) + 1), 1)
        mean = {k: np.bincount(bins, v, minlength=len(n)) / n for k, v in columns.items()}
        square = {k: np.bincount(bins, v.astype(float) ** 2, minlength=len(n)) / n for k, v in columns.items()}
        return mean, {k: np.maximum(square[k] - mean[k] ** 2, 1e-4) for k in mean}, n


@dataclass(frozen=True, eq=False)
class _Filled:
    """Filled voxels of showers, (M,) each: shower, group, energy [MeV], place from the axis x, y, r [Moliere radii]."""

    event: Array
    group: Array
    energy: Array
    x: Array
    y: Array
    r: Array

    @staticmethod
    def of(s: Showers, group: Array, moliere: float, frame: str) -> "_Filled":
        flat = np.flatnonzero(s.energy)
        event = flat // s.geometry.n_voxels
        voxel = flat - event * s.geometry.n_voxels
        centre = s.geometry.centres()
        if frame == "shower" or not any(getattr(s.incident, name).any() for name in ("theta", "x", "y")):
            x, y = (centre[:, k] / moliere for k in (0, 1))
            place = [v[voxel] for v in (x, y, np.hypot(x, y))]
        else:
            x, y, _ = to_shower_frame(s.incident, event, centre[voxel]).T / moliere
            place = [x, y, np.hypot(x, y)]
        return _Filled(event, group[s.geometry.layer_index][voxel], s.energy.ravel()[flat], *place)

    def brightest(self, cell: Array, n: int) -> tuple[Array, Array]:
        """Energies of the brightest and the second voxel of each of n cells (shower and group), 0 where none."""
        first, second = np.zeros(n), np.zeros(n)
        if len(cell):
            start = np.flatnonzero(np.diff(cell, prepend=-1))
            top = np.maximum.reduceat(self.energy, start)
            first[cell[start]] = top
            rest = np.where(self.energy < first[cell], self.energy, 0)
            second[cell[start]] = np.maximum.reduceat(rest, start)
        return first, second
