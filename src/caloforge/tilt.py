"""Showers with given sums: an exponential tilt of the voxels.

Voxels e_k (of one layer) have sums sum_k e_k b_k with fixed functions b_k of their place: moments of the position, or
the four-momentum of a jet. Given voxels e and sums S, the voxels e_k exp(lambda b_k) with these sums are those closest
to e in relative entropy (Csiszar, Ann. Probab. 3, 1975). lambda is the minimum of a convex function, found by Newton's
method. Empty voxels stay empty and filled ones filled.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .geometry import Array, Geometry

STEPS = 6  # of Newton
LARGEST = 2.0  # |lambda b_k|, so that a momentum that the pixels cannot have does no harm


class Tilt(nn.Module):
    """The tilt of voxels (N, V) with functions b (V, K), one of them constant or nearly so."""

    basis: Tensor
    units: Tensor

    def __init__(self, basis: Array) -> None:
        super().__init__()
        units = np.linalg.pinv(np.linalg.qr(basis)[1] / np.sqrt(len(basis)), rcond=1e-9)  # in which b has covariance 1
        self.register_buffer("basis", torch.from_numpy(basis), persistent=False)
        self.register_buffer("units", torch.from_numpy(units), persistent=False)

    def sums(self, voxels: Tensor) -> Tensor:
        """sum_k e_k b_k, (N, K) float64."""
        return voxels.double() @ self.basis

    def impose(self, voxels: Tensor, sums: Tensor) -> Tensor:
        """The tilted voxels (N, V): they have these sums (N, K), as far as their places allow."""
        b, e = self.basis @ self.units, voxels.double()
        scale = e.sum(1, keepdim=True).clamp_min(1e-9)
        e, target = e / scale, sums.double() @ self.units / scale
        power = torch.zeros_like(target)
        tiny = 1e-6 * torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
        for _ in range(STEPS):
            tilted = e * self._factor(power, b)
            curvature = torch.einsum("nv,vi,vj->nij", tilted, b, b) + tiny
            power = power + _solved(curvature, target - tilted @ b)
        return (scale * e * self._factor(power, b)).to(voxels.dtype)

    @staticmethod
    def _factor(power: Tensor, b: Tensor) -> Tensor:
        return torch.exp((power @ b.T).clamp_min(-LARGEST).clamp_max(LARGEST))


class JetMomentum(nn.Module):
    """Pixels [MeV] (N, V) <-> q (N, 4): ln pT, mass [MeV], eta and phi of the jet. The axes are x = eta, y = phi.

    A pixel of pT p_k adds p_k (cos phi_k, sin phi_k, sinh eta_k, cosh eta_k) to the four-momentum.
    """

    n_values: int = 4

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        eta, phi = geometry.centres()[:, :2].T
        self.tilt = Tilt(np.stack([np.cos(phi), np.sin(phi), np.sinh(eta), np.cosh(eta)], axis=1))

    def values(self, pixels: Tensor) -> Tensor:
        """q of the images, in float64."""
        px, py, pz, energy = self.tilt.sums(pixels).unbind(1)
        pt = torch.hypot(px, py).clamp_min(1e-9)
        mass = (energy**2 - pt**2 - pz**2).clamp_min(0.0).sqrt()
        return torch.stack([torch.log(pt), mass, torch.asinh(pz / pt), torch.atan2(py, px)], dim=1)

    def impose(self, pixels: Tensor, q: Tensor) -> Tensor:
        """Pixels (N, V) whose jet has q (N, 4)."""
        log_pt, mass, eta, phi = q.double().unbind(1)
        pt, mass = torch.exp(log_pt), mass.clamp_min(0.0)
        up, down = 0.5 * torch.exp(eta), 0.5 * torch.exp(-eta)  # ONNX Runtime has no sinh and cosh in float64
        energy = (pt**2 * (up + down) ** 2 + mass**2).sqrt()
        # sin and cos of an angle below pi in float32: enough, and what ONNX Runtime has.
        along, across = (f(phi.float()).double() for f in (torch.cos, torch.sin))
        sums = torch.stack([pt * along, pt * across, pt * (up - down), energy], dim=1)
        return self.tilt.impose(pixels, sums)


class Moments(nn.Module):
    """Voxels [MeV] (N, V) <-> q (N, 5 L): of each layer the centre of energy (x, y) [m], the logarithms of the
    variances along x and y [m^2], and the correlation of x and y.

    A hundredth of the layer's mean pitch, squared, is added to the variances, so that one filled voxel has a logarithm.
    """

    n_values: int

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.parts = [slice(*pair) for pair in zip(geometry.offsets[:-1], geometry.offsets[1:], strict=True)]
        self.n_values = 5 * geometry.n_layers
        places = [geometry.centres()[part, :2].T * 1e-3 for part in self.parts]
        self.smallest = [1e-4 * float(np.ptp(np.stack([x, y])) ** 2) / len(x) + 1e-12 for x, y in places]
        self.tilts = nn.ModuleList(Tilt(np.stack([x * 0 + 1, x, y, x * x, y * y, x * y], axis=1)) for x, y in places)

    def values(self, voxels: Tensor) -> Tensor:
        """q of the showers, in float64; a layer without energy counts as one voxel in its middle."""
        out = []
        for part, tilt, smallest in zip(self.parts, self.tilts, self.smallest, strict=True):
            sums = tilt.sums(voxels[:, part])  # type: ignore[operator]
            x, y, xx, yy, xy = (sums / sums[:, :1].clamp_min(1e-9)).unbind(1)[1:]
            var_x, var_y = (xx - x * x).clamp_min(0) + smallest, (yy - y * y).clamp_min(0) + smallest
            out += [x, y, torch.log(var_x), torch.log(var_y), (xy - x * y) / (var_x * var_y).sqrt()]
        return torch.stack(out, dim=1)

    def impose(self, voxels: Tensor, q: Tensor) -> Tensor:
        """Voxels (N, V) with these moments; the energies of the layers stay."""
        out = []
        for k, (part, tilt, smallest) in enumerate(zip(self.parts, self.tilts, self.smallest, strict=True)):
            x, y, log_x, log_y, correlation = q[:, 5 * k : 5 * k + 5].double().unbind(1)
            var_x, var_y = torch.exp(log_x), torch.exp(log_y)
            xy = correlation * (var_x * var_y).sqrt() + x * y
            xx, yy = ((v - smallest).clamp_min(0) + m * m for v, m in ((var_x, x), (var_y, y)))
            moments = torch.stack([torch.ones_like(x), x, y, xx, yy, xy], dim=1)
            energy = voxels[:, part]
            tilted = tilt.impose(energy, moments * energy.double().sum(1, keepdim=True))  # type: ignore[operator]
            out.append(tilted * (energy.sum(1, keepdim=True) / tilted.sum(1, keepdim=True).clamp_min(1e-9)))
        return torch.cat(out, dim=1)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """x of matrix x = right, (N, n, n) positive definite and (N, n), by n conjugate gradients: ONNX has no solver."""
    x, rest = torch.zeros_like(right), right
    direction = rest
    for _ in range(right.shape[1]):
        along = (matrix @ direction[:, :, None])[:, :, 0]
        size = rest.square().sum(1, keepdim=True)
        step = size / (direction * along).sum(1, keepdim=True).clamp_min(1e-300)
        x, rest = x + step * direction, rest - step * along
        direction = rest + rest.square().sum(1, keepdim=True) / size.clamp_min(1e-300) * direction
    return x
