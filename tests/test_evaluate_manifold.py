"""Precision, recall, density, coverage and the PRD curve: values known by hand, slow twin, errors."""

import numpy as np
import pytest

from caloforge.evaluate import manifold


def slow_prdc(x, y, k):
    """The definitions, pair by pair."""

    def distances(a, b):
        return np.sqrt(((a[:, None] - b) ** 2).sum(axis=-1))

    radius_x, radius_y = (np.sort(distances(s, s), axis=1)[:, k] for s in (x, y))  # 0 is the shower itself
    across = distances(x, y)
    inside = across < radius_x[:, None]
    return (
        inside.any(axis=0).mean(),
        (across < radius_y).any(axis=1).mean(),
        inside.sum() / k / len(y),
        inside.any(axis=1).mean(),
    )


def test_prdc_by_hand():
    # k = 1: balls of radius 1 around 0, 1, 2, 3; of 1, 1, 18 around 1/2, 3/2, 20 - which is 37/2 from its neighbour
    x, y = np.array([[0.0], [1], [2], [3]]), np.array([[0.5], [1.5], [20.0]])
    precision, recall, density, coverage = manifold._prdc(x, y, 1)
    assert precision == pytest.approx(2 / 3)  # 1/2 and 3/2
    assert recall == 1  # 0, 1, 2 near 1/2 or 3/2; 3 within 18.5 of 20
    assert density == pytest.approx(4 / 3)  # two balls around 1/2, two around 3/2
    assert coverage == pytest.approx(3 / 4)  # that of 3 is empty


@pytest.mark.parametrize("block", [7, 2**21])
def test_prdc_equals_its_slow_twin(monkeypatch, block):
    monkeypatch.setattr(manifold, "BLOCK", block)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.normal(0.5, 0.7, (50, 4))
    np.testing.assert_allclose(manifold._prdc(x, y, 3), slow_prdc(x, y, 3))


def test_prdc_of_one_distribution():
    n, k = 2000, 5
    rng = np.random.default_rng(1)
    measured = manifold.prdc(rng.normal(size=(n, 3)), rng.normal(size=(n, 3)), seed=0)
    # Naeem et al.: mean density 1; coverage 1 - (n - 1)...(n - k) / ((2n - 1)...(2n - k)), whatever the distribution
    missed = np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    for name, expected in (("density", 1), ("coverage", 1 - missed)):
        value, error = measured[name]
        assert value == pytest.approx(expected, abs=4 * error), name
        assert error < 0.05
    assert measured["precision"][0] == pytest.approx(measured["recall"][0], abs=0.05)
    assert measured["precision"][0] > 0.9


def test_prdc_of_disjoint_collapsed_and_identical_samples():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 3))
    assert all(value == 0 for value, _ in manifold.prdc(x, x + 100, seed=0).values())
    point = manifold.prdc(x, 1e-3 * x, seed=0)
    assert point["precision"][0] == 1
    assert point["recall"][0] < 0.05
    assert point["density"][0] > 1.3
    assert point["coverage"][0] < 0.1
    same = manifold.prdc(x, x, seed=0)
    assert [same[name][0] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    constant = manifold.prdc(np.ones((200, 2)), np.ones((200, 2)), seed=0)  # balls of radius 0
    assert all(value == 0 for value, _ in constant.values())


def test_prdc_errors_are_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(3)
    results = []
    for _ in range(30):
        x, y = rng.normal(size=(600, 2)), rng.normal(0.5, 1.5, (600, 2))
        results.append(list(manifold.prdc(x, y, seed=0).values()))
    values, errors = np.moveaxis(np.array(results), -1, 0)
    np.testing.assert_allclose(errors.mean(axis=0), values.std(axis=0), rtol=0.5)


def test_prdc_uses_as_many_showers_of_both_samples():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(300, 2)), rng.normal(size=(4000, 2))
    value, _ = manifold.prdc(x, y, seed=0)["coverage"]
    assert 0.9 < value < 1
    assert manifold.prdc(x, y, seed=0) == manifold.prdc(x, y, seed=0)
    assert manifold.prdc(y, y, seed=0, most=200) != manifold.prdc(y, y, seed=1, most=200)


def test_log_voxels():
    energy = np.array([[0, 1, 0.01], [100, 0, 1e-5]], dtype=np.float32)
    np.testing.assert_allclose(manifold.log_voxels(energy), [[-1, 0, -2], [2, -1, -5]], rtol=1e-6)


def test_prd_area_by_hand():
    def area(p, q):
        return manifold.prd_area(np.array(p), np.array(q), 10_001)

    assert area([0.3, 0.7], [0.3, 0.7]) == pytest.approx(1)
    assert area([1.0, 0], [0, 1.0]) == 0
    assert area([0.5, 0.5], [1.0, 0]) == pytest.approx(0.5)  # half is never made
    assert area([1.0, 0], [0.5, 0.5]) == pytest.approx(0.5)  # half does not exist
    # recall up to 1/3: precision 1; from 1/3 to 1: precision 1/4 + 1/(16 recall - 4)
    assert area([0.75, 0.25], [0.25, 0.75]) == pytest.approx(1 / 3 + 1 / 6 + np.log(9) / 16, abs=1e-5)
    both = area([[0.5, 0.5], [1, 0]], [[1, 0], [0, 1]])
    assert both == pytest.approx([0.5, 0])


def test_prd_auc_of_two_blobs():
    rng = np.random.default_rng(5)
    left, right = rng.normal(-50, 1, (300, 2)), rng.normal(50, 1, (300, 2))
    both = np.concatenate([left, right])
    value, error = manifold.prd_auc(both, np.concatenate([left, left]), seed=0, n_clusters=2)
    assert value == pytest.approx(0.5, abs=4 * error)
    assert 0.005 < error < 0.05
    value, error = manifold.prd_auc(both, both, seed=0)
    assert value == pytest.approx(1)
    assert error > 0
    assert manifold.prd_auc(left, right, seed=0)[0] == pytest.approx(0, abs=1e-9)


def test_prd_auc_of_one_distribution_is_near_1_and_the_same_again():
    x, y = np.random.default_rng(6).normal(size=(2, 1000, 4))
    value, error = manifold.prd_auc(x, y[:900], seed=3)
    assert 0.95 < value < 1
    assert 0 < error < 0.02
    assert (value, error) == manifold.prd_auc(x, y[:900], seed=3)
    constant = np.ones((50, 2))
    assert manifold.prd_auc(constant, constant, seed=0) == pytest.approx((1, 0))


def test_too_few_showers_and_odd_settings_are_refused():
    x = np.random.default_rng(7).normal(size=(100, 2))
    with pytest.raises(ValueError, match=r"got 100 reference showers, expected at least 120 = 2 \(k \+ 1\) in each"):
        manifold.prdc(x, x, seed=0)
    with pytest.raises(ValueError, match="got most = 50, expected at least 80"):
        manifold.prdc(x, x, seed=0, k=3, most=50)
    with pytest.raises(ValueError, match="got k = 0"):
        manifold.prdc(x, x, seed=0, k=0)
    with pytest.raises(ValueError, match="got 19 candidate showers, expected at least 20 for 20 clusters"):
        manifold.prd_auc(x, x[:19], seed=0)
    with pytest.raises(ValueError, match="got 1 clusters"):
        manifold.prd_auc(x, x, seed=0, n_clusters=1)
