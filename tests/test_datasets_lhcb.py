"""LHCb npz files, as the authors' program fills them."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.datasets import layout_of, lhcb, open_showers
from caloforge.geometry import Geometry
from caloforge.showers import Incident
from caloforge.testing import small_geometry
from conftest import assert_same, random_showers


def members(n: int = 4) -> dict[str, np.ndarray]:
    """A sample as the authors' program writes it: slopes, |p| = E, point on the front face, GeV and cm."""
    rng = np.random.default_rng(0)
    gev, tx, ty = rng.uniform(1, 100, n), rng.normal(0, 0.36, n), rng.normal(0, 0.18, n)
    pz = gev / np.sqrt(1 + tx**2 + ty**2)
    return {
        "EnergyDeposit": rng.exponential(5, (n, 30, 30, 1)),
        "ParticlePoint": np.stack([rng.uniform(-6, 6, n), rng.uniform(-3, 3, n), np.full(n, -19.8)], axis=1),
        "ParticleMomentum": np.stack([tx * pz, ty * pz, pz], axis=1),
        "ParticlePDG": np.full(n, 11),
        "TotalEnergySci": rng.exponential(500, n),
    }


def npz(path: Path, **changed: np.ndarray | None) -> Path:
    np.savez(path, **{k: v for k, v in (members() | changed).items() if v is not None})
    return path


def test_units_and_axes(tmp_path: Path) -> None:
    written = members()
    showers = lhcb.read(npz(tmp_path / "a.npz"))
    p, point = written["ParticleMomentum"], written["ParticlePoint"]
    incident = showers.incident
    np.testing.assert_allclose(incident.energy, 1e3 * np.linalg.norm(p, axis=1), rtol=1e-12)
    np.testing.assert_allclose(np.tan(incident.theta) * np.cos(incident.phi), p[:, 0] / p[:, 2], rtol=1e-9)
    np.testing.assert_allclose(np.tan(incident.theta) * np.sin(incident.phi), p[:, 1] / p[:, 2], rtol=1e-9)
    np.testing.assert_allclose(np.stack([incident.x, incident.y]), 10 * point[:, :2].T)
    assert set(incident.pdg) == {11}
    x, y, _ = showers.geometry.centres()[7 * 30 + 4]  # X_7, Y_4 of the paper: -29.29 + 2.02 i, in cm
    np.testing.assert_allclose([x, y], [10 * (-29.29 + 2.02 * 7), 10 * (-29.29 + 2.02 * 4)])
    np.testing.assert_allclose(showers.energy[:, 7 * 30 + 4], written["EnergyDeposit"][:, 7, 4, 0], rtol=1e-6)
    assert showers.geometry.layers[0].depth == (0, 396)


def test_a_file_of_others_comes_back(tmp_path: Path) -> None:
    exact = {k: v.astype("f4") if k == "EnergyDeposit" else v for k, v in members().items()}
    lhcb.write(lhcb.read(npz(tmp_path / "a.npz", **exact)), tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as again:
        np.testing.assert_array_equal(again["EnergyDeposit"], exact["EnergyDeposit"])
        np.testing.assert_array_equal(again["ParticlePDG"], exact["ParticlePDG"])
        for key in ("ParticlePoint", "ParticleMomentum"):
            np.testing.assert_allclose(again[key], exact[key], rtol=1e-14)


@given(st.integers(0, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_showers_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, n: int, overflow: bool, slanting: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data = random_showers(lhcb.geometry(), n, seed)
    if slanting:
        angles = {"theta": rng.uniform(0, 1, n), "phi": rng.uniform(-9, 9, n)}
        place = {"x": rng.normal(0, 20, n), "y": rng.normal(0, 20, n)}
        data = replace(data, incident=Incident(rng.uniform(1e3, 1e5, n), **angles, **place, pdg=rng.integers(1, 30, n)))
    data = replace(data, overflow=data.overflow if overflow else None)
    path = tmp_path_factory.mktemp("lhcb") / "a.npz"
    lhcb.write(data, path)
    assert_same(lhcb.read(path), data)


def test_it_is_recognised(tmp_path: Path) -> None:
    assert layout_of(npz(tmp_path / "a.npz")) == "lhcb"
    assert len(open_showers(tmp_path / "a.npz")) == 4
    np.savez(tmp_path / "b.npz", images=np.ones(3))
    for wrong in ("b.npz", "none.npz"):
        with pytest.raises((ValueError, FileNotFoundError), match=f"got .*{wrong}.*, expected an"):
            open_showers(tmp_path / wrong)


@pytest.mark.parametrize(("changed", "said"), [
    ({"ParticlePoint": None}, r"without 'ParticlePoint', expected an npz file with EnergyDeposit"),
    ({"EnergyDeposit": np.ones((4, 30, 30))}, r"\(4, 30, 30\).*expected \(4, 30, 30, 1\)"),
    ({"EnergyDeposit": np.full((4, 30, 30, 1), np.nan)}, "NaN"),
    ({"EnergyDeposit": np.full((4, 30, 30, 1), -1.0)}, "negative voxel energies"),
    ({"ParticleMomentum": np.zeros((4, 3))}, "incident energy 0 MeV"),
    ({"ParticleMomentum": np.ones((3, 3))}, r"expected \(4, 3\)"),
    ({"ParticlePDG": np.array(["e-"] * 4)}, "without numbers"),
    ({"ParticlePDG": np.array([11, None, 11, 11])}, "truncated or none"),
])  # fmt: skip
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lhcb.read(npz(tmp_path / "a.npz", **changed))


def test_a_damaged_file_and_a_contradiction(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated or none"):
        lhcb.read(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        lhcb.read(tmp_path / "none.npz")
    lhcb.write(random_showers(lhcb.geometry(), 4, theta=0.1, phi=0.2, x=3), tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as file:
        columns = dict(file)
    for key in ("ParticleMomentum", "ParticlePoint", "ParticlePDG"):
        np.savez(tmp_path / "c.npz", **columns | {key: columns[key] * 2})
        with pytest.raises(ValueError, match="got particles in 'incident' that differ in"):
            lhcb.read(tmp_path / "c.npz")


def test_nothing_wrong_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 'lhcb'"):
        lhcb.write(random_showers(small_geometry(), 2), tmp_path / "a.npz")
    with pytest.raises(ValueError, match="no plain data"):
        lhcb.write(replace(random_showers(lhcb.geometry(), 2), provenance={"x": object()}), tmp_path / "a.npz")
    assert os.listdir(tmp_path) == []
    lhcb.write(random_showers(lhcb.geometry(), 2), tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(FileExistsError, match="--force"):
        lhcb.write(random_showers(lhcb.geometry(), 3), tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    lhcb.write(random_showers(lhcb.geometry(), 3), tmp_path / "a.npz", force=True)
    assert len(lhcb.read(tmp_path / "a.npz")) == 3
    assert os.listdir(tmp_path) == ["a.npz"]


def test_another_mesh_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    layer = replace(lhcb.geometry().layers[0], depth=(0, 400))
    with pytest.raises(ValueError, match="use files of the same detector"):
        lhcb.write(random_showers(Geometry("mine", (layer,)), 1), tmp_path / "a.npz")
