"""Parametric simulation of electromagnetic showers: gamma profiles in depth, two components in radius, drawn as spots.

After G. Grindhammer, S. Peters, "The parameterized simulation of electromagnetic showers in homogeneous and sampling
calorimeters", hep-ex/0001020 (GFLASH). A physics model without training:
an oracle for tests, a baseline, and a quick stand-in for Geant4.

Notation: E energy [MeV], y = E/E_c, t depth along the shower axis [X0], T depth of the maximum [X0], alpha and
beta = (alpha - 1)/T of the gamma distribution, r radius [Moliere radii], tau depth in units of T, Z effective charge,
F = X0/(thickness of one period) and e_hat = e/mip of a sampling medium. S is the number of electron showers (a photon
makes two), M the number of spots.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..geometry import Array, Geometry
from ..hits import voxelize
from ..showers import Incident, Showers
from .detectors import Detector

BLOCK = 1 << 16  # spots drawn at once: the arrays stay in the processor's cache
LN_Y_MIN = 2.0  # below E = 7.4 E_c the formulae of the fluctuations have poles: the shape is frozen there
R_MAX = 8.0  # [Moliere radii] the paper's radial function has no end; Geant4 has 0.1 % of the energy beyond
SPREAD_MAX = 0.5  # 1/sqrt(E) has no end at low energy
CHARGE = {"G4_Pb": 82, "G4_W": 74, "G4_Cu": 29, "G4_Fe": 26, "G4_Al": 13, "G4_lAr": 18, "G4_Si": 14,
          "G4_PLASTIC_SC_VINYLTOLUENE": 5.6, "G4_POLYSTYRENE": 5.7, "G4_AIR": 7.4}  # fmt: skip


@dataclass(frozen=True)
class Parametric:
    """Simulator of e-, e+ and photon showers in any layered geometry with depths; the medium is taken as uniform.

    detector: its x0, moliere, zeff, critical and sampling_fraction describe the medium, its slabs say whether the
    sampling corrections apply (some slab is not sensitive), its geometry is the mesh.
    stochastic: relative spread of the deposited energy at 1 GeV, falls with 1/sqrt(E); None takes ``sampling_spread``.
    spots: number of energy deposits of a shower of 1 GeV divided by ln Z; it rises with E^0.876 (93 in the paper).

    Approximate: spots share the energy equally and follow the energy profile (the paper gives spots a profile of their
    own); a photon converts after 9/7 X0 on average and the pair shares its energy uniformly; the radial function ends
    at eight Moliere radii; below 7.4 critical energies the shape does not change with energy. Energy that leaves
    through the back or the sides of the detector is lost; hadronic losses are not described.
    """

    detector: Detector
    stochastic: float | None = None
    spots: float = 93.0

    def __post_init__(self) -> None:
        for number, layer in enumerate(self.geometry.layers):
            if layer.depth is None:
                raise ValueError(
                    f"got geometry {self.geometry.name!r} whose layer {number} has no depth, expected (front, back) in "
                    "mm for every layer; add them"
                )
        if not (self.spread >= 0 and self.spots > 0):
            raise ValueError(
                f"got stochastic={self.spread:g} and spots={self.spots:g}, expected a spread >= 0 and a number of "
                "spots > 0; correct them"
            )
        _sampling(self.detector)  # its errors belong here, not into a production

    @property
    def geometry(self) -> Geometry:
        return self.detector.geometry

    @property
    def spread(self) -> float:
        """Relative spread of the deposited energy at 1 GeV."""
        return sampling_spread(self.detector) if self.stochastic is None else self.stochastic

    def spot_count(self, energy: Array) -> Array:
        """Number of spots of showers of the given energy [MeV], at least 1, (N,) int."""
        count = self.spots * np.log(self.detector.zeff) * (energy / 1e3) ** 0.876
        return np.asarray(np.ceil(count), dtype=np.int64)

    def provenance(self) -> dict[str, Any]:
        """What every file made with this simulator records."""
        medium = {name: getattr(self.detector, name) for name in ("x0", "moliere", "zeff", "critical")}
        medium["sampling_fraction"] = self.detector.sampling_fraction
        return {
            "engine": "parametric (Grindhammer and Peters, hep-ex/0001020)",
            "detector": self.detector.name,
            "medium": medium | {"stochastic": self.spread, "spots": self.spots},
        }

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        """Showers of the given particles; the same seed gives the same showers."""
        if not np.isin(incident.pdg, (11, -11, 22)).all():
            odd = incident.pdg[~np.isin(incident.pdg, (11, -11, 22))][0]
            raise ValueError(f"got particle {odd}, expected e- (11), e+ (-11) or a photon (22); use Geant4 for others")
        rng = np.random.default_rng(seed)
        n = len(incident)
        energy = np.zeros((n, self.geometry.n_voxels), dtype=np.float32)
        overflow = np.zeros((n, self.geometry.n_layers), dtype=np.float32)
        pending = self.spot_count(incident.energy).cumsum()
        start = 0
        while start < n:
            stop = max(start + 1, int(np.searchsorted(pending, BLOCK + (pending[start - 1] if start else 0))))
            spots = self._spots(incident[start:stop], rng)
            energy[start:stop], overflow[start:stop] = voxelize(self.geometry, stop - start, *spots)
            start = stop
        return Showers(self.geometry, incident, energy, overflow, self.provenance() | {"seed": seed})

    def _spots(self, incident: Incident, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Spots inside the detector: shower (M,), position (M, 3) [mm, z from the front face], energy (M,) [MeV]."""
        return _inside(self.detector, *_draw(self, incident, rng))


