"""The referee of the CaloChallenge (Krause et al., 2410.21611), its conventions to the letter.

Its high-level features, its histograms with their fixed ranges, the inputs of its classifiers. Published numbers can
be compared with what these functions give, quirks included; where a convention hides something (energies outside the
range of a histogram), what it hides is reported beside it.

Notation: e_k energy of voxel k [MeV], E_l sum of e_k in layer l, E_tot sum of E_l, E_inc kinetic energy of the incident
particle; x_k = r_k cos(alpha_k) and y_k = r_k sin(alpha_k) of the middles of the bins [mm], which the challenge calls
eta and phi. N showers, V voxels, L layers. ``<l>`` in a name is the detector's own number of the layer, as in
the challenge (calorimeter layers 0, 1, 2, 3, 12 of data set 1), and its position where the geometry gives no numbers.

Order of work: ``threshold`` both samples, ``features``, then ``separation_powers`` and ``inputs``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..geometry import Array, Geometry, Layer, regular
from ..showers import Showers
from . import distances

TINY = 1e-16  # MeV, added to energies in denominators
SOFTEST = 1e-8  # MeV, added to energies before the logarithm
LENGTH = 100.0  # mm, unit of lengths in the classifier input
CHUNK = 1024  # showers in float64 at a time
N_BLOCKS = 64  # of showers: voxels of one shower are not independent, blocks of showers are
LEVELS = ("low", "low-normed", "high", "resnet")
LEAST = {"ds1-photons": 1.0, "ds1-pions": 1.0, "ds2": 0.5e-3 / 0.033, "ds3": 0.5e-3 / 0.033}  # MeV
NOTHING = (float("nan"), float("nan"))  # separation power where a sample has nothing inside the range
ENERGIES = tuple(float(2**k) for k in range(8, 23))  # MeV, the incident energies of data set 1

Rings = tuple[int, tuple[float, ...]]  # angular bins, edges in r [mm]

_PRESAMPLER: Rings = (1, (0, 5, 10, 30, 50, 100, 200, 400, 600))
_LAYER_3: Rings = (1, (0, 50, 100, 200, 400, 600))
_INNER_TILES = (0, 10, 20, 30, 50, 80, 100, 130, 160, 200, 250, 300, 350, 400)
MESHES: dict[str, dict[int, Rings]] = {
    "ds1-photons": {
        0: _PRESAMPLER,
        1: (10, (0, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 50, 70, 90, 120, 150, 200)),
        2: (10, (0, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200, 250, 300, 350, 400)),
        3: _LAYER_3,
        12: (1, (0, 100, 200, 400, 1000, 2000)),
    },
    "ds1-pions": {
        0: _PRESAMPLER,
        1: (10, (0, 1, 4, 7, 10, 15, 30, 50, 90, 150, 200)),
        2: (10, (0, 5, 10, 20, 30, 50, 80, 130, 200, 300, 400)),
        3: _LAYER_3,
        12: (10, (*_INNER_TILES, 1000, 2000)),
        13: (10, (*_INNER_TILES, 600, 1000, 2000)),
        14: (1, (0, 50, 100, 150, 200, 250, 300, 400, 600, 1000, 2000)),
    },
    "ds2": dict.fromkeys(range(45), (16, regular(0, 41.85, 9))),
    "ds3": dict.fromkeys(range(45), (50, regular(0, 41.85, 18))),
}  # fmt: skip


def data_set(geometry: Geometry) -> str | None:
    """Name of the data set of the challenge with this mesh (ds1-photons, ds1-pions, ds2, ds3), or None."""
    return next((name for name, mesh in MESHES.items() if _is_mesh(geometry, mesh)), None)


def _is_mesh(geometry: Geometry, mesh: Mapping[int, Rings]) -> bool:
    if geometry.n_layers != len(mesh):
        return False
    return all(_is_layer(layer, number, *mesh[number]) for layer, number in zip(geometry.layers, mesh, strict=True))


def _is_layer(layer: Layer, number: int, n_alpha: int, edges: tuple[float, ...]) -> bool:
    """Whether a layer has this number, or none, and these bins."""
    return (
        layer.kind == "polar"
        and layer.number in (None, number)
        and layer.shape == (n_alpha, len(edges) - 1)
        and np.allclose(layer.first, regular(-np.pi, np.pi, n_alpha), rtol=0, atol=1e-5)
        and np.allclose(layer.second, edges, rtol=0, atol=1e-3)
    )


def least_energy(geometry: Geometry, minimum: float | None = None) -> float:
    """Energy below which a voxel counts as empty [MeV]: ``minimum`` if given, else that of the data set.

    1 MeV for data set 1; for data sets 2 and 3 the readout threshold of 0.5 keV in silicon over the sampling fraction
    of 0.033, 15.15 keV.
    """
    name = data_set(geometry)
    if minimum is None and name is None:
        raise ValueError(
            f"got geometry {geometry.name!r}, expected one of the CaloChallenge ({', '.join(MESHES)}) or a threshold; "
            "give minimum, the smallest voxel energy in MeV that counts"
        )
    least = LEAST[str(name)] if minimum is None else float(minimum)
    if not 0 < least < np.inf:
        raise ValueError(f"got minimum {least} MeV, expected an energy above 0; give the readout threshold")
    return least


def threshold(showers: Showers, minimum: float | None = None) -> Showers:
    """The showers with every voxel strictly below ``minimum`` [MeV] set to 0; by default as in ``least_energy``."""
    # A numpy scalar: a Python number would be rounded to float32 before the comparison.
    least = np.float64(least_energy(showers.geometry, minimum))
    energy = np.where(showers.energy < least, np.float32(0), showers.energy)
    provenance = {**showers.provenance, "minimum_voxel_energy_mev": float(least)}
    return replace(showers, energy=energy, provenance=provenance)


def _labels(geometry: Geometry) -> list[str]:
    """The ``<l>`` of each layer: the detector's own numbers, or positions where they are missing or not unique."""
    numbers = [layer.number for layer in geometry.layers]
    given = None not in numbers and len(set(numbers)) == len(numbers)
    return [str(number) for number in (numbers if given else range(geometry.n_layers))]


