"""Memorisation: nearest neighbours against their slow twin, copies and near copies found, fresh showers left alone."""

import numpy as np
import pytest

from caloforge.evaluate.memorisation import closeness, memorisation, nearest
from conftest import random_showers


def test_nearest_equals_its_slow_twin() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(700, 4)), rng.normal(size=(300, 4))
    distance, index = nearest(a, b)
    slow = np.sqrt(((a[:, None] - b) ** 2).sum(axis=2))
    np.testing.assert_allclose(distance, slow.min(axis=1))
    np.testing.assert_array_equal(index, slow.argmin(axis=1))


def test_the_distance_of_a_copy_is_zero_not_rounding() -> None:
    a = np.random.default_rng(1).normal(1e3, 1, size=(50, 3))
    assert (nearest(a[10:20], a)[0] == 0).all()


def test_independent_showers_are_as_far_as_held_out_ones() -> None:
    rng = np.random.default_rng(2)
    train, generated, held = (rng.normal(size=(n, 3)) for n in (3000, 2000, 2000))
    found = closeness(train, generated, held)
    assert found.ratio[0] == pytest.approx(1, abs=4 * found.ratio[1])
    assert found.ratio_floor[0] == pytest.approx(1, abs=4 * found.ratio_floor[1])
    assert found.close[0] == pytest.approx(0.01, abs=4 * found.close[1])
    assert found.p_value > 1e-3
    assert found.copies == 0
    assert found.n_train == 3000
    assert [len(d) for d in found.distances] == [2000, 2000]


def test_copies_and_near_copies_are_found() -> None:
    rng = np.random.default_rng(3)
    train, generated, held = (rng.normal(size=(n, 3)) for n in (3000, 1000, 1000))
    some = np.concatenate([generated[:900], train[:40], train[40:100] + 1e-3 * rng.normal(size=(60, 3))])
    found = closeness(train, some, held)
    assert found.copies == 40
    assert found.close[0] > 0.1
    assert found.close[0] - 0.01 > 5 * found.close[1]
    assert found.ratio[0] > 0.85  # the median hardly sees a tenth
    every = closeness(train, train[:1000] + 0.02 * rng.normal(size=(1000, 3)), held)
    assert every.ratio[0] < 0.5
    assert every.p_value < 1e-6


def test_a_poor_generator_is_further_away() -> None:
    rng = np.random.default_rng(4)
    train, generated, held = rng.normal(size=(1000, 3)), rng.normal(2, 1, size=(500, 3)), rng.normal(size=(500, 3))
    found = closeness(train, generated, held)
    assert found.ratio[0] > 1.5
    assert found.p_value > 0.5  # not closer


def test_the_error_of_the_share_is_the_spread_of_experiments() -> None:
    rng = np.random.default_rng(5)
    table = []
    for _ in range(100):
        train, generated, held = (rng.normal(size=(n, 2)) for n in (100, 800, 800))
        found = closeness(train, generated, held, seed=1)
        table.append((*found.close, *found.ratio))
    share, share_error, ratio, ratio_error = np.array(table).T
    assert share.mean() == pytest.approx(0.01, abs=0.002)
    assert np.sqrt((share_error**2).mean()) == pytest.approx(share.std(), rel=0.4)
    assert ratio_error.mean() == pytest.approx(ratio.std(), rel=0.3)


def test_scales_and_constant_features_do_not_matter() -> None:
    rng = np.random.default_rng(6)
    parts = [rng.normal(size=(n, 2)) for n in (200, 100, 100)]
    wide = [np.concatenate([p * [1e6, 1e-3], np.full((len(p), 1), 5.0)], axis=1) for p in parts]
    a, b = closeness(*parts), closeness(*wide)
    np.testing.assert_allclose(a.distances[0], b.distances[0], rtol=1e-6)
    assert a.close == b.close


def test_showers(mixed) -> None:
    train, held = random_showers(mixed, 300, 1), random_showers(mixed, 80, 2)
    for level in ("high", "low"):
        assert memorisation(train, train[:50], held, level=level).copies == 50
        assert memorisation(train, random_showers(mixed, 60, 3), held, level=level).copies == 0


def test_bad_input_is_refused(mixed) -> None:
    x = np.ones((10, 2))
    with pytest.raises(ValueError, match="all alike"):
        closeness(x, x, x)
    with pytest.raises(ValueError, match="expected at least 4"):
        closeness(x, x[:2], x)
    showers = random_showers(mixed, 10)
    with pytest.raises(ValueError, match="got level 'x'"):
        memorisation(showers, showers, showers, level="x")
