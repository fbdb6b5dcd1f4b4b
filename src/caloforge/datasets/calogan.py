"""CaloGAN layout: one HDF5 file of one kind of particle (Paganini, de Oliveira, Nachman, 1712.10321).

    energy    (N, 1) GeV, kinetic, float32 or float64
    layer_0   (N, 3, 96) MeV; layer_1 (N, 12, 12); layer_2 (N, 12, 6): axis 0 is x, axis 1 is y
    overflow  (N, 3) MeV beside the mesh of each layer, optional

caloforge adds what other readers ignore: the attributes ``pdg`` and ``provenance``, and ``energy_mev`` (N, 1) where
double precision has no GeV number that gives the energy in MeV back (1 in 60).
"""

from pathlib import Path

import h5py
import numpy as np

from .. import io
from ..geometry import Array
from ..showers import Incident, Showers
from ..simulate.detectors import calogan_geometry
from . import particles
from .hdf5 import attributes, column, opened, replacing, require_plain

KEYS = ("energy", "layer_0", "layer_1", "layer_2")
POSITRON = -11


def recognises(file: h5py.File) -> bool:
    """Whether a file has the keys of this layout."""
    return all(key in file for key in KEYS)


def read(path: str | Path, pdg: int | None = None) -> Showers:
    """Showers of a CaloGAN file; pdg: the particle, by default what the file says, else -11 (e+)."""
    with opened(path) as file:
        gev = column(file, "energy", (None, 1))[:, 0]
        geometry = calogan_geometry()
        n = len(gev)
        images = [column(file, f"layer_{i}", (n, *layer.shape)) for i, layer in enumerate(geometry.layers)]
        overflow = column(file, "overflow", (n, geometry.n_layers)) if "overflow" in file else None
        mev = _to_mev(gev)
        if "energy_mev" in file:
            exact = column(file, "energy_mev", (n, 1))[:, 0].astype(np.float64)
            if not np.allclose(exact, mev, rtol=1e-12, atol=0):
                raise ValueError(f"got 'energy' and 'energy_mev' that differ in {path}; expected the same, delete one")
            mev = exact
        said = int(file.attrs["pdg"]) if "pdg" in file.attrs else None
        provenance = attributes(file)
    kind = particles.chosen(pdg, said, POSITRON, path)
    energy = np.concatenate(
        [image.reshape(n, layer.n_voxels) for image, layer in zip(images, geometry.layers, strict=True)], axis=1
    )
    return Showers(geometry, Incident(mev, pdg=np.full(n, kind)), energy, overflow, provenance)


def write(showers: Showers, path: str | Path, force: bool = False) -> None:
    """Write showers of the CaloGAN geometry to a new file; ``read`` gives them back bit for bit.

    The energy is float32 where that is exact, else float64. ``force`` replaces an existing file.
    """
    calogan_geometry().require_same(showers.geometry, "showers to write in the CaloGAN layout")
    require_plain(showers, "CaloGAN")
    gev, exact = _to_gev(showers.incident.energy)
    columns = {"energy": gev[:, None]} | {f"layer_{i}": showers.image(i) for i in range(showers.geometry.n_layers)}
    if showers.overflow is not None:
        columns["overflow"] = showers.overflow
    if not exact:
        columns["energy_mev"] = showers.incident.energy[:, None]
    provenance = io.json_text(showers.provenance)
    with replacing(path, columns, force=force) as file:
        file.attrs["provenance"] = provenance
        if len(showers):
            file.attrs["pdg"] = int(showers.incident.pdg[0])


def _to_mev(gev: Array) -> Array:
    """Energies (N,) [MeV], float64. Exact for float32: 24 + 10 bits fit in 53."""
    return gev.astype(np.float64) * 1e3


def _to_gev(mev: Array) -> tuple[Array, bool]:
    """Energies (N,) [GeV] and whether ``_to_mev`` gives ``mev`` back.

    The neighbours of the quotient are tried too. Above a mantissa of 1.953, GeV numbers lie 1.95 times wider apart
    than MeV numbers, so that no double may do.
    """
    short = (mev / 1e3).astype(np.float32)
    if np.array_equal(_to_mev(short), mev):
        return short, True
    gev = mev / 1e3
    for candidate in (np.nextafter(gev, 0), np.nextafter(gev, np.inf)):
        gev = np.where((_to_mev(gev) != mev) & (_to_mev(candidate) == mev), candidate, gev)
    return gev, bool(np.array_equal(_to_mev(gev), mev))
