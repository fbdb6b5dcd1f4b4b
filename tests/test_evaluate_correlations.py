"""Correlations of layers: numpy's own matrix, constant layers, a difference known by construction, its error."""

import numpy as np
import pytest

from caloforge.evaluate.correlations import compare_correlations, layer_correlations, pearson
from caloforge.geometry import Geometry, Layer
from caloforge.showers import Incident, Showers

SLABS = Geometry("slabs", (Layer("cartesian", (0, 1), (0, 1)),) * 3)


def slabs(n: int, seed: int, r: float) -> Showers:
    """Three layers; the first two fluctuate with correlation r, the third alone; all grow with the incident energy."""
    rng = np.random.default_rng(seed)
    incident = Incident(rng.uniform(1e3, 1e5, n))
    normal = rng.multivariate_normal([0, 0, 0], [[1, r, 0], [r, 1, 0], [0, 0, 1]], n)
    return Showers(SLABS, incident, incident.energy[:, None] * np.maximum(0.3 + 0.03 * normal, 0))


def test_the_matrix_is_numpys_and_constant_layers_are_left_out() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)) @ np.array([[1, 2, 0], [0, 1, 0], [0, 3, 1.0]])
    np.testing.assert_allclose(pearson(x), np.corrcoef(x.T))
    with_constant = pearson(np.concatenate([x, np.full((50, 1), 0.1)], axis=1))
    np.testing.assert_allclose(with_constant[:3, :3], np.corrcoef(x.T))
    assert with_constant[3].tolist() == [0, 0, 0, 1]


def test_incident_energies_hide_what_fluctuates() -> None:
    showers = slabs(4000, 0, -0.5)
    assert layer_correlations(showers)[0, 1] > 0.9
    assert layer_correlations(showers, over_incident=True)[0, 1] == pytest.approx(-0.5, abs=0.04)


def test_a_difference_is_found_with_its_error() -> None:
    found = compare_correlations(slabs(3000, 0, 0.2), slabs(2000, 1, 0.5), over_incident=True)
    assert found.difference[0, 1] == pytest.approx(0.3, abs=4 * found.error[0, 1])
    assert found.difference[0, 2] == pytest.approx(0, abs=4 * found.error[0, 2])
    assert (np.diag(found.difference) == 0).all()
    np.testing.assert_allclose(found.difference, found.candidate - found.reference)
    # error of a correlation: (1 - r^2)/sqrt(n)
    assert found.error[0, 1] == pytest.approx(np.hypot(0.96 / np.sqrt(3000), 0.75 / np.sqrt(2000)), rel=0.3)
    assert found.distance[0] > found.floor[0] + 3 * found.distance[1]


def test_equal_physics_is_at_the_floor() -> None:
    found = compare_correlations(slabs(3000, 0, 0.2), slabs(3000, 1, 0.2), over_incident=True, seed=1)
    assert found.distance[0] < found.floor[0] + 3 * found.floor[1]
    one = Geometry("one", SLABS.layers[:1])
    alone = Showers(one, Incident(np.ones(9)), np.random.default_rng(0).random((9, 1)))
    assert compare_correlations(alone, alone).distance == (0, 0)
    with pytest.raises(ValueError, match="expected at least 8"):
        compare_correlations(alone[:3], alone)
