"""Readers and writers of other people's formats: one module per layout, each with ``read`` and ``write``."""

from pathlib import Path

from .. import io
from ..showers import Showers
from . import calochallenge, calogan

__all__ = ["calochallenge", "calogan", "open_showers"]


def open_showers(path: str | Path) -> Showers:
    """Showers of a file in caloforge's own format or in the CaloGAN layout, told apart by what is in it."""
    with io.open_hdf5(path) as file:
        keys = sorted(file)
        ours, theirs = file.attrs.get("format") == io.FORMAT, calogan.recognises(file)
    if ours:
        return io.read(path)
    if theirs:
        return calogan.read(path)
    if {"incident_energies", "showers"} <= set(keys):
        raise ValueError(
            f"got {path} in the CaloChallenge layout, expected its binning too; "
            "use caloforge.datasets.calochallenge.read(file, binning.xml, particle)"
        )
    raise ValueError(
        f"got {path} with keys {', '.join(keys)}, expected caloforge showers or the CaloGAN layout "
        f"({', '.join(calogan.KEYS)}); convert it first"
    )
