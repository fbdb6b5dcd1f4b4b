"""Histograms and one-dimensional distances: binning, values known by hand, laws, error coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, entropy, ks_2samp, wasserstein_distance

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


def exact_w1(reference, candidate, weights):
    """W1 of every resampling from F - G at every value: the slow twin."""
    values = np.concatenate([reference, candidate])
    order = np.argsort(values, kind="stable")
    difference = np.cumsum(np.concatenate([weights[0], -weights[1]])[order], axis=0)[:-1]
    return np.diff(values[order]) @ np.abs(difference)


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_resampled_w1_and_ks_are_exact_where_values_are_few(a, b, seed):
    a, b = np.array(a, float), np.array(b, float)
    bootstrap = distances.Bootstrap.draw(len(a), len(b), 2, np.random.default_rng(seed))
    chosen, counts = (a[bootstrap.chosen[0]], b[bootstrap.chosen[1]]), bootstrap.weights
    drawn = [
        [np.repeat(v, (w[:, k] * len(v)).round().astype(int)) for v, w in zip(chosen, counts, strict=True)]
        for k in (0, 1)
    ]
    assert bootstrap.wasserstein(a, b) == pytest.approx([wasserstein_distance(*pair) for pair in drawn], abs=1e-9)
    expected = [distances.ks_distance(*pair) for pair in drawn]
    assert bootstrap.kolmogorov_smirnov(a, b) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", ["normal", "shifted", "long tail", "long lower tail", "cauchy"])
def test_resampled_w1_needs_only_some_nodes(shape):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 3000))
    if shape == "shifted":
        b = b + 0.2
    elif "tail" in shape:
        a, b = (np.exp(2 * v) * (-1 if "lower" in shape else 1) for v in (a, b))
    elif shape == "cauchy":
        a, b = rng.standard_cauchy((2, 3000))
    bootstrap = distances.Bootstrap.draw(3000, 3000, 50, rng)
    expected = exact_w1(a[bootstrap.chosen[0]], b[bootstrap.chosen[1]], bootstrap.weights)
    assert len(bootstrap.differences(a, b)[0]) < 512
    assert bootstrap.wasserstein(a, b).std() == pytest.approx(expected.std(), rel=0.02)


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


def test_total_variation_and_divergences_by_hand():
    # uniform over bins 1 and 2, and over 2 and 3: half of the probability is elsewhere
    p, q = np.array([7, 7, 0]), np.array([0, 4, 4])
    assert distances.total_variation(p, q) == pytest.approx(0.5)
    assert distances.jensen_shannon(p, q) == pytest.approx(0.5)
    disjoint = np.array([3, 0]), np.array([0, 9])
    assert distances.total_variation(*disjoint) == 1
    assert distances.jensen_shannon(*disjoint) == 1
    for distance in (distances.total_variation, distances.jensen_shannon, distances.kullback_leibler):
        assert distance(p, p) == 0
    # p = (3.5, 1.5)/5, q = (1.5, 3.5)/5 with half a count more in each bin; the third is empty in both
    value = distances.kullback_leibler(np.array([3, 1, 0]), np.array([1, 3, 0]))
    assert value == pytest.approx(0.4 * np.log2(7 / 3))
    # uniform on [0, 1] in [0, 2]: 1 bit; the other way round infinite, which the guard makes large
    wide, narrow = np.array([500_000, 500_000]), np.array([1_000_000, 0])
    assert distances.kullback_leibler(narrow, wide) == pytest.approx(1, abs=1e-4)
    assert distances.kullback_leibler(wide, narrow) == pytest.approx(0.5 * np.log2(1e6 / 4 / 0.5), abs=1e-3)


@given(COUNTS, COUNTS)
def test_divergences_equal_scipy_and_keep_their_bounds(a, b):
    p, q = np.array(a), np.array(b)
    jsd, tv = distances.jensen_shannon(p, q), distances.total_variation(p, q)
    assert jsd == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-9)
    assert jsd == pytest.approx(float(distances.jensen_shannon(q, p)))
    assert -1e-12 <= distances.separation(p, q) <= tv + 1e-12
    assert -1e-12 <= jsd <= tv + 1e-12 <= 1 + 2e-12
    filled = p + q > 0
    assert distances.kullback_leibler(p, q) == pytest.approx(entropy(p[filled] + 0.5, q[filled] + 0.5, base=2))


def test_chi2_by_hand():
    # equal totals: sum (n_i - m_i)^2/(n_i + m_i) = 100/30 + 100/30, one degree of freedom; the empty bin does not count
    value, error = distances.chi2(np.array([10, 20, 0]), np.array([20, 10, 0]))
    assert value == pytest.approx(20 / 3)
    assert error == pytest.approx(np.sqrt(2 + 4 * (20 / 3 - 1)))
    assert distances.chi2(np.array([10, 20]), np.array([100, 200])) == pytest.approx((0, np.sqrt(2)))
    assert np.isnan(distances.chi2(np.array([0, 5]), np.array([0, 7]))).all()


@given(COUNTS, COUNTS)
def test_chi2_is_that_of_the_contingency_table(a, b):
    table = np.array([a, b])[:, np.array(a) + np.array(b) > 0]
    if table.shape[1] > 1:
        expected = chi2_contingency(table, correction=False)
        assert distances.chi2(np.array(a), np.array(b))[0] == pytest.approx(expected.statistic / expected.dof)


def test_chi2_of_samples_that_agree_is_1_however_few_showers():
    rng = np.random.default_rng(6)
    both = np.array([1, 2, 3, 40, 2])
    deals = rng.multivariate_hypergeometric(both, 12, size=20_000)
    values = [distances.chi2(deal, both - deal)[0] for deal in deals]
    assert np.mean(values) == pytest.approx(48 / 47, abs=4 * np.std(values) / np.sqrt(20_000))


def test_ks_by_hand():
    bootstrap = distances.Bootstrap.draw(4, 2, 10, np.random.default_rng(0))
    # F is 1/2 and G 0 between 1 and 2
    assert distances.kolmogorov_smirnov(np.array([0.0, 1, 2, 3]), np.array([2.0, 2]), bootstrap)[0] == 0.5
    assert distances.ks_distance(np.zeros(3), np.ones(2)) == 1
    assert distances.ks_distance(np.ones(3), np.ones(2)) == 0
    grid = (np.arange(10_000) + 0.5) / 10_000  # uniform on [0, 1] and on [0.3, 1.3]
    assert distances.ks_distance(grid, grid + 0.3) == pytest.approx(0.3, abs=1e-3)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.lists(st.integers(0, 9), min_size=2, max_size=40))
def test_ks_and_its_p_value_equal_scipy(a, b):
    expected = ks_2samp(a, b, method="asymp")
    value = distances.ks_distance(np.array(a), np.array(b))
    assert value == pytest.approx(expected.statistic)
    assert distances.ks_p_value(value, len(a), len(b)) == pytest.approx(expected.pvalue, abs=1e-9)


def test_ks_error_is_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(7)
    experiments = [(rng.random(1500), rng.random(1000) + 0.2) for _ in range(200)]
    bootstrap = distances.Bootstrap.draw(1500, 1000, 200, rng)
    value, error = distances.kolmogorov_smirnov(*experiments[0], bootstrap)
    true = np.std([distances.ks_distance(*pair) for pair in experiments])
    assert value == pytest.approx(0.2, abs=5 * true)
    assert error == pytest.approx(true, rel=0.3)


def test_errors_of_histogram_distances_are_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(8)
    p, q = np.array([0.2, 0.5, 0.2, 0.1]), np.array([0.3, 0.4, 0.15, 0.15])
    experiments = [(rng.multinomial(2000, p), rng.multinomial(1000, q)) for _ in range(300)]
    measured = [distances.histogram_distances(*pair, 100, rng) for pair in experiments]
    assert set(measured[0]) == {"separation", "total_variation", "kullback_leibler", "jensen_shannon", "chi2"}
    for name in measured[0]:
        values, errors = np.array([m[name] for m in measured]).T
        assert errors.mean() == pytest.approx(values.std(), rel=0.15), name
