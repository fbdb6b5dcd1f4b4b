"""Whether a model interpolates: its showers at incident energies it was not trained at, beside those it was.

The energies left out of the training are windows. Every window is a bin of incident energy, and so are pieces of about
the same width in ln E_inc between, below and above them. In each bin the separation power S = 1/2 sum (p - q)^2/(p + q)
of every observable is taken between n reference and n candidate showers, and its floor between the same n and n other
reference showers, with n the same for all bins: values, floors and bins can be compared, and S minus floor is 0 on
average for a perfect model at any n.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..geometry import Array
from ..showers import Showers
from . import histograms, observables
from .distances import Measured, separation

FEWEST = 20  # showers in a bin


@dataclass(frozen=True)
class EnergyBins:
    """Separation powers in B bins of the incident energy.

    edges: [MeV], (B, 2); inside: whether a bin is a window, (B,); n: showers of each sample in each bin; names: O
    observables; value, error, floor, floor_error: (B, O). inside_excess, outside_excess: mean of value - floor over
    observables and over the bins in or outside the windows; penalty: the first minus the second, 0 for a model that
    is as good where it interpolates.
    """

    edges: Array
    inside: Array
    n: int
    names: tuple[str, ...]
    value: Array
    error: Array
    floor: Array
    floor_error: Array
    inside_excess: Measured
    outside_excess: Measured
    penalty: Measured


def interpolation(
    reference: Showers,
    candidate: Showers,
    windows: Sequence[tuple[float, float]],
    *,
    names: Sequence[str] | None = None,
    n_bootstrap: int = 100,
    seed: int | np.random.SeedSequence = 0,
) -> EnergyBins:
    """Compare candidate and reference inside and outside windows of incident energy, low <= E_inc < high [MeV].

    names: observables, all by default. Errors: bootstrap of the showers of every bin; where the samples agree they are
    up to 1.7 times too large, because S is quadratic there. Bins outside with fewer showers than the windows are left
    out.
    """
    reference.geometry.require_same(candidate.geometry, "candidate showers")
    edges, inside, chosen, n = _compared(reference, candidate, windows)
    rng = np.random.default_rng(seed)
    columns = observables.observables(reference), observables.observables(candidate)
    known = tuple(columns[0]) if names is None else tuple(names)
    unknown = [name for name in known if name not in columns[0]]
    if unknown:
        raise ValueError(f"got observable {unknown[0]!r}, expected one of {', '.join(columns[0])}; correct the name")
    tables = []
    for pair in chosen:
        ours, theirs = (rng.permutation(index) for index in pair)
        groups = (columns[0], ours[:n]), (columns[1], theirs[:n]), (columns[0], ours[n : 2 * n])
        tables.append(_powers([{name: c[name][i] for name in known} for c, i in groups], n_bootstrap, rng))
    powers = np.stack(tables)  # (bins, 1 + bootstraps, value or floor, observables)
    return _summary(edges, inside, n, known, powers)


def require_windows(reference: Showers, candidate: Showers, windows: Sequence[tuple[float, float]]) -> None:
    """ValueError unless there are showers enough inside and outside the windows."""
    _compared(reference, candidate, windows)


def _compared(
    reference: Showers, candidate: Showers, windows: Sequence[tuple[float, float]]
) -> tuple[Array, Array, list[list[Array]], int]:
    """Bins [MeV] (B, 2), which are windows (B,), the showers of both in every bin, and how many of them are used."""
    edges, inside = energy_bins(reference.incident.energy, windows)
    chosen = [[_within(s.incident.energy, *bin_) for s in (reference, candidate)] for bin_ in edges]
    sizes = np.array([min(len(ours) // 2, len(theirs)) for ours, theirs in chosen])
    n = int(sizes[inside].min())
    kept = np.flatnonzero(inside | (sizes >= n))
    if n < FEWEST or inside[kept].all():
        raise ValueError(
            f"got {n} showers for each comparison in the emptiest window (half of the reference's), expected at least "
            f"{FEWEST}, and as many in a bin outside the windows; simulate more there or widen the windows"
        )
    return edges[kept], inside[kept], [chosen[k] for k in kept], n


def energy_bins(energy: Array, windows: Sequence[tuple[float, float]]) -> tuple[Array, Array]:
    """Windows and the pieces around them: edges [MeV] (B, 2), rising, and which are windows (B,).

    The range of ``energy`` (N,) outside the windows is cut, gap by gap, into equal pieces of ln E about as wide as the
    windows are on average; the last edge lies above the largest energy.
    """
    wanted = sorted((float(low), float(high)) for low, high in windows)
    if not wanted or any(not 0 < low < high for low, high in wanted):
        raise ValueError(f"got windows {wanted}, expected pairs 0 < low < high of MeV; give at least one")
    if any(a[1] > b[0] for a, b in pairwise(wanted)):
        raise ValueError(f"got windows {wanted} that overlap, expected disjoint ones; join them")
    width = float(np.mean([np.log(high / low) for low, high in wanted]))
    limits = [float(energy.min()), *(edge for window in wanted for edge in window)]
    limits.append(float(np.nextafter(energy.max(), np.inf)))
    edges: list[tuple[float, float]] = []
    inside: list[bool] = []
    for number, (low, high) in enumerate(pairwise(limits)):
        if number % 2:  # limits 1 and 2 are the first window
            edges.append((low, high))
            inside.append(True)
        elif low < high:
            cuts = np.geomspace(low, high, max(1, round(np.log(high / low) / width)) + 1)
            cuts[0], cuts[-1] = low, high  # geomspace rounds
            edges += [(float(a), float(b)) for a, b in pairwise(cuts)]
            inside += [False] * (len(cuts) - 1)
    return np.array(edges), np.array(inside)


def _within(energy: Array, low: float, high: float) -> Array:
    return np.flatnonzero((energy >= low) & (energy < high))


def _powers(groups: list[dict[str, Array]], n_bootstrap: int, rng: np.random.Generator) -> Array:
    """S of groups 0 and 1, and of groups 0 and 2, first as they are, then resampled: (1 + n_bootstrap, 2, O)."""
    n = len(next(iter(groups[0].values())))
    whole = np.arange(n)
    draws = [[whole] * 3, *([rng.integers(0, n, n) for _ in groups] for _ in range(n_bootstrap))]
    out = np.empty((len(draws), 2, len(groups[0])))
    for o, name in enumerate(groups[0]):
        # Of all three: bins of two of them would have no under- and overflow for these, and some for the third.
        edges = histograms.binning(
            np.concatenate([group[name] for group in groups]), int(np.clip(round(np.sqrt(n)), 5, 20))
        )
        bins = [np.searchsorted(edges, group[name], side="right") for group in groups]
        for d, draw in enumerate(draws):
            counts = [np.bincount(b[i], minlength=len(edges) + 1) for b, i in zip(bins, draw, strict=True)]
            out[d, 0, o] = separation(counts[0], counts[1])
            out[d, 1, o] = separation(counts[0], counts[2])
    return out


def _summary(edges: Array, inside: Array, n: int, names: tuple[str, ...], powers: Array) -> EnergyBins:
    error = powers[:, 1:].std(axis=1, ddof=1)
    excess = (powers[:, :, 0] - powers[:, :, 1]).mean(axis=2)  # (bins, 1 + bootstraps)
    means = excess[inside].mean(axis=0), excess[~inside].mean(axis=0)

    def measured(values: Array) -> Measured:
        return float(values[0]), float(values[1:].std(ddof=1))

    return EnergyBins(
        edges, inside, n, names, powers[:, 0, 0], error[:, 0], powers[:, 0, 1], error[:, 1], measured(means[0]),
        measured(means[1]), measured(means[0] - means[1]),
    )  # fmt: skip
