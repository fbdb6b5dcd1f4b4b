"""Point clouds of the showerdata library, written as it does, and of CaloClouds."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from caloforge.datasets import caloclouds, layout_of, open_data, open_showers, showerdata
from caloforge.geometry import Geometry, Layer, regular
from caloforge.hits import Hits
from caloforge.showers import Incident

CUBES = tuple(Layer("cartesian", regular(-300, 300, 60), regular(-300, 300, 60), (6 * i, 6 * i + 5)) for i in range(30))
STACK = Geometry("stack", CUBES)


def cloud(n: int = 5, features: int = 5) -> list[np.ndarray]:
    """Deposits of n showers, the third without any: x, y [mm], layer number, energy [GeV], time [ns]."""
    rng = np.random.default_rng(3)
    rows = []
    for k in range(n):
        m = 0 if k == 2 else int(rng.integers(1, 9))
        row = np.stack([*rng.normal(0, 30, (2, m)), rng.integers(0, 30, m), *rng.exponential(0.01, (2, m))], axis=1)
        rows.append(row[:, :features].astype("f4"))
    return rows


def library_file(path: Path, features: int = 5, **changed: object) -> Path:
    """A file as the library writes it; ``changed`` replaces a dataset, or leaves it out (None)."""
    rows = cloud(features=features)
    n, counts = len(rows), np.array([len(row) for row in rows], dtype="i4")
    direction = np.random.default_rng(0).normal(0, 0.2, (n, 3)) + np.array([0, 0, 1])
    columns = {
        "energies": np.random.default_rng(0).uniform(1, 100, (n, 1)).astype("f4"),
        "directions": (direction / np.linalg.norm(direction, axis=1)[:, None]).astype("f4"),
        "pdg": np.array([22, 11, -11, 211, 22], dtype="i4"), "shower_ids": np.arange(n, dtype="i4"),
        "shape": np.array([n, counts.max(), features]), "num_points": counts,
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        showers = file.create_dataset("showers", (n,), h5py.vlen_dtype(np.dtype("f4")))
        showers[...] = [row.flatten() for row in rows]
        for key, values in (columns | changed).items():
            if values is not None:
                file.create_dataset(key, data=values)
        file.attrs["showerdata_version"] = "0.7.0"
    return path


def same_hits(a: Hits, b: Hits) -> None:
    for name in ("energy", "theta", "phi", "x", "y", "pdg"):
        np.testing.assert_array_equal(getattr(a.incident, name), getattr(b.incident, name))
    for name in ("event", "position", "energy", "time"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.provenance == b.provenance


def float_hits(n: int = 4) -> Hits:
    """Hits whose numbers survive float32, of slanting particles beside the centre."""
    rng = np.random.default_rng(1)
    m = 40
    incident = Incident(rng.uniform(1e3, 1e5, n), theta=rng.uniform(0, 1, n), phi=rng.uniform(-9, 9, n),
                        x=rng.integers(-9, 9, n), y=rng.integers(-9, 9, n), pdg=np.arange(n) + 11)  # fmt: skip
    position = rng.integers(-512, 512, (m, 3)) / 8
    event = np.sort(rng.integers(0, n, m))
    return Hits(incident, event, np.abs(position), rng.integers(1, 99, m) * 125.0, rng.integers(0, 9, m), {"a": 1})


def test_units_and_layers(tmp_path: Path) -> None:
    hits = showerdata.read(library_file(tmp_path / "a.h5"), STACK)
    rows = cloud()
    assert hits.event.tolist() == np.repeat(np.arange(5), [len(r) for r in rows]).tolist()
    flat = np.concatenate(rows).astype(float)
    np.testing.assert_array_equal(hits.position[:, :2], flat[:, :2])
    np.testing.assert_array_equal(hits.position[:, 2], 6 * flat[:, 2] + 2.5)  # the middle of the layer
    np.testing.assert_allclose(hits.energy, 1e3 * flat[:, 3])
    np.testing.assert_array_equal(hits.time, flat[:, 4])
    assert hits.incident.pdg.tolist() == [22, 11, -11, 211, 22]
    assert hits.provenance == {"showerdata_version": "0.7.0"}
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_allclose(hits.incident.energy, 1e3 * file["energies"][:, 0].astype(float))
        np.testing.assert_allclose(np.cos(hits.incident.theta), file["directions"][:, 2], atol=1e-6)
        np.testing.assert_allclose(np.sin(hits.incident.theta) * np.sin(hits.incident.phi), file["directions"][:, 1],
                                   atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("features", [4, 5])
def test_a_file_of_others_comes_back(tmp_path: Path, features: int) -> None:
    original = library_file(tmp_path / "a.h5", features)
    showerdata.write(showerdata.read(original, STACK), tmp_path / "b.h5", STACK)
    with h5py.File(original) as a, h5py.File(tmp_path / "b.h5") as b:
        assert set(a) <= set(b)
        for key in set(a) - {"showers", "directions"}:
            np.testing.assert_array_equal(a[key][:], b[key][:])
            assert a[key].dtype == b[key].dtype
        np.testing.assert_allclose(a["directions"][:], b["directions"][:], atol=1e-7)
        for x, y in zip(a["showers"][:], b["showers"][:], strict=True):
            np.testing.assert_array_equal(x, y)
    same_hits(showerdata.read(original, STACK), showerdata.read(tmp_path / "b.h5", STACK))


def test_our_point_clouds_come_back(tmp_path: Path) -> None:
    hits = float_hits()
    showerdata.write(hits, tmp_path / "a.h5")
    same_hits(showerdata.read(tmp_path / "a.h5"), hits)
    shuffled = np.random.default_rng(0).permutation(len(hits.event))
    mixed = Hits(hits.incident, *(v[shuffled] for v in (hits.event, hits.position, hits.energy, hits.time)))
    showerdata.write(mixed, tmp_path / "b.h5")
    again = showerdata.read(tmp_path / "b.h5")
    np.testing.assert_array_equal(again.event, hits.event)
    np.testing.assert_allclose(np.bincount(again.event, again.energy), np.bincount(hits.event, hits.energy))
    showerdata.write(replace(hits, time=None), tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["shape"][2] == 4
    nothing = Hits(hits.incident, np.zeros(0, int), np.zeros((0, 3)), np.zeros(0))
    for data in (nothing, Hits(Incident(np.zeros(0)), np.zeros(0, int), np.zeros((0, 3)), np.zeros(0))):
        showerdata.write(data, tmp_path / "d.h5", force=True)
        same_hits(showerdata.read(tmp_path / "d.h5"), data)


def test_the_library_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    library = pytest.importorskip("showerdata", reason="showerdata absent: pip install showerdata")
    showerdata.write(showerdata.read(library_file(tmp_path / "a.h5"), STACK), tmp_path / "b.h5", STACK)
    theirs, ours = library.load(tmp_path / "a.h5"), library.load(tmp_path / "b.h5")
    np.testing.assert_array_equal(theirs.points, ours.points)
    np.testing.assert_array_equal(theirs.energies, ours.energies)
    np.testing.assert_array_equal(theirs.pdg, ours.pdg)
    assert library.get_file_shape(tmp_path / "b.h5") == theirs.points.shape
    library.save(ours, tmp_path / "c.h5")
    a, c = (showerdata.read(tmp_path / name, STACK) for name in ("a.h5", "c.h5"))
    np.testing.assert_array_equal(a.position, c.position)
    np.testing.assert_array_equal(a.energy, c.energy)


def test_a_geometry_is_needed_for_layer_numbers(tmp_path: Path) -> None:
    path = library_file(tmp_path / "a.h5")
    assert layout_of(path) == "showerdata"
    with pytest.raises(ValueError, match="expected the depth of the layers too"):
        open_data(path)
    with pytest.raises(ValueError, match=r"got layers \d+\.\.\d+ .*expected 0\.\.2 of 'calogan'"):
        open_showers(path, detector="calogan")
    showerdata.write(float_hits(), tmp_path / "b.h5")
    with pytest.raises(ValueError, match="point clouds, expected a detector"):
        open_showers(tmp_path / "b.h5")
    read_out = open_showers(tmp_path / "b.h5", detector="calogan")
    np.testing.assert_allclose(read_out.total + read_out.overflow.sum(axis=1),
                               np.bincount(float_hits().event, float_hits().energy), rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), [
    ({"energies": np.ones(5, "f4")}, r"expected \(N, 1\)"), ({"directions": np.ones((4, 3))}, r"expected \(5, 3\)"),
    ({"shape": np.array([5, 9, 3])}, "deposits of 3 numbers, expected 5 of 4 or 5"),
    ({"shape": np.array([5, 9, 4])}, "deposits of 4 numbers"),
    ({"num_points": np.full(5, 99)}, "fewer deposits than 'num_points'"),
    ({"energies": np.zeros((5, 1))}, "incident energy 0 MeV"), ({"pdg": np.full(5, b"e")}, "without numbers"),
])  # fmt: skip
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        showerdata.read(library_file(tmp_path / "a.h5", **changed), STACK)


def test_wrong_deposits_and_existing_files(tmp_path: Path) -> None:
    path = library_file(tmp_path / "a.h5")
    for column, value, said in ((3, -1.0, "deposits of -1 GeV"), (0, np.nan, "non-finite hit position")):
        with h5py.File(path, "r+") as file:
            row = file["showers"][0].copy()
            row[column] = value
            file["showers"][0] = row
        with pytest.raises(ValueError, match=said):
            showerdata.read(path, STACK)
        library_file(path)
    with pytest.raises(FileExistsError, match="--force"):
        showerdata.write(float_hits(), path)
    backwards = Geometry("back", STACK.layers[::-1])
    with pytest.raises(ValueError, match="not in order of depth"):
        showerdata.write(float_hits(), tmp_path / "b.h5", backwards)
    with pytest.raises(ValueError, match="no plain data"):
        showerdata.write(replace(float_hits(), provenance={"x": object()}), path, force=True)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_two_geant4_showers_of_the_ild(shared: Path) -> None:
    path = shared / "reference" / "showerdata" / "mini_data_sample.hdf5"
    assert layout_of(path) == "caloclouds"
    hits = caloclouds.read(path, STACK)
    np.testing.assert_allclose(hits.incident.energy, [15620.06, 41926.82])
    assert np.bincount(hits.event).tolist() == [163, 236]
    np.testing.assert_allclose(np.bincount(hits.event, hits.energy), [47.294617, 97.757705], rtol=1e-6)
    np.testing.assert_allclose(np.cos(hits.incident.theta), [0.80807569, 0.80587693])
    layers = (hits.position[:, 2] - 2.5) / 6
    np.testing.assert_array_equal(layers, np.round(layers))
    assert (layers.min(), layers.max()) == (0, 29)
    np.testing.assert_allclose(hits.position[0, :2], [39.717075, -0.28292465], rtol=1e-6)  # Z and X of the file
    showers = hits.showers(STACK)
    np.testing.assert_allclose(showers.total, [47.294617, 97.757705], rtol=1e-6)
    with h5py.File(path) as file:
        profiles = [np.bincount(e[:, 1].astype(int), e[:, 3] * 1e3) for e in file["events"][:]]
    for mine, theirs in zip(showers.layer_energy, profiles, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected the depth of the layers too"):
        open_data(path)


def test_wrong_files_of_caloclouds(tmp_path: Path) -> None:
    events = np.zeros((2, 3, 4))
    events[:, 0] = [1, 2.3, 3, 0.5]
    along = np.array([[0.0, 0.6], [0.0, 0.0], [1.0, 0.8]])
    for k, (direction, said) in enumerate([(along, ""), (along.T, ""), (2 * along, "expected unit vectors"),
                                           (along[:2], "expected unit vectors")]):  # fmt: skip
        with h5py.File(tmp_path / f"{k}.h5", "w") as file:
            file.update({"energy": np.ones((2, 1)), "events": events, "p_norm_local": direction})
        if said:
            with pytest.raises(ValueError, match=said):
                caloclouds.read(tmp_path / f"{k}.h5", STACK)
        else:
            hits = caloclouds.read(tmp_path / f"{k}.h5", STACK)
            np.testing.assert_allclose(np.sin(hits.incident.theta), [0, 0.6])
            np.testing.assert_allclose(hits.position, [[3, 1, 14.5]] * 2)
    events[0, 1] = [1, 40, 3, 0.5]
    with h5py.File(tmp_path / "wrong.h5", "w") as file:
        file.update({"energy": np.ones((2, 1)), "events": events})
    with pytest.raises(ValueError, match=r"got layers 2\.\.40 .*expected 0\.\.29"):
        caloclouds.read(tmp_path / "wrong.h5", STACK)
    events[0, 1] = [1, 4, 3, -0.5]
    with h5py.File(tmp_path / "wrong.h5", "r+") as file:
        file["events"][:] = events
    with pytest.raises(ValueError, match=r"deposits of -0\.5 GeV"):
        caloclouds.read(tmp_path / "wrong.h5", STACK)
