"""Showers on disk: HDF5, format 1.

    energy           (N, V) float32 MeV, gzip-1, chunks of 128 showers
    overflow         (N, L) float32 MeV, only where recorded
    weight           (N,) float64, only in reweighted samples; no part of Showers, see ``read_weight``
    column/NAME      (N,) float64, what else is known of each shower (jets: FastJet's mass); see ``read_columns``
    incident/energy  (N,) float64 MeV; incident/theta, phi [rad], x, y [mm], pdg
    attributes       format, format_version, geometry (JSON), geometry_digest, provenance (JSON)

Files are written to a temporary name and moved into place: a file that exists is complete.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from .geometry import Array, Geometry
from .showers import FIELDS, Incident, Showers

FORMAT, VERSION = "caloforge-showers", 1
CHUNK = 128


def require_absent(path: str | Path, force: bool, *, folder: bool = False) -> Path:
    """The path, if nothing is there yet or ``force``; FileExistsError otherwise. folder: whether it is to be one."""
    path = Path(path)
    if path.is_dir() and force and not folder:
        raise FileExistsError(f"got output {path}, a folder, expected the name of a file; choose another")
    if path.exists() and not force:
        raise FileExistsError(f"got output {path}, which exists, expected a new name; choose another or give --force")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"got output {path}, expected an existing folder {path.absolute().parent}; create it")
    return path


@contextmanager
def new_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary name to write to; it is moved to ``path`` when the block ends, and removed if the block fails."""
    path = require_absent(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def json_text(provenance: Mapping[str, Any]) -> str:
    """Provenance as it stands in a file; ValueError where it is not plain data."""
    try:
        return json.dumps(dict(provenance), sort_keys=True)
    except TypeError as error:
        raise ValueError(f"got provenance that is no plain data ({error}), expected strings and numbers") from None


class Writer:
    """Append Showers to a new file; the file appears under its name when the ``with`` block ends without error."""

    def __init__(self, path: str | Path, geometry: Geometry, provenance: Mapping[str, Any], *, force: bool = False):
        attributes = {
            "format": FORMAT, "format_version": VERSION, "geometry": geometry.to_json(),
            "geometry_digest": geometry.digest(), "provenance": json_text(provenance),
        }  # fmt: skip
        self.geometry = geometry
        self._exit = ExitStack()
        temporary = self._exit.enter_context(new_file(path, force=force))
        self._file = self._exit.enter_context(h5py.File(temporary, "w"))
        self._file.attrs.update(attributes)
        self._extendable("energy", (geometry.n_voxels,), np.float32)
        for name in FIELDS:
            self._extendable(f"incident/{name}", (), np.int64 if name == "pdg" else np.float64)

    def append(self, showers: Showers, weight: Array | None = None, columns: Mapping[str, Array] | None = None) -> None:
        """Write the showers, their weights (N,) in a reweighted sample and columns (N,), behind those written."""
        self.geometry.require_same(showers.geometry, "showers")
        start = len(self._file["energy"])
        if start == 0 and weight is not None and "weight" not in self._file:
            self._extendable("weight", (), np.float64)
        if len(showers) and ("weight" in self._file) != (weight is not None):
            raise ValueError("got parts with and without weights, expected one kind; write them separately")
        if start == 0 and showers.overflow is not None:
            self._extendable("overflow", (self.geometry.n_layers,), np.float32)
        if len(showers) and ("overflow" in self._file) != (showers.overflow is not None):
            raise ValueError("got parts with and without overflow energies, expected one kind; write them separately")
        more = {f"column/{name}": np.asarray(values, np.float64) for name, values in (columns or {}).items()}
        if start == 0:
            for name in more:
                self._extendable(name, (), np.float64)
        if len(showers) and set(more) != {f"column/{name}" for name in self._file.get("column", ())}:
            raise ValueError("got parts with different columns, expected the same ones; write them separately")
        data_sets = {f"incident/{name}": getattr(showers.incident, name) for name in FIELDS} | more
        data_sets["energy"] = showers.energy
        if showers.overflow is not None:
            data_sets["overflow"] = showers.overflow
        if weight is not None:
            data_sets["weight"] = _checked_weight(weight, len(showers))
        for name, values in data_sets.items():
            data = self._file[name]
            data.resize(start + len(showers), axis=0)
            data[start:] = values

    def _extendable(self, name: str, row: tuple[int, ...], dtype: Any) -> None:
        chunk = CHUNK if row else 8192
        self._file.create_dataset(
            name, (0, *row), dtype, maxshape=(None, *row), chunks=(chunk, *row), compression="gzip", compression_opts=1
        )

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exit.__exit__(kind, error, tb)


def write(showers: Showers, path: str | Path, *, weight: Array | None = None,
          columns: Mapping[str, Array] | None = None, force: bool = False) -> None:  # fmt: skip
    """Write Showers to a new file (format 1), with weights and columns (N,) if given; ``force`` replaces a file."""
    with Writer(path, showers.geometry, showers.provenance, force=force) as file:
        file.append(showers, weight, columns)


def _checked_weight(weight: Array, n: int) -> Array:
    out = np.asarray(weight, dtype=np.float64)
    if out.shape != (n,) or not np.all(np.isfinite(out)) or np.any(out < 0):
        raise ValueError(f"got weights of shape {out.shape}, expected {n} finite numbers >= 0; give one per shower")
    return out


def open_hdf5(path: str | Path) -> h5py.File:
    """An HDF5 file opened for reading; one sentence says so if there is none or it is damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"got {path}, expected an HDF5 file of showers; no such file, check the name")
    try:
        return h5py.File(path, "r")
    except OSError:
        raise ValueError(f"got {path}, expected an HDF5 file; it is truncated or none, make or copy it again") from None


@contextmanager
def _open(path: str | Path) -> Iterator[h5py.File]:
    """A file of this format; whatever is missing or unreadable in it becomes one ValueError."""
    with open_hdf5(path) as file:
        if file.attrs.get("format") != FORMAT:
            keys = ", ".join(sorted(file)[:6])
            raise ValueError(f"got {path} with keys {keys}, expected format {FORMAT}; read it with caloforge.datasets")
        version = int(file.attrs.get("format_version", 0))
        if version > VERSION:
            raise ValueError(f"got {path} of format version {version}, expected at most {VERSION}; update caloforge")
        _require_whole(path, file)
        try:
            yield file
        except (OSError, KeyError) as error:
            raise ValueError(f"got {path}, expected complete showers ({error}); make or copy the file again") from None


def _require_whole(path: str | Path, file: h5py.File) -> None:
    """ValueError unless the file has one row of every quantity for each shower, of numbers."""
    data = {name: file.get(name) for name in ("energy", *(f"incident/{name}" for name in FIELDS))}
    data |= {name: file[name] for name in ("overflow", "weight") if name in file}
    for name, values in data.items():
        if values is None:
            raise ValueError(f"got {path}, expected complete showers (no {name!r}); make or copy the file again")
        rank = 2 if name in ("energy", "overflow") else 1
        if not isinstance(values, h5py.Dataset) or values.ndim != rank or values.dtype.kind not in "fiu":
            raise ValueError(f"got {path}, expected {name!r} as numbers with {rank} axes; make the file again")
    rows = {len(values) for values in data.values()}
    if len(rows) > 1:
        raise ValueError(
            f"got {path} with {min(rows)} to {max(rows)} rows of different quantities, expected as many of each; make "
            "the file again"
        )


def _header(path: str | Path, file: h5py.File) -> tuple[Geometry, int, dict[str, Any]]:
    try:
        geometry, provenance = Geometry.from_json(file.attrs["geometry"]), json.loads(file.attrs["provenance"])
        if not isinstance(provenance, dict):
            raise TypeError("provenance is no table")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"got {path}, whose geometry or provenance cannot be read ({error}); make it again") from None
    if geometry.digest() != file.attrs["geometry_digest"]:
        raise ValueError(f"got {path}, whose geometry does not match its digest; the file was changed, make it again")
    return geometry, len(file["energy"]), provenance


def stream(path: str | Path, chunk: int = 8192) -> Iterator[Showers]:
    """Showers of a file in parts of ``chunk``, for data larger than memory."""
    with _open(path) as file:
        geometry, n, provenance = _header(path, file)
        for start in range(0, max(n, 1), chunk):
            part = slice(start, min(start + chunk, n))
            incident = Incident(**{name: file[f"incident/{name}"][part] for name in FIELDS})
            overflow = file["overflow"][part] if "overflow" in file else None
            yield Showers(geometry, incident, file["energy"][part], overflow, provenance)


def read(path: str | Path, n: int | None = None) -> Showers:
    """All showers of a file, or the first ``n``."""
    parts: list[Showers] = []
    left = n
    for part in stream(path):
        if left is not None:
            part = part[:left]
            left -= len(part)
        parts.append(part)
        if left == 0:
            break
    return Showers.concat(parts) if len(parts) > 1 else parts[0]


def read_incident(path: str | Path) -> Incident:
    """The incident particles of a file, without its showers."""
    with _open(path) as file:
        return Incident(**{name: file[f"incident/{name}"][:] for name in FIELDS})


def read_weight(path: str | Path) -> Array | None:
    """The weights of a reweighted sample, (N,) float64, which ``read`` leaves aside; None where the file has none."""
    with _open(path) as file:
        if "weight" not in file:
            return None
        return _checked_weight(file["weight"][:], len(file["energy"]))


def read_columns(path: str | Path) -> dict[str, Array]:
    """What else a file knows of each shower, name -> (N,) float64; empty where it has no columns."""
    with _open(path) as file:
        return {name: data[:] for name, data in file["column"].items()} if "column" in file else {}


def read_header(path: str | Path) -> tuple[Geometry, int, dict[str, Any]]:
    """Geometry, number of showers and provenance of a file."""
    with _open(path) as file:
        return _header(path, file)
