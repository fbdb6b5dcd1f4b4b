"""CaloClouds layout: padded point clouds in HDF5, only read (Buss et al., 2511.01460).

    energy        (N, 1) GeV
    events        (N, max, 4): X [mm], layer, Z [mm], energy [GeV]; rows of energy 0 are padding
    p_norm_local  (3, N) or (N, 3): direction of the particle along (Z, X, depth); absent: normal incidence

The second column is the number of the layer plus a random fraction, which is dropped: deposits are put in the middle of
their layer. (Z, X, depth) is a right-handed frame, and here (x, y, z) of ``Hits``. The authors shift the layers so that
slanting showers stand upright; that is kept, as is their origin. Some of their newer files have the layer in the third
column; their numbers are refused as layers. The file does not name the particle: photons (22), unless said.
"""

from pathlib import Path

import h5py
import numpy as np

from ..geometry import Array, Geometry
from ..hits import Hits
from ..showers import Incident
from . import particles
from .hdf5 import attributes, column, opened
from .showerdata import layer_depth

KEYS = ("energy", "events")
PHOTON = 22


def recognises(file: h5py.File) -> bool:
    """Whether a file has the keys of this layout."""
    return all(key in file for key in KEYS) and getattr(file["events"], "shape", (0,))[2:] == (4,)


def read(path: str | Path, geometry: Geometry | None = None, pdg: int = PHOTON) -> Hits:
    """Point clouds of a CaloClouds file; geometry: gives the layer numbers their depth."""
    with opened(path) as file:
        gev = column(file, "energy", (None, 1))[:, 0]
        n = len(gev)
        points = column(file, "events", (n, None, 4))
        direction = column(file, "p_norm_local", (None, None)) if "p_norm_local" in file else None
        provenance = attributes(file)
    angles = {} if direction is None else particles.angles(_rows(direction, n, path))
    incident = Incident(gev.astype(np.float64) * 1e3, **angles, pdg=np.full(n, pdg))
    event, row = np.nonzero(points[:, :, 3])
    x, layer, z, energy = points[event, row].astype(np.float64).T
    if np.any(energy < 0):
        raise ValueError(f"got deposits of {energy.min():g} GeV in {path}, expected >= 0; check the file")
    position = np.stack([z, x, layer_depth(geometry, layer, path)], axis=1)
    return Hits(incident, event, position, energy * 1e3, np.zeros(len(event)), provenance)


def _rows(direction: Array, n: int, path: str | Path) -> Array:
    """Unit vectors (N, 3) of an array that holds them as rows or as columns."""
    for rows in (direction, direction.T):
        if rows.shape == (n, 3) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3):
            return rows
    raise ValueError(
        f"got 'p_norm_local' of shape {direction.shape} in {path}, expected unit vectors, (3, {n}) or ({n}, 3); "
        "check the file"
    )
