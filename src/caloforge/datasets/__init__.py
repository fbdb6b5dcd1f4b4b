"""Readers and writers of other people's formats: one module per layout, each with ``read`` and ``write``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import io
from ..geometry import Geometry
from ..hits import Hits
from ..showers import Showers
from ..simulate.detectors import find
from . import calochallenge, caloclouds, calogan, lemurs, lhcb, par04_root, showerdata
from .hdf5 import opened

__all__ = [
    "calochallenge", "caloclouds", "calogan", "layout_of", "lemurs", "lhcb", "open_data", "open_showers", "par04_root",
    "showerdata",
]  # fmt: skip

HDF5 = {
    "calogan": calogan.recognises, "calochallenge": calochallenge.recognises, "lemurs": lemurs.recognises,
    "showerdata": showerdata.recognises, "caloclouds": caloclouds.recognises,
}  # fmt: skip
NAMES = "CaloGAN, CaloChallenge, LEMURS, showerdata, CaloClouds, LHCb (npz) or Par04 (ROOT)"


def layout_of(path: str | Path) -> str:
    """Name of a file's layout, by what is in it: caloforge, calogan, calochallenge, lhcb, lemurs, showerdata, ..."""
    if Path(path).is_file():
        if par04_root.recognises(path):
            return "par04-root"
        if lhcb.recognises(path):
            return "lhcb"
    with opened(path) as file:
        if file.attrs.get("format") == io.FORMAT:
            return "caloforge"
        for name, recognises in HDF5.items():
            if recognises(file):
                return name
        keys = ", ".join(sorted(file)) or "none"
    raise ValueError(
        f"got {path} with keys {keys}, expected caloforge showers or the layout of {NAMES}; convert it first"
    )


def open_data(path: str | Path, *, binning: str | Path | None = None, detector: str | None = None) -> Showers | Hits:
    """Showers, or point clouds, of a file in any layout; see ``open_showers``."""
    layout = layout_of(path)
    geometry = find(detector).geometry if detector else None
    with_mesh: dict[str, Callable[[str | Path, Geometry | None], Showers | Hits]] = {
        "lemurs": lemurs.read, "par04-root": par04_root.read, "showerdata": showerdata.read,
        "caloclouds": caloclouds.read,
    }  # fmt: skip
    if layout in with_mesh:
        return with_mesh[layout](path, geometry)
    if layout == "calochallenge":
        if binning is None:
            raise ValueError(
                f"got {path} in the CaloChallenge layout, expected its binning too; give the XML file (caloforge "
                "convert --binning), or use caloforge.datasets.calochallenge.read(file, binning.xml, particle)"
            )
        return _on(calochallenge.read(path, binning), geometry, path)
    read = {"caloforge": io.read, "calogan": calogan.read, "lhcb": lhcb.read}[layout]
    return _on(read(path), geometry, path)


def open_showers(path: str | Path, *, binning: str | Path | None = None, detector: str | None = None) -> Showers:
    """Showers of a file in caloforge's own format or another layout, told apart by what is in it.

    binning: the XML file of CaloChallenge showers. detector: name of a detector or its TOML file, where the file does
    not know its mesh: point clouds are summed in the voxels of its readout.
    """
    data = open_data(path, binning=binning, detector=detector)
    if isinstance(data, Showers):
        return data
    return read_out(data, path, detector)


def read_out(hits: Hits, path: str | Path, detector: str | None) -> Showers:
    """The point clouds of a file summed in the voxels of a detector's readout."""
    if detector is None:
        raise ValueError(
            f"got {path}, a file of point clouds, expected a detector to read them out; give one (caloforge convert "
            "--detector)"
        )
    found = find(detector)
    return hits.showers(found.geometry, frame=found.frame)


def same_mesh(a: Geometry, b: Geometry) -> bool:
    """Whether the layers have the same edges, wherever they lie in depth."""
    return [(v.kind, v.first, v.second) for v in a.layers] == [(v.kind, v.first, v.second) for v in b.layers]


def _on(showers: Showers, geometry: Geometry | None, path: str | Path) -> Showers:
    """The showers on the mesh of a detector, which may add the depths of the layers."""
    if geometry is None:
        return showers
    if not same_mesh(showers.geometry, geometry):
        raise ValueError(
            f"got {path} with voxels of {showers.geometry.name!r}, expected those of detector {geometry.name!r}; name "
            "the detector of these showers, or none"
        )
    return replace(showers, geometry=geometry)
