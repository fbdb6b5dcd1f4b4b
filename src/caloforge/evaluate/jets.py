"""Observables of jet images from their pixels, those of LAGAN (de Oliveira, Paganini, Nachman, 1701.05927).

A pixel of transverse momentum p_k at (eta_k, phi_k), the centre of its cell, is a massless particle:

    px = sum p cos(phi)   py = sum p sin(phi)   pz = sum p sinh(eta)   E = sum p cosh(eta)
    pt = sqrt(px^2 + py^2)                      mass = sqrt(max(0, E^2 - px^2 - py^2 - pz^2))   [MeV]
    tau_N = sum_k p_k min_a dR(k, a) / sum_k p_k

The axes a of tau_2 and tau_3 are those of exclusive kT clustering, d_ij = min(p_i, p_j)^2 dR_ij^2, down to N with
winner-takes-all recombination: the pair keeps the place of its harder member and the sum of pT. tau_1 has the hardest
pixel. dR is Euclidean. tau_21 = tau_2/tau_1, 0 where tau_1 is 0. An image without pixels has 0 for all of them.
"""

import numpy as np

from ..geometry import Array
from ..showers import Showers

N_AXES = 3


def is_jets(showers: Showers) -> bool:
    """Whether these are jet images: the one-layer geometry that ``caloforge simulate jets`` makes."""
    return showers.geometry.name == "jets" and showers.geometry.n_layers == 1


def observables(showers: Showers) -> dict[str, Array]:
    """jet_pt, jet_mass [MeV], tau_1, tau_2, tau_3, tau_21 of images: name -> (N,) float64."""
    eta, phi = showers.geometry.centres()[:, :2].T
    p = showers.energy.astype(np.float64)
    px, py, pz, energy = (p @ column for column in (np.cos(phi), np.sin(phi), np.sinh(eta), np.cosh(eta)))
    tau = np.array([subjettiness(row, eta, phi) for row in p]).reshape(len(p), N_AXES)
    ratio = np.divide(tau[:, 1], tau[:, 0], out=np.zeros(len(p)), where=tau[:, 0] > 0)
    out = {"jet_pt": np.hypot(px, py), "jet_mass": np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0))}
    return out | {f"tau_{k + 1}": tau[:, k] for k in range(N_AXES)} | {"tau_21": ratio}


def subjettiness(p: Array, eta: Array, phi: Array) -> Array:
    """tau_1, tau_2, tau_3 of one image: pixels p (V,) at (eta, phi), (V,)."""
    filled = p > 0
    p, places = p[filled], np.stack([eta[filled], phi[filled]], axis=1)
    tau = np.zeros(N_AXES)
    if len(p) == 0:
        return tau
    axes = winner_takes_all(p, places, (2, 3)) | {1: places[[p.argmax()]]}
    for n in range(1, min(N_AXES, len(p)) + 1):
        distance = np.linalg.norm(places[:, None] - axes[n], axis=2)
        tau[n - 1] = (p * distance.min(axis=1)).sum() / p.sum()
    return tau


def winner_takes_all(p: Array, places: Array, numbers: tuple[int, ...]) -> dict[int, Array]:
    """Axes (n, 2) of exclusive kT clustering, for each number n of jets not above the number of pixels."""
    p, places = p.copy(), places.copy()
    alive = np.ones(len(p), dtype=bool)
    square = ((places[:, None] - places) ** 2).sum(axis=2)
    distance = np.minimum(p[:, None], p) ** 2 * square
    np.fill_diagonal(distance, np.inf)
    out = {}
    for left in range(len(p), 0, -1):
        if left in numbers:
            out[left] = places[alive]
        if left == min(numbers):
            break
        i, j = np.unravel_index(distance.argmin(), distance.shape)
        if p[j] > p[i]:
            i, j = j, i
        p[i] += p[j]
        alive[j] = False
        distance[j] = distance[:, j] = np.inf
        row = np.minimum(p[i], p) ** 2 * square[i]
        row[~alive], row[i] = np.inf, np.inf
        distance[i] = distance[:, i] = row
    return out