def _axes(layer: Layer, centres: Array) -> dict[str, Array]:
    """Positions (v,) [mm] of a layer's voxels for each axis that has features: 'eta', 'phi', 'r'.

    Polar layers have eta and phi where they are divided in the angle, and always r; cartesian layers, which the
    challenge has not, have eta (x) and phi (y) where divided along it, and no r.
    """
    x, y = centres[:, 0], centres[:, 1]
    if layer.kind == "cartesian":
        return ({"eta": x} if layer.shape[0] > 1 else {}) | ({"phi": y} if layer.shape[1] > 1 else {})
    middles = 0.5 * (np.array(layer.second[:-1]) + np.array(layer.second[1:]))
    transverse = {"eta": x, "phi": y} if layer.shape[0] > 1 else {}
    return transverse | {"r": np.tile(middles, layer.shape[0])}


def features(showers: Showers, chunk: int = CHUNK) -> dict[str, Array]:
    """High-level features of every shower: name -> (N,) float64. Energies in MeV, lengths in mm.

    E_tot; response = E_tot/E_inc; E_layer_<l> = E_l; sparsity_<l> = fraction of voxels without energy; and for eta,
    phi (layers divided in the angle) and r (all layers) the centre of energy and the width around it,

        EC_eta_<l> = sum x e / (E_l + 1e-16),   width_eta_<l> = sqrt(max(0, sum x^2 e / (E_l + 1e-16) - EC_eta^2)).

    Empty layers have 0 for all of these and sparsity 1. The order of names is that of the input ``high``.
    """
    starts = range(0, max(len(showers), 1), chunk)
    parts = [_chunk_features(showers[start : start + chunk]) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in _names(showers.geometry)}


def _chunk_features(showers: Showers) -> dict[str, Array]:
    geometry = showers.geometry
    centres, total = geometry.centres(), showers.total
    out = {"E_tot": total, "response": total / showers.incident.energy}
    for label, layer, start, stop in zip(
        _labels(geometry), geometry.layers, geometry.offsets[:-1], geometry.offsets[1:], strict=True
    ):
        image = showers.energy[:, start:stop].astype(np.float64)
        sums = image.sum(axis=1)
        out |= {f"E_layer_{label}": sums, f"sparsity_{label}": 1 - (image > 0).mean(axis=1)}
        for axis, position in _axes(layer, centres[start:stop]).items():
            # Sums in the order of the official code: a width near 0 is the root of a rounding error.
            centre = (position * image).sum(axis=1) / (sums + TINY)
            square = (position * position * image).sum(axis=1) / (sums + TINY)
            out[f"EC_{axis}_{label}"] = centre
            out[f"width_{axis}_{label}"] = np.sqrt(np.maximum(square - centre**2, 0))
    return out


