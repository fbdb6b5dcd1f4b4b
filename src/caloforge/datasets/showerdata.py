"""showerdata layout: point clouds in HDF5, as the library ShowerData writes them (T. Buss, github.com/FLC-QU-hep).

    showers       (N,) float32 lists: x, y, z, E and perhaps t of one deposit after the other
    shape         (3,) number of showers, largest number of deposits, 4 or 5
    energies      (N, 1) GeV; directions (N, 3) unit vectors; pdg (N,); shower_ids (N,); num_points (N,)

E is in GeV, x and y in mm from the point where the particle enters the front face. t is taken as ns (the library does
not say). z is the number of the layer for all tools of the library (clustering, observables, straightening), so that
the file needs a geometry to become points in space: the deposits are put in the middle of their layer. directions are
taken in the same frame, z along the depth; some published sets have those of the collider instead.

caloforge adds what other readers ignore: the attribute ``z_unit`` (``layer`` or ``mm``), ``provenance``, and the exact
particles where needed (``particles``). A file of others with layer numbers comes back array by array, but for
``shower_ids``, which count from 0, deposits of zero energy, which are left out, fractions of layer numbers, and the
last bit of directions. Of our point clouds positions, energies and times are rounded to float32.
"""

from pathlib import Path

import h5py
import numpy as np

from .. import io
from ..geometry import Array, Geometry
from ..hits import Hits
from ..showers import Incident
from . import particles
from .hdf5 import attributes, column, content, opened, replacing

KEYS = ("showers", "shape", "energies", "directions", "pdg")


def recognises(file: h5py.File) -> bool:
    """Whether a file has the keys of this layout."""
    if not all(key in file for key in KEYS) or not isinstance(file["showers"], h5py.Dataset):
        return False
    return h5py.check_vlen_dtype(file["showers"].dtype) is not None


def read(path: str | Path, geometry: Geometry | None = None) -> Hits:
    """Point clouds of a showerdata file; geometry: gives layer numbers their depth, not needed where z is in mm."""
    with opened(path) as file:
        energy = column(file, "energies", (None, 1))[:, 0]
        n = len(energy)
        direction, pdg = column(file, "directions", (n, 3)), column(file, "pdg", (n,))
        event, points = _points(file, n)
        added = {key: column(file, key, (n,)) for key in particles.names(file)}
        unit = str(file.attrs.get("z_unit", "layer"))
        provenance = attributes(file)
    incident = particles.exact(_incident(energy, direction, pdg), added, path, "energy direction pdg")
    filled = points[:, 3] != 0
    event, points = event[filled], points[filled].astype(np.float64)
    if points.size and points[:, 3].min() < 0:
        raise ValueError(f"got deposits of {points[:, 3].min():g} GeV in {path}, expected >= 0; check the file")
    z = points[:, 2] if unit == "mm" else layer_depth(geometry, points[:, 2] + 0.1, path)  # 0.1: as the library does
    position = np.stack([points[:, 0] + incident.x[event], points[:, 1] + incident.y[event], z], axis=1)
    time = points[:, 4] if points.shape[1] > 4 else np.zeros(len(points))
    return Hits(incident, event, position, points[:, 3] * 1e3, time, provenance)


def write(hits: Hits, path: str | Path, geometry: Geometry | None = None, force: bool = False) -> None:
    """Write point clouds; ``force`` replaces an existing file.

    geometry: its layer numbers become z, which the tools of the library want; without it z is in mm. Deposits between
    two layers count for the one in front. There are times only where one is not 0.
    """
    order = np.argsort(hits.event, kind="stable")
    event, incident = hits.event[order], hits.incident
    x, y, z = hits.position[order].T
    columns = [x - incident.x[event], y - incident.y[event], z if geometry is None else _number(geometry, z)]
    columns += [hits.energy[order].astype(np.float64) / 1e3, *([hits.time[order]] if np.any(hits.time) else [])]
    points = np.stack(columns, axis=1).astype(np.float32)
    counts = np.bincount(event, minlength=len(hits))
    rows = np.split(points, np.cumsum(counts)[:-1]) if len(hits) else []
    own = (incident.energy[:, None] / 1e3, particles.unit_vectors(incident), incident.pdg)
    energies, directions = (v.astype(np.float32) for v in own[:2])
    fixed = {"energies": energies, "directions": directions, "pdg": incident.pdg.astype(np.int32),
             "shower_ids": np.arange(len(hits), dtype=np.int32), "num_points": counts.astype(np.int32),
             "shape": np.array([len(hits), counts.max(initial=0), points.shape[1]])}  # fmt: skip
    fixed |= particles.extra(incident, _incident(energies[:, 0], directions, fixed["pdg"]))
    provenance = io.json_text(hits.provenance)
    with replacing(path, fixed, force=force) as file:
        showers = file.create_dataset("showers", (len(hits),), h5py.vlen_dtype(np.float32))
        showers[...] = [row.ravel() for row in rows]
        file.attrs.update({"z_unit": "mm" if geometry is None else "layer", "provenance": provenance})


def layer_depth(geometry: Geometry | None, number: Array, path: str | Path) -> Array:
    """Depth [mm] of the middle of the layers with these numbers (rounded down), (M,)."""
    if geometry is None:
        raise ValueError(
            f"got {path}, whose depth is the number of a layer, expected the depth of the layers too; give the "
            "geometry of its detector (caloforge convert --detector)"
        )
    index = np.floor(number).astype(np.int64)
    if len(index) and not np.all((index >= 0) & (index < geometry.n_layers)):
        raise ValueError(
            f"got layers {index.min()}..{index.max()} in {path}, expected 0..{geometry.n_layers - 1} of "
            f"{geometry.name!r}; give the geometry of its detector (caloforge convert --detector)"
        )
    middle = [float(i) if layer.depth is None else 0.5 * sum(layer.depth) for i, layer in enumerate(geometry.layers)]
    return np.array(middle)[index]


def _number(geometry: Geometry, z: Array) -> Array:
    """Number of the layer of each depth z, inverse of ``layer_depth``; without depths z is that number."""
    fronts = [float(i) if layer.depth is None else layer.depth[0] for i, layer in enumerate(geometry.layers)]
    if np.any(np.diff(fronts) <= 0):
        raise ValueError(f"got layers of {geometry.name!r} that are not in order of depth, expected that; sort them")
    return np.clip(np.searchsorted(fronts, z, side="right") - 1, 0, None)


def _incident(gev: Array, direction: Array, pdg: Array) -> Incident:
    return Incident(gev.astype(np.float64) * 1e3, **particles.angles(direction), pdg=pdg)


def _points(file: h5py.File, n: int) -> tuple[Array, Array]:
    """Shower (M,) and numbers (M, 4 or 5) of each deposit."""
    features = int(column(file, "shape", (3,))[2])
    rows = content(file["showers"], "showers", file.filename)
    if rows.shape != (n,) or features not in (4, 5) or any(len(row) % features for row in rows):
        raise ValueError(
            f"got {file.filename} with {len(rows)} lists of deposits of {features} numbers, expected {n} of 4 or 5; "
            "check the file"
        )
    counts = np.array([len(row) // features for row in rows], dtype=np.int64)
    if "num_points" in file and np.any(column(file, "num_points", (n,)) > counts):
        raise ValueError(f"got {file.filename} with fewer deposits than 'num_points', expected all; make it again")
    points = np.concatenate([np.zeros(0, np.float32), *rows]).reshape(-1, features)
    return np.repeat(np.arange(n), counts), points
