"""Preprocessing of the published flows and diffusion models: voxels relative to their layer or to the incident energy.

fractions  features [f(u), f(w)], (N, L + V), of the noisy voxel energies e (CaloFlow, Krause & Shih 2021, 2106.05285):

               u_0 = E_tot/(k E_inc),  u_l = E_{l-1} / sum_{j >= l-1} E_j  (l = 1 .. L-1),  w = e/E_l
ratio      features f(w), (N, V), with w = e/(k E_inc) (CaloDiffusion, Amram & Pedro 2023, 2308.03876)

k is the ceiling, 1.02 times the largest E_tot/E_inc of the training showers. The map f is one of

logit      f(w) = logit(alpha + (1 - 2 alpha) w), alpha = 1e-6
log        f(w) = ln(w + 1e-8) (CaloINN, Ernst et al. 2023, 2312.09290)
linear     f(w) = w

and features may be standardised afterwards.
"""

import torch
from torch import Tensor, nn

from .geometry import Geometry
from .preprocess import PreprocessConfig

ALPHA = 1e-6  # of the logit
OFFSET = 1e-8  # of the logarithm
TINY = 1e-30  # below any energy [MeV] and any fraction that counts
MARGIN = 1.02
CHUNK = 4096  # showers whose features are held in float64 at once


