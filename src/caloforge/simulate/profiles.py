"""Average electromagnetic showers and their fluctuations: gamma profiles in depth, two components in radius.

After G. Grindhammer, S. Peters, "The parameterized simulation of electromagnetic showers in homogeneous and sampling
calorimeters", hep-ex/0001020 (GFLASH), with the constants of a ``Tuning``.

Notation: E energy [MeV], y = E/E_c, t depth along the shower axis [X0], T depth of the maximum [X0], alpha and
beta = (alpha - 1)/T of the gamma distribution, r radius [Moliere radii], tau depth in units of T, Z effective charge,
F = X0/(thickness of one period) and e_hat = e/mip of a sampling medium. N is the number of showers, S that of electron
showers (a photon makes two).
"""

from dataclasses import dataclass

import numpy as np

from ..geometry import Array
from ..showers import Incident
from .detectors import Detector, Slab
from .tuning import Tuning

LN_Y_MIN = 2.0  # below E = 7.4 E_c the formulae of the fluctuations have poles: the shape is frozen there
TAU_MAX = 12.0  # the radii rise exponentially with depth; nothing is left there
R_MAX = 8.0  # [Moliere radii] the paper's radial function has no end; Geant4 has 0.1 % of the energy beyond
SPREAD_MAX = 0.5  # 1/sqrt(E) has no end at low energy
LOSS_MAX = 0.3  # of the incident energy, in one nuclear reaction
SOFTER = 0.7  # neutrons of a reaction rise with its loss to this power (Geant4, lead: 0.6 to 0.8)
RADIUS_0, RADIUS_E, RADIUS_TAU, RADIUS_Z = 0.0251, 0.00319, 0.1162, -0.000381  # of R_C


@dataclass(frozen=True)
class Stack:
    """A detector as a uniform medium.

    x0, moliere [mm], critical [MeV]; fraction: sampling fraction; per_f = 1/F and passive = 1 - e_hat, both 0 where
    every slab is sensitive (it counts as homogeneous); front: depth of the borders of the sections [mm], radiations:
    the same in X0.
    """

    x0: float
    moliere: float
    zeff: float
    critical: float
    fraction: float
    per_f: float
    passive: float
    front: Array
    radiations: Array

    @staticmethod
    def of(d: Detector) -> "Stack":
        per_f, passive = sampling(d)
        lengths = [_lengths(d, section.slabs) * section.repeat for section in d.sections]
        main = max(range(len(lengths)), key=lambda i: lengths[i])
        depths = [section.depth for section in d.sections]
        scale = depths[main] / d.x0 / lengths[main]  # the constants of the detector may be given, not computed
        return Stack(
            d.x0, d.moliere, d.zeff, d.critical, d.sampling_fraction, per_f, passive,
            np.cumsum([0.0, *depths]), np.cumsum([0.0, *lengths]) * scale,
        )  # fmt: skip

    def radiation(self, z: Array) -> Array:
        """Depth in X0 of the depths z [mm]."""
        return np.asarray(np.interp(z, self.front, self.radiations))

    def place(self, t: Array) -> Array:
        """Depth [mm] of depths t [X0], at right angles where there are several sections; behind the detector the medium
        goes on."""
        if len(self.front) == 2:
            return np.asarray(t * t.dtype.type(self.x0))
        beyond = np.maximum(t - self.radiations[-1], 0) * self.x0
        return np.asarray(np.interp(t, self.radiations, self.front) + beyond).astype(t.dtype)


def _lengths(d: Detector, slabs: tuple[Slab, ...]) -> float:
    return sum(slab.thickness / d.material(slab.material).x0 for slab in slabs)


def sampling(d: Detector) -> tuple[float, float]:
    """1/F and 1 - e_hat of the medium, e_hat = 1/(1 + 0.007 (Z_passive - Z_active))."""
    if all(slab.sensitive for slab in d.slabs):
        return 0.0, 0.0
    charge = []
    for sensitive in (False, True):
        slabs = [slab for slab in d.slabs if slab.sensitive == sensitive]
        thick = sum(s.thickness for s in slabs) or 1.0
        charge.append(sum(d.material(s.material).z * s.thickness for s in slabs) / thick)
    return sum(slab.thickness for slab in d.slabs) / d.x0, 1 - 1 / (1 + 0.007 * (charge[0] - charge[1]))


