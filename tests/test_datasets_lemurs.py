"""LEMURS and Par04 HDF5 files, as root2h5.py fills them cell by cell."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.datasets import layout_of, lemurs, open_showers
from caloforge.geometry import Geometry, Layer, regular
from caloforge.hits import axes
from caloforge.showers import Incident
from conftest import assert_same, random_showers

EDGES = (0.0, 4.0, 9.0)
TUBE = Geometry("tube", tuple(Layer("polar", regular(-np.pi, np.pi, 4), EDGES, (5 * i, 5 * i + 5)) for i in range(3)))


def lemurs_file(path: Path, mesh: tuple[int, ...] = (9, 16, 45), dtype: str = "f4", **changed: object) -> Path:
    """A file in the layout as others write it; ``changed`` replaces a dataset, or leaves it out (None)."""
    rng = np.random.default_rng(0)
    n = 3
    columns = {
        "incident_energy": rng.uniform(1e3, 1e5, n), "incident_theta": rng.uniform(0.87, 2.27, n),
        "incident_phi": rng.uniform(-np.pi, np.pi, n),
        "showers": rng.exponential(1, (n, *mesh)) * (rng.random((n, *mesh)) < 0.1),
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for key, values in ({k: v.astype(dtype) for k, v in columns.items()} | changed).items():
            if values is not None:
                file.create_dataset(key, data=values, compression="gzip", compression_opts=9)
    return path


@pytest.mark.parametrize(("mesh", "r", "n_phi", "size_r"), [((9, 16, 45), 8, 16, 4.65), ((18, 50, 45), 11, 50, 2.325)])
def test_the_axes_of_the_mesh(tmp_path: Path, mesh: tuple[int, ...], r: int, n_phi: int, size_r: float) -> None:
    images = np.zeros((3, *mesh))
    images[1][r][n_phi - 2][40] = 7.5  # as root2h5.py fills it: rho, phi, z
    showers = lemurs.read(lemurs_file(tmp_path / "a.h5", mesh, showers=images))
    (event,), (voxel,) = np.nonzero(showers.energy)
    assert (event, showers.energy[event, voxel], showers.overflow) == (1, 7.5, None)
    assert np.unravel_index(voxel, (45, n_phi, mesh[0])) == (40, n_phi - 2, r)
    x, y, z = showers.geometry.centres()[voxel]
    assert z == pytest.approx(40.5 * 3.4)
    assert np.hypot(x, y) == pytest.approx((r + 0.5) * size_r)
    assert np.arctan2(y, x) == pytest.approx(-np.pi + (n_phi - 1.5) * 2 * np.pi / n_phi)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_file_of_others_comes_back_array_by_array(tmp_path: Path, dtype: str) -> None:
    images = np.random.default_rng(1).exponential(1, (3, 9, 16, 45)).astype("f4").astype(dtype)
    original = lemurs_file(tmp_path / "a.h5", dtype=dtype, showers=images)
    showers = lemurs.read(original)
    assert set(showers.incident.pdg) == {22}
    lemurs.write(showers, tmp_path / "b.h5")
    with h5py.File(original) as a, h5py.File(tmp_path / "b.h5") as b:
        assert sorted(a) == sorted(b)
        for key in a:
            np.testing.assert_array_equal(a[key][:], b[key][:].astype(dtype))


def test_angles_of_a_barrel() -> None:
    """The mesh keeps its axes: theta-hat and phi-hat of the collider are those of the plane that the particle hits."""
    for theta in (0.87, np.pi / 2, 2.27):
        c, s = np.cos(theta), np.sin(theta)
        barrel = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # theta-hat, phi-hat, direction along (radial, phi, beam)
        radial, around, beam = barrel.T
        particle = lemurs.to_incident({"incident_energy": np.ones(1), "incident_theta": np.array([theta])}, 22)
        np.testing.assert_allclose(axes(particle)[0], np.stack([-beam, around, radial], axis=1), atol=1e-12)


def test_normal_incidence_and_files_without_angles(tmp_path: Path) -> None:
    plain = lemurs.read(lemurs_file(tmp_path / "a.h5", incident_theta=None, incident_phi=None), pdg=11)
    assert not plain.incident.theta.any()
    assert set(plain.incident.pdg) == {11}
    lemurs.write(plain, tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as file:
        np.testing.assert_array_equal(file["incident_theta"], np.full(3, np.pi / 2))
        assert "incident" not in file
    assert_same(lemurs.read(tmp_path / "b.h5"), plain)
    with pytest.raises(ValueError, match=r"got pdg=22 for .* which holds particle 11"):
        lemurs.read(tmp_path / "b.h5", pdg=22)


@given(st.integers(0, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_showers_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, n: int, overflow: bool, slanting: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data = random_showers(TUBE, n, seed)
    if slanting:
        angles = {"theta": rng.uniform(-1, 1, n), "phi": rng.uniform(-9, 9, n)}
        place = {"x": rng.normal(0, 20, n), "y": rng.normal(0, 20, n)}
        data = replace(data, incident=Incident(rng.uniform(1, 1e5, n), **angles, **place, pdg=rng.integers(1, 30, n)))
    data = replace(data, overflow=data.overflow if overflow else None)
    path = tmp_path_factory.mktemp("lemurs") / "a.h5"
    lemurs.write(data, path)
    assert_same(lemurs.read(path), data)


def test_the_mesh_is_known_given_or_asked_for(tmp_path: Path) -> None:
    path = lemurs_file(tmp_path / "a.h5", (2, 4, 3))
    assert layout_of(path) == "lemurs"
    with pytest.raises(ValueError, match=r"\(R, phi, z\) = \(2, 4, 3\).*known mesh \(18 x 50 x 45, 9 x 16 x 45\)"):
        open_showers(path)
    assert lemurs.read(path, TUBE).geometry == TUBE
    with pytest.raises(ValueError, match=r"\(2, 4, 3\).*expected \(9, 16, 45\) of 'par04-siw-coarse'"):
        open_showers(path, detector="par04-siw-coarse")
    assert open_showers(lemurs_file(tmp_path / "b.h5")).geometry.name == "par04-siw-coarse"


@pytest.mark.parametrize(("changed", "said"), [
    ({"incident_energy": np.ones((3, 1))}, r"\(3, 1\).*expected \(N\)"),
    ({"incident_theta": np.ones(2)}, r"'incident_theta' of shape \(2,\)"),
    ({"showers": np.ones((2, 9, 16, 45))}, r"expected \(3, N, N, N\)"),
    ({"showers": np.full((3, 9, 16, 45), np.nan)}, "NaN"), ({"showers": np.full((3, 9, 16, 45), -1.0)}, "negative"),
    ({"incident_energy": np.zeros(3)}, "incident energy 0 MeV"),
])  # fmt: skip
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lemurs.read(lemurs_file(tmp_path / "a.h5", **changed))


def test_what_the_layout_cannot_hold_is_not_written(tmp_path: Path, mixed: Geometry) -> None:
    rings = Geometry("rings", (TUBE.layers[0], replace(TUBE.layers[1], second=(0.0, 4.0, 10.0))))
    for geometry, said in ((mixed, r"layer 1 of 'mixed' \(cartesian, 2 x 5\)"), (rings, "layer 1 of 'rings'")):
        with pytest.raises(ValueError, match=f"{said}.*expected polar layers with the same voxels"):
            lemurs.write(random_showers(geometry, 2), tmp_path / "a.h5")
    with pytest.raises(ValueError, match="no plain data"):
        lemurs.write(replace(random_showers(TUBE, 2), provenance={"x": object()}), tmp_path / "a.h5")
    assert os.listdir(tmp_path) == []
    lemurs.write(random_showers(TUBE, 2), tmp_path / "a.h5")
    with pytest.raises(FileExistsError, match="--force"):
        lemurs.write(random_showers(TUBE, 2), tmp_path / "a.h5")


def test_particles_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    lemurs.write(random_showers(TUBE, 3, theta=0.1, phi=0.2), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["incident_theta"][0] = 1.0
    with pytest.raises(ValueError, match="'incident' that differ in direction"):
        lemurs.read(tmp_path / "a.h5")


def test_a_file_that_is_damaged_inside_is_one_clear_error(tmp_path: Path) -> None:
    content = lemurs_file(tmp_path / "a.h5").read_bytes()
    (tmp_path / "b.h5").write_bytes(content.replace(b"HEAP", b"PEAH", 1))
    for read in (lemurs.read, open_showers):
        with pytest.raises(ValueError, match="expected a whole HDF5 file"):
            read(tmp_path / "b.h5")
