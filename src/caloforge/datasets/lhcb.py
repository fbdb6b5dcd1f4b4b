"""LHCb layout: one npz file of images of a 30 x 30 cell calorimeter (Chekalina et al., 1812.01319).

    EnergyDeposit     (N, 30, 30, 1) MeV in the scintillator; axis 1 is x, axis 2 is y
    ParticlePoint     (N, 3) cm: where the particle enters the front face (x0, y0), and z
    ParticleMomentum  (N, 3) GeV: p_x, p_y, p_z
    ParticlePDG       (N,)

The authors' program sets p_z = E / sqrt(1 + t_x^2 + t_y^2) with the kinetic energy E and the slopes t_x = p_x / p_z and
t_y = p_y / p_z, that is |p| = E: masses are neglected, here too. z is -19.8 cm there, the front face of a detector that
is centred at the origin; it is not used. Other members, such as TotalEnergySci, are ignored.

Momenta do not give the angles back to the last bit; see ``particles`` for what is added. caloforge also adds
``overflow`` (N, 1) MeV where recorded, and ``provenance`` (JSON).
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import io
from ..geometry import Array, Geometry
from ..showers import Incident, Showers
from ..simulate.detectors import find
from . import particles
from .hdf5 import require_numbers

KEYS = ("EnergyDeposit", "ParticlePoint", "ParticleMomentum", "ParticlePDG")
READ = (*KEYS, "overflow", "provenance")
FRONT_CM = -19.8


def geometry() -> Geometry:
    """The mesh of these files: one layer of 30 x 30 cells of 20.2 mm, 396 mm deep."""
    return find("lhcb").geometry


def recognises(path: str | Path) -> bool:
    """Whether a file is a zip archive, as every npz file is; what is in it, ``read`` says."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def read(path: str | Path) -> Showers:
    """Showers of an LHCb npz file."""
    members = _members(path)
    pdg = _column(members, "ParticlePDG", (None,), path)
    n = len(pdg)
    mesh = geometry()
    energy = _column(members, "EnergyDeposit", (n, *mesh.layers[0].shape, 1), path).reshape(n, mesh.n_voxels)
    point, momentum = (_column(members, key, (n, 3), path) for key in ("ParticlePoint", "ParticleMomentum"))
    incident = particles.exact(_incident(point, momentum, pdg), members, path, "energy direction x y pdg")
    overflow = _column(members, "overflow", (n, mesh.n_layers), path) if "overflow" in members else None
    provenance = json.loads(str(members["provenance"])) if "provenance" in members else {}
    return Showers(mesh, incident, energy, overflow, provenance)


def write(showers: Showers, path: str | Path, force: bool = False) -> None:
    """Write showers of the LHCb geometry; ``read`` gives them back bit for bit. ``force`` replaces an existing file."""
    geometry().require_same(showers.geometry, "showers to write in the LHCb layout")
    incident = showers.incident
    own = {
        "ParticlePoint": np.stack([incident.x / 10, incident.y / 10, np.full(len(incident), FRONT_CM)], axis=1),
        "ParticleMomentum": particles.unit_vectors(incident) * incident.energy[:, None] / 1e3,
        "ParticlePDG": incident.pdg,
    }
    columns = {"EnergyDeposit": showers.image(0)[..., None], **own}
    columns |= particles.extra(incident, _incident(*own.values()))
    if showers.overflow is not None:
        columns["overflow"] = showers.overflow
    columns["provenance"] = np.array(io.json_text(showers.provenance))
    with io.new_file(path, force=force) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]


def _incident(point: Array, momentum: Array, pdg: Array) -> Incident:
    point, momentum = (v.astype(np.float64) for v in (point, momentum))
    energy = np.linalg.norm(momentum, axis=1) * 1e3
    return Incident(energy, **particles.angles(momentum), x=point[:, 0] * 10, y=point[:, 1] * 10, pdg=pdg)


def _members(path: str | Path) -> dict[str, Array]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"got {path}, expected an npz file of showers; no such file, check the name")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in READ or name.startswith("incident/")}
    except Exception as error:  # what zipfile, zlib and numpy raise for a damaged file is not one family
        raise ValueError(
            f"got {path}, expected an npz file of numbers; it is truncated or none ({error}), make or copy it again"
        ) from None


def _column(members: Mapping[str, Array], key: str, shape: tuple[int | None, ...], path: str | Path) -> Array:
    if key not in members:
        raise ValueError(f"got {path} without {key!r}, expected an npz file with {', '.join(KEYS)}; check the format")
    require_numbers(members[key], key, shape, path)
    return members[key]
