from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from caloforge.datasets import calogan as layout
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from caloforge.simulate.detectors import Detector, Slab, calogan
from caloforge.simulate.parametric import R_MAX, Parametric, _radius, sampling_spread
from conftest import assert_same

# A finely divided block of the same lead-argon mixture, deep and wide enough to see all of a shower.
DEPTHS = regular(0, 480, 48)
CUBE = Geometry("cube", tuple(Layer("cartesian", regular(-495, 495, 99), (-500, 500), d)
                              for d in pairwise(DEPTHS)))  # fmt: skip
BLOCK = replace(calogan(), geometry=CUBE)
SAMPLING = replace(calogan(), slabs=(Slab("G4_Pb", 2.0, sensitive=False), Slab("G4_lAr", 4.0)), sampling_fraction=0.188)


def electrons(energy: float, n: int = 200, **fields: float) -> Incident:
    return Incident(np.full(n, energy), **({"pdg": 11} | fields))


def mean_depth(showers: Showers) -> np.ndarray:
    """Centre of energy along z [mm], (N,)."""
    return showers.energy @ showers.geometry.centres()[:, 2] / showers.total


def test_the_same_seed_gives_the_same_showers() -> None:
    model, incident = Parametric(calogan()), electrons(5e3, 20)
    assert_same(model.simulate(incident, seed=1), model.simulate(incident, seed=1))
    other = model.simulate(incident, seed=2)
    assert not np.array_equal(other.energy, model.simulate(incident, seed=1).energy)


def test_all_energy_is_found_in_a_large_block() -> None:
    showers = Parametric(BLOCK, stochastic=0).simulate(electrons(1e3), seed=0)
    ratio = (showers.total + showers.overflow.sum(axis=1)) / (1e3 * BLOCK.sampling_fraction)
    assert ratio.max() <= 1 + 1e-5
    assert ratio.mean() > 0.998


def test_the_spread_of_the_energy_falls_with_its_root() -> None:
    thin = replace(BLOCK, sampling_fraction=0.2)
    for energy in (1e3, 1e4):
        total = Parametric(thin, stochastic=0.2, spots=20).simulate(electrons(energy, 2000), seed=0).total
        expected = 0.2 / np.sqrt(energy / 1e3)
        assert total.std() / total.mean() == pytest.approx(expected, rel=5 / np.sqrt(2 * 2000))


def test_the_mean_depth_is_that_of_the_gamma_distribution() -> None:
    ln_y = np.log(2e4 / BLOCK.critical)
    alpha, peak = 0.21 + (0.492 + 2.38 / BLOCK.zeff) * ln_y, ln_y - 0.858  # average profile
    depth = mean_depth(Parametric(BLOCK).simulate(electrons(2e4, 400), seed=0)) / BLOCK.x0
    assert depth.mean() == pytest.approx(peak * alpha / (alpha - 1), rel=0.03)


def test_photons_go_deeper_than_electrons_by_about_one_radiation_length() -> None:
    model = Parametric(BLOCK)
    electron, photon = (mean_depth(model.simulate(electrons(2e4, 500, pdg=k), seed=0)).mean() for k in (11, 22))
    assert 0.3 < (photon - electron) / BLOCK.x0 < 1.2


def test_radii_follow_the_two_component_function() -> None:
    tau, ln_e = np.float32(1.0), np.float32(np.log(20.0))
    r = _radius(BLOCK, np.full(200_000, tau), np.full(200_000, ln_e), np.random.default_rng(0)) / BLOCK.moliere
    z, k2 = BLOCK.zeff, 0.645
    core = 0.0251 + 0.00319 * ln_e + 0.1162 - 0.000381 * z
    tail = (0.659 - 0.00309 * z) * (np.exp(-2.59 * (1 - k2)) + np.exp((0.3585 + 0.0421 * ln_e) * (1 - k2)))
    w = (0.401 + 0.00187 * z - 1) / (1.313 - 0.0686 * ln_e)
    p = (2.632 - 0.00094 * z) * np.exp(w - np.exp(w))
    for limit in (0.05, 0.15, 0.5, 1.0, 3.0):
        inside = [limit**2 / (limit**2 + s**2) * (R_MAX**2 + s**2) / R_MAX**2 for s in (core, tail)]
        assert np.mean(r < limit) == pytest.approx(p * inside[0] + (1 - p) * inside[1], abs=5 * 0.5 / np.sqrt(len(r)))
    assert r.max() <= R_MAX * 1.001


