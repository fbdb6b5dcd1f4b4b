import json
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from caloforge import io
from caloforge.datasets import calochallenge, calogan, open_showers
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from caloforge.simulate.detectors import calogan_geometry
from conftest import assert_same, random_showers

SETS = {"dataset_1_photons": "photon", "dataset_1_pions": "pion", "dataset_2": "electron", "dataset_3": "electron"}
RINGS = Geometry("rings", (Layer("polar", regular(-np.pi, np.pi, 1), (0, 5, 10.5), number=0),
                           Layer("polar", regular(-np.pi, np.pi, 3), (0, 2.325, 7), number=12)))  # fmt: skip
XML = '<Bins><Bin pid="22" name="photon"><Layer id="0" r_edges="{edges}" n_bin_alpha="{n}"/></Bin></Bins>'


def calogan_file(path: Path, n: int = 4, dtype: str = "f4", **changed: np.ndarray | None) -> Path:
    """A file in the CaloGAN layout as others write it; ``changed`` replaces a dataset, or leaves it out (None)."""
    rng = np.random.default_rng(0)
    shapes = {"energy": (1,), "layer_0": (3, 96), "layer_1": (12, 12), "layer_2": (12, 6), "overflow": (3,)}
    columns = {k: rng.uniform(1, 100, (n, *shape)).astype("f4").astype(dtype) for k, shape in shapes.items()} | changed
    with h5py.File(path, "w") as file:
        for key, values in columns.items():
            if values is not None:
                file[key] = values
        file.attrs["cut_mm"] = np.float64(0.7)
    return path


def challenge_file(path: Path, n: int = 4, dtype: str = "f4", **changed: np.ndarray | None) -> Path:
    rng = np.random.default_rng(0)
    columns = {"incident_energies": rng.uniform(1, 9, (n, 1)), "showers": rng.uniform(0, 9, (n, RINGS.n_voxels))}
    with h5py.File(path, "w") as file:
        for key, values in ({k: v.astype("f4").astype(dtype) for k, v in columns.items()} | changed).items():
            if values is not None:
                file[key] = values
    return path


def same_arrays(a: Path, b: Path) -> None:
    with h5py.File(a) as first, h5py.File(b) as second:
        assert sorted(first) == sorted(second)
        for key in first:
            np.testing.assert_array_equal(first[key][:], second[key][:])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("overflow", [True, False])
def test_a_calogan_file_comes_back_array_by_array(tmp_path: Path, dtype: str, overflow: bool) -> None:
    original = calogan_file(tmp_path / "a.h5", 200, dtype, **({} if overflow else {"overflow": None}))
    showers = calogan.read(original)
    assert showers.provenance == {"cut_mm": 0.7}
    assert set(showers.incident.pdg) == {-11}
    with h5py.File(original) as file:
        np.testing.assert_array_equal(showers.image(0), file["layer_0"])
        np.testing.assert_array_equal(showers.incident.energy, file["energy"][:, 0].astype(float) * 1000)
    calogan.write(showers, tmp_path / "b.h5")
    same_arrays(original, tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as file:
        assert file["energy"].dtype == np.float32


ENERGIES = st.one_of(
    st.floats(1e-3, 1e9), st.floats(1.95, 2.0).map(lambda v: v * 2**14), st.integers(1, 10**6).map(float)
)


@given(arrays(float, st.integers(0, 30), elements=ENERGIES), st.sampled_from([-11, 22, 211]), st.booleans())
def test_calogan_showers_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, mev: np.ndarray, pdg: int, overflow: bool
) -> None:
    data = random_showers(calogan_geometry(), len(mev))
    incident = Incident(mev, pdg=np.full(len(mev), pdg))
    data = replace(data, incident=incident, overflow=data.overflow if overflow else None)
    path = tmp_path_factory.mktemp("calogan") / "a.h5"
    calogan.write(data, path)
    assert_same(calogan.read(path), data)


def test_the_particle_of_a_calogan_file(tmp_path: Path) -> None:
    assert set(calogan.read(calogan_file(tmp_path / "a.h5"), pdg=22).incident.pdg) == {22}
    calogan.write(calogan.read(tmp_path / "a.h5", pdg=211), tmp_path / "b.h5")
    assert set(calogan.read(tmp_path / "b.h5").incident.pdg) == {211}
    with pytest.raises(ValueError, match=r"got pdg=22 for .*holds particle 211"):
        calogan.read(tmp_path / "b.h5", pdg=22)


