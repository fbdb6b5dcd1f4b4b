"""LEMURS layout, which is also that of the Geant4 example Par04 (McKeown, Raikwar, Zaborowska, 2509.05108).

    incident_energy                 (N,) MeV
    incident_theta, incident_phi    (N,) rad, in the coordinates of a collider detector; absent: normal incidence
    showers                         (N, R, phi, z) MeV deposited in the sensitive material, z fastest

R, phi and z number the voxels of a cylinder around the direction of the particle, from its entrance point on: the mesh
lies in the shower frame (``hits``), and phi bins run from -pi to pi. It is transposed here to our order, layer (z),
alpha (phi), r.

Angles. Their detector is a barrel around the z axis and the particle comes from its centre: theta = pi/2 is normal
incidence, and phi says where on the barrel. Ours are theta - pi/2, which keeps the axes of the mesh (theta-hat and
phi-hat), and the same phi. Energies are taken as they are: neither divided by a sampling fraction (CaloChallenge sets
are, by 0.033), nor freed from the rest mass, though Par04 writes the total energy (for e- of 1 GeV 0.05 % more).

caloforge adds what other readers ignore: the attributes ``geometry``, ``pdg`` and ``provenance``, ``overflow`` (N, L)
MeV where recorded, and exact particles where needed (``particles``).
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from .. import io
from ..geometry import Array, Geometry
from ..showers import Incident, Showers
from ..simulate.detectors import find
from . import particles
from .hdf5 import attributes, column, opened, replacing

KEYS = ("incident_energy", "showers")
MESHES = {(18, 50, 45): "par04-siw", (9, 16, 45): "par04-siw-coarse"}  # (R, phi, z)
PHOTON = 22
NORMAL = np.pi / 2  # theta of a particle that hits a barrel at a right angle


def recognises(file: h5py.File) -> bool:
    """Whether a file has the keys of this layout."""
    return all(key in file for key in KEYS) and len(getattr(file["showers"], "shape", ())) == 4


def read(path: str | Path, geometry: Geometry | None = None, pdg: int | None = None) -> Showers:
    """Showers of a LEMURS or Par04 file.

    geometry: the mesh; by default what caloforge wrote into the file, else that of the W/Si calorimeter of Par04 with
    as many voxels (18 x 50 x 45 or 9 x 16 x 45). pdg: the particle, by default what the file says, else 22, the photons
    of LEMURS.
    """
    with opened(path) as file:
        own = {"incident_energy": column(file, "incident_energy", (None,))}
        n = len(own["incident_energy"])
        own |= {key: column(file, key, (n,)) for key in ("incident_theta", "incident_phi") if key in file}
        images = column(file, "showers", (n, None, None, None))
        if geometry is None:
            geometry = _geometry(file, images.shape[1:])
        if images.shape[1:] != grid(geometry):
            raise ValueError(
                f"got 'showers' of (R, phi, z) = {images.shape[1:]} in {path}, expected {grid(geometry)} of "
                f"{geometry.name!r}; give the geometry of this file"
            )
        overflow = column(file, "overflow", (n, geometry.n_layers)) if "overflow" in file else None
        said = int(file.attrs["pdg"]) if "pdg" in file.attrs else None
        added = {key: column(file, key, (n,)) for key in particles.names(file)}
        provenance = attributes(file)
    incident = particles.exact(to_incident(own, particles.chosen(pdg, said, PHOTON, path)), added, path)
    return Showers(geometry, incident, flat(images), overflow, provenance)


def write(showers: Showers, path: str | Path, force: bool = False) -> None:
    """Write showers of a polar geometry whose layers all have the same voxels; ``read`` gives them back bit for bit.

    ``force`` replaces an existing file.
    """
    shape = grid(showers.geometry)
    incident = showers.incident
    kind = particles.kind(incident, PHOTON)
    own = from_incident(incident)
    columns = {"showers": showers.energy.reshape(len(showers), *shape[::-1]).transpose(0, 3, 2, 1), **own}
    columns |= particles.extra(incident, to_incident(own, kind))
    if showers.overflow is not None:
        columns["overflow"] = showers.overflow
    provenance = io.json_text(showers.provenance)
    with replacing(path, columns, force=force) as file:
        file.attrs.update({"geometry": showers.geometry.to_json(), "pdg": kind, "provenance": provenance})


def grid(geometry: Geometry) -> tuple[int, int, int]:
    """Numbers of voxels (R, phi, z) of a geometry that is one cylindrical grid; ValueError if it is not."""
    first = geometry.layers[0]
    for i, layer in enumerate(geometry.layers):
        if layer.kind != "polar" or (layer.first, layer.second) != (first.first, first.second):
            raise ValueError(
                f"got layer {i} of {geometry.name!r} ({layer.kind}, {layer.shape[0]} x {layer.shape[1]}), expected "
                "polar layers with the same voxels: the LEMURS and Par04 layouts have no others; write them with "
                "caloforge.io"
            )
    n_alpha, n_r = first.shape
    return n_r, n_alpha, geometry.n_layers


def flat(images: Array) -> Array:
    """Voxel energies (N, V) of images (N, R, phi, z)."""
    return images.transpose(0, 3, 2, 1).reshape(len(images), int(np.prod(images.shape[1:])))


def to_incident(columns: Mapping[str, Array], pdg: int) -> Incident:
    """Particles of the columns ``incident_energy``, ``incident_theta``, ``incident_phi``; the angles may be absent."""
    energy = columns["incident_energy"]
    normal = np.full(len(energy), NORMAL)
    theta = np.asarray(columns.get("incident_theta", normal), dtype=np.float64) - NORMAL
    phi = columns.get("incident_phi", np.zeros(len(energy)))
    return Incident(energy, theta=theta, phi=phi, pdg=np.full(len(energy), pdg))


def from_incident(incident: Incident) -> dict[str, Array]:
    """The columns of ``to_incident``, its inverse but for the last bit of theta."""
    theta = incident.theta + NORMAL
    return {"incident_energy": incident.energy, "incident_theta": theta, "incident_phi": incident.phi}


def _geometry(file: h5py.File, shape: tuple[int, ...]) -> Geometry:
    if "geometry" in file.attrs:
        return Geometry.from_json(file.attrs["geometry"])
    if shape not in MESHES:
        known = ", ".join(" x ".join(str(v) for v in mesh) for mesh in MESHES)
        raise ValueError(
            f"got 'showers' of (R, phi, z) = {shape} in {file.filename}, expected a known mesh ({known}); give its "
            "geometry (caloforge convert --detector)"
        )
    return find(MESHES[shape]).geometry