def _names(geometry: Geometry) -> list[str]:
    """Names of all features, in the order of the classifier input."""
    labels = _labels(geometry)
    axes = [set(_axes(v, np.zeros((v.n_voxels, 3)))) for v in geometry.layers]

    def where(kind: str, axis: str) -> list[str]:
        return [f"{kind}_{axis}_{label}" for label, own in zip(labels, axes, strict=True) if axis in own]

    transverse = [name for kind in ("EC", "width") for axis in ("eta", "phi") for name in where(kind, axis)]
    layers = [f"E_layer_{label}" for label in labels]
    sparsity = [f"sparsity_{label}" for label in labels]
    return ["response", *layers, *transverse, "E_tot", *sparsity, *where("EC", "r"), *where("width", "r")]


def layer_correlation(showers: Showers) -> Array:
    """Pearson correlations of the layer energies E_l, (L, L); NaN where a layer's energy never varies."""
    energy = showers.layer_energy - showers.layer_energy.mean(axis=0)
    std = energy.std(axis=0)
    scaled = energy / np.where(std > 0, std, np.nan)
    return np.asarray(scaled.T @ scaled / len(showers))


def low(showers: Showers, dtype: Any = np.float64) -> Array:
    """Classifier input [log10(E_inc/MeV), e_k/E_inc], (N, 1 + V)."""
    out = np.empty((len(showers), 1 + showers.geometry.n_voxels), dtype=dtype)
    out[:, 0] = np.log10(showers.incident.energy)
    for part in _parts(len(showers)):
        out[part, 1:] = showers.energy[part].astype(np.float64) / showers.incident.energy[part, None]
    return out


def low_normed(showers: Showers, dtype: Any = np.float64) -> Array:
    """Classifier input [log10(E_inc/MeV), e_k/(E_l + 1e-16), log10(E_l + 1e-8)], (N, 1 + V + L)."""
    geometry = showers.geometry
    layer_energy = showers.layer_energy
    out = np.empty((len(showers), 1 + geometry.n_voxels + geometry.n_layers), dtype=dtype)
    out[:, 0] = np.log10(showers.incident.energy)
    out[:, 1 + geometry.n_voxels :] = np.log10(layer_energy + SOFTEST)
    for part in _parts(len(showers)):
        norm = layer_energy[part][:, geometry.layer_index] + TINY
        out[part, 1 : 1 + geometry.n_voxels] = showers.energy[part].astype(np.float64) / norm
    return out


def high(showers: Showers, values: Mapping[str, Array] | None = None, dtype: Any = np.float64) -> Array:
    """Classifier input of the high-level features, (N, F); values: ``features`` of these showers, if known.

    [log10(E_inc/MeV), log10(E_l + 1e-8), EC_eta/100, EC_phi/100, width_eta/100, width_phi/100, log10(E_tot + 1e-8),
    sparsity, EC_r/100, width_r/100], each for all layers that have it.
    """
    known = features(showers) if values is None else values
    columns = [np.log10(showers.incident.energy)]
    for name in _names(showers.geometry)[1:]:
        if name.startswith("E_"):
            columns.append(np.log10(known[name] + SOFTEST))
        else:
            columns.append(known[name] if name.startswith("sparsity") else known[name] / LENGTH)
    return np.stack(columns, axis=1).astype(dtype, copy=False)


def inputs(showers: Showers, level: str, *, minimum: float | None = None, dtype: Any = np.float64) -> Array:
    """Classifier input of a level, (N, F): low, low-normed, high, or resnet (the same as low).

    The threshold comes first (``least_energy``), but for low-normed, which has none.
    """
    if level not in LEVELS:
        raise ValueError(f"got level {level!r}, expected one of {', '.join(LEVELS)}; choose one of them")
    if level == "low-normed":
        return low_normed(showers, dtype)
    above = threshold(showers, minimum)
    return high(above, dtype=dtype) if level == "high" else low(above, dtype)


def image_shape(geometry: Geometry) -> tuple[int, int, int]:
    """Voxels as one three-dimensional image: (L, n_alpha, n_r) or (L, n_x, n_y); every layer must have the same bins.

    ``energy.reshape(N, *image_shape(geometry))`` is that image.
    """
    meshes = {(layer.kind, layer.shape) for layer in geometry.layers}
    if len(meshes) > 1:
        shapes = ", ".join(f"{kind} {n} x {m}" for kind, (n, m) in sorted(meshes))
        raise ValueError(
            f"got geometry {geometry.name!r} with layers of {shapes}, expected equal layers; take a network on plain "
            "inputs, or voxels of equal numbers in every layer"
        )
    return geometry.n_layers, *geometry.layers[0].shape


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, n, CHUNK))