def sampling_spread(d: Detector) -> float:
    """Relative spread of the deposited energy at 1 GeV, approximate.

    0.007 where every slab is sensitive (Geant4, Pb/LAr 2/4 mm), else 0.027 sqrt(d/f) for an active thickness d [mm] per
    period and a sampling fraction f (after R. Wigmans, Calorimetry): right within a factor of two.
    """
    active = sum(slab.thickness for slab in d.slabs if slab.sensitive)
    if all(slab.sensitive for slab in d.slabs):
        return 0.007
    return float(0.027 * np.sqrt(active / d.sampling_fraction))


@dataclass(frozen=True)
class Profiles:
    """Shapes of S electron showers, all (S,): depth alpha, beta, tau_per_t (tau = t * tau_per_t), ln_e = ln(E/GeV)."""

    alpha: Array
    beta: Array
    tau_per_t: Array
    ln_e: Array


@dataclass(frozen=True)
class Particles:
    """Showers before their spots are drawn.

    parent, energy [MeV], start [X0]: incident particle, energy and first depth of each electron shower, (S,); shape:
    theirs; deposited: energy [MeV] of all spots, disturbed: neutron deposits expected, (N,); tilt: slope of the axis
    towards theta-hat and phi-hat, (2, N).
    """

    parent: Array
    energy: Array
    start: Array
    shape: Profiles
    deposited: Array
    disturbed: Array
    tilt: Array


def develop(stack: Stack, spread: float, tuning: Tuning, incident: Incident, rng: np.random.Generator) -> Particles:
    """Draw everything that is one number per shower; ``spread``: of the deposited energy at 1 GeV."""
    parent, energy, start = electrons(incident, rng)
    shape = longitudinal(stack, energy, tuning, rng)
    tilt = np.zeros((2, len(incident)))
    if tuning.tilt:
        tilt = tuning.tilt / np.sqrt(incident.energy / 1e3) * rng.standard_normal((2, len(incident)))
    deposited, disturbed = deposit(stack, spread, tuning, incident.energy, rng)
    return Particles(parent, energy, start, shape, deposited, disturbed, tilt)


