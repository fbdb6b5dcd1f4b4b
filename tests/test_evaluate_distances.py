"""Histograms and one-dimensional distances: binning, values known by hand, laws, error coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from caloforge.evaluate import distances, histograms

COUNTS = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


def test_bins_lie_between_the_quantiles_and_nothing_is_lost():
    values = np.random.default_rng(0).normal(size=20_000)
    edges = histograms.binning(values)
    assert len(edges) == histograms.N_BINS + 1
    assert np.quantile(values, [0.001, 0.999]) == pytest.approx(edges[[0, -1]])
    counts = histograms.fill(np.concatenate([values, [-1e9, 1e9]]), edges)
    assert counts.sum() == len(values) + 2
    assert counts[0] == pytest.approx(21, abs=1)
    assert counts[-1] == pytest.approx(21, abs=1)


def test_wide_positive_values_get_logarithmic_bins():
    edges = histograms.binning(10 ** np.random.default_rng(0).uniform(0, 4, 20_000))
    assert np.diff(np.log(edges)) == pytest.approx(np.diff(np.log(edges))[0])


def test_discrete_values_get_bins_of_their_own():
    edges = histograms.binning(np.array([0.0, 1, 1, 3]))
    counts = histograms.fill(np.array([0.0, 1, 1, 2, 3, 4]), edges)
    assert counts.tolist() == [0, 1, 0, 2, 1, 1, 1]
    assert histograms.drawing_edges(np.array([0.0, 1, 3])) == pytest.approx([-0.5, 0.5, 2, 4])


def test_lattice_values_get_whole_steps():
    values = np.random.default_rng(0).binomial(144, 0.5, 5000) / 144
    edges = histograms.binning(np.concatenate([values, np.arange(145) / 144]))
    width = np.diff(edges) * 144
    assert width == pytest.approx(round(width[0]))
    assert edges[0] * 144 % 1 == pytest.approx(0.5)


def test_a_constant_is_told_from_anything_else():
    edges = histograms.binning(np.full(10, 2.0))
    assert histograms.fill(np.array([2.0]), edges).tolist() == [0, 1, 0]
    assert histograms.fill(np.array([1.9, 2.1]), edges).tolist() == [1, 0, 1]
    assert histograms.binning(np.zeros(3)).shape == (2,)
    assert len(histograms.drawing_edges(np.zeros(3))) == 2


def test_mostly_one_value_with_a_tail_can_be_binned():
    values = np.concatenate([np.zeros(100_000), np.random.default_rng(0).random(80)])
    assert np.all(np.diff(histograms.binning(values)) > 0)


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [np.inf]])
def test_values_that_cannot_be_binned_are_refused(values):
    with pytest.raises(ValueError, match="expected numbers; check the showers"):
        histograms.binning(np.array(values))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80), st.lists(st.floats(-1e7, 1e7), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_every_value_falls_into_exactly_one_bin(reference, candidate):
    edges = histograms.binning(np.array(reference))
    assert np.all(np.diff(edges) > 0)
    counts = histograms.fill(np.array(candidate), edges)
    assert counts.shape == (len(edges) + 1,)
    assert counts.sum() == len(candidate)


def test_separation_by_hand():
    assert distances.separation(np.array([5, 5]), np.array([1, 1])) == 0
    assert distances.separation(np.array([5, 0]), np.array([0, 2])) == 1
    # p = (1/2, 1/2), q = (1, 0): 1/2 (1/4 / (3/2) + 1/4 / (1/2)) = 1/3
    assert distances.separation(np.array([3, 3]), np.array([4, 0])) == pytest.approx(1 / 3)


@given(COUNTS, COUNTS)
def test_separation_is_symmetric_and_between_0_and_1(a, b):
    one, other = (float(distances.separation(np.array(x), np.array(y))) for x, y in ((a, b), (b, a)))
    assert one == pytest.approx(other)
    assert -1e-12 <= one <= 1 + 1e-12


def test_separation_error_is_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(1)
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.4, 0.2])
    experiments = [(rng.multinomial(2000, p), rng.multinomial(1000, q)) for _ in range(300)]
    true = np.std([distances.separation(a, b) for a, b in experiments])
    _, error = distances.separation_power(*experiments[0], 300, rng)
    assert error == pytest.approx(true, rel=0.25)


def test_w1_by_hand():
    # reference 0 and 2, candidate 1 and 3, std 1: every half of the mass moves by 1
    bootstrap = distances.Bootstrap.draw(2, 2, 10, np.random.default_rng(0))
    value, _ = distances.wasserstein(np.array([0.0, 2]), np.array([1.0, 3]), bootstrap, 1.0)
    assert value == pytest.approx(1)


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_weighted_w1_equals_scipy(a, b, seed):
    rng = np.random.default_rng(seed)
    wa, wb = rng.random(len(a)) + 0.1, rng.random(len(b)) + 0.1
    expected = wasserstein_distance(a, b, wa, wb)
    got = distances.weighted_wasserstein(
        np.array(a, float), np.array(b, float), (wa[:, None] / wa.sum(), wb[:, None] / wb.sum())
    )
    assert got == pytest.approx([expected], abs=1e-9)


def test_w1_error_is_the_spread_of_repeated_experiments_also_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(distances, "MOST", 500)
    rng = np.random.default_rng(2)
    experiments = [(rng.normal(size=2000), rng.normal(0.5, 1, size=1000)) for _ in range(200)]
    true = np.std([wasserstein_distance(a, b) for a, b in experiments])
    bootstrap = distances.Bootstrap.draw(2000, 1000, 200, rng)
    value, error = distances.wasserstein(*experiments[0], bootstrap, 1.0)
    assert value == pytest.approx(0.5, abs=5 * true)
    assert error == pytest.approx(true, rel=0.3)


def test_w1_of_constants():
    bootstrap = distances.Bootstrap.draw(5, 5, 10, np.random.default_rng(0))
    ones = np.ones(5)
    assert distances.wasserstein(ones, ones, bootstrap, distances.spread(ones)) == (0, 0)
    assert np.isnan(distances.wasserstein(ones, 2 * ones, bootstrap, distances.spread(ones))).all()
    assert distances.spread(np.full(1000, 0.1) + np.tile([0, 1e-17], 500)) == 0


def test_response_scores_by_hand():
    reference, candidate = np.array([0.8, 1.2]), np.array([0.9, 1.3])
    assert distances.relative_mean(reference, candidate)[0] == pytest.approx(0.1)
    assert distances.relative_width(reference, 2 * reference)[0] == pytest.approx(1.0)
    assert distances.mean_difference(reference, candidate)[0] == pytest.approx(0.1)
    rng = np.random.default_rng(0)
    assert distances.relative_core_width(reference, 2 * reference, 20, rng)[0] == pytest.approx(1.0)
    normal = np.append(rng.normal(size=20_000), np.full(20, 1e3))  # twenty outliers do not matter
    value, error = distances.relative_core_width(rng.normal(size=20_000), normal, 50, rng)
    assert abs(value) < 4 * error < 0.1
    assert np.isnan(distances.relative_core_width(np.ones(3), candidate, 2, rng)).all()
    assert np.isnan(distances.relative_mean(np.zeros(3), candidate)).all()
    assert np.isnan(distances.relative_width(np.ones(3), candidate)).all()
    assert distances.relative_width(reference, np.ones(3))[0] == -1


@pytest.mark.parametrize("metric", [distances.relative_mean, distances.relative_width, distances.mean_difference])
def test_propagated_errors_are_the_spread_of_repeated_experiments(metric):
    rng = np.random.default_rng(3)
    results = np.array([metric(rng.gamma(9, 1 / 9, 500), rng.gamma(4, 1 / 4, 800)) for _ in range(300)])
    assert results[:, 1].mean() == pytest.approx(results[:, 0].std(), rel=0.2)
