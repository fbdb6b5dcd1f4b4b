"""The shared preprocessing: showers <-> features of about unit normal shape, and incident particles <-> conditions.

Features x = [g, y], (N, G + V): G numbers of the layers (energy fractions, numbers of filled voxels, second moments in
x and y), each Gaussianised by its own quantiles, and V of the voxels: Gaussianised, then decorrelated given g, s, the
Gaussianised logarithms of the layer energies, and the conditions beside the energy. Numbers of filled voxels and
moments are features of their own because they sum weak correlations of all voxels of a layer, which a model of single
voxels misses first. The number of filled voxels and the energy are enforced on the way back; second moments only guide
the voxels, unless moments are imposed (``tilt``).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .geometry import Geometry
from .jet_momentum import JetMomentum
from .settings import require_choices
from .tilt import Moments
from .transforms import (
    FEW_LAYERS,
    WITH_LARGEST,
    ConditionalGaussianize,
    Decorrelate,
    Gaussianize,
    LayerFractions,
    Layers,
)

CONDITIONS = ("energy", "theta", "phi", "x", "y")


@dataclass(frozen=True)
class PreprocessConfig:
    """voxels: how they become features: "gaussian" (this module), one by one, "linear" or "box-cox" (``voxelwise``), or
    relative to their layer, "fractions", or to the incident energy, "ratio" (``fractions``).

    threshold_mev: voxels below are empty; n_knots: quantile knots per voxel; n_nodes: layer energies they are at;
    scale_mev: unit of linear features. conditions: "direction" (direction cosines, the position where the straight line
    of the particle is ``depth_mm`` deep, and the kind of particle where there are several), or "polar" (theta, phi,
    position on the front face, as in models of format 1).

    impose: features of the layers that are imposed on the way back too (``tilt``): "moments", centres and widths;
    "radial", mean and variance of r in polar layers; "jet", pT, mass, eta and phi of a jet image; "subjets", the same
    of its second subjet too, the share of its brightest pixel, and the shares of the first one's middle pixel and
    of those around it. brightest: with "moments" or "radial", the share of each layer's brightest voxel is one more
    feature that is imposed. refill: voxels are filled or emptied until their number is the drawn one; whether the
    energies of the others follow, as if the threshold had moved, which keeps the spectrum of sparse images.

    layers: their energies as logits of successive "fractions" of the incident energy; as "logs", in which empty layers
    and particles that pass without showering stand at one place whatever their energy; "rest", logs of all but the
    layer with most energy, beside the fraction of the incident energy that is deposited, best for showers that are
    contained; or "ratios", that fraction and logs relative to the layer with most, for many layers.

    correlate: whether voxels hang together beyond what the features of the layers explain, which takes a product with
    V^2 numbers; without it, a student of the model generates sooner.

    Of "fractions" and "ratio" only: map: of each fraction to a feature, "logit", "log" or "linear"; noise_mev: width of
    the uniform noise added to every voxel, 0 for none; standardise: features to mean 0 and deviation 1, "voxel" each by
    its own, "all" those of voxels by one for all of them (those of layers each by its own), "none" leaves them raw.
    """

    voxels: Literal["gaussian", "linear", "box-cox", "fractions", "ratio"] = "gaussian"
    threshold_mev: float = 1e-3
    n_knots: int = 41
    n_nodes: int = 7
    scale_mev: float = 1e3
    impose: Literal["none", "moments", "radial", "jet", "subjets"] = "none"
    brightest: bool = False
    refill: bool = False
    layers: Layers = "fractions"
    correlate: bool = True
    conditions: Literal["direction", "polar"] = "direction"
    depth_mm: float = 0.0
    map: Literal["logit", "log", "linear"] = "logit"
    noise_mev: float = 1e-3
    standardise: Literal["none", "voxel", "all"] = "none"

    def __post_init__(self) -> None:
        require_choices(self)
        if self.brightest and self.impose not in ("moments", "radial"):
            raise ValueError(
                f"got preprocess.brightest with impose = {self.impose!r}, expected 'moments' or 'radial'; change one"
            )
        if not self.scale_mev > 0:
            raise ValueError(f"got preprocess.scale_mev = {self.scale_mev}, expected above 0; raise it")
        if not self.noise_mev >= 0:
            raise ValueError(f"got preprocess.noise_mev = {self.noise_mev}, expected at least 0; raise it")
        if not self.threshold_mev > 0 or self.n_knots < 3 or self.n_nodes < 1:
            raise ValueError(
                f"got threshold {self.threshold_mev} MeV and {self.n_knots} knots, expected > 0 and >= 3; raise them"
            )


FADING = 2.0  # of the energy that an empty voxel has for gradients, per unit of its distance to the threshold
SPAN = 48.0  # wider than any distance to a threshold: keeps layers apart in one sort


class ShowerTransform(nn.Module):
    """Voxel energies [MeV] (N, V) and incident energies [MeV] (N,) <-> features (N, G + V)."""

    squares: Tensor  # x^2 and y^2 of the voxel centres [mm^2], (2, V)
    offsets: Tensor  # first voxel of each layer and its number of voxels, (L,)
    sizes: Tensor
    n_globals: int
    n_fixed: int
    n_voxels: int

    def __init__(self, geometry: Geometry, config: PreprocessConfig, n_given: int = 0) -> None:
        super().__init__()
        self.n_layers, self.n_voxels, self.refill = geometry.n_layers, geometry.n_voxels, config.refill
        jets = config.impose in ("jet", "subjets")
        if jets and (self.n_layers > 1 or geometry.layers[0].kind != "cartesian"):
            raise ValueError(
                f"got impose {config.impose!r} for {geometry.name!r}, expected an image in (eta, phi), one cartesian "
                "layer; set it to 'none'"
            )
        self.imposed: JetMomentum | Moments | None = None
        if config.impose != "none":
            self.imposed = (
                JetMomentum(geometry, config.impose == "subjets")
                if jets
                else Moments(geometry, config.impose == "radial", config.brightest)
            )
        n_moments = self.imposed.n_values if self.imposed is not None else 2 * self.n_layers
        self.n_globals = 2 * self.n_layers + n_moments
        self.n_given = n_given
        self.n_fixed = self.n_globals + self.n_layers + n_given
        self.fractions = LayerFractions(geometry, config.threshold_mev, config.layers)
        self.layers = Gaussianize(self.n_globals, 6 * config.n_knots)
        self.scales = Gaussianize(self.n_layers, 2 * config.n_knots)
        self.voxels = ConditionalGaussianize(geometry, config.n_knots, config.n_nodes)
        self.decorrelate = Decorrelate(self.n_voxels, self.n_fixed, config.correlate)
        squares = torch.from_numpy(geometry.centres()[:, :2] ** 2).float()
        self.register_buffer("squares", squares.T.contiguous(), persistent=False)
        self.register_buffer("offsets", torch.from_numpy(geometry.offsets[:-1].copy()).float(), persistent=False)
        self.register_buffer("sizes", torch.from_numpy(np.diff(geometry.offsets)).float(), persistent=False)

    def fit(self, energy: Tensor, incident: Tensor, mirrors: Tensor | None = None, given: Tensor | None = None) -> None:
        """Set the statistics from training showers; mirrors: voxel permutations (S, V), symmetries."""
        self.fractions.fit(energy, incident)
        g, scales, w = self._raw(energy, incident)
        flips = [torch.arange(self.n_voxels)] if mirrors is None else list(mirrors)
        self.layers.fit(g)
        self.scales.fit(scales)
        s = self.scales(scales)
        self.voxels.fit(torch.cat([w[:, m] for m in flips]), s.repeat(len(flips), 1))
        h = torch.cat([self.layers(g), s, *_some(given)], dim=1)
        uniform = torch.rand(w.shape, generator=torch.Generator().manual_seed(1)).to(w.device)
        v = self.voxels.dequantise(self.voxels(w, s), s, uniform)
        self.decorrelate.fit(torch.cat([v[:, m] for m in flips]), h.repeat(len(flips), 1), self._near())

    def _near(self) -> list[tuple[slice, Tensor]] | None:
        """The voxels of every layer, and which of [g, s, given] belong to it and the layers beside it: in a deep
        detector the others would only add noise. The first feature and the conditions belong to all."""
        n = self.n_layers
        if n <= FEW_LAYERS:
            return None
        layers = torch.arange(n)
        moments = self.imposed.layers if isinstance(self.imposed, Moments) else layers.repeat(2)
        owner = torch.cat([layers, layers, moments, layers])
        given = torch.arange(len(owner), self.n_fixed)
        total = int(self.fractions.largest.argmax()) if self.fractions.kind in WITH_LARGEST else 0
        out = []
        for layer, (start, size) in enumerate(zip(self.offsets.int().tolist(), self.sizes.int().tolist(), strict=True)):
            close = (owner - layer).abs() <= 1
            close[total] = True
            out.append((slice(start, start + size), torch.cat([close.nonzero().flatten(), given])))
        return out

    def _raw(self, energy: Tensor, incident: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g before Gaussianising (N, G), ln(E_l / MeV) (N, L), and w (N, V).

        g: logit(u) or ln(E_l / MeV), number of filled voxels + noise in (0, 1), and ln of the second moments in x and
        y [mm^2] or what is imposed.
        """
        random = torch.Generator().manual_seed(0)  # the same noise for the same number of showers
        fill = 1 - torch.rand(len(energy), 2 * self.n_layers, generator=random, dtype=energy.dtype).to(energy.device)
        logits, w = self.fractions(energy, incident, fill[:, : self.n_layers])
        filled = self.fractions.layer_sums(torch.isfinite(w).to(energy.dtype))
        layers = self.fractions.layer_energies(logits, incident)
        kept = torch.where(torch.isfinite(w), energy, 0.0)
        if self.imposed is not None:
            uniform = 1 - torch.rand(len(energy), self.imposed.n_values, generator=random, dtype=energy.dtype)
            moments = [self.imposed.values(kept, uniform.to(energy.device)).to(energy.dtype)]
            return (
                torch.cat([logits, filled + 0.999 * fill[:, self.n_layers :], *moments], dim=1),
                self._scales(layers),
                w,
            )
        total = self.fractions.layer_sums(kept).clamp_min(self.fractions.threshold)
        moments = [torch.log(1 + self.fractions.layer_sums(kept * square) / total) for square in self.squares]
        # An axis of one bin has one moment for all showers: a little noise keeps its density finite.
        moments = [m + 5e-3 * torch.rand(m.shape, generator=random, dtype=m.dtype).to(m.device) for m in moments]
        return torch.cat([logits, filled + 0.999 * fill[:, self.n_layers :], *moments], dim=1), self._scales(layers), w

    def _scales(self, layers: Tensor) -> Tensor:
        """ln(E_l / MeV) of layer energies (N, L) [MeV]; empty layers count as holding the threshold."""
        return torch.log(layers.clamp_min(self.fractions.threshold))

    def forward(self, energy: Tensor, incident: Tensor, given: Tensor | None = None) -> Tensor:
        """Encoded showers [g, s, given, v], (N, F + V), -inf in empty voxels; ``dequantise`` makes them features.

        given: conditions beside the energy, (N, D), on which the regressions of the voxels depend too.
        """
        g, scales, w = self._raw(energy, incident)
        s = self.scales(scales)
        return torch.cat([self.layers(g), s, *_some(given), self.voxels(w, s)], dim=1)

    def dequantise(self, encoded: Tensor, uniform: Tensor) -> Tensor:
        """Features (N, G + V): empty voxels filled with noise below their threshold; uniform: (N, V) in [0, 1)."""
        h, v = encoded[:, : self.n_fixed], encoded[:, self.n_fixed :]
        v = self.voxels.dequantise(v, h[:, self.n_globals : self.n_globals + self.n_layers], uniform)
        return torch.cat([h[:, : self.n_globals], self.decorrelate(v, h)], dim=1)

    def inverse(self, x: Tensor, incident: Tensor, given: Tensor | None = None) -> Tensor:
        """Features (N, G + V) -> voxel energies [MeV] (N, V)."""
        energy, imposed = self.untilted(x, incident, given)
        return energy if self.imposed is None else self.imposed.impose(energy, imposed)

    def untilted(
        self, x: Tensor, incident: Tensor, given: Tensor | None = None, soft: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Voxel energies [MeV] (N, V) before anything is imposed, and what is to be imposed (N, Q).

        soft: empty voxels pass gradients on, as if their energy fell off exponentially below the threshold.
        """
        raw = self.layers.read(x[:, : self.n_globals].double())
        logits, s, v, border, shifted = self._placed(x, raw, incident, given)
        filled = shifted >= border
        w = self.voxels.inverse(self._valued(v, border, shifted), s)
        energy = self.fractions.inverse(logits, torch.where(filled, w, -torch.inf), incident)
        if soft:
            layers = self.fractions.layer_energies(logits, incident).to(energy.dtype)
            faintest = torch.exp(self.voxels.inverse(border, s)) * self.fractions.members.spread(layers)
            faint = faintest.detach() * torch.exp(FADING * (shifted - border).clamp_max(0.0))
            energy = energy + torch.where(filled, 0.0, faint - faint.detach())
        return energy, raw[:, 2 * self.n_layers :]

    def _valued(self, v: Tensor, border: Tensor, shifted: Tensor) -> Tensor:
        """Where filled voxels (N, V) are read in their tables, all arguments Gaussianised."""
        if not self.refill:
            # The shift chooses voxels; only those that it fills take their value from it, or it would move all faint
            # ones.
            return torch.where((v >= border) & (shifted >= border), v, shifted)
        # Close above a threshold t a normal variable falls off with its hazard h(t); here t = border + v - shifted.
        return border + (shifted - border) * (_hazard(border + v - shifted) / _hazard(border))

    def _placed(self, x: Tensor, raw: Tensor, incident: Tensor, given: Tensor | None) -> tuple[Tensor, ...]:
        """logit(u) and s (N, L), and voxels, their thresholds and shifted voxels (N, V), all Gaussianised."""
        logits, filled = raw[:, : self.n_layers], raw[:, self.n_layers : 2 * self.n_layers]
        filled = filled.floor().clamp_min(1.0).to(x.dtype)
        s = self.scales(self._scales(self.fractions.layer_energies(logits, incident)).to(x.dtype))
        h = torch.cat([x[:, : self.n_globals], s, *_some(given)], dim=1)
        v = self.decorrelate.inverse(x[:, self.n_globals :], h)
        border = self.voxels.borders(s)
        return logits, s, v, border, v + self.fractions.members.spread(self._shift(v - border, filled))

    def margins(self, x: Tensor, incident: Tensor, given: Tensor | None = None) -> Tensor:
        """Distance of every voxel to its threshold after decoding x (N, G + V), below 0 where it is empty: (N, V)."""
        raw = self.layers.read(x[:, : self.n_globals].double())
        _, _, v, border, shifted = self._placed(x, raw, incident, given)
        return self._valued(v, border, shifted) - border

    def _shift(self, margin: Tensor, filled: Tensor) -> Tensor:
        """Shift of each layer, (N, L), with which ``filled`` (N, L) of its voxels have margin + shift >= 0.

        margin: distance to the threshold, (N, V); filled: whole numbers, at least 1. 0 where the number is right
        without. One sort serves all layers.
        """
        base = SPAN * torch.arange(self.n_layers, device=margin.device, dtype=margin.dtype)
        keys = margin.clamp(-SPAN / 3, SPAN / 3) - base[self.fractions.layer_index]
        ordered = torch.sort(keys, dim=1, descending=True).values  # layer after layer, in each the largest first
        ordered = nn.functional.pad(ordered, (0, 1), value=-SPAN * (self.n_layers + 1))
        place = (self.offsets + filled.clamp_max(self.sizes) - 1).long()
        last_in = ordered.gather(1, place) + base
        first_out = ordered.gather(1, place + 1) + base
        beyond = (0.5 * (last_in - first_out)).clamp(2e-5, 1e-4)  # clear of rounding, and in between if there is room
        return torch.where((last_in >= 0) & (first_out < 0), 0.0, beyond - last_in)


def _hazard(t: Tensor) -> Tensor:
    """About the density over the survival function of a standard normal variable at t: within 6 % above t = -0.2."""
    return 0.5 * (t + (t * t + 8 / torch.pi).sqrt())


def _some(given: Tensor | None) -> tuple[Tensor, ...]:
    return () if given is None else (given,)


class ConditionEncoder(nn.Module):
    """Incident particles -> context c (N, C): ln E first, then every other quantity that varies, then their kind.

    valid: (low, high) of energy [MeV], theta, phi [rad], x, y [mm], the range the model is made for; it is scaled to
    [-1, 1]. In the convention "direction", directions and positions are scaled by twice their spread in training. pdg:
    kinds of particles, one-hot where there are several.
    """

    low: Tensor
    high: Tensor
    kinds: Tensor

    def __init__(
        self, valid: dict[str, tuple[float, float]], pdg: tuple[int, ...] = (), config: PreprocessConfig | None = None
    ) -> None:
        super().__init__()
        config = config or PreprocessConfig(conditions="polar")
        self.polar, self.depth = config.conditions == "polar", config.depth_mm
        bounds = [valid[name] for name in CONDITIONS]
        limits = [(np.log(bounds[0][0]), np.log(bounds[0][1])), *bounds[1:]]
        if not self.polar:
            limits[1:3] = _direction_limits(bounds[1], bounds[2])
            reach = self.depth * np.tan(min(bounds[1][1], 1.5))
            limits[3:] = [(low - reach, high + reach) for low, high in bounds[3:]]
        self.active = [0] + [i for i in range(1, len(limits)) if limits[i][1] > limits[i][0]]
        self.register_buffer("low", torch.tensor([limits[i][0] for i in self.active], dtype=torch.float32))
        self.register_buffer("high", torch.tensor([limits[i][1] for i in self.active], dtype=torch.float32))
        self.n_classes = len(pdg) if len(pdg) > 1 and not self.polar else 0
        kinds = torch.tensor(pdg[: self.n_classes], dtype=torch.float32)
        self.register_buffer("kinds", kinds, persistent=False)

    @property
    def n_conditions(self) -> int:
        return len(self.active) + self.n_classes

    @property
    def n_given(self) -> int:
        """Conditions beside the energy that the preprocessing of the voxels may use; 0 for "polar"."""
        return 0 if self.polar else self.n_conditions - 1

    def fit(self, *particles: Tensor) -> None:
        """Set the scales of directions and positions from training particles; that of the energy stays."""
        if self.polar:
            return
        values = self._values(*particles)
        for column in range(1, len(self.active)):
            mean, spread = values[:, column].mean(), values[:, column].std().clamp_min(1e-6)
            self.low[column], self.high[column] = mean - 2 * spread, mean + 2 * spread

    def _values(self, energy: Tensor, theta: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Unscaled quantities that vary, (N, A)."""
        # In float64: layer flows magnify a last digit of the logarithm, in which PyTorch and ONNX Runtime differ.
        values = [torch.log(energy.double()).to(energy.dtype), theta, phi, x, y]
        if not self.polar:
            cos, sin = torch.cos(phi), torch.sin(phi)
            reach = self.depth * torch.tan(theta)
            values[1:] = [torch.sin(theta) * cos, torch.sin(theta) * sin, x + reach * cos, y + reach * sin]
        return torch.stack([values[i] for i in self.active], dim=1)

    def forward(
        self, energy: Tensor, theta: Tensor, phi: Tensor, x: Tensor, y: Tensor, pdg: Tensor | None = None
    ) -> Tensor:
        given = self._values(energy, theta, phi, x, y)
        span = self.high - self.low
        span = torch.where(span > 1e-5 * self.high.abs(), span, 1.0)  # one energy: a rounding error is no condition
        c = given * (2 / span) - (2 * self.low / span + 1)
        if self.n_classes == 0 or pdg is None:
            return c
        return torch.cat([c, (pdg[:, None] == self.kinds).to(c.dtype)], dim=1)


def _direction_limits(theta: tuple[float, float], phi: tuple[float, float]) -> list[tuple[float, float]]:
    """Ranges of the direction cosines sin(theta) cos(phi) and sin(theta) sin(phi)."""
    if phi[0] < phi[1]:
        most = float(np.sin(min(theta[1], np.pi / 2)))
        return [(-most, most)] * 2
    ends = np.sin([theta]).T * np.array([[np.cos(phi[0]), np.sin(phi[0])]])  # (low and high, x and y)
    return [(float(a.min()), float(a.max())) for a in np.where(np.abs(ends) < 1e-12, 0.0, ends).T]
