"""Ntuples of the Geant4 example Par04 (extra ``root``): one row per shower, the voxels as jagged columns.

    tree global           EnergyMC [MeV]; ThetaMC, PhiMC [rad] where a version writes them
    tree virtualReadout   rhoCell, phiCell, zCell: voxel numbers; EnergyCell [MeV]

Geant4 11 has all columns in one tree, ``events``; it is read as well. Mesh, angles and energies are those of the LEMURS
layout (``lemurs``), to which the example's script root2h5.py converts these files. The file does not say how many
voxels the mesh has. The example also writes numbers one beyond the mesh, which its script drops: here their energy is
``overflow`` of the layer, in front of the first layer that of the first and behind the last that of the last. A voxel
that is listed twice has the sum.

Written files have the two trees with leaves of variable length (Geant4 writes vectors; ROOT and uproot read both), and
what other readers ignore: the strings ``geometry`` and ``provenance``, and, where needed, the trees ``overflow`` and
``incident`` (exact particles, see ``particles``).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import io
from ..geometry import Array, Geometry
from ..showers import Showers
from ..simulate.detectors import find
from . import particles
from .hdf5 import require_numbers
from .lemurs import from_incident, grid, to_incident

ELECTRON = 11
SINGLE = {"incident_energy": "EnergyMC", "incident_theta": "ThetaMC", "incident_phi": "PhiMC"}
CELLS = ("rhoCell", "phiCell", "zCell")


def recognises(path: str | Path) -> bool:
    """Whether a file is a ROOT file; what is in it, ``read`` says."""
    with open(path, "rb") as file:
        return file.read(4) == b"root"


def read(path: str | Path, geometry: Geometry | None = None, pdg: int | None = None) -> Showers:
    """Showers of a Par04 file.

    geometry: the mesh; by default what caloforge wrote into the file, else that of the example's own macro, 18 x 50 x
    45. pdg: the particle, by default what caloforge wrote, else 11 (e-), the example's own.
    """
    with _opened(path) as (file, ak):
        single, jagged = _trees(file, path)
        own = {ours: _single(single, key, path) for ours, key in SINGLE.items() if key in single or key == "EnergyMC"}
        n = len(own["incident_energy"])
        event, *cells = _cells(jagged, n, path, ak)
        added = {f"incident/{k}": v.array(library="np") for k, v in _in_tree(file, "incident").items()}
        recorded = {k: v.array(library="np") for k, v in _in_tree(file, "overflow").items()}
        texts = {k: str(file[k]) for k in ("geometry", "provenance") if k in file}
    if geometry is None:
        geometry = Geometry.from_json(texts["geometry"]) if "geometry" in texts else _default_mesh(cells[:3], path)
    energy, beyond = _filled(geometry, n, event, *cells)
    nothing = "geometry" in texts and not beyond.any()  # caloforge wrote it, from showers without overflow
    overflow = recorded.get("overflow", None if nothing else beyond)
    said = int(added["incident/pdg"][0]) if n and "incident/pdg" in added else None
    decoded = to_incident(own, particles.chosen(pdg, said, ELECTRON, path))
    provenance = json.loads(texts.get("provenance", "{}"))
    return Showers(geometry, particles.exact(decoded, added, path), energy, overflow, provenance)


def write(showers: Showers, path: str | Path, force: bool = False) -> None:
    """Write showers of a polar geometry whose layers all have the same voxels; ``read`` gives them back bit for bit.

    ``force`` replaces an existing file.
    """
    uproot, ak = _import_root()
    n_r, n_phi, n_z = grid(showers.geometry)
    incident = showers.incident
    own = from_incident(incident)
    event, voxel = np.nonzero(showers.energy)
    z, phi, rho = np.unravel_index(voxel, (n_z, n_phi, n_r))
    counts = np.bincount(event, minlength=len(showers))
    cells = {"rhoCell": rho, "phiCell": phi, "zCell": z}
    jagged = {key: ak.unflatten(v.astype(np.int32), counts) for key, v in cells.items()}
    jagged["EnergyCell"] = ak.unflatten(showers.energy[event, voxel].astype(np.float64), counts)
    added = particles.extra(incident, to_incident(own, ELECTRON))
    trees: dict[str, Mapping[str, Any]] = {
        "global": {SINGLE[key]: values for key, values in own.items()}, "virtualReadout": jagged,
    }  # fmt: skip
    if added:
        trees["incident"] = {key.removeprefix("incident/"): values for key, values in added.items()}
    if showers.overflow is not None:
        trees["overflow"] = {"overflow": showers.overflow}
    texts = {"geometry": showers.geometry.to_json(), "provenance": io.json_text(showers.provenance)}
    with io.new_file(path, force=force) as temporary, uproot.recreate(temporary) as file:
        for name, branches in trees.items():
            file.mktree(name, {key: _branch_type(values) for key, values in branches.items()})
            if len(showers):
                file[name].extend(dict(branches))
        for name, text in texts.items():
            file[name] = text


def _filled(
    geometry: Geometry, n: int, event: Array, r: Array, phi: Array, z: Array, mev: Array
) -> tuple[Array, Array]:
    """Voxel energies (N, V) and energy beyond the mesh (N, L) of M cells of n showers; event, ..., mev: (M,)."""
    n_r, n_phi, n_z = grid(geometry)
    inside = (r >= 0) & (r < n_r) & (phi >= 0) & (phi < n_phi) & (z >= 0) & (z < n_z)
    v = ((event * n_z + z) * n_phi + phi) * n_r + r
    energy = np.bincount(v[inside], mev[inside], minlength=n * geometry.n_voxels)
    layer = event * n_z + np.clip(z, 0, n_z - 1)
    beyond = np.bincount(layer[~inside], mev[~inside], minlength=n * n_z)
    return energy.reshape(n, geometry.n_voxels), beyond.reshape(n, n_z)


def _default_mesh(numbers: list[Array], path: str | Path) -> Geometry:
    """The mesh of the example's macro, unless all voxels would fit in the coarse one as well."""
    fine, coarse = (find(name).geometry for name in ("par04-siw", "par04-siw-coarse"))
    if len(numbers[0]) and all(v.max() < top for v, top in zip(numbers, grid(coarse), strict=True)):
        raise ValueError(
            f"got {path} with voxels that all fit in {coarse.name!r} as well as in {fine.name!r}, expected one mesh; "
            "give its geometry (caloforge convert --detector)"
        )
    return fine


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """An open ROOT file and the module awkward; whatever is unreadable in the file becomes one ValueError."""
    uproot, ak = _import_root()
    if not Path(path).is_file():
        raise FileNotFoundError(f"got {path}, expected a ROOT file of showers; no such file, check the name")
    try:
        with uproot.open(path) as file:
            yield file, ak
    except ValueError:
        raise
    except Exception as error:  # what uproot and its decompressors raise for a damaged file is not one family
        raise ValueError(
            f"got {path}, expected a ROOT file of Par04; it is truncated or none "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}), make or copy it again"
        ) from None


