"""Spectra and profiles: by hand, against slow twins, conservation of energy, errors against experiments."""

import numpy as np
import pytest

from caloforge import hub, io
from caloforge.evaluate import spectra
from caloforge.evaluate.observables import observables
from caloforge.evaluate.shapes import calogan_names, calogan_shapes
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from conftest import random_showers

LINE = Geometry("line", (Layer("cartesian", (-5, 5), regular(-20, 20, 4), (0, 10)),
                         Layer("cartesian", (-5, 5), regular(-20, 20, 4), (10, 30))))  # fmt: skip


def line(*energies: list[float], incident: float = 100.0, **options: float) -> Showers:
    return Showers(LINE, Incident(np.full(len(energies), incident), **options), np.array(energies))


TWO = line([1, 10, 0, 0, 100, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0])


def test_spectrum_by_hand() -> None:
    found = spectra.voxel_spectrum(TWO, np.array([0.5, 5, 50]))
    assert found.mean.tolist() == [0, 2, 0.5, 0.5]  # under, two bins, over
    np.testing.assert_allclose(found.error, np.array([0, 1, 0.5, 0.5]) / np.sqrt(2))
    assert found.empty == pytest.approx(5 / 8)
    assert found.empty_error == 0
    second = spectra.voxel_spectrum(TWO, np.array([0.5, 5, 50]), layer=1)
    assert second.mean.tolist() == [0, 0, 0, 0.5]
    assert second.empty == pytest.approx(7 / 8)


def test_edges_hold_every_voxel(mixed: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    showers = random_showers(mixed, 60)
    edges = spectra.spectrum_edges(showers, 12)
    found = spectra.voxel_spectrum(showers, edges)
    assert found.mean[0] == found.mean[-1] == 0
    assert found.mean.sum() == pytest.approx((showers.energy > 0).sum(axis=1).mean())
    assert found.mean.sum() / mixed.n_voxels + found.empty == pytest.approx(1)
    monkeypatch.setattr(spectra, "CHUNK", 100)
    again = spectra.voxel_spectrum(showers, spectra.spectrum_edges(showers, 12))
    np.testing.assert_array_equal(again.mean, found.mean)
    assert len(spectra.spectrum_edges(line([1, 1, 0, 0, 0, 0, 0, 0]), 3)) == 4
    with pytest.raises(ValueError, match="without energy"):
        spectra.spectrum_edges(line([0] * 8))


def test_the_error_of_the_spectrum_counts_showers_not_voxels() -> None:
    # All voxels of a shower have one energy: the spectrum fluctuates as the shower does.
    rng = np.random.default_rng(0)
    table = []
    for _ in range(200):
        showers = line(*np.repeat(rng.choice([1.0, 10.0], (50, 1)), 8, axis=1).tolist())
        found = spectra.voxel_spectrum(showers, np.array([0.5, 5, 50]))
        table.append((found.mean[1], found.error[1]))
    values, errors = np.array(table).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)


def test_leading_voxels_by_hand() -> None:
    np.testing.assert_allclose(spectra.leading_voxels(TWO, 3), [[100 / 111, 10 / 111, 1 / 111], [1 / 3, 1 / 3, 1 / 3]])
    assert spectra.leading_voxels(line([0] * 8), 2).tolist() == [[0, 0]]
    assert spectra.voxels_holding(TWO, 0.9).tolist() == [1, 3]
    assert spectra.voxels_holding(TWO, 1.0).tolist() == [3, 3]
    assert spectra.voxels_holding(TWO, 1 / 3).tolist() == [1, 1]
    assert spectra.voxels_holding(line([0] * 8)).tolist() == [0]
    with pytest.raises(ValueError, match="expected 1 to 8"):
        spectra.leading_voxels(TWO, 9)
    with pytest.raises(ValueError, match="got share 0"):
        spectra.voxels_holding(TWO, 0)


def test_longitudinal_profile_by_hand(mixed: Geometry) -> None:
    found = spectra.longitudinal_profile(TWO)
    np.testing.assert_allclose(found.position, [5, 20])
    np.testing.assert_allclose(found.mean, [0.07, 0.5])
    np.testing.assert_allclose(found.spread, [0.04, 0.5])
    np.testing.assert_allclose(found.error, found.spread / np.sqrt(2))
    bare = Geometry("bare", tuple(Layer(v.kind, v.first, v.second) for v in mixed.layers))
    assert spectra.longitudinal_profile(random_showers(bare, 5)).position.tolist() == [0, 1]


