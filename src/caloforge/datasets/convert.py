"""Convert a file of showers from one layout to another."""

from pathlib import Path
from typing import Literal, NamedTuple

from .. import io
from ..hits import Frame, Hits
from ..showers import Showers
from ..simulate.detectors import find
from . import calochallenge, calogan, lemurs, lhcb, open_data, par04_root, read_out, same_mesh, showerdata

Layout = Literal["caloforge", "calogan", "calochallenge", "lhcb", "lemurs", "showerdata", "par04-root"]
BY_SUFFIX: dict[str, Layout] = {".h5": "caloforge", ".hdf5": "caloforge", ".npz": "lhcb", ".root": "par04-root"}


class Converted(NamedTuple):
    """What was written: the layout, the number of showers, and the files."""

    layout: Layout
    n: int
    files: tuple[Path, ...]


def convert(
    source: str | Path, target: str | Path, *, to: Layout | None = None, binning: str | Path | None = None,
    detector: str | None = None, force: bool = False,
) -> Converted:  # fmt: skip
    """Write the showers of ``source`` to ``target`` in another layout; energies stay as they are.

    to: the layout, by default by the suffix (.npz LHCb, .root Par04, .h5 and .hdf5 caloforge). binning: XML file of
    CaloChallenge showers, read or written; where showers are written in that layout without one, it is written beside
    them. detector: the detector (name or TOML file) whose voxels point clouds are summed in, or whose mesh the source
    has but does not tell. Voxels become a point cloud of their centres. force: replace existing files.
    """
    target = Path(target)
    layout = to or _by_suffix(target)
    io.require_absent(target, force)
    data = open_data(source, binning=binning, detector=detector)
    if layout == "showerdata":
        _write_points(data, target, detector, force)
        return Converted(layout, len(data), (target,))
    showers = data if isinstance(data, Showers) else read_out(data, source, detector)
    if layout == "calochallenge":
        return Converted(layout, len(showers), _write_calochallenge(showers, target, binning, force))
    if layout == "caloforge":
        io.write(showers, target, force=force)
    else:
        module = {"calogan": calogan, "lhcb": lhcb, "lemurs": lemurs, "par04-root": par04_root}[layout]
        module.write(showers, target, force=force)
    return Converted(layout, len(showers), (target,))


def _by_suffix(target: Path) -> Layout:
    if target.suffix not in BY_SUFFIX:
        raise ValueError(
            f"got output {target}, expected a name that ends in {', '.join(BY_SUFFIX)}; rename it or say the layout "
            "(--to)"
        )
    return BY_SUFFIX[target.suffix]


def _write_points(data: Showers | Hits, target: Path, detector: str | None, force: bool) -> None:
    """Point clouds, with layer numbers where the layers of the mesh are planes of the detector."""
    found = find(detector) if detector else None
    if isinstance(data, Hits):
        geometry = found.geometry if found and found.frame == "detector" else None
        showerdata.write(data, target, geometry, force=force)
        return
    frame: Frame = found.frame if found else "shower" if data.geometry.layers[0].kind == "polar" else "detector"
    slanting = frame == "shower" and bool(data.incident.theta.any())
    if slanting and any(layer.depth is None for layer in data.geometry.layers):
        raise ValueError(
            f"got slanting showers on {data.geometry.name!r}, whose layers have no depth, expected depths to place the "
            "voxels; give the detector (--detector)"
        )
    showerdata.write(Hits.of(data, frame=frame), target, None if slanting else data.geometry, force=force)


def _write_calochallenge(showers: Showers, target: Path, binning: str | Path | None, force: bool) -> tuple[Path, ...]:
    name = calochallenge.particle_name(int(showers.incident.pdg[0])) if len(showers) else "electron"
    if binning is not None:
        known = calochallenge.read_binning(binning, name)
        if not same_mesh(known, showers.geometry):
            raise ValueError(
                f"got showers on {showers.geometry.name!r}, expected the voxels of {binning}; give their own binning, "
                "or none to have it written"
            )
        calochallenge.write(showers, target, force=force)
        return (target,)
    xml = target.with_suffix(".xml")
    with io.new_file(xml, force=force) as temporary:  # appears only if the showers do
        calochallenge.write_binning(showers.geometry, temporary, name)
        calochallenge.write(showers, target, force=force)
    return target, xml
