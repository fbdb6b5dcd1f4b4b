"""Showers spot by spot, in any direction: spots of equal energy (the textbook), or of energies that fall with radius.

Notation of ``profiles``; S electron showers, K steps in depth, M spots. Positions are along the shower axis
(depth [mm]) and beside it (a, b) [mm].
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc

from ..geometry import Array
from ..showers import Incident
from .profiles import R_MAX, TAU_MAX, Particles, Stack, axis_energy, develop, radial
from .tuning import Tuning

STEP = 0.5  # [X0] in which the profiles count as constant
SMALLEST = np.float32(0.01)  # [Moliere radii] of R_C and R_T
TURN = np.float32(2 * np.pi)


@dataclass(frozen=True)
class Spots:
    """event: shower of each spot, depth, a, b: where it is [mm], value: its energy [MeV]; all (M,)."""

    event: Array
    depth: Array
    a: Array
    b: Array
    value: Array


def equal_spots(stack: Stack, spread: float, c: Tuning, incident: Incident, spots_per_gev: float,
                rng: np.random.Generator) -> Spots:  # fmt: skip
    """Spots that share the energy of each electron shower equally and follow its energy profile."""
    p = develop(stack, spread, c, incident, rng)
    count = spot_count(stack, spots_per_gev, p.energy)
    value = (p.deposited[p.parent] * p.energy / incident.energy[p.parent] / count).repeat(count)
    spot = np.arange(len(count)).repeat(count)  # electron shower of each spot
    t = rng.standard_gamma(p.shape.alpha.astype(np.float32)[spot], dtype=np.float32)
    t /= p.shape.beta.astype(np.float32)[spot]
    tau, ln_e = t * p.shape.tau_per_t.astype(np.float32)[spot], p.shape.ln_e.astype(np.float32)[spot]
    r = radius(stack, tau, ln_e, c, rng)
    t += p.start.astype(np.float32)[spot]
    return _around(p, p.parent[spot], stack.place(t), r, value, rng)


def spot_count(stack: Stack, spots_per_gev: float, energy: Array) -> Array:
    """Number of equal spots of showers of the given energy [MeV], at least 1, (N,) int; E^0.876 as in the paper."""
    return np.asarray(np.ceil(spots_per_gev * np.log(stack.zeff) * (energy / 1e3) ** 0.876), dtype=np.int64)


def radius(stack: Stack, tau: Array, ln_e: Array, c: Tuning, rng: np.random.Generator) -> Array:
    """Radii (M,) [mm] from f(r) = p f_C + (1 - p) f_T, f_i = 2 nu r R^(2 nu)/(r^2 + R^2)^(1 + nu), up to R_MAX."""
    core, tail, p = radial(stack, tau, ln_e, c)
    u, v = rng.random((2, len(tau)), dtype=np.float32)
    inner = v < p
    scale = np.maximum(np.where(inner, core, tail), SMALLEST)
    if c.core_power == c.tail_power == 1:
        u *= R_MAX**2 / (R_MAX**2 + scale**2)  # probability that r < R_MAX
        odds = u / (1 - u)
    else:
        power = np.where(inner, np.float32(c.core_power), np.float32(c.tail_power))
        u *= 1 - (1 + (R_MAX / scale) ** 2) ** -power
        odds = (1 - u) ** (-1 / power) - 1
    return np.asarray(scale * np.sqrt(odds) * np.float32(stack.moliere))


def unequal_spots(stack: Stack, spread: float, c: Tuning, incident: Incident, length: float,
                  rng: np.random.Generator, spot_rng: np.random.Generator) -> Spots:  # fmt: skip
    """Spots of random number and energy of core, tail and halo, and neutron deposits; ``length``: of the steps [X0].

    Each kind is a Poisson process. Its mean number in a step is the step's energy over the mean energy of a spot.
    """
    p = develop(stack, spread, c, incident, rng)
    edges = np.linspace(0, length, int(np.ceil(length / STEP)) + 1)
    share = np.diff(gammainc(p.shape.alpha[:, None], p.shape.beta[:, None] * edges), axis=1)
    energy = share * p.energy[:, None]
    tau = np.minimum(p.shape.tau_per_t[:, None] * (edges[:-1] + edges[1:]) / 2, TAU_MAX)
    core, tail, inner = radial(stack, tau, p.shape.ln_e[:, None], c)
    inner, em = np.clip(inner, 0, 1), energy * (1 - c.halo)
    core, tail = np.maximum(core, SMALLEST), np.maximum(tail, SMALLEST)
    n = len(incident)
    total = np.bincount(p.parent, energy.sum(axis=1), minlength=n)
    neutrons = energy * (p.disturbed / np.maximum(total, 1e-30))[p.parent][:, None]
    draw = _Draw(stack, c, edges[1], spot_rng)
    kinds = [
        draw.component(em * inner, core, axis_energy(stack, core, c), c.core_power, c.spot_falloff),
        draw.component(em * (1 - inner), tail, np.zeros_like(tail), c.tail_power, 0.0),
        draw.wandering(energy * (c.halo / c.halo_energy), c.halo_energy, c.spot_spread, c.halo_range, c.halo_forward),
        draw.wandering(neutrons, c.neutron_energy, c.neutron_spread, c.neutron_range, 0.0),
    ]
    shower, t, r, value, ahead = (np.concatenate(column) for column in zip(*kinds, strict=True))
    event = p.parent[shower]
    loud = slice(0, sum(len(kind[0]) for kind in kinds[:3]))  # neutrons take nothing of the deposited energy
    drawn = np.bincount(event[loud], value[loud], minlength=n)
    factor = p.deposited * total / incident.energy / np.maximum(drawn, 1e-30)
    value[loud] *= factor.astype(np.float32)[event[loud]]
    t += p.start.astype(np.float32)[shower]
    return _around(p, event, stack.place(t) + ahead, r, value, spot_rng)


class _Draw:
    """Spots of one kind: shower (M,), t [X0], r [mm], energy [MeV], way ahead of t [mm]."""

    def __init__(self, stack: Stack, c: Tuning, step: float, rng: np.random.Generator) -> None:
        self.stack, self.c, self.step, self.rng = stack, c, np.float32(step), rng

    def component(self, energy: Array, scale: Array, axis: Array, power: float, falloff: float) -> tuple[Array, ...]:
        """Core or tail: energy [MeV], scale [Moliere radii] and spot energy on the axis [MeV] of each step, (S, K).

        With q = 1 + r^2/R^2 the energy has the density q^-(1 + nu), a spot the mean energy e = floor + e_0 q^-s. Spots
        are drawn with the density q^-(1 + nu - s) and kept with the probability e_0 q^-s/e; for e_0 = 0, s = 0.
        """
        floor = self.c.spot_floor
        s, least = (falloff, axis) if axis.any() else (0.0, np.full_like(axis, floor))
        q_max = 1 + (R_MAX / scale) ** 2
        inside, reach = 1 - q_max**-power, 1 - q_max ** (s - power)
        n, shower, t = self._steps(energy / least * (power / (power - s)) * reach / inside)

        def of_spots(values: Array) -> Array:
            return values.astype(np.float32).ravel().repeat(n)

        q: Array = 1 - self.rng.random(len(t), dtype=np.float32) * of_spots(reach)
        q = q ** np.float32(-1 / (power - s))
        r = of_spots(scale) * np.float32(self.stack.moliere) * np.sqrt(q - 1)
        mean: Array = np.full(len(t), np.float32(floor))
        if axis.any():
            added = of_spots(least) * q ** np.float32(-s)
            mean = mean + added
            kept = np.flatnonzero(self.rng.random(len(t), dtype=np.float32) * mean < added)
            shower, t, r, mean = (v[kept] for v in (shower, t, r, mean))
        return shower, t, r, self._spread(mean, self.c.spot_spread), np.zeros_like(t)

    def wandering(self, number: Array, energy: float, spread: float, reach: float, forward: float) -> tuple[Array, ...]:
        """Spots (mean number of each step, (S, K)) that leave the axis in the direction cos ~ 1 + forward cos."""
        _, shower, t = self._steps(number)
        far = self.rng.standard_gamma(2, len(t), dtype=np.float32) * np.float32(reach * self.stack.moliere)
        cos = cosine(self.rng.random(len(t), dtype=np.float32), forward)
        value = self._spread(np.full(len(t), np.float32(energy)), spread)
        return shower, t, far * np.sqrt(np.maximum(1 - cos * cos, 0)), value, far * cos

    def _steps(self, mean: Array) -> tuple[Array, Array, Array]:
        """Numbers of spots of each step (S K,), their showers (M,) and depths t (M,) [X0]."""
        count = self.rng.poisson(mean)
        n = count.ravel()
        shower = np.arange(len(mean)).repeat(count.sum(axis=1))
        first = np.broadcast_to(np.arange(mean.shape[1], dtype=np.float32), mean.shape).ravel().repeat(n)
        return n, shower, (first + self.rng.random(len(first), dtype=np.float32)) * self.step

    def _spread(self, mean: Array, spread: float) -> Array:
        """Energies of the given means (M,), log-normal."""
        if not spread:
            return mean
        z = self.rng.standard_normal(len(mean), dtype=np.float32)
        return np.asarray(mean * np.exp(np.float32(spread) * z - np.float32(spread**2 / 2)))


def cosine(u: Array, forward: float) -> Array:
    """Quantile u of a cosine with the density (1 + forward cos)/2 between -1 and 1."""
    if not forward:
        return np.asarray(2 * u - 1)
    return np.asarray((np.sqrt((1 - forward) ** 2 + 4 * forward * u) - 1) / forward)


def _around(p: Particles, event: Array, depth: Array, r: Array, value: Array, rng: np.random.Generator) -> Spots:
    """Spots at radius r around the axes, which are tilted."""
    psi = rng.random(len(r), dtype=np.float32) * TURN
    a, b = r * np.cos(psi), r * np.sin(psi)
    if p.tilt.any():
        along, across = p.tilt.astype(np.float32)
        a, b = a + along[event] * depth, b + across[event] * depth
    return Spots(event, depth, a, b, value)
