"""CaloChallenge layout: showers in HDF5, binning in XML (Krause et al., 2410.21611; Zenodo records of the data sets).

    incident_energies  (N, 1) MeV
    showers            (N, V) MeV, ordered by layer, alpha, r (fastest): the order of ``Geometry``

The XML lists, per particle, the layers with their r edges [mm] and number of alpha bins over -pi..pi; a layer with one
edge does not exist. caloforge adds ``overflow`` (N, L) MeV where recorded, and the attributes ``pdg`` and
``provenance``, which other readers ignore.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import h5py
import numpy as np

from .. import io
from ..geometry import Geometry, Layer, regular
from ..showers import Incident, Showers
from .hdf5 import attributes, column, opened, replacing, require_plain

PIDS = {"photon": 22, "electron": 11, "pion": 211}


def read_binning(path: str | Path, particle: str) -> Geometry:
    """Geometry of a binning file for one particle (its ``name``: photon, electron, pion); layers have no depth."""
    layers = []
    for element in _bin(path, particle).findall("Layer"):
        number, n_alpha = _number(path, element, "id"), _number(path, element, "n_bin_alpha")
        try:
            edges = tuple(float(text) for text in element.get("r_edges", "").split(","))
        except ValueError:
            raise ValueError(
                f"got r_edges {element.get('r_edges')!r} of layer {number} in {path}, expected numbers in mm with "
                "commas between them; correct the file"
            ) from None
        if len(edges) > 1:
            if n_alpha < 1:
                raise ValueError(
                    f"got {n_alpha} alpha bins of layer {number} in {path}, expected at least 1; correct it"
                )
            layers.append(Layer("polar", regular(-np.pi, np.pi, n_alpha), edges, number=number))
    if not layers:
        raise ValueError(f"got {path} without bins for {particle!r}, expected a layer with two r_edges; check the file")
    return Geometry(f"{Path(path).stem}-{particle}", tuple(layers))


def write_binning(geometry: Geometry, path: str | Path, particle: str, *, force: bool = False) -> None:
    """Write the binning of a polar geometry as XML; ``read_binning`` gives the same mesh back, without depths.

    Layers without a number of their own count from 0. ``force`` replaces an existing file.
    """
    if particle not in PIDS:
        raise ValueError(f"got particle {particle!r}, expected one of {', '.join(PIDS)}; choose one of them")
    _require_polar(geometry)
    numbers = [i if layer.number is None else layer.number for i, layer in enumerate(geometry.layers)]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"got layer numbers {numbers}, expected rising ones (the file has that order); renumber")
    root = ElementTree.Element("Bins")
    bins = ElementTree.SubElement(root, "Bin", pid=str(PIDS[particle]), name=particle)
    by_number = dict(zip(numbers, geometry.layers, strict=True))
    for number in range(numbers[-1] + 1):
        layer = by_number.get(number)
        edges = "0" if layer is None else ",".join(repr(r).removesuffix(".0") for r in layer.second)
        n_alpha = 1 if layer is None else layer.shape[0]
        ElementTree.SubElement(bins, "Layer", id=str(number), r_edges=edges, n_bin_alpha=str(n_alpha))
    ElementTree.indent(root, "   ")
    with io.new_file(path, force=force) as temporary:
        temporary.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def recognises(file: h5py.File) -> bool:
    """Whether a file has the keys of this layout."""
    return "incident_energies" in file and "showers" in file


def particle_name(pdg: int) -> str:
    """Name in binning files of a PDG number; ValueError if they have none."""
    for name, pid in PIDS.items():
        if abs(pdg) == pid:
            return name
    known = ", ".join(f"{name} ({pid})" for name, pid in PIDS.items())
    raise ValueError(f"got particle {pdg}, expected one of {known}: CaloChallenge binnings have no others")


def read(h5_path: str | Path, xml_path: str | Path, particle: str | None = None) -> Showers:
    """Showers of a CaloChallenge file with the binning of ``xml_path`` for ``particle``.

    particle: by default the only one of the binning file, else the one that the showers say they are of.
    """
    with opened(h5_path) as file:
        particle = particle or _only(file, xml_path)
        geometry, pid = read_binning(xml_path, particle), _number(xml_path, _bin(xml_path, particle), "pid")
        incident_energy = column(file, "incident_energies", (None, 1))[:, 0]
        n = len(incident_energy)
        energy = column(file, "showers", (n, geometry.n_voxels))
        overflow = column(file, "overflow", (n, geometry.n_layers)) if "overflow" in file else None
        said = int(file.attrs["pdg"]) if "pdg" in file.attrs else pid
        provenance = attributes(file)
    if abs(said) != abs(pid):
        raise ValueError(f"got {h5_path} of particle {said}, expected {pid} as in {xml_path}; use its own binning")
    return Showers(geometry, Incident(incident_energy, pdg=np.full(n, said)), energy, overflow, provenance)


def write(showers: Showers, h5_path: str | Path, force: bool = False) -> None:
    """Write showers of a polar geometry; ``read`` gives them back bit for bit. ``force`` replaces an existing file."""
    _require_polar(showers.geometry)
    require_plain(showers, "CaloChallenge")
    columns = {"incident_energies": showers.incident.energy[:, None], "showers": showers.energy}
    if showers.overflow is not None:
        columns["overflow"] = showers.overflow
    provenance = io.json_text(showers.provenance)
    with replacing(h5_path, columns, force=force) as file:
        file.attrs["provenance"] = provenance
        if len(showers):
            file.attrs["pdg"] = int(showers.incident.pdg[0])


def _only(file: h5py.File, path: str | Path) -> str:
    names = [element.get("name", "?") for element in _bins(path)]
    if len(names) != 1 and "pdg" in file.attrs:
        return particle_name(int(file.attrs["pdg"]))
    if len(names) != 1:
        raise ValueError(
            f"got {path} with binnings for {', '.join(names) or 'none'}, expected one; name the particle, or keep only "
            "its binning in the file"
        )
    return names[0]


def _bin(path: str | Path, particle: str) -> "ElementTree.Element":
    bins = _bins(path)
    for element in bins:
        if element.get("name") == particle:
            return element
    known = ", ".join(element.get("name", "?") for element in bins) or "none"
    raise ValueError(f"got particle {particle!r}, expected one of those in {path}: {known}; choose one of them")


def _bins(path: str | Path) -> "list[ElementTree.Element]":
    if not Path(path).is_file():
        raise FileNotFoundError(f"got {path}, expected a binning file (XML); no such file, check the name")
    try:
        return ElementTree.parse(path).getroot().findall("Bin")
    except ElementTree.ParseError as error:
        raise ValueError(f"got {path}, expected a binning file; it is no XML ({error}), copy it again") from None


def _number(path: str | Path, element: "ElementTree.Element", name: str) -> int:
    text = element.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"got {name}={text!r} in {path}, expected a whole number; correct the file") from None


def _require_polar(geometry: Geometry) -> None:
    for i, layer in enumerate(geometry.layers):
        if layer.kind != "polar" or layer.first != regular(-np.pi, np.pi, layer.shape[0]):
            raise ValueError(
                f"got layer {i} of {geometry.name!r} ({layer.kind}), expected polar layers with equal alpha bins over "
                "-pi..pi: the CaloChallenge layout has no others; write them with caloforge.io"
            )
