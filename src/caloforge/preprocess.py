"""The shared preprocessing: showers <-> features of about unit normal shape, and incident particles <-> conditions.

Features x = [u, v], (N, L + V): L for the layer fractions, V for the voxels, each Gaussianised by its own quantiles.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .geometry import Array, Geometry
from .transforms import Gaussianize, LayerFractions

CONDITIONS = ("energy", "theta", "phi", "x", "y")


@dataclass(frozen=True)
class PreprocessConfig:
    """threshold_mev: voxels below are empty; n_knots: quantile knots per feature."""

    threshold_mev: float = 1e-3
    n_knots: int = 65

    def __post_init__(self) -> None:
        if not self.threshold_mev > 0 or self.n_knots < 3:
            raise ValueError(
                f"got threshold {self.threshold_mev} MeV and {self.n_knots} knots, expected > 0 and >= 3; raise them"
            )


class ShowerTransform(nn.Module):
    """Voxel energies [MeV] (N, V) and incident energies [MeV] (N,) <-> features (N, L + V)."""

    def __init__(self, geometry: Geometry, config: PreprocessConfig) -> None:
        super().__init__()
        self.n_layers, self.n_voxels = geometry.n_layers, geometry.n_voxels
        self.fractions = LayerFractions(geometry, config.threshold_mev)
        self.layers = Gaussianize(self.n_layers, 4 * config.n_knots)
        self.voxels = Gaussianize(self.n_voxels, config.n_knots)

    def fit(self, energy: Tensor, incident: Tensor, mirrors: Tensor | None = None) -> None:
        """Set the statistics from training showers; mirrors: voxel permutations (S, V), symmetries."""
        self.fractions.fit(energy, incident)
        logits, w = self.fractions(energy, incident, _fill(energy, self.n_layers))
        self.layers.fit(logits)
        self.voxels.fit(w if mirrors is None else torch.cat([w[:, m] for m in mirrors]))

    def forward(self, energy: Tensor, incident: Tensor) -> Tensor:
        """Features with -inf in empty voxels; ``dequantise`` makes them finite."""
        logits, w = self.fractions(energy, incident, _fill(energy, self.n_layers))
        return torch.cat([self.layers(logits), self.voxels(w)], dim=1)

    def dequantise(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Fill empty voxels with noise below their threshold; uniform: (N, V) in [0, 1)."""
        return torch.cat([x[:, : self.n_layers], self.voxels.dequantise(x[:, self.n_layers :], uniform)], dim=1)

    def inverse(self, x: Tensor, incident: Tensor) -> Tensor:
        """Features (N, L + V) -> voxel energies [MeV] (N, V)."""
        logits, v = self.layers.read(x[:, : self.n_layers].double()), x[:, self.n_layers :]
        # A voxel is filled above its border; where a layer has energy and no such voxel, the nearest to it is.
        margin = v - self.voxels.border
        best = self.fractions.layer_maxima(margin).clamp_max(0.0)[:, self.fractions.layer_index]
        w = torch.where(margin >= best, self.voxels.read(v), -torch.inf)
        return self.fractions.inverse(logits, w, incident)


def _fill(energy: Tensor, n_layers: int) -> Tensor:
    """Dequantisation noise of empty layers, the same for the same number of showers."""
    generator = torch.Generator().manual_seed(0)
    return 1 - torch.rand(len(energy), n_layers, generator=generator, dtype=energy.dtype).to(energy.device)


class ConditionEncoder(nn.Module):
    """Incident particles -> context c (N, C): ln E and every other quantity that varies, each scaled to [-1, 1].

    valid: (low, high) of energy [MeV], theta, phi [rad], x, y [mm], the range the model is made for.
    """

    low: Tensor
    high: Tensor

    def __init__(self, valid: dict[str, tuple[float, float]]) -> None:
        super().__init__()
        bounds = [valid[name] for name in CONDITIONS]
        limits = [(np.log(bounds[0][0]), np.log(bounds[0][1])), *bounds[1:]]
        self.active = [0] + [i for i in range(1, len(limits)) if limits[i][1] > limits[i][0]]
        self.register_buffer("low", torch.tensor([limits[i][0] for i in self.active], dtype=torch.float32))
        self.register_buffer("high", torch.tensor([limits[i][1] for i in self.active], dtype=torch.float32))

    @property
    def n_conditions(self) -> int:
        return len(self.active)

    def forward(self, energy: Tensor, theta: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
        values = [torch.log(energy), theta, phi, x, y]
        given = torch.stack([values[i] for i in self.active], dim=1)
        return 2 * (given - self.low) / (self.high - self.low).clamp_min(1e-12) - 1


def mirrors(geometry: Geometry) -> Array:
    """Voxel permutations (S, V) that mirror every layer of a cartesian geometry in x and y; identity alone otherwise.

    They are exact symmetries of a planar detector hit in its centre at normal incidence.
    """
    even = all(
        layer.kind == "cartesian"
        and np.allclose(layer.first, -np.array(layer.first)[::-1])
        and np.allclose(layer.second, -np.array(layer.second)[::-1])
        for layer in geometry.layers
    )
    if not even:
        return np.arange(geometry.n_voxels)[None]
    grids = [
        start + np.arange(v.n_voxels).reshape(v.shape)
        for v, start in zip(geometry.layers, geometry.offsets, strict=False)
    ]
    flips = [(1, 1), (-1, 1), (1, -1), (-1, -1)]
    return np.stack([np.concatenate([g[::a, ::b].ravel() for g in grids]) for a, b in flips])