@dataclass(frozen=True)
class Separation:
    """Separation power of one observable inside the range of its histogram, and what lies outside.

    value, error: S and its standard deviation (bootstrap), NaN where a sample has nothing inside the range; underflow,
    overflow: fractions of the reference and of the candidate below and above the range. For E_voxel the fractions are
    of all voxels, so that its underflow is the empty part of the mesh.
    """

    value: float
    error: float
    underflow: tuple[float, float]
    overflow: tuple[float, float]


def binning(
    reference: Showers, values: Mapping[str, Array] | None = None, *, minimum: float | None = None
) -> dict[str, Array]:
    """Edges of every histogram of the challenge, name -> (B+1,); reference: showers after ``threshold``.

    response: 100 bins, 0.5..1.5. response_<E> (data set 1, each of its incident energies in the reference, in MeV): 20
    bins, 0.4..1.4, for photons from 4096 MeV on 0.9..1.1. E_layer_<l>, and E_voxel, all voxels of all layers: 39 and
    49 bins, equal in the logarithm from the threshold to the largest value of the reference; left out where the
    reference has no more than the threshold. sparsity_<l>: 20 bins, 0..1. EC and width: 100 bins over the
    ranges of ``_ranges``. values: ``features`` of the reference, if known.
    """
    geometry, name = reference.geometry, data_set(reference.geometry)
    least = least_energy(geometry, minimum)
    known = features(reference) if values is None else values
    ranges = _ranges(geometry)
    out = {"response": np.linspace(0.5, 1.5, 101)}
    if name is not None and name.startswith("ds1"):
        for energy in (e for e in ENERGIES if _has_energy(reference, e).any()):
            narrow = name == "ds1-photons" and energy >= 4096
            out[f"response_{energy:.0f}"] = np.linspace(0.9, 1.1, 21) if narrow else np.linspace(0.4, 1.4, 21)
    for feature in _names(geometry):
        if feature.startswith("E_layer") and (largest := known[feature].max(initial=0)) > least:
            out[feature] = np.geomspace(least, largest, 40)
        elif feature.startswith("sparsity"):
            out[feature] = np.linspace(0, 1, 21)
        elif feature in ranges:
            out[feature] = np.linspace(*ranges[feature], 101)
    if (largest := float(reference.energy.max(initial=0))) > least:
        out["E_voxel"] = np.geomspace(least, largest, 50)
    return out


def _has_energy(showers: Showers, energy: float) -> Array:
    """Whether the incident energy of each shower belongs to a power of two: energy <= E_inc < 2 energy, (N,)."""
    return np.asarray((showers.incident.energy >= energy) & (showers.incident.energy < 2 * energy))


def _ranges(geometry: Geometry) -> dict[str, tuple[float, float]]:
    """Range of the histogram of every EC and width [mm], by name.

    Data sets 2 and 3: EC_eta and EC_phi -30..30, their widths 0..30, EC_r 0..42, width_r 0..20. Data set 1: +-100,
    0..100, 0..500, 0..500; layers 12 and 13: +-500, 0..400, 0..1500, 0..1500; layer 14: r as in these two. Any
    other geometry, for which the challenge says nothing: the centre over the whole layer, the width over half of it.
    """
    name = data_set(geometry)
    out: dict[str, tuple[float, float]] = {}
    numbers = list(MESHES[name]) if name else [-1] * geometry.n_layers
    for label, number, layer in zip(_labels(geometry), numbers, geometry.layers, strict=True):
        if name is None:
            spans = _spans(layer)
        elif name in ("ds2", "ds3"):
            spans = {"eta": (-30, 30, 30), "phi": (-30, 30, 30), "r": (0, 42, 20)}
        else:
            side, width = (500, 400) if number in (12, 13) else (100, 100)
            ring = 1500 if number in (12, 13, 14) else 500
            spans = {"eta": (-side, side, width), "phi": (-side, side, width), "r": (0, ring, ring)}
        for axis, (first, last, widest) in spans.items():
            out |= {f"EC_{axis}_{label}": (first, last), f"width_{axis}_{label}": (0, widest)}
    return out


