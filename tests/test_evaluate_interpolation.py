"""Interpolation: energy bins, no excess for the same physics, an excess where only the window is wrong."""

import numpy as np
import pytest

from caloforge.evaluate.interpolation import energy_bins, interpolation
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers

BOX = Geometry("box", (Layer("cartesian", regular(-15, 15, 3), regular(-15, 15, 3)),))
WINDOW = (1e4, 2e4)


def showers(n: int, seed: int, wrong: tuple[float, float] = (0, 0)) -> Showers:
    """Dirichlet showers, log-uniform 1 to 100 GeV; the response is 20 % too high at energies in ``wrong``."""
    rng = np.random.default_rng(seed)
    energy = np.exp(rng.uniform(np.log(1e3), np.log(1e5), n))
    response = rng.normal(0.8, 0.08, n) * np.where((energy >= wrong[0]) & (energy < wrong[1]), 1.2, 1)
    return Showers(BOX, Incident(energy), rng.dirichlet(np.full(9, 5.0), n) * (energy * response)[:, None])


def test_bins_around_one_and_two_windows() -> None:
    energy = np.geomspace(1e3, 1.6e4, 1000)
    edges, inside = energy_bins(energy, [(4e3, 8e3)])
    np.testing.assert_allclose(edges[:, 0], [1e3, 2e3, 4e3, 8e3])
    np.testing.assert_array_equal(inside, [False, False, True, False])
    assert edges[-1, 1] > energy.max()
    assert edges[2].tolist() == [4e3, 8e3]
    counted = sum(((energy >= low) & (energy < high)).sum() for low, high in edges)
    assert counted == len(energy)
    edges, inside = energy_bins(energy, [(8e3, 1e4), (500.0, 2e3)])  # unsorted, and one that starts below the sample
    assert inside[0]
    assert inside.sum() == 2
    assert (np.diff(edges[:, 0]) > 0).all()
    for bad, said in (([], "at least one"), ([(2, 1)], "0 < low < high"), ([(1, 3), (2, 4)], "overlap")):
        with pytest.raises(ValueError, match=said):
            energy_bins(energy, bad)


def test_the_same_physics_has_no_excess() -> None:
    found = interpolation(showers(4000, 0), showers(4000, 1), [WINDOW], n_bootstrap=40)
    assert found.inside.sum() == 1
    for value, error in (found.inside_excess, found.outside_excess, found.penalty):
        assert value == pytest.approx(0, abs=4 * error)
    assert found.value.shape == found.floor_error.shape == (len(found.edges), len(found.names))
    assert found.value.mean() == pytest.approx(found.floor.mean(), rel=0.1)


def test_a_wrong_window_is_seen_inside_only() -> None:
    found = interpolation(
        showers(4000, 0), showers(4000, 1, WINDOW), [WINDOW], names=["response", "total_energy"], n_bootstrap=40
    )
    assert found.inside_excess[0] > 5 * found.inside_excess[1]
    assert found.outside_excess[0] == pytest.approx(0, abs=4 * found.outside_excess[1])
    assert found.penalty[0] > 5 * found.penalty[1]
    row = np.flatnonzero(found.inside)[0]
    assert found.value[row, 0] > 0.3
    assert found.value[row, 0] > found.floor[row, 0] + 5 * found.error[row, 0]


def test_a_candidate_that_is_wrong_everywhere_has_no_penalty() -> None:
    found = interpolation(showers(4000, 0), showers(4000, 1, (0, 1e9)), [WINDOW], names=["response"], n_bootstrap=40)
    assert found.outside_excess[0] > 5 * found.outside_excess[1]
    assert found.penalty[0] == pytest.approx(0, abs=4 * found.penalty[1])


def test_the_error_of_the_excess_covers_the_spread_of_experiments() -> None:
    table = [
        interpolation(showers(1000, s), showers(1000, s + 500), [WINDOW], names=["response", "e_ratio_0"],
                      n_bootstrap=30, seed=s).inside_excess for s in range(30)
    ]  # fmt: skip
    values, errors = np.array(table).T
    assert values.mean() == pytest.approx(0, abs=4 * values.std() / np.sqrt(30))
    assert 0.8 * values.std() < errors.mean() < 2 * values.std()


def test_bad_input_is_refused() -> None:
    a = showers(300, 0)
    with pytest.raises(ValueError, match="got observable 'colour'"):
        interpolation(a, a, [WINDOW], names=["colour"])
    with pytest.raises(ValueError, match="simulate more there"):
        interpolation(a, a, [(1e4, 1.05e4)])
    with pytest.raises(ValueError, match="as many in a bin outside"):
        interpolation(a, a, [(1.0, 1e6)])