@pytest.mark.parametrize(("changed", "said"), [
    ({"layer_1": None}, "expected 'layer_1' too"),
    ({"energy": np.ones(4, "f4")}, r"'energy' of shape \(4,\).*expected \(N, 1\)"),
    ({"layer_0": np.ones((4, 96, 3), "f4")}, r"'layer_0' of shape \(4, 96, 3\).*expected \(4, 3, 96\)"),
    ({"layer_2": np.ones((3, 12, 6), "f4")}, r"expected \(4, 12, 6\)"),
    ({"layer_1": np.full((4, 12, 12), -1.0)}, "negative voxel energies"),
    ({"layer_1": np.full((4, 12, 12), np.nan)}, "NaN or infinite voxel energies"),
    ({"overflow": np.full((4, 3), np.nan)}, "NaN or infinite overflow"),
    ({"energy": np.zeros((4, 1))}, "incident energy 0 MeV"),
    ({"energy": np.full((4, 1), b"x")}, "without numbers"),
])  # fmt: skip
def test_a_wrong_calogan_file_is_one_clear_error(tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calogan.read(calogan_file(tmp_path / "a.h5", **changed))


def test_energies_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'energy' and 'energy_mev' that differ"):
        calogan.read(calogan_file(tmp_path / "a.h5", energy_mev=np.ones((4, 1))))


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    path = calogan_file(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:-100])
    for read in (calogan.read, open_showers):
        with pytest.raises(ValueError, match="truncated"):
            read(path)
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(tmp_path / "none.h5")


@pytest.mark.parametrize("field", ["theta", "phi", "x", "y"])
def test_what_a_layout_cannot_hold_is_not_written(tmp_path: Path, field: str) -> None:
    for geometry, module in ((calogan_geometry(), calogan), (RINGS, calochallenge)):
        with pytest.raises(ValueError, match=f"incident {field} other than 0"):
            module.write(random_showers(geometry, 3, **{field: 0.1}), tmp_path / "a.h5")
        mixture = random_showers(geometry, 2)
        mixture = replace(mixture, incident=Incident([1.0, 2.0], pdg=np.array([11, 22])))
        with pytest.raises(ValueError, match="got particles 11, 22"):
            module.write(mixture, tmp_path / "a.h5")
    with pytest.raises(ValueError, match="expected 'calogan'"):
        calogan.write(random_showers(RINGS, 1), tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"layer 0 of 'calogan' \(cartesian\)"):
        calochallenge.write(random_showers(calogan_geometry(), 1), tmp_path / "a.h5")
    assert os.listdir(tmp_path) == []


def test_an_existing_file_needs_force_and_an_error_leaves_nothing(tmp_path: Path) -> None:
    for geometry, module in ((calogan_geometry(), calogan), (RINGS, calochallenge)):
        path = tmp_path / f"{geometry.name}.h5"
        module.write(random_showers(geometry, 2), path)
        with pytest.raises(FileExistsError, match="--force"):
            module.write(random_showers(geometry, 3), path)
        module.write(random_showers(geometry, 3), path, force=True)
        before = path.read_bytes()
        unwritable = replace(random_showers(geometry, 2), provenance={"x": object()})
        with pytest.raises(ValueError, match="no plain data"):
            module.write(unwritable, path, force=True)
        assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["calogan.h5", "rings.h5"]


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_official_binnings(shared: Path, tmp_path: Path, name: str) -> None:
    folder, particle = shared / "reference" / "calochallenge", SETS[name]
    geometry = calochallenge.read_binning(folder / f"binning_{name}.xml", particle)
    numbers = json.loads((folder / "geometry.json").read_text())[name]
    assert geometry.n_voxels == numbers["n_voxels"]
    assert geometry.n_layers == numbers["n_layers"]
    for layer, start, expected in zip(geometry.layers, geometry.offsets[:-1], numbers["layers"], strict=True):
        assert (layer.number, layer.shape) == (expected["layer"], (expected["n_alpha"], expected["n_r"]))
        assert list(layer.second) == expected["r_edges_mm"]
        assert start == expected["first_index"]
        np.testing.assert_allclose(layer.first[:2], [-np.pi, -np.pi + 2 * np.pi / expected["n_alpha"]])
    calochallenge.write_binning(geometry, tmp_path / "again.xml", particle)
    again = calochallenge.read_binning(tmp_path / "again.xml", particle)
    assert again.layers == geometry.layers
    with pytest.raises(FileExistsError):
        calochallenge.write_binning(geometry, tmp_path / "again.xml", particle)


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=5, unique=True), st.integers(1, 60))
def test_any_binning_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, edges: list[float], n: int) -> None:
    layer = Layer("polar", regular(-np.pi, np.pi, n), (0, *sorted(edges)), number=3)
    path = tmp_path_factory.mktemp("xml") / "a.xml"
    calochallenge.write_binning(Geometry("any", (layer,)), path, "electron")
    assert calochallenge.read_binning(path, "electron").layers == (layer,)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_calochallenge_file_comes_back(tmp_path: Path, dtype: str) -> None:
    original, xml = challenge_file(tmp_path / "a.h5", 200, dtype), tmp_path / "b.xml"
    calochallenge.write_binning(RINGS, xml, "photon")
    showers = calochallenge.read(original, xml, "photon")
    assert set(showers.incident.pdg) == {22}
    assert showers.geometry.digest() == RINGS.digest()
    calochallenge.write(showers, tmp_path / "b.h5")
    same_arrays(original, tmp_path / "b.h5")
    assert_same(calochallenge.read(tmp_path / "b.h5", xml, "photon"), showers)