@dataclass(frozen=True)
class _Profiles:
    """Shapes of S electron showers, all (S,): depth alpha, beta, tau_per_t (tau = t * tau_per_t), ln_e = ln(E/GeV)."""

    alpha: Array
    beta: Array
    tau_per_t: Array
    ln_e: Array


def _draw(model: Parametric, incident: Incident, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Spots of the showers, wherever they are: shower (M,), position (M, 3) [mm], energy (M,) [MeV]."""
    d = model.detector
    parent, energy, t0 = _electrons(incident, rng)
    shape = _longitudinal(d, energy, rng)
    count = model.spot_count(energy)
    spread = np.clip(model.spread / np.sqrt(incident.energy / 1e3), 1e-6, SPREAD_MAX)
    response = d.sampling_fraction * rng.gamma(spread**-2, spread**2)  # gamma distribution: never negative
    deposited = incident.energy * np.minimum(response, 1.0)  # and energy is never created
    value = (deposited[parent] * energy / incident.energy[parent] / count).repeat(count)
    spot = np.arange(len(count)).repeat(count)  # electron shower of each spot
    t = rng.standard_gamma(shape.alpha.astype(np.float32)[spot], dtype=np.float32)
    t /= shape.beta.astype(np.float32)[spot]
    r = _radius(d, t * shape.tau_per_t.astype(np.float32)[spot], shape.ln_e.astype(np.float32)[spot], rng)
    psi = rng.random(len(t), dtype=np.float32) * np.float32(2 * np.pi)
    depth = (t + t0.astype(np.float32)[spot]) * np.float32(d.x0)
    event = parent[spot]
    return event, _place(incident, event, depth, r * np.cos(psi), r * np.sin(psi)), value


def _electrons(incident: Incident, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Electron showers: incident particle (S,), energy (S,) [MeV], depth of the start (S,) [X0]."""
    photon = incident.pdg == 22
    share, conversion = rng.random(len(photon)), rng.exponential(9 / 7, len(photon))
    share = np.where(photon, np.clip(share, 1e-3, 1 - 1e-3), 1.0)
    parent = np.arange(len(photon)).repeat(1 + photon)
    second = np.concatenate([[False], parent[1:] == parent[:-1]])
    energy = incident.energy[parent] * np.where(second, 1 - share[parent], share[parent])
    return parent, energy, np.where(photon, conversion, 0.0)[parent]


def sampling_spread(d: Detector) -> float:
    """Relative spread of the deposited energy at 1 GeV, approximate.

    0.007 where every slab is sensitive (Geant4, Pb/LAr 2/4 mm), else 0.027 sqrt(d/f) for an active thickness d [mm] per
    period and a sampling fraction f (after R. Wigmans, Calorimetry): right within a factor of two.
    """
    active = sum(slab.thickness for slab in d.slabs if slab.sensitive)
    if all(slab.sensitive for slab in d.slabs):
        return 0.007
    return float(0.027 * np.sqrt(active / d.sampling_fraction))


def _sampling(d: Detector) -> tuple[float, float]:
    """1/F and 1 - e_hat of the medium, e_hat = 1/(1 + 0.007 (Z_passive - Z_active)).

    Both are 0 where every slab is sensitive: then the medium counts as homogeneous.
    """
    if all(slab.sensitive for slab in d.slabs):
        return 0.0, 0.0
    unknown = sorted({slab.material for slab in d.slabs} - set(CHARGE))
    if unknown:
        raise ValueError(f"got slab material {unknown[0]!r}, expected one of {', '.join(CHARGE)}; choose one of them")
    charge = []
    for sensitive in (False, True):
        slabs = [slab for slab in d.slabs if slab.sensitive == sensitive]
        charge.append(sum(CHARGE[s.material] * s.thickness for s in slabs) / (sum(s.thickness for s in slabs) or 1.0))
    return sum(slab.thickness for slab in d.slabs) / d.x0, 1 - 1 / (1 + 0.007 * (charge[0] - charge[1]))


def _longitudinal(d: Detector, energy: Array, rng: np.random.Generator) -> _Profiles:
    """Gamma profiles with their fluctuations and correlation: ln T and ln alpha are normal."""
    ln_y = np.maximum(np.log(energy / d.critical), LN_Y_MIN)
    per_f, passive = _sampling(d)
    mean_t, mean_a = ln_y - 0.812, 0.81 + (0.458 + 2.26 / d.zeff) * ln_y
    if per_f == 0:
        sigma_t, sigma_a, rho = 1 / (-1.4 + 1.26 * ln_y), 1 / (-0.58 + 0.86 * ln_y), 0.705 - 0.023 * ln_y
    else:
        mean_t = np.maximum(mean_t - 0.55 * per_f - 0.69 * passive, 0.5)
        mean_a = np.maximum(mean_a - 0.476 * per_f, 1.1)
        sigma_t = 1 / (-2.5 + 1.25 * np.maximum(ln_y, 3.0))
        sigma_a, rho = 1 / (-0.82 + 0.79 * ln_y), 0.784 - 0.023 * ln_y
    z1, z2 = rng.standard_normal((2, len(energy)))
    plus, minus = np.sqrt((1 + rho) / 2), np.sqrt((1 - rho) / 2)
    peak = mean_t * np.exp(sigma_t * (plus * z1 + minus * z2))
    alpha = np.maximum(mean_a * np.exp(sigma_a * (plus * z1 - minus * z2)), 1.1)
    beta = (alpha - 1) / peak
    # Radial profiles follow the centre of gravity alpha/beta of each shower, not its own maximum.
    return _Profiles(alpha, beta, beta / alpha * mean_a / (mean_a - 1), np.log(energy / 1e3))


def _radius(d: Detector, tau: Array, ln_e: Array, rng: np.random.Generator) -> Array:
    """Radii (M,) [mm] from f(r) = p 2rR_C^2/(r^2 + R_C^2)^2 + (1 - p) 2rR_T^2/(r^2 + R_T^2)^2."""
    z = d.zeff
    core = (0.0251 + 0.00319 * ln_e) + (0.1162 - 0.000381 * z) * tau
    # 0.0421 is 0.0412 in the GFLASH of Geant4; all other numbers agree with it.
    tail = (0.659 - 0.00309 * z) * (np.exp(-2.59 * (tau - 0.645)) + np.exp((0.3585 + 0.0421 * ln_e) * (tau - 0.645)))
    w = ((0.401 + 0.00187 * z) - tau) / (1.313 - 0.0686 * ln_e)
    p = (2.632 - 0.00094 * z) * np.exp(w - np.exp(w))
    per_f, passive = _sampling(d)
    if per_f > 0:
        early = per_f * np.exp(-tau)
        core += 0.0397 * early - 0.0203 * passive
        tail += -0.495 * early - 0.14 * passive
        p += passive * (0.348 - 0.642 * per_f * np.exp(-((tau - 1) ** 2)))
    u, v = rng.random((2, len(tau)), dtype=np.float32)
    scale = np.maximum(np.where(v < p, core, tail), np.float32(0.01))
    u *= R_MAX**2 / (R_MAX**2 + scale**2)  # probability that r < R_MAX
    return np.asarray(scale * np.sqrt(u / (1 - u)) * np.float32(d.moliere))


def _place(incident: Incident, event: Array, depth: Array, a: Array, b: Array) -> Array:
    """Points [mm], (M, 3), at ``depth`` along the axis of each shower and (a, b) beside it, from the entrance point."""
    ct, st, cp, sp = (f(v).astype(np.float32) for v in (incident.theta, incident.phi) for f in (np.cos, np.sin))
    zero = np.zeros_like(ct)
    axes = ((st * cp, st * sp, ct), (ct * cp, ct * sp, -st), (-sp, cp, zero))  # along the shower, and two normals
    position = np.empty((3, len(event)), dtype=np.float32)
    for k, entrance in enumerate((incident.x.astype(np.float32), incident.y.astype(np.float32), zero)):
        along, across, beside = (axis[k][event] for axis in axes)
        position[k] = entrance[event] + along * depth + across * a + beside * b
    return position.T


def _inside(d: Detector, event: Array, position: Array, value: Array) -> tuple[Array, Array, Array]:
    """The spots inside the box of the detector; the others leaked out."""
    x, y, z = position.T
    half = d.width / 2
    keep = np.flatnonzero((z >= 0) & (z <= d.depth) & (np.abs(x) <= half) & (np.abs(y) <= half))
    return event[keep], position.T[:, keep].T, value[keep]
