"""Incident particles in other people's layouts: directions as vectors, and exact values beside rounded ones.

Where the columns of a layout do not give every bit of ``Incident`` back (directions as unit vectors, float32, no place
for x and y), caloforge adds the columns ``incident/energy`` ... ``incident/pdg``, as in its own format; other readers
ignore them.
"""

from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np

from ..geometry import Array
from ..showers import FIELDS, Incident


def unit_vectors(incident: Incident) -> Array:
    """Directions (x, y, z), (N, 3); z runs along the depth."""
    sine = np.sin(incident.theta)
    return np.stack([sine * np.cos(incident.phi), sine * np.sin(incident.phi), np.cos(incident.theta)], axis=1)


def angles(vectors: Array) -> dict[str, Array]:
    """``theta`` and ``phi`` [rad], (N,) each, of vectors (N, 3) of any length."""
    x, y, z = np.asarray(vectors, dtype=np.float64).T
    return {"theta": np.arctan2(np.hypot(x, y), z), "phi": np.arctan2(y, x)}


def names(columns: Container[str]) -> list[str]:
    """The added columns, if all are there."""
    wanted = [f"incident/{name}" for name in FIELDS]
    return wanted if all(key in columns for key in wanted) else []


def extra(incident: Incident, decoded: Incident) -> dict[str, Array]:
    """The columns to add: none where the layout's own columns, ``decoded``, are the particles bit for bit."""
    if all(np.array_equal(getattr(incident, name), getattr(decoded, name)) for name in FIELDS):
        return {}
    return {f"incident/{name}": getattr(incident, name) for name in FIELDS}


def exact(
    decoded: Incident, columns: Mapping[str, Array], path: str | Path, fields: str = "energy direction"
) -> Incident:
    """The particles in the added columns, or ``decoded`` where there are none; ValueError where they contradict it.

    fields: what the layout's own columns hold, of energy, direction, x, y and pdg.
    """
    if not names(columns):
        return decoded
    found = Incident(**{name: np.asarray(columns[f"incident/{name}"]) for name in FIELDS})
    for name in fields.split():
        a, b = (unit_vectors(v) if name == "direction" else getattr(v, name) for v in (decoded, found))
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-6, atol=1e-5 if name in ("direction", "x", "y") else 0):
            raise ValueError(
                f"got particles in 'incident' that differ in {name} from the layout's own in {path}; expected the "
                "same, delete 'incident' if the others are right"
            )
    return found


def kind(incident: Incident, default: int) -> int:
    """PDG number of the first particle, ``default`` where there is none."""
    return int(incident.pdg[0]) if len(incident) else default


def chosen(pdg: int | None, said: int | None, default: int, path: str | Path) -> int:
    """The particle of a file: what the caller says, else the file, else ``default``."""
    if pdg is not None and said is not None and pdg != said:
        raise ValueError(f"got pdg={pdg} for {path}, which holds particle {said}; expected the same, leave pdg away")
    return pdg if pdg is not None else said if said is not None else default