def test_calochallenge_showers_come_back_bit_for_bit(tmp_path: Path) -> None:
    data = random_showers(RINGS, 150)
    calochallenge.write(data, tmp_path / "a.h5")
    calochallenge.write_binning(RINGS, tmp_path / "a.xml", "electron")
    assert_same(calochallenge.read(tmp_path / "a.h5", tmp_path / "a.xml", "electron"), data)
    calochallenge.write_binning(RINGS, tmp_path / "b.xml", "photon")
    with pytest.raises(ValueError, match="of particle -11, expected 22"):
        calochallenge.read(tmp_path / "a.h5", tmp_path / "b.xml", "photon")


@pytest.mark.parametrize(("changed", "said"), [
    ({"showers": None}, "expected 'showers' too"),
    ({"showers": np.ones((4, 9))}, r"\(4, 9\).*expected \(4, 8\)"),
    ({"showers": np.ones((3, 8))}, r"\(3, 8\).*expected \(4, 8\)"),
    ({"showers": np.full((4, 8), np.nan)}, "NaN"), ({"showers": np.full((4, 8), -1e-3)}, "negative"),
    ({"incident_energies": np.full((4, 1), np.nan)}, "non-finite incident energy"),
    ({"incident_energies": np.ones(4)}, r"expected \(N, 1\)"),
])  # fmt: skip
def test_a_wrong_calochallenge_file_is_one_clear_error(tmp_path: Path, changed: dict, said: str) -> None:
    calochallenge.write_binning(RINGS, tmp_path / "a.xml", "photon")
    with pytest.raises(ValueError, match=said):
        calochallenge.read(challenge_file(tmp_path / "a.h5", **changed), tmp_path / "a.xml", "photon")


@pytest.mark.parametrize(("text", "said"), [
    (XML.format(edges="0,5", n=1)[:-9], "no XML"), (XML.format(edges="0,x", n=1), "r_edges '0,x' of layer 0"),
    (XML.format(edges="0,5", n="many"), "n_bin_alpha='many'"), (XML.format(edges="0,5", n=0), "0 alpha bins"),
    (XML.format(edges="0", n=1), "without bins for 'photon'"), (XML.format(edges="5,0", n=1), "rising"),
    (XML.format(edges="0,5", n=1).replace("photon", "kaon"), "got particle 'photon'.*kaon"),
])  # fmt: skip
def test_a_wrong_binning_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=said):
        calochallenge.read_binning(tmp_path / "a.xml", "photon")
    with pytest.raises(FileNotFoundError, match="no such file"):
        calochallenge.read_binning(tmp_path / "b.xml", "photon")


def test_binnings_that_the_layout_cannot_hold(tmp_path: Path, mixed: Geometry) -> None:
    with pytest.raises(ValueError, match="got particle 'muon'"):
        calochallenge.write_binning(RINGS, tmp_path / "a.xml", "muon")
    with pytest.raises(ValueError, match=r"layer 1 of 'mixed' \(cartesian\)"):
        calochallenge.write_binning(mixed, tmp_path / "a.xml", "photon")
    with pytest.raises(ValueError, match="expected rising ones"):
        calochallenge.write_binning(Geometry("back", RINGS.layers[::-1]), tmp_path / "a.xml", "photon")


def test_a_file_is_recognised_by_what_is_in_it(tmp_path: Path) -> None:
    data = random_showers(RINGS, 3)
    io.write(data, tmp_path / "ours.h5")
    assert_same(open_showers(tmp_path / "ours.h5"), data)
    assert len(open_showers(calogan_file(tmp_path / "gan.h5"))) == 4
    with pytest.raises(ValueError, match=r"calochallenge\.read\(file, binning\.xml, particle\)"):
        open_showers(challenge_file(tmp_path / "challenge.h5"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = 1
    with pytest.raises(ValueError, match="with keys images, expected caloforge showers or the layout of CaloGAN"):
        open_showers(tmp_path / "other.h5")


def test_the_geant4_sample(shared: Path, tmp_path: Path) -> None:
    path = shared / "truth" / "calogan_eplus.h5"
    showers = open_showers(path)
    assert len(showers) == 6400
    assert (showers.total / showers.incident.energy).mean() == pytest.approx(0.993, abs=0.001)
    assert showers.provenance["cut_mm"] == 0.7
    calogan.write(showers, tmp_path / "again.h5")
    same_arrays(path, tmp_path / "again.h5")
    parts: list[Showers] = [showers[:10], showers[10:20]]
    assert_same(Showers.concat(parts), showers[:20])
