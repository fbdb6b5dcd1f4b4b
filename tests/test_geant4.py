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
from caloforge.simulate.detectors import Detector, Readout, Section, Slab, calogan, find
from caloforge.simulate.geant4 import Geant4, find_data

TESTEM3 = Detector(
    "testem3", (Section((Slab("G4_Pb", 2.3), Slab("G4_lAr", 5.7)), 50),), 400.0,
    Readout(Geometry("testem3", (Layer("cartesian", (-200, 200), (-200, 200), (0, 400)),))),
)  # fmt: skip
N_TESTEM3, N_CALOGAN, N_ARGON = 200, 40, 200


def lead_argon(out: str, sensitive: str) -> None:
    """1 GeV electrons in the calorimeter of Geant4's example TestEm3, deposits of one material counted."""
    slabs = tuple(replace(slab, sensitive=slab.material == sensitive) for slab in TESTEM3.slabs)
    simulator = Geant4(replace(TESTEM3, sections=(Section(slabs, 50),)), cut=1.0, had_model=None)
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


def meshes(out: str) -> None:
    """One oblique run of the W/Si detector read out with two meshes, and as points; electrons of 2 GeV."""
    detector = find("par04-siw-coarse")
    simulator = Geant4(detector)
    incident = Incident(np.full(6, 2e3), np.full(6, 0.5), np.full(6, 2.0), np.full(6, 4.0), pdg=np.full(6, 11))
    plain = replace(detector.readout, threshold=0.0, scale=())
    fine = replace(find("par04-siw").readout, threshold=0.0, scale=())
    parts = simulator.fill(incident, [detector.readout, plain, fine], seed=5)
    hits = simulator.hits(incident, seed=5)
    for name, showers in zip(("read", "plain", "fine"), parts, strict=True):
        io.write(showers, f"{out}.{name}")
    io.write(hits.showers(detector.geometry, frame="shower"), f"{out}.hits")
    np.save(f"{out}.times.npy", hits.time)


def argon(out: str) -> None:
    """Electrons of 2 GeV in CaloGAN's calorimeter, the liquid argon alone read out."""
    section = Section((Slab("G4_Pb", 2.0, sensitive=False), Slab("G4_lAr", 4.0)), 80)
    electrons = Incident(np.full(N_ARGON, 2e3), pdg=np.full(N_ARGON, 11))
    io.write(Geant4(replace(calogan(), sections=(section,))).simulate(electrons, seed=3), out)


def own(out: str) -> None:
    """A detector of a TOML file with a material of its own; a pion."""
    simulator = Geant4(find(f"{out}.toml"))
    io.write(simulator.simulate(Incident(np.full(5, 3e3), pdg=np.full(5, 211)), seed=1), out)


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


def test_sampling_fraction_and_resolution_of_lead_and_argon(geant4: Path, tmp_path: Path) -> None:
    """Visible fraction 0.188, resolution 7.1-8.1 %/sqrt(E)."""
    run("argon", str(tmp_path / "a.h5"))
    showers = io.read(tmp_path / "a.h5")
    fraction = (showers.total + showers.overflow.sum(axis=1)) / showers.incident.energy
    assert fraction.mean() == pytest.approx(0.188, abs=0.003)
    assert fraction.std() / fraction.mean() * 2**0.5 == pytest.approx(0.076, abs=3 * 0.076 / (2 * N_ARGON) ** 0.5)


def test_one_run_fills_several_meshes_and_a_point_cloud(geant4: Path, tmp_path: Path) -> None:
    run("meshes", str(tmp_path / "a"))
    read, plain, fine, hits = (io.read(f"{tmp_path / 'a'}.{name}") for name in ("read", "plain", "fine", "hits"))
    np.testing.assert_array_equal(plain.energy, hits.energy)
    total = [s.layer_energy + s.overflow for s in (plain, fine)]
    np.testing.assert_allclose(total[0], total[1], rtol=1e-6)
    np.testing.assert_allclose(read.layer_energy + read.overflow, total[0] / 0.033, rtol=1e-5)
    kept = read.energy > 0
    np.testing.assert_allclose(read.energy[kept], plain.energy[kept] / 0.033, rtol=1e-5)
    assert read.energy[kept].min() >= 0.0005 / 0.033 * (1 - 1e-6)
    assert plain.energy[~kept].max() < 0.0005
    # Along the axis of the particle the shower stays in the middle, however oblique it is.
    centres = plain.geometry.centres()
    centre = (plain.energy.sum(0) @ centres[:, :2]) / plain.energy.sum()
    assert np.hypot(*centre) < 1.5
    times = np.load(f"{tmp_path / 'a'}.times.npy")
    assert 0 < times.min() < 0.01  # [ns] light needs 0.003 ns for the first millimetre
    assert np.median(times) < 1


def test_a_detector_of_ones_own_is_simulated(geant4: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'name = "own"\nwidth_mm = 300\nworld = "G4_AIR"\n'
        '[[material]]\nname = "Crystal"\ndensity_g_cm3 = 8.28\natoms = { Pb = 1, W = 1, O = 4 }\n'
        '[[section]]\nslabs = [{ material = "Crystal", mm = 220, read = true }]\n'
        "[[readout.layer]]\nx_mm = { from = -150, to = 150, bins = 5 }\ny_mm = [-150, 0, 150]\ndepth_mm = [0, 220]\n"
    )
    run("own", str(path.with_suffix("")))
    showers = io.read(path.with_suffix(""))
    assert showers.geometry.n_voxels == 10
    assert (showers.total > 0).all()
    assert (showers.total < 3.2e3).all()


def test_what_the_physics_lacks_is_refused_in_one_sentence() -> None:
    simulator = Geant4(calogan(), had_model=None)
    with pytest.raises(ValueError, match=r"got particle 211, expected one that electromagnetic physics only"):
        simulator.simulate(Incident(np.array([1e3]), pdg=np.array([211])), seed=1)
    with pytest.raises(ValueError, match=r"got particle 15, expected one that FTFP_BERT transports"):
        Geant4(calogan()).simulate(Incident(np.array([1e3]), pdg=np.array([15])), seed=1)
    for energy in (0.5, 2e7):
        with pytest.raises(ValueError, match=r"expected 1 MeV\.\.10 TeV"):
            simulator.simulate(Incident(np.array([energy]), pdg=np.array([11])), seed=1)


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
