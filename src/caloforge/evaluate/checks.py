"""What must hold before two samples are compared: no shower may stand in both, none twice."""

import hashlib

import numpy as np

from ..showers import Showers


def fingerprints(showers: Showers, chunk: int = 4096) -> np.ndarray:
    """Sixteen bytes for each shower that has energy, from its voxels and incident energy: (n,) of dtype S16.

    Showers without energy are alike by nature and are left out.
    """
    out = []
    for start in range(0, len(showers), chunk):
        part = showers.energy[start : start + chunk]
        incident = showers.incident.energy[start : start + chunk]
        filled = np.flatnonzero(part.any(axis=1))
        out += [hashlib.blake2b(part[i].tobytes() + incident[i].tobytes(), digest_size=16).digest() for i in filled]
    return np.array(out, dtype="V16").view("S16") if out else np.array([], dtype="S16")


def require_distinct(reference: Showers, candidate: Showers) -> None:
    """Raise ValueError where a shower stands in both samples, or twice in one: the test would be on trained showers."""
    ours, theirs = fingerprints(reference), fingerprints(candidate)
    shared = len(np.intersect1d(ours, theirs))
    if shared:
        raise ValueError(
            f"got {shared} showers that stand in both samples, expected two independent ones; "
            "compare with showers that the candidate was not made of"
        )
    for name, prints in (("reference", ours), ("candidate", theirs)):
        twice = len(prints) - len(np.unique(prints))
        if twice:
            raise ValueError(
                f"got {twice} {name} showers that are copies of others, expected each once: classifiers would be "
                "tested on showers they were trained on; remove the copies"
            )


def require_other(reference: Showers, training: Showers) -> None:
    """ValueError if showers of the reference were trained on: a model that remembers them would look perfect."""
    both = len(np.intersect1d(fingerprints(reference), fingerprints(training)))
    if both:
        raise ValueError(
            f"got {both} showers that are both reference and training, expected different ones; judge with showers "
            "that no training saw"
        )
