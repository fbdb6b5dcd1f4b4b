"""Columns of other people's HDF5 files, checked before use, and the one rule for writing them: nothing half done."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..geometry import Array
from ..io import CHUNK, new_file, open_hdf5
from ..showers import Showers


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; what h5py finds damaged in its structure becomes one ValueError."""
    with open_hdf5(path) as file:
        try:
            yield file
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"got {path}, expected a whole HDF5 file; {error}, make or copy it again") from None


def column(file: h5py.File, key: str, shape: tuple[int | None, ...]) -> Array:
    """Dataset ``key`` of the given shape (None: any length), as in the file; ValueError if missing or different."""
    if key not in file:
        raise ValueError(
            f"got {file.filename} with keys {', '.join(sorted(file))}, expected {key!r} too; check the format"
        )
    data = file[key]
    require_numbers(data, key, shape, file.filename)
    return content(data, key, file.filename)


def content(data: h5py.Dataset, key: str, path: str | Path) -> Array:
    """All of a dataset; ValueError where the file is damaged."""
    try:
        return np.asarray(data[:])
    except OSError as error:
        raise ValueError(f"got unreadable {key!r} in {path} ({error}); make or copy the file again") from None


def require_numbers(data: Any, key: str, shape: tuple[int | None, ...], path: str | Path) -> None:
    """ValueError unless ``data``, a dataset or an array, is numeric and of the given shape (None: any length)."""
    if not isinstance(data, h5py.Dataset | np.ndarray) or data.dtype.kind not in "fiu":
        raise ValueError(f"got {key!r} of {path} without numbers, expected a numeric dataset; check the file")
    if len(data.shape) != len(shape) or any(b not in (None, a) for a, b in zip(data.shape, shape, strict=True)):
        wanted = "(" + ", ".join("N" if b is None else str(b) for b in shape) + ")"
        raise ValueError(
            f"got {key!r} of shape {data.shape} in {path}, expected {wanted}; check that this is the format"
        )


def attributes(file: h5py.File) -> dict[str, Any]:
    """Provenance of a file: the one that caloforge wrote, or all attributes as plain strings and numbers."""
    if "provenance" in file.attrs:
        return dict(json.loads(file.attrs["provenance"]))
    return {k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in sorted(file.attrs.items())}


@contextmanager
def replacing(path: str | Path, columns: Mapping[str, Array], *, force: bool) -> Iterator[h5py.File]:
    """A new HDF5 file with these columns (gzip-1); it takes its name when the block ends without error."""
    with new_file(path, force=force) as temporary, h5py.File(temporary, "w") as file:
        for key, values in columns.items():
            chunks = (min(CHUNK, len(values)), *values.shape[1:]) if len(values) else None
            file.create_dataset(key, data=values, chunks=chunks, compression="gzip" if chunks else None,
                                compression_opts=1 if chunks else None)  # fmt: skip
        yield file


def require_plain(showers: Showers, layout: str) -> None:
    """ValueError unless the particles are of one kind and hit the front face at x = y = 0 at a right angle."""
    incident = showers.incident
    for name in ("theta", "phi", "x", "y"):
        if np.any(getattr(incident, name) != 0):
            raise ValueError(
                f"got showers with incident {name} other than 0, expected normal incidence at the centre: the {layout} "
                "layout has no place for it; write them with caloforge.io"
            )
    if len(np.unique(incident.pdg)) > 1:
        kinds = ", ".join(str(v) for v in np.unique(incident.pdg))
        raise ValueError(f"got particles {kinds}, expected one kind in a {layout} file; write one file for each")