class FractionTransform(nn.Module):
    """Voxel energies [MeV] (N, V) and incident energies [MeV] (N,) <-> features (N, G + V); G = L, or 0 for "ratio".

    Statistics: the ceiling k, and mean and standard deviation of the features, (G + V,), 0 and 1 where they stay raw.
    """

    ceiling: Tensor
    mean: Tensor
    std: Tensor
    n_globals: int
    n_fixed: int
    n_voxels: int

    def __init__(self, geometry: Geometry, config: PreprocessConfig) -> None:
        super().__init__()
        self.config, self.sizes = config, [layer.n_voxels for layer in geometry.layers]
        self.n_voxels, self.n_fixed = geometry.n_voxels, 1  # the incident energy stands before the voxels
        self.n_globals = geometry.n_layers if config.voxels == "fractions" else 0
        n = self.n_globals + self.n_voxels
        for name, value in (("ceiling", torch.ones(())), ("mean", torch.zeros(n)), ("std", torch.ones(n))):
            self.register_buffer(name, value)

    def fit(self, energy: Tensor, incident: Tensor, mirrors: Tensor | None = None, given: Tensor | None = None) -> None:
        """Set the statistics from training showers; mirrors: voxel permutations (S, V), symmetries."""
        encoded = self(energy, incident)
        most = encoded[:, 1:].sum(1) + self.config.noise_mev * self.n_voxels
        self.ceiling = (MARGIN * (most / incident).max()).to(torch.float32)
        if self.config.standardise == "none":
            return
        mean, square = (torch.zeros(self.n_globals + self.n_voxels, dtype=torch.float64) for _ in range(2))
        random = torch.Generator().manual_seed(0)
        for part in torch.split(encoded, CHUNK):
            uniform = torch.rand(len(part), self.n_voxels, generator=random)
            y = self._features(part, uniform.to(part.device)).cpu()
            mean, square = mean + y.sum(0) / len(encoded), square + y.square().sum(0) / len(encoded)
        g = self.n_globals
        for moments in (mean, square):
            if mirrors is not None:
                moments[g:] = torch.stack([moments[g:][flip] for flip in mirrors.cpu()]).mean(0)
            if self.config.standardise == "all":
                moments[g:] = moments[g:].mean()
        std = (square - mean.square()).clamp_min(0).sqrt()
        self.mean = mean.to(self.mean)
        self.std = torch.where(std > 1e-6 * mean.abs() + TINY, std, 1.0).to(self.std)  # a constant feature stays one

    def forward(self, energy: Tensor, incident: Tensor, given: Tensor | None = None) -> Tensor:
        """Encoded showers [E_inc, e] [MeV], (N, 1 + V), without voxels below the threshold."""
        if (energy < 0).any():
            raise ValueError(
                f"got a voxel energy of {float(energy.min()):g} MeV, expected >= 0 for preprocess.voxels = "
                f"{self.config.voxels!r}; correct the showers"
            )
        return torch.cat([incident[:, None], torch.where(energy < self.config.threshold_mev, 0.0, energy)], dim=1)

    def dequantise(self, encoded: Tensor, uniform: Tensor) -> Tensor:
        """Features (N, G + V): noise added to every voxel, then mapped; uniform: (N, V) in [0, 1)."""
        y = self._features(encoded, uniform).to(encoded.dtype)
        return (y - self.mean) / self.std

    def _features(self, encoded: Tensor, uniform: Tensor) -> Tensor:
        """Features before they are standardised, (N, G + V), in float64: a voxel may be all but its layer."""
        incident, energy = encoded[:, :1].double(), encoded[:, 1:].double() + self.config.noise_mev * uniform.double()
        if not self.n_globals:
            return self._mapped(energy / (self.ceiling * incident))
        layers = self._layer_sums(energy)
        rest = layers.flip(1).cumsum(1).flip(1)  # sum_{j >= l} E_j
        u = torch.cat([rest[:, :1] / (self.ceiling * incident), layers[:, :-1] / rest[:, :-1].clamp_min(TINY)], dim=1)
        return self._mapped(torch.cat([u, energy / self._spread(layers).clamp_min(TINY)], dim=1))

    def inverse(self, x: Tensor, incident: Tensor, given: Tensor | None = None) -> Tensor:
        """Features (N, G + V) -> voxel energies [MeV] (N, V); those below the threshold are 0."""
        energy = self.unthresholded(x, incident)
        return torch.where(energy < self.config.threshold_mev, 0.0, energy)

    def unthresholded(self, x: Tensor, incident: Tensor) -> Tensor:
        """The same with every voxel; those of a layer sum to its energy, unless none of them is above 0."""
        y = x * self.std + self.mean
        w = self._unmapped(y[:, self.n_globals :])
        if not self.n_globals:
            return w * (self.ceiling * incident)[:, None]
        layers = self.layer_energies(x, incident)
        share = layers / self._layer_sums(w.double()).clamp_min(TINY)
        return (w * self._spread(share)).to(x.dtype)

    def layer_energies(self, x: Tensor, incident: Tensor) -> Tensor:
        """Layer energies [MeV] that features (N, G + V) ask for, (N, L), in float64; not for "ratio"."""
        g = self.n_globals
        u = self._unmapped((x[:, :g] * self.std[:g] + self.mean[:g]).double())
        passed = torch.log((1 - u[:, 1:]).clamp_min(TINY)).cumsum(1)  # ln of the share left behind layer l
        before = torch.exp(nn.functional.pad(passed, (1, 0)))
        own = nn.functional.pad(u[:, 1:], (0, 1), value=1.0)  # the last layer takes the rest
        return u[:, :1] * (self.ceiling * incident).double()[:, None] * before * own

    def _mapped(self, w: Tensor) -> Tensor:
        """f: fractions -> raw features."""
        w = w.clamp(0, 1)
        if self.config.map == "logit":
            return torch.log((ALPHA + (1 - 2 * ALPHA) * w) / (ALPHA + (1 - 2 * ALPHA) * (1 - w)))
        return torch.log(w + OFFSET) if self.config.map == "log" else w

    def _unmapped(self, y: Tensor) -> Tensor:
        """The inverse of f, kept within 0..1."""
        # In units of alpha or of the offset: the exporter drops factors that are almost 1 and terms that are almost 0.
        # ONNX Runtime's own sigmoid is off by 1e-7, which is much beside alpha.
        if self.config.map == "logit":
            y = ((1 / ALPHA) / (1 + torch.exp(-y)) - 1) / (1 / ALPHA - 2)
        elif self.config.map == "log":
            y = (torch.exp(y.clamp_max(1.0)) / OFFSET - 1) * OFFSET
        return y.clamp(0, 1)

    def _layer_sums(self, values: Tensor) -> Tensor:
        """Sum over the voxels of each layer: (N, V) -> (N, L)."""
        return torch.stack([part.sum(1) for part in torch.split(values, self.sizes, dim=1)], dim=1)

    def _spread(self, layers: Tensor) -> Tensor:
        """One value per layer, (N, L), at each of its voxels, (N, V)."""
        return torch.cat([layers[:, k : k + 1].expand(-1, n) for k, n in enumerate(self.sizes)], dim=1)
