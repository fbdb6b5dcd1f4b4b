"""FPD, KPD, sliced Wasserstein and mean KS: values known by hand, slow twins, the numbers of jetnet, errors."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import curve_fit
from scipy.stats import wasserstein_distance

from caloforge.evaluate import multivariate

METRICS = [multivariate.fpd, multivariate.kpd, multivariate.sliced_wasserstein, multivariate.mean_ks]


@pytest.fixture(scope="module")
def gaussians():
    """Three samples of 10 independent features, means 0, 0.05 and 0: those of the jetnet numbers."""
    rng = np.random.default_rng(0)
    return [rng.normal(mean, 1, (50_000, 10)) for mean in (0, 0.05, 0)]


def moments(sample):
    return sample.mean(axis=0), np.cov(sample, rowvar=False)


def slow_mmd2(x, y):
    """The definition: kernel of all pairs, without the diagonals."""
    kernel = [(a @ b.T / x.shape[1] + 1) ** 4 for a, b in ((x, x), (y, y), (x, y))]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    return sum(within) - 2 * kernel[2].mean()


def test_frechet_distance_by_hand():
    # independent features: sum of (mu_x - mu_y)^2 + (sigma_x - sigma_y)^2
    value = multivariate.frechet(np.array([0.0, 1]), np.diag([1.0, 4]), np.array([3.0, 1]), np.diag([9.0, 16]))
    assert value == pytest.approx(9 + 4 + 4)
    # one sample along (1, 1), the other along (1, 0): Tr C_x = 2, Tr C_y = 1, Tr (C_x C_y)^1/2 = 1
    along = np.ones((2, 2)), np.diag([1.0, 0])
    assert multivariate.frechet(np.zeros(2), along[0], np.zeros(2), along[1]) == pytest.approx(2 + 1 - 2)
    assert multivariate.frechet(np.zeros(2), np.zeros((2, 2)), np.ones(2), np.zeros((2, 2))) == 2


def test_frechet_distance_equals_its_slow_twin_and_has_no_floor_of_rounding():
    rng = np.random.default_rng(1)
    x, y = moments(rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8))), moments(rng.normal(size=(60, 8)))
    expected = ((x[0] - y[0]) ** 2).sum() + np.trace(x[1] + y[1] - 2 * sqrtm(x[1] @ y[1]).real)
    assert multivariate.frechet(*x, *y) == pytest.approx(expected)
    flat = moments(rng.normal(size=(500, 3)) @ rng.normal(size=(3, 40)))  # rank 3 of 40
    assert multivariate.frechet(*flat, *flat) == pytest.approx(0, abs=1e-12 * np.trace(flat[1]))


def test_drawn_moments_are_those_of_the_drawn_showers():
    sample = np.random.default_rng(2).normal(5, 1, (30, 4))
    drawn = sample[np.random.default_rng(3).choice(30, 100)]
    got = multivariate._drawn_moments(sample, 100, np.random.default_rng(3))
    for value, expected in zip(got, moments(drawn), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-12)


def test_line_by_hand_and_as_scipy_fits_it():
    x = 1 / np.linspace(10_000, 50_000, 10)
    assert multivariate._intercept(x, 2 + 3 * x, False) == pytest.approx((2, 0), abs=1e-12)
    y = 1e-3 + 4 * x + 1e-5 * np.sin(1e6 * x)
    expected = curve_fit(lambda x, a, b: a + b * x, x, y)  # no bound is met
    got = multivariate._intercept(x, y, False)
    assert got == pytest.approx((expected[0][0], np.sqrt(expected[1][0, 0])), rel=1e-5)
    assert multivariate._intercept(x, 4 * x - 1e-4, False)[0] == 0
    assert multivariate._intercept(x, 1 - x, False)[0] == pytest.approx(np.mean(1 - x))


def test_fpd_is_that_of_jetnet(gaussians):
    x, y, z = gaussians
    value, error = multivariate.fpd(x, y, seed=42, smallest=20_000, as_published=True)
    assert (value, error) == pytest.approx((0.0014254, 5.2e-5), abs=1e-6)
    value, error = multivariate.fpd(x, z, seed=42, smallest=20_000, as_published=True)
    assert (value, error) == pytest.approx((1.60e-4, 3.4e-5), abs=1e-6)


def test_fpd_is_the_frechet_distance_of_the_samples(gaussians):
    x, y, _ = gaussians
    scale = np.abs(x).max(axis=0)
    exact = multivariate.frechet(*moments(x / scale), *moments(y / scale))
    value, error = multivariate.fpd(x, y, seed=0, n_draws=10)
    assert value == pytest.approx(exact, abs=4 * error)
    assert error < 0.05 * exact
    # of the Gaussians themselves: sum of (0.05 / largest)^2
    assert value == pytest.approx((0.0025 / scale**2).sum(), rel=0.15)


def test_fpd_sizes_are_those_of_the_challenge_for_large_samples_and_follow_small_ones(gaussians):
    x, y, _ = (sample[:, :2] for sample in gaussians)
    few = {"seed": 1, "n_draws": 2, "n_sizes": 3}
    assert multivariate.fpd(x, y, **few) == multivariate.fpd(x, y, smallest=10_000, **few)
    small = multivariate.fpd(x[:1000], y[:500], **few)
    assert small == multivariate.fpd(x[:1000], y[:500], smallest=100, largest=500, **few)


def test_kpd_is_that_of_jetnet(gaussians):
    x, y, z = gaussians
    value, error = multivariate.kpd(x, y, seed=42, batch=5000)
    assert (value, error) == pytest.approx((4.564e-4, 1.17e-4), abs=1e-6)
    value, error = multivariate.kpd(x, z, seed=42, batch=5000)
    assert value == pytest.approx(8e-8, abs=1e-8)
    assert error == pytest.approx(3.9e-5, abs=1e-6)


def test_kpd_by_hand():
    # kernel (xy + 1)^4: mean over pairs 8 for x = +-1, 1 for y = 0, 1 across: 8 + 1 - 2
    x, y = np.tile([1.0, -1], 1000)[:, None], np.zeros((2000, 1))
    value, error = multivariate.kpd(x, y, seed=0)
    assert value == pytest.approx(7, abs=0.01)
    assert error < 0.02


@pytest.mark.parametrize("block", [50, 1000, 2**19])
def test_mmd2_equals_its_slow_twin(monkeypatch, block):
    monkeypatch.setattr(multivariate, "BLOCK", block)
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(37, 3)), rng.normal(0.5, 1, (21, 3))
    counts = rng.integers(0, 3, (37, 2)), rng.integers(0, 3, (21, 2))
    expected = [slow_mmd2(np.repeat(x, counts[0][:, k], 0), np.repeat(y, counts[1][:, k], 0)) for k in (0, 1)]
    np.testing.assert_allclose(multivariate.mmd2(x, y, *counts), expected)


def test_kpd_of_small_and_large_samples_takes_batches_of_the_same_kind():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(300, 2)), rng.normal(0.3, 1, (200, 2))
    scale = np.abs(x).max(axis=0)
    for size in (20, 500):  # batches one by one; all at once, and no larger than the smaller sample
        expected = []
        for index in range(5):
            draws = np.random.default_rng(9 + 1000 * index)
            rows = [draws.choice(len(s), min(size, 200)) for s in (x, y)]
            expected.append(slow_mmd2(x[rows[0]] / scale, y[rows[1]] / scale))
        value, _ = multivariate.kpd(x, y, seed=9, batch=size, n_batches=5)
        assert value == pytest.approx(np.median(expected))


@pytest.mark.parametrize(("n_features", "mean_cosine"), [(1, 1), (2, 2 / np.pi), (3, 1 / 2)])
def test_sliced_wasserstein_of_a_shift_by_hand(n_features, mean_cosine):
    # x.t and y.t differ by the shift times the cosine between t and the shifted axis
    x = np.random.default_rng(6).normal(7, 3, (2000, n_features))
    shift = np.eye(n_features)[0] * 2 * np.std(x[:, 0])
    value, error = multivariate.sliced_wasserstein(x, x + shift, seed=0)
    assert value == pytest.approx(2 * mean_cosine, abs=4 * error)
    assert error < 0.2


def test_sliced_wasserstein_of_constant_features():
    x, y = np.random.default_rng(7).normal(size=(2, 500, 1))
    one, error = multivariate.sliced_wasserstein(x, y, seed=0)
    assert one == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]) / x.std())
    assert error > 0
    constant = np.ones((500, 1))
    assert multivariate.sliced_wasserstein(constant, constant, seed=0) == (0, 0)
    # constants that differ: two standard deviations of both together
    assert multivariate.sliced_wasserstein(constant, 3 * constant, seed=0)[0] == pytest.approx(2)


def test_mean_ks_by_hand():
    grid = (np.arange(5000) + 0.5) / 5000  # uniform on [0, 1]; moved by 0.3, unchanged, and constant
    x = np.stack([grid, grid, np.ones(5000)], axis=1)
    value, error = multivariate.mean_ks(x, x + np.array([0.3, 0, 0]), seed=0)
    assert value == pytest.approx(0.1, abs=1e-3)
    assert 0 < error < 0.01


@pytest.mark.parametrize("metric", [multivariate.sliced_wasserstein, multivariate.mean_ks])
def test_errors_are_the_spread_of_repeated_experiments(metric):
    rng = np.random.default_rng(8)
    mix = np.array([[1.0, 0, 0.8], [0, 1, 0.6]])  # three correlated features
    results = []
    settings = {"n_directions": 20} if metric is multivariate.sliced_wasserstein else {}
    for _ in range(60):
        pair = rng.normal(size=(2, 400, 2)) @ mix
        results.append(metric(pair[0], pair[1] + 0.2, seed=0, n_bootstrap=50, **settings))
    values, errors = np.array(results).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.35)


@pytest.mark.parametrize("metric", METRICS)
def test_same_seed_same_number_and_no_global_state(metric):
    x, y = np.random.default_rng(9).normal(size=(2, 200, 3))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sequence = np.random.SeedSequence(1)
    assert metric(x, y, seed=sequence) == metric(x, y, seed=sequence)
    assert metric(x, y, seed=1) == metric(x, y, seed=1) != metric(x, y, seed=2)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("metric", METRICS)
def test_samples_that_cannot_be_compared_are_refused(metric):
    x = np.random.default_rng(10).normal(size=(100, 3))
    with pytest.raises(ValueError, match=r"got features of shapes .* use the same for both"):
        metric(x, x[:, :2], seed=0)
    with pytest.raises(ValueError, match="got features of shapes"):
        metric(x[:, 0], x[:, 0], seed=0)
    with pytest.raises(ValueError, match="got 9 candidate showers, expected at least 10; give more showers"):
        metric(x, x[:9], seed=0)
    with pytest.raises(ValueError, match="got candidate features that are not finite"):
        metric(x, np.where(x == x.max(), np.nan, x), seed=0)


def test_settings_that_make_no_sense_are_refused():
    x = np.random.default_rng(11).normal(size=(100, 30))
    with pytest.raises(ValueError, match=r"got 100 reference showers, expected at least 155 = 5 \(F \+ 1\)"):
        multivariate.fpd(x, x, seed=0)
    with pytest.raises(ValueError, match="expected 30 features < smallest < largest; change them"):
        multivariate.fpd(x, x, seed=0, smallest=30)
    with pytest.raises(ValueError, match="got 2 sizes"):
        multivariate.fpd(x[:, :2], x[:, :2], seed=0, n_sizes=2)
    with pytest.raises(ValueError, match="got 1 batches of 100 showers"):
        multivariate.kpd(x, x, seed=0, n_batches=1)
    with pytest.raises(ValueError, match="got 1 directions"):
        multivariate.sliced_wasserstein(x, x, seed=0, n_directions=1)
    with pytest.raises(ValueError, match="got 1 resamplings"):
        multivariate.mean_ks(x, x, seed=0, n_bootstrap=1)


def test_constant_features_do_not_disturb():
    x, y = np.random.default_rng(12).normal(size=(2, 400, 2))
    constant = np.tile([0.0, 3.0], (400, 1))
    padded = [np.concatenate([sample, constant], axis=1) for sample in (x, y)]
    assert multivariate.fpd(*padded, seed=0, smallest=80, largest=400) == pytest.approx(
        multivariate.fpd(x, y, seed=0, smallest=80, largest=400), abs=1e-9
    )
    assert np.isfinite(multivariate.kpd(*padded, seed=0)).all()
