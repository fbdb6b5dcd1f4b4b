"""Response and resolution: the terms put in come out, errors are the spread of experiments, limits hold."""

import numpy as np
import pytest

from caloforge import hub, io
from caloforge.evaluate.resolution import fit_resolution, response_curve
from caloforge.geometry import Geometry, Layer
from caloforge.showers import Incident, Showers

SLAB = Geometry("slab", (Layer("cartesian", (0, 1), (0, 1)),))


def sample(energy: np.ndarray, seed: int, a: float = 0.10, c: float = 0.02, response: float = 0.8) -> Showers:
    """Normal response with sigma/E = a/sqrt(E/GeV) (+) c."""
    rng = np.random.default_rng(seed)
    width = np.sqrt(a**2 * 1e3 / energy + c**2)
    total = energy * response * (1 + width * rng.normal(size=len(energy)))
    return Showers(SLAB, Incident(energy), np.maximum(total, 0)[:, None])


DISCRETE = np.repeat([1e3, 4e3, 16e3, 64e3, 256e3], 2000)
CONTINUOUS = np.exp(np.random.default_rng(9).uniform(np.log(1e3), np.log(3e5), 10_000))


@pytest.mark.parametrize("energy", [DISCRETE, CONTINUOUS], ids=["energies", "bins"])
@pytest.mark.parametrize("core", [False, True])
def test_the_terms_put_in_come_out(energy: np.ndarray, core: bool) -> None:
    curve = response_curve(sample(energy, 0), core=core)
    assert len(curve.n) == (5 if energy is DISCRETE else 10)
    assert curve.n.sum() == 10_000
    np.testing.assert_allclose(curve.response, 0.8, atol=4 * curve.response_error.max())
    if energy is DISCRETE:
        np.testing.assert_allclose(curve.energy, np.unique(energy))
        np.testing.assert_allclose(curve.inverse_energy, 1 / np.unique(energy))
    assert np.all(curve.low <= curve.energy)
    assert np.all(curve.energy <= curve.high)
    fit = fit_resolution(curve)
    assert fit.stochastic[0] == pytest.approx(0.10, abs=4 * fit.stochastic[1])
    assert fit.constant[0] == pytest.approx(0.02, abs=4 * fit.constant[1])
    assert fit.stochastic[1] < 0.005
    assert fit.constant[1] < 0.004
    if energy is DISCRETE:
        assert fit.chi2 / fit.ndf < 4
        pull = (fit.at(curve.energy) - curve.resolution) / curve.resolution_error
        assert np.abs(pull).max() < 4


def test_errors_are_the_spread_of_experiments() -> None:
    energy = np.repeat([2e3, 2e4, 2e5], 300)
    points, terms = [], []
    for seed in range(150):
        curve = response_curve(sample(energy, seed))
        fit = fit_resolution(curve)
        points.append((curve.resolution, curve.resolution_error, curve.response, curve.response_error))
        terms.append((*fit.stochastic, *fit.constant, fit.chi2))
    table = np.array(points)
    np.testing.assert_allclose(table[:, 1].mean(axis=0), table[:, 0].std(axis=0), rtol=0.2)
    np.testing.assert_allclose(table[:, 3].mean(axis=0), table[:, 2].std(axis=0), rtol=0.2)
    a, a_error, c, c_error, chi2 = np.array(terms).T
    assert a.mean() == pytest.approx(0.10, abs=4 * a.std() / np.sqrt(150) + 0.001)
    assert a_error.mean() == pytest.approx(a.std(), rel=0.25)
    assert c_error.mean() == pytest.approx(c.std(), rel=0.25)
    assert chi2.mean() == pytest.approx(1, abs=0.4)


def test_a_term_that_is_not_there_is_zero_with_an_upper_end() -> None:
    constants = [fit_resolution(response_curve(sample(DISCRETE[::4], seed, c=0.0))).constant for seed in range(20)]
    assert any(value == 0 for value, _ in constants)
    assert all(0 < error < 0.02 for _, error in constants)
    assert all(value < 8 * error for value, error in constants)  # the fit is in the square: 4 of its deviations
    none = fit_resolution(response_curve(sample(DISCRETE[::4], 0, a=0.0, c=0.05)))
    assert none.stochastic[0] < 8 * none.stochastic[1]
    assert none.constant[0] == pytest.approx(0.05, abs=4 * none.constant[1])


def test_points_with_few_showers_are_left_out_and_bad_input_is_refused() -> None:
    energy = np.concatenate([np.full(100, 1e3), np.full(9, 2e3)])
    assert response_curve(sample(energy, 0)).energy.tolist() == [1e3]
    with pytest.raises(ValueError, match="expected 10 or more"):
        response_curve(sample(np.full(5, 1e3), 0))
    with pytest.raises(ValueError, match="at least 2"):
        fit_resolution(response_curve(sample(np.full(100, 1e3), 0)))
    with pytest.raises(ValueError, match="without energy"):
        response_curve(sample(np.full(100, 1e3), 0, response=0.0))
    exact = response_curve(sample(np.full(100, 1e3), 0, a=0, c=0))
    assert exact.resolution[0] < 1e-6


def test_lhcb_electrons_have_the_sampling_fraction_and_resolution_of_a_shashlik() -> None:
    showers = io.read(hub.sample("lhcb-eminus-test"))
    curve = response_curve(showers, 6)
    assert np.average(curve.response, weights=curve.n) == pytest.approx(0.173, abs=0.001)
    fit = fit_resolution(curve)
    assert 0.05 < fit.stochastic[0] < 0.12
    assert fit.stochastic[1] < 0.01
