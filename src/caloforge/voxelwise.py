"""Preprocessing of the published GANs: every voxel becomes one feature by itself, y = f(e), and nothing else.

linear     y = e / scale: CaloGAN (GeV, 1712.10321), LAGAN (100 GeV, 1701.05927); generated values below 0 are empty
box-cox    y = (e^lambda - 1)/lambda, or ln e for lambda = 0 (Box and Cox, J. R. Stat. Soc. B 26, 1964), lambda by
           maximum likelihood on the filled voxels; empty ones count as half the threshold; then scaled to [0, 1]:
           LHCb's WGAN (Chekalina et al., 1812.01319)
"""

import numpy as np
import torch
from torch import Tensor, nn

from .geometry import Geometry

MOST_FITTED = 200_000  # filled voxels that lambda is fitted to


class VoxelTransform(nn.Module):
    """Voxel energies [MeV] (N, V) <-> features (N, V) of single voxels; there are no features of layers.

    power: lambda of the Box-Cox transform, None for linear features of ``scale`` MeV; threshold: voxels below it [MeV]
    are empty.
    """

    low: Tensor
    high: Tensor
    power: Tensor
    n_globals: int
    n_fixed: int
    n_voxels: int

    def __init__(self, geometry: Geometry, *, threshold: float, scale: float | None) -> None:
        super().__init__()
        self.n_voxels, self.n_globals, self.n_fixed = geometry.n_voxels, 0, 0
        self.threshold, self.scale = threshold, scale
        for name, value in (("low", 0.0), ("high", 1.0), ("power", 0.0)):
            self.register_buffer(name, torch.tensor(value))

    def fit(self, energy: Tensor, incident: Tensor, mirrors: Tensor | None = None, given: Tensor | None = None) -> None:
        """Set lambda and the range from training showers (N, V)."""
        if self.scale is not None:
            return
        filled = energy[energy >= self.threshold]
        if len(filled) < 2:
            raise ValueError(
                f"got {len(filled)} voxels above {self.threshold:g} MeV, expected many; lower preprocess.threshold_mev"
            )
        self.power = torch.tensor(box_cox_power(filled.numpy()), dtype=torch.float32)
        self.low = self._compressed(torch.tensor(0.5 * self.threshold))
        self.high = self._compressed(filled.max())

    def forward(self, energy: Tensor, incident: Tensor, given: Tensor | None = None) -> Tensor:
        """Energies [MeV] -> features, both (N, V)."""
        if (energy < 0).any():
            raise ValueError(
                f"got a voxel energy of {float(energy.min()):g} MeV, expected >= 0 for {self._name()}; correct the "
                "showers"
            )
        if self.scale is not None:
            return torch.where(energy < self.threshold, 0.0, energy) / self.scale
        energy = torch.where(energy < self.threshold, 0.5 * self.threshold, energy)
        return (self._compressed(energy) - self.low) / (self.high - self.low)

    def dequantise(self, encoded: Tensor, uniform: Tensor) -> Tensor:
        """The same: empty voxels keep their value."""
        return encoded

    def inverse(self, x: Tensor, incident: Tensor, given: Tensor | None = None) -> Tensor:
        """Features -> energies [MeV], both (N, V); nothing beyond 1.05 times the range of the training showers."""
        if self.scale is not None:
            energy = x * self.scale
        else:
            y = self.low + x.clamp_min(0.0).clamp_max(1.05) * (self.high - self.low)
            energy = self._expanded(y)
        return torch.where(energy < self.threshold, 0.0, energy)

    def _compressed(self, energy: Tensor) -> Tensor:
        return torch.log(energy) if abs(float(self.power)) < 1e-4 else (energy**self.power - 1) / self.power

    def _expanded(self, y: Tensor) -> Tensor:
        # lambda y + 1 > 0 holds for every energy; what a network makes of it is kept clear of 0.
        near = self.power.abs() < 1e-4
        power = torch.where(near, 1.0, self.power)
        return torch.where(near, torch.exp(y), (power * y + 1).clamp_min(1e-6) ** (1 / power))

    def _name(self) -> str:
        return "the Box-Cox transform" if self.scale is None else "the linear transform"


def box_cox_power(energy: np.ndarray) -> float:
    """lambda of largest likelihood for energies (n,) above 0, within -1..1, of at most MOST_FITTED of them."""
    from scipy.optimize import minimize_scalar
    from scipy.stats import boxcox_llf

    if np.any(energy <= 0):
        raise ValueError(f"got an energy of {energy.min():g} MeV, expected > 0 for the Box-Cox transform; leave it out")
    sample = energy.astype(np.float64)[:: -(-len(energy) // MOST_FITTED)]
    return float(minimize_scalar(lambda p: -boxcox_llf(p, sample), bounds=(-1, 1), method="bounded").x)