def test_showers_start_where_and_fly_as_the_particle_does() -> None:
    theta, phi = 0.3, 0.0
    showers = Parametric(BLOCK).simulate(electrons(1e4, 300, theta=theta, phi=phi, x=-100.0), seed=0)
    x = showers.energy @ showers.geometry.centres()[:, 0] / showers.total
    assert np.mean(x + 100 - np.tan(theta) * mean_depth(showers)) == pytest.approx(0, abs=2)
    turned = Parametric(BLOCK).simulate(electrons(1e4, 300, theta=theta, phi=np.pi / 2, x=-100.0), seed=0)
    across = turned.energy @ turned.geometry.centres()[:, 0] / turned.total
    assert np.mean(across) == pytest.approx(-100, abs=2)


def test_a_polar_mesh_sees_the_same_showers() -> None:
    layers = tuple(Layer("polar", regular(-np.pi, np.pi, 4), (0, 50, 200), layer.depth) for layer in CUBE.layers)
    polar = Parametric(replace(BLOCK, geometry=Geometry("tube", layers))).simulate(electrons(5e3, 100), seed=0)
    square = Parametric(BLOCK).simulate(electrons(5e3, 100), seed=0)
    all_polar = polar.total + polar.overflow.sum(axis=1)
    np.testing.assert_allclose(all_polar, square.total + square.overflow.sum(axis=1), rtol=1e-5)
    quarters = polar.energy.reshape(100, 48, 4, 2).sum(axis=(0, 1, 3))
    np.testing.assert_allclose(quarters / quarters.sum(), 0.25, atol=0.01)


def test_sampling_media_see_less_energy_earlier_and_with_more_spread() -> None:
    model = Parametric(SAMPLING)
    assert model.spread == sampling_spread(SAMPLING) > 10 * sampling_spread(calogan())
    full, sampled = (Parametric(d).simulate(electrons(2e4), seed=0) for d in (calogan(), SAMPLING))
    assert sampled.total.mean() / 2e4 == pytest.approx(0.188, rel=0.02)
    assert (sampled.layer_energy[:, 0] / sampled.total).mean() > (full.layer_energy[:, 0] / full.total).mean()
    alien = replace(SAMPLING, slabs=(Slab("G4_Pb", 2.0, sensitive=False), Slab("G4_KRYPTONITE", 4.0)))
    with pytest.raises(ValueError, match="got slab material 'G4_KRYPTONITE'"):
        Parametric(alien)


@pytest.mark.parametrize("energy", [1e-3, 1.0, 30.0, 1e6])
def test_any_energy_gives_a_shower(energy: float) -> None:
    for detector in (calogan(), SAMPLING):
        for pdg in (-11, 22):
            showers = Parametric(detector).simulate(electrons(energy, 5, pdg=pdg), seed=0)
            assert (showers.total <= energy * (1 + 1e-5)).all()


def test_what_cannot_be_simulated_is_refused() -> None:
    flat = Geometry("flat", (replace(CUBE.layers[0], depth=None),))
    with pytest.raises(ValueError, match="layer 0 has no depth"):
        Parametric(replace(BLOCK, geometry=flat))
    with pytest.raises(ValueError, match="got particle 211, expected"):
        Parametric(BLOCK).simulate(electrons(1e3, 1, pdg=211), seed=0)
    for wrong in ({"spots": 0.0}, {"stochastic": -0.1}):
        with pytest.raises(ValueError, match="correct them"):
            Parametric(BLOCK, **wrong)


def test_provenance_names_the_medium() -> None:
    detector: Detector = calogan()
    recorded = Parametric(detector).simulate(electrons(1e3, 1), seed=5).provenance
    assert recorded["seed"] == 5
    assert recorded["medium"]["moliere"] == detector.moliere
    assert "hep-ex/0001020" in recorded["engine"]


def test_agreement_with_geant4_on_calogan(shared: Path) -> None:
    truth = layout.read(shared / "truth" / "calogan_eplus.h5")[:1500]
    fast = Parametric(calogan()).simulate(truth.incident, seed=0)

    def means(showers: Showers) -> list[float]:
        x = np.array(regular(-220, 220, 11))
        row = showers.image(1).sum(axis=2, dtype=float)
        row /= row.sum(axis=1, keepdims=True)
        width = np.sqrt(row @ x**2 - (row @ x) ** 2)
        fractions = showers.layer_energy / showers.total[:, None]
        return [(showers.total / showers.incident.energy).mean(), *fractions[:, :2].mean(axis=0), width.mean()]

    response, f_0, f_1, width = (a / b for a, b in zip(means(fast), means(truth), strict=True))
    assert response == pytest.approx(1, abs=0.003)
    assert f_0 == pytest.approx(1, abs=0.15)
    assert f_1 == pytest.approx(1, abs=0.05)
    assert width == pytest.approx(1, abs=0.1)
