"""Full simulation against published and earlier numbers. Each engine needs a process of its own: see ``run``."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caloforge import io
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from caloforge.simulate import geant4 as engine
from caloforge.simulate.detectors import Detector, Slab, calogan
from caloforge.simulate.geant4 import Geant4, find_data

TESTEM3 = Detector(
    "testem3", (Slab("G4_Pb", 2.3), Slab("G4_lAr", 5.7)), 50, 400.0,
    Geometry("testem3", (Layer("cartesian", (-200, 200), (-200, 200), (0, 400)),)),
    x0=19.5, moliere=44, zeff=69, critical=9.5,
)  # fmt: skip
N_TESTEM3, N_CALOGAN = 200, 40


def lead_argon(out: str, sensitive: str) -> None:
    """1 GeV electrons in the calorimeter of Geant4's example TestEm3, deposits of one material counted."""
    slabs = tuple(replace(slab, sensitive=slab.material == sensitive) for slab in TESTEM3.slabs)
    simulator = Geant4(replace(TESTEM3, slabs=slabs), cut=1.0, had_model=None)
    electrons = Incident(np.full(N_TESTEM3, 1e3), pdg=np.full(N_TESTEM3, 11))
    io.write(simulator.simulate(electrons, seed=1), out)


def positrons(out: str) -> None:
    """CaloGAN positrons; then the first three of them again in the same process, with the same seed."""
    simulator = Geant4(calogan(), had_model=None)
    # 1-100 GeV in equal steps, mixed: random energies alone would move f_0 of 40 showers by 6 %; 5 % are left.
    energy = np.random.default_rng(5).permutation(np.linspace(1e3, 1e5, 2 * N_CALOGAN + 1)[1::2])
    incident = Incident(energy, pdg=np.full(N_CALOGAN, -11))
    parts = [simulator.simulate(incident[i : i + 10], seed=100 + i) for i in range(0, N_CALOGAN, 10)]
    io.write(Showers.concat(parts), out)
    little = Incident(np.full(3, 2e3), np.full(3, 0.2), np.full(3, 1.0), np.full(3, 30.0), pdg=np.full(3, -11))
    for name, seed in (("one", 7), ("neighbour", 6), ("two", 7)):
        io.write(simulator.simulate(little, seed=seed), f"{out}.{name}")


def again(out: str) -> None:
    """The last showers of ``positrons`` in a fresh process, along a fine mesh for directions."""
    little = Incident(np.full(3, 2e3), np.full(3, 0.2), np.full(3, 1.0), np.full(3, 30.0), pdg=np.full(3, -11))
    io.write(Geant4(calogan(), had_model=None).simulate(little, seed=7), out)


def run(task: str, *arguments: str) -> None:
    """One of the functions above in a process of its own."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "src")])
    done = subprocess.run([sys.executable, __file__, task, *arguments], env=os.environ | {"PYTHONPATH": paths},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("material", "key"), [("G4_Pb", "E_Pb_MeV"), ("G4_lAr", "E_lAr_MeV")])
def test_the_energies_of_the_geant4_example_testem3(
    geant4: Path, shared: Path, tmp_path: Path, material: str, key: str
) -> None:
    run("lead_argon", str(tmp_path / "a.h5"), material)
    total = io.read(tmp_path / "a.h5").total
    expected, error = json.loads((shared / "reference" / "geant4" / "testem3.json").read_text())[key]
    own_error = total.std() / np.sqrt(len(total))
    assert total.mean() == pytest.approx(expected, abs=3 * np.hypot(error, own_error))


@pytest.fixture(scope="module")
def sample(geant4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geant4") / "a.h5"
    run("positrons", str(path))
    return path


def widths(showers: Showers, layer: int) -> np.ndarray:
    """Standard deviation along x of the energy of a layer [mm], (N,)."""
    image = showers.image(layer).sum(axis=2, dtype=float)
    n = image.shape[1]
    x = np.array(regular(-240, 240, 2 * n))[1::2]
    share = image / image.sum(axis=1, keepdims=True)
    return np.sqrt(np.maximum(share @ x**2 - (share @ x) ** 2, 0))


def test_calogan_positrons_have_the_shapes_of_earlier_simulations(sample: Path) -> None:
    showers = io.read(sample)
    fraction = showers.layer_energy / showers.total[:, None]
    depth = (fraction @ [0, 1, 2]).mean()
    occupied = [(showers.image(i) > 0).mean() for i in range(3)]
    assert (showers.total / showers.incident.energy).mean() == pytest.approx(0.9937, abs=0.004)
    assert fraction[:, 0].mean() == pytest.approx(0.200, rel=0.10)
    assert depth == pytest.approx(0.80, rel=0.10)
    assert widths(showers, 0).mean() == pytest.approx(15.4, rel=0.10)
    assert widths(showers, 1).mean() == pytest.approx(29.5, rel=0.05)
    np.testing.assert_allclose(occupied, [0.43, 0.78, 0.27], atol=0.05)


def test_no_energy_is_created(sample: Path) -> None:
    showers = io.read(sample)
    assert showers.overflow is not None
    deposited = showers.total + showers.overflow.sum(axis=1)
    assert (deposited <= showers.incident.energy + 1.022 + 1e-6 * deposited).all()  # e+ annihilates


def test_the_same_seed_gives_the_same_showers(sample: Path, tmp_path: Path) -> None:
    run("again", str(tmp_path / "a.h5"))
    files = [Path(f"{sample}.one"), Path(f"{sample}.two"), tmp_path / "a.h5"]
    one, two, fresh = (path.read_bytes() for path in files)
    assert one == two  # whatever the engine did before
    assert one == fresh  # in another process
    neighbour = io.read(f"{sample}.neighbour")  # the engine drops the lowest bit of its seed: 6 was 7 once
    showers = io.read(tmp_path / "a.h5")
    assert not np.array_equal(showers.energy, neighbour.energy)
    image = showers.image(0).sum(axis=0, dtype=float)
    y = np.array(regular(-240, 240, 192))[1::2]
    # The first layer is hit at y = 0 and the particles fly towards +y: sin(1) tan(0.2) z.
    assert 2 < (image.sum(axis=0) @ y) / image.sum() < 20


def test_provenance_says_how_the_showers_were_made(sample: Path) -> None:
    provenance = io.read_header(sample)[2]
    assert provenance["engine"].startswith("Geant4 ")
    assert provenance["cut_mm"] == 0.7
    assert "pre-step" in provenance["scored"]
    assert provenance["data_tables"]


def test_missing_tables_are_one_sentence_with_both_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEANT4_DATA_DIR", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"no Geant4 data tables in GEANT4_DATA_DIR=.*set GEANT4_DATA_DIR.*download"
    ):
        find_data()
    monkeypatch.delenv("GEANT4_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"expected a folder with G4EMLOW\*; set GEANT4_DATA_DIR.*download"):
        find_data()


def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calzone", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'caloforge\[geant4\]'"):
        engine._import_engine()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
