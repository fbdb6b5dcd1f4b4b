from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from caloforge.datasets import calogan as layout
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from caloforge.simulate.detectors import Detector, Readout, Section, Slab, calogan, find
from caloforge.simulate.parametric import TEXTBOOK, Parametric
from caloforge.simulate.profiles import R_MAX, Stack, sampling_spread
from caloforge.simulate.rings import aligned, compound
from caloforge.simulate.spots import radius
from caloforge.simulate.tuning import Tuning
from conftest import assert_same

# A finely divided block of the same lead-argon mixture, deep and wide enough to see all of a shower.
DEPTHS = regular(0, 480, 48)
CUBE = Geometry("cube", tuple(Layer("cartesian", regular(-495, 495, 99), (-500, 500), d)
                              for d in pairwise(DEPTHS)))  # fmt: skip


def with_medium(d: Detector, **constants: float) -> Detector:
    return replace(d, given=tuple((dict(d.given) | constants).items()))


BLOCK = replace(calogan(), readout=Readout(CUBE))
PASSIVE = Section((Slab("G4_Pb", 2.0, sensitive=False), Slab("G4_lAr", 4.0)), 80)
SAMPLING = with_medium(replace(calogan(), sections=(PASSIVE,)), sampling_fraction=0.188)
TUNED = Tuning(
    depth_shift=0.2, core=0.8, core_power=0.9, tail_power=1.4, follow=0.7, response=1.004, reactions=0.1,
    spot_energy=25.0, spot_floor=1.5, spot_falloff=0.7, spot_growth=1.0, spot_spread=1.0, halo=0.06, halo_range=1.2,
    halo_forward=0.4, neutrons=3.0,
)  # fmt: skip


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
    thin = with_medium(BLOCK, sampling_fraction=0.2)
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
    tau_e = np.full(200_000, tau), np.full(200_000, ln_e)
    r = radius(Stack.of(BLOCK), *tau_e, TEXTBOOK, np.random.default_rng(0)) / BLOCK.moliere
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
    polar = Parametric(replace(BLOCK, readout=Readout(Geometry("tube", layers)))).simulate(electrons(5e3, 100), seed=0)
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


@pytest.mark.parametrize("energy", [1e-3, 1.0, 30.0, 1e6])
def test_any_energy_gives_a_shower(energy: float) -> None:
    for detector in (calogan(), SAMPLING):
        for pdg in (-11, 22):
            showers = Parametric(detector).simulate(electrons(energy, 5, pdg=pdg), seed=0)
            assert (showers.total <= energy * (1 + 1e-5)).all()


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 factors of layers, expected 48"):
        Parametric(BLOCK, tuning=Tuning(layers=(1.0, 2.0)))
    for wrong, words in (
        ({"core": 0.0}, "got core=0, expected"),
        ({"spot_energy": 20.0, "spot_falloff": 1.0}, "infinitely many spots"),
        ({"halo": 0.1}, "expected spot_energy"),
    ):
        with pytest.raises(ValueError, match=words):
            Tuning(**wrong)
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


def test_the_textbook_is_what_it_was() -> None:
    rng = np.random.default_rng(5)
    incident = Incident(rng.uniform(1e3, 6e4, 60), pdg=np.where(np.arange(60) % 3 == 0, 22, -11))
    showers = Parametric(calogan()).simulate(incident, seed=7)
    assert showers.energy.sum(dtype=float) == pytest.approx(1821273.64580369, rel=1e-7)
    assert showers.overflow.sum(dtype=float) == pytest.approx(1195.3737387657166, rel=1e-4)


def moments(showers: Showers) -> dict[str, np.ndarray]:
    """Numbers per shower that depend on everything: shares of layers, widths, filled and bright voxels."""
    out = {}
    for i in range(showers.geometry.n_layers):
        image = showers.image(i).reshape(len(showers), -1).astype(float)
        place = showers.geometry.centres()[showers.geometry.layer_index == i]
        energy = image.sum(axis=1)
        out |= {f"share {i}": energy / showers.total, f"filled {i}": (image > 0).sum(axis=1),
                f"brightest {i}": image.max(axis=1) / np.maximum(energy, 1e-9)}  # fmt: skip
        for k, axis in enumerate("xy"):
            out[f"centre {axis} {i}"] = image @ place[:, k] / np.maximum(energy, 1e-9)
            out[f"square {axis} {i}"] = image @ place[:, k] ** 2 / np.maximum(energy, 1e-9)
    return out


@pytest.mark.parametrize(("tilt", "pdg"), [(0.0, -11), (0.008, -11), (0.0, 22)])
def test_drawing_voxels_is_drawing_spots(tilt: float, pdg: int) -> None:
    model = Parametric(calogan(), stochastic=0.006, tuning=replace(TUNED, tilt=tilt))
    n = 700
    straight, oblique = (electrons(1e4, n, pdg=pdg, theta=theta) for theta in (0.0, 1e-7))
    assert aligned(model.detector, straight)
    assert not aligned(model.detector, oblique)
    a, b = (moments(model.simulate(k, seed=s)) for s, k in enumerate((straight, oblique)))
    for name in a:
        error = np.hypot(a[name].std(), b[name].std()) / np.sqrt(n)
        assert a[name].mean() == pytest.approx(b[name].mean(), abs=4 * error + 1e-9), name
        if not name.startswith(("square", "brightest 2", "filled 2", "share 2")):  # these have long tails
            assert a[name].std() == pytest.approx(b[name].std(), rel=0.2), name