def electrons(incident: Incident, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Electron showers: incident particle (S,), energy (S,) [MeV], depth of the start (S,) [X0]."""
    photon = incident.pdg == 22
    share, conversion = rng.random(len(photon)), rng.exponential(9 / 7, len(photon))
    share = np.where(photon, np.clip(share, 1e-3, 1 - 1e-3), 1.0)
    parent = np.arange(len(photon)).repeat(1 + photon)
    second = np.concatenate([[False], parent[1:] == parent[:-1]])
    energy = incident.energy[parent] * np.where(second, 1 - share[parent], share[parent])
    return parent, energy, np.where(photon, conversion, 0.0)[parent]


def deposit(stack: Stack, spread: float, c: Tuning, energy: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Deposited energy [MeV] and expected neutron deposits of showers of the given energies [MeV], (N,) each.

    A gamma distribution, which is never negative, after nuclear reactions have taken their part; energy is never made.
    """
    spread_e = np.clip(spread / np.sqrt(energy / 1e3), 1e-6, SPREAD_MAX)
    response = stack.fraction * rng.gamma(spread_e**-2, spread_e**2)
    response *= c.response * (1 + c.response_slope * np.log(energy / 1e4))
    lost: Array = np.zeros(len(energy))
    disturbed: Array = np.zeros(len(energy))
    if c.reactions:
        count = rng.poisson(c.reactions * energy / 1e3)
        shower = np.arange(len(energy)).repeat(count)
        loss = c.reaction_loss * rng.random(len(shower)) ** (-1 / c.reaction_index)
        loss = np.minimum(loss, LOSS_MAX * energy[shower])
        lost = np.minimum(np.bincount(shower, loss, minlength=len(energy)), energy)
        disturbed = c.neutrons * np.bincount(shower, (loss / c.reaction_loss) ** SOFTER, minlength=len(energy))
    return (energy - lost) * np.minimum(np.maximum(response, 0), 1.0), disturbed


def longitudinal(stack: Stack, energy: Array, c: Tuning, rng: np.random.Generator) -> Profiles:
    """Gamma profiles with their fluctuations and correlation: ln T and ln alpha are normal."""
    ln_y = np.maximum(np.log(energy / stack.critical), LN_Y_MIN)
    mean_t, mean_a = ln_y - 0.812, 0.81 + (0.458 + 2.26 / stack.zeff) * ln_y
    if stack.per_f == 0:
        sigma_t, sigma_a, rho = 1 / (-1.4 + 1.26 * ln_y), 1 / (-0.58 + 0.86 * ln_y), 0.705 - 0.023 * ln_y
    else:
        mean_t = mean_t - 0.55 * stack.per_f - 0.69 * stack.passive
        mean_a = mean_a - 0.476 * stack.per_f
        sigma_t = 1 / (-2.5 + 1.25 * np.maximum(ln_y, 3.0))
        sigma_a, rho = 1 / (-0.82 + 0.79 * ln_y), 0.784 - 0.023 * ln_y
    mean_t = np.maximum(c.depth * mean_t + c.depth_shift, 0.5)
    mean_a = np.maximum(c.alpha * mean_a + c.alpha_shift, 1.1)
    sigma_t, sigma_a, rho = c.depth_spread * sigma_t, c.alpha_spread * sigma_a, np.clip(rho + c.correlation, -1, 1)
    z1, z2 = rng.standard_normal((2, len(energy)))
    plus, minus = np.sqrt((1 + rho) / 2), np.sqrt((1 - rho) / 2)
    peak = mean_t * np.exp(sigma_t * (plus * z1 + minus * z2))
    alpha = np.maximum(mean_a * np.exp(sigma_a * (plus * z1 - minus * z2)), 1.1)
    beta = (alpha - 1) / peak
    # Radial profiles follow the centre of gravity alpha/beta of each shower, not its own maximum.
    own, mean = beta / alpha, (mean_a - 1) / mean_t / mean_a
    followed = own * (mean / own) ** (1 - c.follow)
    return Profiles(alpha, beta, followed * mean_a / (mean_a - 1), np.log(energy / 1e3))


def radial(stack: Stack, tau: Array, ln_e: Array, c: Tuning) -> tuple[Array, Array, Array]:
    """Radii R_C and R_T [Moliere radii] and the core's share p at depths tau, arrays of one shape."""
    z = stack.zeff
    core = (RADIUS_0 + RADIUS_E * ln_e) + (RADIUS_TAU + RADIUS_Z * z) * tau * c.core_growth
    # 0.0421 is 0.0412 in the GFLASH of Geant4; all other numbers agree with it.
    early, late = np.exp(-2.59 * (tau - 0.645)), np.exp((0.3585 + 0.0421 * ln_e) * (tau - 0.645))
    tail = (0.659 - 0.00309 * z) * (early * c.tail_early + late)
    w = ((0.401 + 0.00187 * z) - tau) / (1.313 - 0.0686 * ln_e)
    p = (2.632 - 0.00094 * z) * np.exp(w - np.exp(w))
    if stack.per_f > 0:
        early = stack.per_f * np.exp(-tau)
        core += 0.0397 * early - 0.0203 * stack.passive
        tail += -0.495 * early - 0.14 * stack.passive
        p += stack.passive * (0.348 - 0.642 * stack.per_f * np.exp(-((tau - 1) ** 2)))
    return core * c.core, tail * c.tail, p * c.share


def axis_energy(stack: Stack, core: Array, c: Tuning) -> Array:
    """Energy [MeV] that a spot has more on the axis than far out, where the core has the radius R_C = ``core``.

    spot_energy (x exp(1 - x))^spot_growth with x = tau of that radius in a shower of 10 GeV: hard particles are most at
    the shower's maximum, x = 1.
    """
    slope = (RADIUS_TAU + RADIUS_Z * stack.zeff) * c.core_growth
    x = np.clip((core / c.core - RADIUS_0 - RADIUS_E * np.log(10)) / slope, 0.05, 8.0)
    return np.asarray((c.spot_energy or 0.0) * (x * np.exp(1 - x)) ** c.spot_growth)
