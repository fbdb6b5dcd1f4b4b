"""What the 3D viewer of the page shows: the mesh once, and a few showers of every sample, packed small.

A shower is two arrays in base64, little-endian: the voxels above zero (uint16, or uint32 where the mesh is larger) and
their energies as q (uint16), e = low (high/low)^(q/65535), accurate to 10^-4.
"""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry import Array, Geometry
from ..showers import Showers

if TYPE_CHECKING:
    from .report import Report

N_SHOWERS = 12
N_COLOURS, DARKEST = 48, 0.2  # the ground is dark
DECADES = 6  # softer voxels are left out
MOST_VOXELS = 600_000  # in all showers together, four bytes each
STEPS = 65535


def scene(reports: "Sequence[Report]") -> dict[str, Any]:
    """Mesh, colours and showers as plain data; showers: step -> sample -> shower, Geant4 first."""
    from .plots.style import colours

    samples = [reports[0].reference, *(report.candidate for report in reports)]
    chosen = spread(samples[0].incident.energy, N_SHOWERS)
    rows = [chosen, *(matched(samples[0], other, chosen) for other in samples[1:])]
    picked = [sample[index] for sample, index in zip(samples, rows, strict=True)]
    high = max(float(sample.energy.max()) for sample in picked) or 1.0
    positive = [sample.energy[sample.energy > 0] for sample in picked]
    low = max(min((float(p.min()) for p in positive if len(p)), default=0.0), high * 10.0**-DECADES)
    low = min(low, 0.1 * high)
    geometry = samples[0].geometry
    most = MOST_VOXELS // (len(samples) * max(1, len(chosen)))
    wide = geometry.n_voxels > STEPS
    return {
        "layers": mesh(geometry),
        "samples": ["Geant4", *(report.name for report in reports)],
        "colours": colours(N_COLOURS, DARKEST),
        "low": low,
        "high": high,
        "wide": wide,
        "showers": [[packed(sample, k, low, high, wide, most) for sample in picked] for k in range(len(chosen))],
    }


def spread(energy: Array, n: int) -> Array:
    """Indices of n showers spread evenly over the ranks of the incident energies (N,), the softest first."""
    order = np.argsort(energy, kind="stable")
    return np.asarray(order[((np.arange(min(n, len(order))) + 0.5) / min(n, len(order)) * len(order)).astype(int)])


def matched(reference: Showers, candidate: Showers, chosen: Array) -> Array:
    """For each chosen reference shower the candidate shower nearest in ln(energy), then in direction; each one once."""
    free = np.ones(len(candidate), dtype=bool)
    out = []
    for index in chosen:
        if not free.any():
            free[:] = True
        particle = reference.incident
        apart = np.abs(np.log(candidate.incident.energy / particle.energy[index]))
        turned = np.abs(candidate.incident.theta - particle.theta[index]) + np.abs(
            np.exp(1j * candidate.incident.phi) - np.exp(1j * particle.phi[index])
        )
        out.append(int(np.lexsort((turned, apart, ~free))[0]))
        free[out[-1]] = False
    return np.array(out, dtype=np.int64)


def mesh(geometry: Geometry) -> list[dict[str, Any]]:
    """Layers as edges [rad, mm] with a depth [mm]; where one has none, all are laid out as equal slabs."""
    known = all(layer.depth is not None for layer in geometry.layers)
    width = max(max(abs(layer.second[0]), abs(layer.second[-1])) for layer in geometry.layers)
    slab = 2.4 * width / max(geometry.n_layers, 4)
    return [
        {
            "polar": layer.kind == "polar",
            "first": [float(f"{edge:.6g}") for edge in layer.first],
            "second": [float(f"{edge:.6g}") for edge in layer.second],
            "depth": list(layer.depth) if known and layer.depth else [slab * number, slab * (number + 1)],
        }
        for number, layer in enumerate(geometry.layers)
    ]


def packed(showers: Showers, k: int, low: float, high: float, wide: bool, most: int) -> dict[str, Any]:
    """Shower k: incident particle, total energy [MeV], and its ``most`` hottest voxels from ``low`` on; lost: energy
    share of the voxels left out."""
    energy = showers.energy[k].astype(np.float64)
    index = np.flatnonzero(energy >= low)
    if len(index) > most:
        index = np.sort(index[np.argsort(-energy[index], kind="stable")[:most]])
    code = np.rint(STEPS * np.log(energy[index] / low) / np.log(high / low)).clip(0, STEPS)
    total = float(energy.sum())
    particle = showers.incident[k : k + 1]
    return {
        "energy": float(particle.energy[0]), "theta": float(particle.theta[0]), "phi": float(particle.phi[0]),
        "x": float(particle.x[0]), "y": float(particle.y[0]), "total": total, "hit": int((energy > 0).sum()),
        "lost": 1 - float(energy[index].sum()) / total if total > 0 else 0.0,
        "cells": _text(index.astype("<u4" if wide else "<u2")), "codes": _text(code.astype("<u2")),
    }  # fmt: skip


def _text(array: Array) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
