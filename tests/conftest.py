"""Shared parts of the tests: small geometries, random showers, and where reference data lie."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers

# A busy machine is no failure, and the same commit gives the same result.
settings.register_profile("caloforge", deadline=None, derandomize=True)
settings.load_profile("caloforge")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _geant4_data() -> Path | None:
    """GEANT4_DATA_DIR, or the tables in ../shared beside the repository; sets the variable for the engine."""
    for folder in (os.environ.get("GEANT4_DATA_DIR"), SHARED / "geant4-data"):
        if folder and any(Path(folder).glob("G4EMLOW*")):
            os.environ["GEANT4_DATA_DIR"] = str(folder)
            return Path(folder)
    return None


GEANT4_DATA = _geant4_data()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("reference data absent: no folder 'shared' beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def geant4() -> Path:
    """The Geant4 data tables; the test is skipped where they or the engine are absent."""
    pytest.importorskip("calzone", reason="Geant4 engine absent: pip install 'caloforge[geant4]'")
    if GEANT4_DATA is None:
        pytest.skip("Geant4 data tables absent: set GEANT4_DATA_DIR")
    return GEANT4_DATA


@pytest.fixture
def mixed() -> Geometry:
    """A polar layer of 4 x 3 voxels before a cartesian one of 2 x 5: 22 voxels."""
    polar = Layer("polar", regular(-np.pi, np.pi, 4), (0.0, 5.0, 20.0, 50.0), (0.0, 100.0), 1)
    return Geometry("mixed", (polar, Layer("cartesian", (-50, 0, 50), regular(-50, 50, 5), (100, 250), 7)))


def random_showers(geometry: Geometry, n: int, seed: int = 0, **incident: float) -> Showers:
    """n showers of random sparse energies, not physics."""
    rng = np.random.default_rng(seed)
    energy = rng.exponential(10, (n, geometry.n_voxels)) * (rng.random((n, geometry.n_voxels)) < 0.4)
    particles = Incident(rng.uniform(1e3, 1e5, n), pdg=np.full(n, -11), **incident)
    overflow = rng.exponential(1, (n, geometry.n_layers))
    return Showers(geometry, particles, energy, overflow, {"engine": "random", "seed": seed})


def assert_same(a: Showers, b: Showers) -> None:
    """Equal bit for bit: mesh, particles, energies, overflow and provenance."""
    assert a.geometry.digest() == b.geometry.digest()
    for name in ("energy", "theta", "phi", "x", "y", "pdg"):
        np.testing.assert_array_equal(getattr(a.incident, name), getattr(b.incident, name))
    np.testing.assert_array_equal(a.energy, b.energy)
    assert (a.overflow is None) == (b.overflow is None)
    if a.overflow is not None:
        np.testing.assert_array_equal(a.overflow, b.overflow)
    assert a.provenance == b.provenance