def test_radial_profile_by_hand() -> None:
    # centres at y = -15, -5, 5, 15 (x = 0): distances 15, 5, 5, 15 from the axis
    found = spectra.radial_profile(TWO, np.array([0, 10, 20]))
    np.testing.assert_allclose(found.mean, [(10 + 2) / 200, (1 + 100 + 1) / 200])
    first = spectra.radial_profile(TWO, np.array([0, 10, 20]), layer=0)
    np.testing.assert_allclose(first.mean, [12 / 200, 2 / 200])
    # an inclined particle along y, slope 1: in the middle of layer 1 (z = 20) it is at y = 20
    inclined = line([0, 0, 0, 0, 0, 0, 0, 7], theta=np.pi / 4, phi=np.pi / 2)
    assert spectra.radial_profile(inclined, np.array([0, 4, 6])).mean.tolist() == pytest.approx([0, 0.07])


def test_radial_profile_equals_its_slow_twin(mixed: Geometry) -> None:
    rng = np.random.default_rng(1)
    showers = random_showers(mixed, 20, theta=0.1, phi=1.0)
    moved = Showers(mixed, Incident(showers.incident.energy, theta=0.1, phi=1.0, x=rng.normal(size=20)), showers.energy)
    edges = np.array([0, 7.0, 15, 40, 500])
    for sample in (showers, moved):
        found = spectra.radial_profile(sample, edges)
        slow = np.zeros((20, 4))
        for i in range(20):
            for k, (x, y, z) in enumerate(mixed.centres()):
                r = np.hypot(x, y)
                if mixed.layer_index[k] == 1:
                    inc = sample.incident
                    t = np.tan(inc.theta[i])
                    r = np.hypot(x - inc.x[i] - z * t * np.cos(inc.phi[i]), y - inc.y[i] - z * t * np.sin(inc.phi[i]))
                b = np.searchsorted(edges, r, side="right") - 1
                if 0 <= b < 4:
                    slow[i, b] += sample.energy[i, k]
        np.testing.assert_allclose(found.mean, (slow / sample.incident.energy[:, None]).mean(axis=0))
        assert found.mean.sum() == pytest.approx(
            (sample.total / sample.incident.energy).mean()
        )  # all rings: all energy


def test_the_twenty_shapes_of_calogan() -> None:
    showers = io.read(hub.sample("calogan-eplus-test"), 300)
    found = calogan_shapes(showers)
    assert len(found) == len(calogan_names()) == 20
    e = showers.layer_energy
    np.testing.assert_allclose(found["l_d"], e[:, 1] + 2 * e[:, 2])
    np.testing.assert_allclose(found["s_d"], found["l_d"] / found["E_tot"])
    np.testing.assert_allclose(found["f_0"] + found["f_1"] + found["f_2"], 1)
    np.testing.assert_allclose(found["E_1"], e[:, 1])
    np.testing.assert_allclose(found["sigma_sd"] ** 2, found["f_1"] + 4 * found["f_2"] - found["s_d"] ** 2, atol=1e-9)
    assert set(np.unique(found["d"])) <= {-1, 0, 1, 2}
    layer = showers.image(1).reshape(300, -1)
    np.testing.assert_allclose(found["sparsity_1"], (layer > 0).mean(axis=1))
    x = np.repeat((np.arange(12) - 5.5) * 40, 12)
    mean = layer @ x / e[:, 1]
    np.testing.assert_allclose(found["sigma_1"], np.sqrt(layer @ x**2 / e[:, 1] - mean**2), rtol=1e-4)
    # landmarks of the positron sample, as independently simulated: means to 10 %, widths to 5 %
    landmarks = {
        "s_d": (0.80, 0.1), "f_0": (0.200, 0.1), "sigma_0": (15.4, 0.05), "sigma_1": (29.5, 0.05),
        "sparsity_0": (0.42, 0.1), "sparsity_1": (0.77, 0.1), "sigma_sd": (0.385, 0.1),
    }  # fmt: skip
    for name, (value, tolerance) in landmarks.items():
        assert found[name].mean() == pytest.approx(value, rel=tolerance), name


def test_shapes_take_known_observables_and_refuse_rings() -> None:
    showers = io.read(hub.sample("calogan-eplus-test"), 20)
    known = observables(showers)
    assert calogan_shapes(showers, known)["E_tot"] is known["total_energy"]
    rings = Geometry("rings", (Layer("polar", (-np.pi, np.pi), (0, 10, 20)),))
    with pytest.raises(ValueError, match="without lateral_width_0"):
        calogan_shapes(random_showers(rings, 3))
