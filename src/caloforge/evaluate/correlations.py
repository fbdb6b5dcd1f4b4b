"""Pearson correlations of layer energies, and how far the candidate's are from Geant4's.

r_ij = cov(E_i, E_j)/sqrt(var(E_i) var(E_j)) over the showers of a sample; 0 where a layer has only one energy.
Samples with a range of incident energies correlate all layers because they all grow with it: dividing by E_inc first
leaves what fluctuates at a given energy.
"""

from dataclasses import dataclass

import numpy as np

from ..geometry import Array
from ..showers import Showers
from .distances import Measured


@dataclass(frozen=True)
class Correlations:
    """Pearson matrices (L, L) of reference and candidate, difference = candidate - reference with its bootstrap error.

    distance: mean of |difference| over the pairs of different layers, with its floor, the same between two halves of
    the reference (half of the showers: about sqrt(2) larger than for as many showers as the whole).
    """

    reference: Array
    candidate: Array
    difference: Array
    error: Array
    distance: Measured
    floor: Measured


def layer_correlations(showers: Showers, *, over_incident: bool = False) -> Array:
    """Pearson matrix of the layer energies, (L, L); over_incident: of E_l/E_inc."""
    return pearson(_energies(showers, over_incident))


def compare_correlations(
    reference: Showers,
    candidate: Showers,
    *,
    over_incident: bool = False,
    n_bootstrap: int = 100,
    seed: int | np.random.SeedSequence = 0,
) -> Correlations:
    """Correlations of two samples of one geometry; see ``Correlations``."""
    reference.geometry.require_same(candidate.geometry, "candidate showers")
    if min(len(reference), len(candidate)) < 8:
        raise ValueError(
            f"got {len(reference)} reference and {len(candidate)} candidate showers, expected at least 8; give more"
        )
    p, q = _energies(reference, over_incident), _energies(candidate, over_incident)
    rng = np.random.default_rng(seed)
    one, two = np.array_split(rng.permutation(p), 2)
    difference, error, distance = _difference(p, q, n_bootstrap, rng)
    return Correlations(
        pearson(p), pearson(q), difference, error, distance, _difference(one, two, n_bootstrap, rng)[2]
    )  # fmt: skip


def pearson(values: Array) -> Array:
    """Pearson matrix of the columns of (N, L): (L, L), 1 on the diagonal."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    constant = std <= 1e-12 * np.abs(values).max(axis=0, initial=0)
    unit = np.where(constant, 0, (values - mean) / np.where(constant, 1, std))
    out = np.asarray(unit.T @ unit / len(values))
    np.fill_diagonal(out, 1.0)
    return out


def _difference(p: Array, q: Array, n_bootstrap: int, rng: np.random.Generator) -> tuple[Array, Array, Measured]:
    """Difference of matrices, its bootstrap error, mean absolute difference with its error."""
    difference = pearson(q) - pearson(p)
    draws = np.stack([
        pearson(q[rng.integers(0, len(q), len(q))]) - pearson(p[rng.integers(0, len(p), len(p))])
        for _ in range(n_bootstrap)
    ])  # fmt: skip
    return (
        difference,
        draws.std(axis=0, ddof=1),
        (_mean_absolute(difference), float(np.std([_mean_absolute(d) for d in draws], ddof=1))),
    )


def _mean_absolute(matrix: Array) -> float:
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    return float(np.abs(pairs).mean()) if len(pairs) else 0.0


def _energies(showers: Showers, over_incident: bool) -> Array:
    energy = showers.layer_energy
    return np.asarray(energy / showers.incident.energy[:, None]) if over_incident else energy
