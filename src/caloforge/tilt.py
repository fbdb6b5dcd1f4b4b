"""Showers with given sums: an exponential tilt of the voxels.

Voxels e_k (of one layer) have sums sum_k e_k b_k with fixed functions b_k of their place: moments of the position, or
the four-momentum of a jet. Given voxels e and sums S, the voxels e_k exp(lambda b_k) with these sums are those closest
to e in relative entropy (Csiszar, Ann. Probab. 3, 1975). lambda is the minimum of a convex function, found by Newton's
method. Empty voxels stay empty and filled ones filled. Where faint voxels are to keep their energies, because they say
little about the sums, the exponent of voxel k is multiplied by e_k / (e_k + soft sum e): still a convex function.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from .geometry import Array, Geometry
from .transforms import Members

STEPS = 6  # of Newton
LARGEST = 2.0  # |lambda b_k|, so that a momentum that the pixels cannot have does no harm
TINY = 1e-35  # a number that float32 has: ONNX gets its constants in it


class Tilt(nn.Module):
    """The tilt of voxels (N, V), layer by layer with functions b (V_l, K), one of them constant or nearly so.

    steps: of Newton; furthest: the most that a step may change any lambda b, where the sums can be far away; ridge:
    added to the second derivatives, times what is missing of the sums: without enough of it rounding errors decide
    where lambda ends in showers that cannot have them; soft: share of the energy of voxels that take half of the tilt.

    All layers are solved at once, (L, N, ..), filled up to the size of the largest.
    """

    basis: Tensor  # (L, V_max, K)
    units: Tensor  # (L, K, K)
    products: Tensor  # b_i b_j in these units, (L, V_max, K K)

    def __init__(
        self, *bases: Array, steps: int = STEPS, furthest: float | None = None, ridge: float = 1e-3, soft: float = 0.0
    ) -> None:
        super().__init__()
        self.steps, self.furthest, self.ridge, self.soft = steps, furthest, ridge, soft
        self.n_each = [len(basis) for basis in bases]
        size = max(self.n_each)
        padded = np.stack([np.pad(basis, ((0, size - len(basis)), (0, 0))) for basis in bases])
        units = np.stack([_units(basis) for basis in bases])  # in which b has covariance 1
        b = padded @ units
        products = (b[:, :, :, None] * b[:, :, None]).reshape(len(bases), size, -1)
        for name, value in (("basis", padded), ("units", units), ("products", products)):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
        # Which voxel stands where; one more than there are where there is none.
        ends = [(start, n) for start, n in zip(np.cumsum([0, *self.n_each[:-1]]), self.n_each, strict=True)]
        slots = np.array([[start + k if k < n else sum(self.n_each) for k in range(size)] for start, n in ends])
        self.slots, self.spots = slots.tolist(), np.argsort(slots, axis=None)[: sum(self.n_each)].tolist()

    def sums(self, voxels: Tensor) -> Tensor:
        """sum_k e_k b_k of every layer, (N, L, K) float64."""
        return (self._layers(voxels) @ self.basis).transpose(0, 1)

    def impose(self, voxels: Tensor, sums: Tensor) -> Tensor:
        """The tilted voxels (N, V): they have these sums (N, L, K), as far as their places allow."""
        b, e = self.basis @ self.units, self._layers(voxels)
        scale = e.sum(2, keepdim=True).clamp_min(1e-9)
        e, target = e / scale, sums.double().transpose(0, 1) @ self.units / scale
        weight = e / (e + self.soft) if self.soft else None
        power, size = torch.zeros_like(target), b.shape[2]
        unit = torch.eye(size, dtype=b.dtype, device=b.device)
        for _ in range(self.steps):
            tilted = e * self._factor(power, b, weight)
            missing = target - tilted @ b
            ridge = 1e-6 + self.ridge * missing.abs().sum(2)[:, :, None, None]
            slope = tilted if weight is None else tilted * weight
            curvature = (slope @ self.products).reshape(len(b), -1, size, size) + ridge * unit
            step = _solved(curvature, missing)
            if self.furthest is not None:
                reach = (step @ b.mT).abs()
                reach = torch.where(e > 0, reach if weight is None else reach * weight, 0.0).amax(2, keepdim=True)
                step = step * (self.furthest / reach.clamp_min(self.furthest))
            power = power + step
        tilted = (scale * e * self._factor(power, b, weight)).transpose(0, 1).flatten(1)
        return (tilted if len(self.spots) == tilted.shape[1] else tilted[:, self.spots]).to(voxels.dtype)

    def _layers(self, voxels: Tensor) -> Tensor:
        """Voxels (N, V) as (L, N, V_max) float64, 0 where a layer has no more."""
        voxels = voxels.double()
        if len(set(self.n_each)) > 1:
            voxels = nn.functional.pad(voxels, (0, 1))[:, self.slots]
        return voxels.reshape(voxels.shape[0], len(self.n_each), -1).transpose(0, 1)

    @staticmethod
    def _factor(power: Tensor, b: Tensor, weight: Tensor | None) -> Tensor:
        exponent = power @ b.mT if weight is None else power @ b.mT * weight
        return torch.exp(exponent.clamp_min(-LARGEST).clamp_max(LARGEST))


def _units(basis: Array) -> Array:
    n, size = basis.shape
    full = np.pad(basis, ((0, max(0, size - n)), (0, 0)))  # also where there are fewer voxels than functions
    return np.linalg.pinv(np.linalg.qr(full)[1] / np.sqrt(n), rcond=1e-9)


def scaled_to(total: Tensor, energy: Tensor, soft: Tensor) -> Tensor:
    """Voxels e_k exp(a e_k / (e_k + soft)) (.., V) with this total (..); soft: (.., 1), above 0.

    Faint ones hardly change. Where a would exceed LARGEST, all of them are multiplied by what is missing. Groups
    without energy stay empty.
    """
    weight, total = energy / (energy + soft), total[..., None]
    a = torch.zeros_like(total)
    for _ in range(STEPS):
        scaled = energy * torch.exp(weight * a)
        slope = (scaled * weight).sum(-1, keepdim=True).clamp_min(1e-9)
        a = a + ((total - scaled.sum(-1, keepdim=True)) / slope).clamp_min(-1.0).clamp_max(1.0)
    scaled = energy * torch.exp(weight * a.clamp_min(-LARGEST).clamp_max(LARGEST))
    return scaled * (total / scaled.sum(-1, keepdim=True).clamp_min(1e-9))


class Moments(nn.Module):
    """Voxels [MeV] (N, V) <-> q (N, Q), of one layer after the other: the centre of energy (x, y) [m], the logarithms
    of the variances along x and y [m^2], and the correlation of x and y; or, ``radial``, of polar layers, the mean of r
    [m] and the logarithm of its variance. brightest: then also the logarithm of the share of the layer's brightest
    voxel, which gets it exactly; the other voxels are tilted for what is left of the sums.

    A hundredth of the layer's mean pitch, squared, is added to the variances, so that one filled voxel has a logarithm.
    """

    n_values: int
    layers: Tensor  # of every value, (Q,)

    def __init__(self, geometry: Geometry, radial: bool = False, brightest: bool = False) -> None:
        super().__init__()
        if radial and any(layer.kind != "polar" for layer in geometry.layers):
            raise ValueError(
                f"got impose 'radial' for {geometry.name!r}, expected polar layers only; set it to 'moments' or 'none'"
            )
        self.radial, self.brightest = radial, brightest
        self.n_each = (2 if radial else 5) + brightest
        self.layers = torch.arange(geometry.n_layers).repeat_interleave(self.n_each)
        self.n_values = len(self.layers)
        self.smallest, bases = [], []
        for start, stop in pairwise(geometry.offsets):
            x, y = geometry.centres()[start:stop, :2].T * 1e-3
            r = np.hypot(x, y)
            pitch = float(np.ptp(r)) / len(np.unique(r.round(9))) if radial else np.ptp([x, y]) / np.sqrt(len(x))
            self.smallest.append(1e-4 * float(pitch) ** 2 + 1e-12)
            functions = [r, r * r] if radial else [x, y, x * x, y * y, x * y]
            bases.append(np.stack([x * 0 + 1, *functions], axis=1))
        self.tilt = Tilt(*bases, ridge=3e-2)
        self.members = Members(geometry)

    def values(self, voxels: Tensor, uniform: Tensor | None = None) -> Tensor:
        """q of the showers, in float64; a layer without energy counts as one voxel in its middle.

        uniform: (N, Q) in (0, 1], spreads by about a hundredth of the pitch what few filled voxels give exactly, such
        as the variance 0 of a single one, so that q has a density.
        """
        out: list[Tensor] = []
        top = self.members.largest(voxels).double()
        for layer, (sums, smallest) in enumerate(zip(self.tilt.sums(voxels).unbind(1), self.smallest, strict=True)):
            means = (sums / sums[:, :1].clamp_min(1e-9)).unbind(1)[1:]
            n = self.n_each
            u = None if uniform is None else uniform[:, len(out) : len(out) + n].double().unbind(1)
            least = [smallest if u is None else smallest * v for v in (u or means)]
            near = [0.0 if u is None else smallest**0.5 * (v - 0.5) for v in (u or means)]
            share = torch.log(top[:, layer].clamp_min(1e-9) / sums[:, 0].clamp_min(1e-9))
            shares = [share - (0.0 if u is None else 1e-3 * u[-1])] if self.brightest else []
            if self.radial:
                r, rr = means
                out += [r + near[0], torch.log((rr - r * r).clamp_min(0) + least[1]), *shares]
                continue
            x, y, xx, yy, xy = means
            var_x, var_y = (xx - x * x).clamp_min(0) + least[2], (yy - y * y).clamp_min(0) + least[3]
            correlation = (xy - x * y) / (var_x * var_y).sqrt() + (0.0 if u is None else 0.02 * (u[4] - 0.5))
            out += [x + near[0], y + near[1], torch.log(var_x), torch.log(var_y), correlation, *shares]
        return torch.stack(out, dim=1)

    def impose(self, voxels: Tensor, q: Tensor) -> Tensor:
        """Voxels (N, V) with these moments; the energies of the layers stay."""
        q = q.double().reshape(q.shape[0], -1, self.n_each)
        smallest = torch.tensor(self.smallest, dtype=q.dtype, device=q.device)
        means = (_radial_sums if self.radial else _planar_sums)(q[:, :, : 2 if self.radial else 5].unbind(2), smallest)
        energy = self.members.sums(voxels)
        sums = means * energy.double()[:, :, None]
        tilted = self.tilt.impose(voxels, sums)
        if not self.brightest:
            return tilted * self.members.spread(energy / self.members.sums(tilted).clamp_min(1e-9))
        voxels = tilted  # so that the brightest one lies where the moments want it
        chosen = (voxels >= self.members.spread(self.members.largest(voxels))) & (voxels > 0)
        rest = torch.where(chosen, 0.0, voxels)
        alone = self.members.sums(rest) <= 0
        share = torch.where(alone, 1.0, torch.exp(q[:, :, -1]).clamp_max(1.0).to(energy.dtype))
        top = self.members.spread(energy * share / self.members.sums(chosen.to(energy.dtype)).clamp_min(1.0)) * chosen
        tilted = self.tilt.impose(rest, sums - self.tilt.sums(top))
        left = energy * (1 - share)
        return top + tilted * self.members.spread(left / self.members.sums(tilted).clamp_min(1e-9))


def _radial_sums(q: Sequence[Tensor], smallest: Tensor) -> Tensor:
    """Means of 1, r and r^2 from the mean and the logarithm of the variance, (N, L) each: (N, L, 3)."""
    r, log_r = q
    return torch.stack([torch.ones_like(r), r, (torch.exp(log_r) - smallest).clamp_min(0) + r * r], dim=2)


def _planar_sums(q: Sequence[Tensor], smallest: Tensor) -> Tensor:
    """Means of 1, x, y, x^2, y^2 and xy from centre, logarithms of the variances, and correlation: (N, L, 6)."""
    x, y, log_x, log_y, correlation = q
    var_x, var_y = torch.exp(log_x), torch.exp(log_y)
    xy = correlation * (var_x * var_y).sqrt() + x * y
    xx, yy = ((v - smallest).clamp_min(0) + m * m for v, m in ((var_x, x), (var_y, y)))
    return torch.stack([torch.ones_like(x), x, y, xx, yy, xy], dim=2)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """x of matrix x = right, (.., n, n) positive definite and (.., n), by n conjugate gradients: ONNX has no solver."""
    x, rest = torch.zeros_like(right), right
    direction, length = rest, rest.square().sum(-1, keepdim=True)
    for _ in range(right.shape[-1]):
        along = (matrix @ direction[..., None])[..., 0]
        step = length / (direction * along).sum(-1, keepdim=True).clamp_min(TINY)
        x, rest, before = x + step * direction, rest - step * along, length
        length = rest.square().sum(-1, keepdim=True)
        direction = rest + length / before.clamp_min(TINY) * direction
    return x