def test_sums_of_log_normal_spots_have_their_moments() -> None:
    rng = np.random.default_rng(0)
    number, mean, spread = 3.0, 2.0, 0.8
    square = mean**2 * np.exp(spread**2)
    drawn = compound(*(np.full(200_000, number * v, dtype=np.float32) for v in (1, mean, square)), rng)
    count = rng.poisson(number, 200_000)
    spots = mean * np.exp(spread * rng.standard_normal(count.sum()) - spread**2 / 2)
    slow = np.bincount(np.arange(200_000).repeat(count), spots, minlength=200_000)
    assert (drawn == 0).mean() == pytest.approx(np.exp(-number), abs=0.001)
    assert drawn.mean() == pytest.approx(number * mean, rel=0.01)
    assert drawn.var() == pytest.approx(number * square, rel=0.03)
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(slow, [0.1, 0.5, 0.9]), rtol=0.02)


def test_tuned_showers_are_symmetric_and_keep_their_energy() -> None:
    model = Parametric(calogan(), stochastic=0.0, tuning=replace(TUNED, reactions=0.0, response=1 / 0.994))
    showers = model.simulate(electrons(2e4, 2000), seed=0)
    all_energy = showers.total + showers.overflow.sum(axis=1)
    assert all_energy.max() <= 2e4 * (1 + 1e-5)
    assert all_energy.mean() > 0.996 * 2e4  # soft photons leave through the front
    for i in range(3):
        mean = showers.image(i).mean(axis=0, dtype=float)
        error = showers.image(i).std(axis=0, dtype=float) / np.sqrt(len(showers))
        for axis in (0, 1):
            pull = (mean - np.flip(mean, axis)) / np.hypot(error, np.flip(error, axis)).clip(1e-6)
            assert np.abs(pull[mean > 0.01 * mean.max()]).max() < 5


def test_the_shower_frame_turns_with_the_particle() -> None:
    detector = find("par04-siw-coarse")
    model = Parametric(detector, tuning=replace(TUNED, layers=()))
    straight = model.simulate(electrons(1e4, 20), seed=0)
    turned = model.simulate(electrons(1e4, 20, theta=0.5, phi=1.0, x=10.0), seed=0)
    np.testing.assert_array_equal(straight.energy, turned.energy)
    assert straight.total.mean() == pytest.approx(1e4 * detector.sampling_fraction / 0.033, rel=0.1)
    equal = Parametric(detector).simulate(electrons(1e4, 20), seed=0)
    assert equal.total.mean() == pytest.approx(straight.total.mean(), rel=0.05)
    share = model.simulate(electrons(1e4, 300), seed=0).energy.reshape(300, 45, 16, 9).sum(axis=(0, 1, 3))
    np.testing.assert_allclose(share / share.mean(), 1, atol=0.1)


def test_noise_threshold_and_factors_of_layers() -> None:
    plain = Tuning(spot_energy=25.0, spot_spread=1.0)
    incident = electrons(5e3, 400)
    loud = Parametric(calogan(), tuning=replace(plain, noise=2.0)).simulate(incident, seed=0)
    quiet = Parametric(calogan(), tuning=plain).simulate(incident, seed=0)
    far = quiet.energy.mean(axis=0) < 1e-3
    assert (loud.energy[:, far] > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert loud.energy[:, far][loud.energy[:, far] > 0].mean() == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.03)
    cut = Parametric(calogan(), tuning=replace(plain, noise=2.0, threshold=6.0)).simulate(incident, seed=0)
    assert cut.energy[cut.energy > 0].min() >= 6
    twice = Parametric(calogan(), tuning=replace(plain, layers=(1, 2, 1))).simulate(incident, seed=0)
    np.testing.assert_allclose(twice.layer_energy, quiet.layer_energy * [1, 2, 1], rtol=1e-5)


def test_cards_come_back_and_belong_to_one_detector(tmp_path: Path) -> None:
    model = Parametric(calogan(), 0.006, tuning=replace(TUNED, layers=(1, 1, 0.9)), origin={"seed": 3})
    model.save(tmp_path / "card.json")
    again = Parametric.load(tmp_path / "card.json")
    assert again == model
    assert again.origin == {"seed": 3}
    assert_same(again.simulate(electrons(5e3, 5), seed=1), model.simulate(electrons(5e3, 5), seed=1))
    assert again.provenance()["tuned"] == {"seed": 3}
    with pytest.raises(FileExistsError, match="--force"):
        model.save(tmp_path / "card.json")
    with pytest.raises(ValueError, match=r"card.json of detector 'calogan' \(digest .*expected one of 'lhcb'"):
        Parametric.load(tmp_path / "card.json", find("lhcb"))
    with pytest.raises(FileNotFoundError, match=r"got .*none.json, expected the card"):
        Parametric.load(tmp_path / "none.json")
    for text, words in (
        ("no card", "expected the card of a parametric simulator"),
        ((tmp_path / "card.json").read_text().replace('"halo"', '"hallo"'), "constant 'hal?lo' amiss"),
        (
            (tmp_path / "card.json").read_text().replace('version": 1', 'version": 9'),
            "format version 9, expected at most 1",
        ),
    ):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            Parametric.load(tmp_path / "wrong.json")


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