def _import_root() -> tuple[Any, Any]:
    try:
        import awkward
        import uproot
    except ImportError:
        raise FileNotFoundError(
            "got a ROOT file without the packages to read it, expected uproot and awkward; install them with: "
            "pip install 'caloforge[root]'"
        ) from None
    return uproot, awkward


def _trees(file: Any, path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The branches with one number per shower, and those with lists."""
    if "events" in file and "global" not in file:
        return _in_tree(file, "events"), _in_tree(file, "events")
    if "global" not in file or "virtualReadout" not in file:
        known = ", ".join(sorted({key.split(";")[0] for key in file.keys(recursive=False)})) or "nothing"
        raise ValueError(f"got {path} with {known}, expected the trees global and virtualReadout; check the file")
    return _in_tree(file, "global"), _in_tree(file, "virtualReadout")


def _in_tree(file: Any, tree: str) -> dict[str, Any]:
    """Branches of a tree by name, none where there is no such tree."""
    return {branch.name: branch for branch in file[tree].branches} if tree in file else {}


def _single(branches: Mapping[str, Any], key: str, path: str | Path) -> Array:
    values = _values(branches, key, path).array(library="np")
    require_numbers(values, key, (None,), path)
    return np.asarray(values)


def _cells(branches: Mapping[str, Any], n: int, path: str | Path, ak: Any) -> list[Array]:
    """Shower, rho, phi, z number and energy [MeV] of every cell, (M,) each."""
    rows = [_values(branches, key, path).array() for key in (*CELLS, "EnergyCell")]
    if any(len(v) != n or v.ndim != 2 for v in rows):
        raise ValueError(f"got {path} with cells of {len(rows[0])} rows, expected {n} lists of numbers; check the file")
    counts = [ak.to_numpy(ak.num(v)) for v in rows]
    if any(not np.array_equal(counts[0], c) for c in counts):
        raise ValueError(f"got {path} with {', '.join(CELLS)}, EnergyCell of different lengths, expected the same; "
                         "make or copy it again")  # fmt: skip
    *numbers, mev = (ak.to_numpy(ak.flatten(v)) for v in rows)
    return [np.repeat(np.arange(n), counts[0]), *(v.astype(np.int64) for v in numbers), mev.astype(np.float64)]


def _values(branches: Mapping[str, Any], key: str, path: str | Path) -> Any:
    if key not in branches:
        raise ValueError(f"got {path} with {', '.join(sorted(branches))}, expected {key} too; check the file")
    return branches[key]


def _branch_type(values: Any) -> Any:
    return (values.dtype, values.shape[1:]) if isinstance(values, np.ndarray) else values.type.content