def _spans(layer: Layer) -> dict[str, tuple[float, float, float]]:
    """Low and high end of a layer along eta, phi, r, and half of what is between."""
    r = layer.second[-1]
    ends = {"eta": (-r, r), "phi": (-r, r), "r": (0.0, r)}
    if layer.kind == "cartesian":
        ends = {"eta": (layer.first[0], layer.first[-1]), "phi": (layer.second[0], layer.second[-1])}
    return {axis: (a, b, 0.5 * (b - a)) for axis, (a, b) in ends.items()}


def separation_powers(
    reference: Showers,
    candidate: Showers,
    values: tuple[Mapping[str, Array], Mapping[str, Array]] | None = None,
    *,
    minimum: float | None = None,
    n_bootstrap: int = 100,
    seed: int | np.random.SeedSequence = 0,
) -> dict[str, Separation]:
    """Separation power of every observable of ``binning``, between showers after ``threshold``.

    S = 1/2 sum (p_i - q_i)^2 / (p_i + q_i), p and q normalised inside the range: what lies outside does not count
    (in the official code as well), and stands beside it. The last bin holds its upper edge. values: ``features`` of
    both samples, if known; the error comes from ``n_bootstrap`` resamplings of the showers.
    """
    reference.geometry.require_same(candidate.geometry, "candidate showers")
    pair = reference, candidate
    known = values or (features(reference), features(candidate))
    rng = np.random.default_rng(seed)
    out = {}
    for name, edges in binning(reference, known[0], minimum=minimum).items():
        if name == "E_voxel":
            out[name] = _voxel_separation([_voxel_blocks(s, edges) for s in pair], n_bootstrap, rng)
        else:
            first, second = (_counts(_column(s, v, name), edges) for s, v in zip(pair, known, strict=True))
            filled = first[1:-1].any() and second[1:-1].any()
            measured = distances.separation_power(first[1:-1], second[1:-1], n_bootstrap, rng) if filled else NOTHING
            out[name] = _separation(measured, [first, second])
    return out


def _column(showers: Showers, values: Mapping[str, Array], name: str) -> Array:
    """Values of one observable (n,): a feature, or the response of the showers of one incident energy."""
    if name.startswith("response_"):
        return values["response"][_has_energy(showers, float(name.removeprefix("response_")))]
    return values[name]


def _counts(values: Array, edges: Array) -> Array:
    """Counts below, in the bins (the last one closed), above: (B+2,) int64."""
    inside = np.histogram(values, edges)[0]
    return np.concatenate([[(values < edges[0]).sum()], inside, [(values > edges[-1]).sum()]])


def _voxel_blocks(showers: Showers, edges: Array) -> Array:
    """Counts of voxel energies in blocks of showers, as in ``_counts``: (G, B+2)."""
    blocks = []
    for block in np.array_split(np.arange(len(showers)), min(N_BLOCKS, max(len(showers), 1))):
        counts = np.zeros(len(edges) + 1, dtype=np.int64)
        for part in _parts(len(block)):
            energy = showers.energy[block[part]]
            counts += _counts(energy[energy > 0], edges)
            counts[0] += (energy <= 0).sum()
        blocks.append(counts)
    return np.array(blocks)


def _voxel_separation(blocks: list[Array], n_bootstrap: int, rng: np.random.Generator) -> Separation:
    """Separation power of voxel energies (G, B+2) with an error from resampled blocks of showers."""
    counts = [b.sum(axis=0) for b in blocks]
    if not all(c[1:-1].any() for c in counts):
        return _separation(NOTHING, counts)
    value = float(distances.separation(counts[0][1:-1], counts[1][1:-1]))
    drawn = [rng.multinomial(len(b), np.full(len(b), 1 / len(b)), size=n_bootstrap) @ b[:, 1:-1] for b in blocks]
    filled = (drawn[0].sum(axis=1) > 0) & (drawn[1].sum(axis=1) > 0)
    error = distances.separation(drawn[0][filled], drawn[1][filled]).std(ddof=1) if filled.sum() > 1 else np.nan
    return _separation((value, float(error)), counts)


def _separation(measured: tuple[float, float], counts: list[Array]) -> Separation:
    under, over = ([float(c[i] / c.sum()) if c.sum() else float("nan") for c in counts] for i in (0, -1))
    return Separation(*measured, (under[0], under[1]), (over[0], over[1]))
