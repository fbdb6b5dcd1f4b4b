"""The classifier test: known AUC, null test, DeLong against its slow twin, calibration, random states."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from caloforge.evaluate import classifier


def slow_delong(positive, negative):
    """The definition, pair by pair."""
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    psi, chi = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), psi.var(ddof=1) / len(psi) + chi.var(ddof=1) / len(chi)


def test_delong_by_hand():
    # pairs: 3 > 1, 3 > 2, 2 > 1, 2 = 2: AUC (1 + 1 + 1 + 1/2)/4; psi = (1, 3/4), chi = (1, 3/4)
    auc, variance = classifier.delong(np.array([3.0, 2.0]), np.array([1.0, 2.0]))
    assert auc == pytest.approx(7 / 8)
    assert variance == pytest.approx(2 * (1 / 32) / 2)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=30), st.lists(st.integers(0, 9), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_delong_equals_its_slow_twin(positive, negative):
    a, b = np.array(positive, float), np.array(negative, float)
    np.testing.assert_allclose(classifier.delong(a, b), slow_delong(a, b), atol=1e-12)


def test_delong_error_at_the_null_and_away_from_it():
    rng = np.random.default_rng(0)
    _, variance = classifier.delong(rng.normal(size=3000), rng.normal(size=2000))
    assert np.sqrt(variance) == pytest.approx(np.sqrt((3000 + 2000 + 1) / (12 * 3000 * 2000)), rel=0.05)
    a, b = rng.normal(1, 1, 2000), rng.normal(0, 1, 2000)
    auc, variance = classifier.delong(a, b)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)  # Hanley and McNeil, Radiology 143 (1982)
    hanley = (auc * (1 - auc) + 1999 * (q1 - auc**2) + 1999 * (q2 - auc**2)) / 2000**2
    assert variance == pytest.approx(hanley, rel=0.1)
    experiments = [classifier.delong(rng.normal(1, 1, 2000), rng.normal(0, 1, 2000))[0] for _ in range(300)]
    assert np.sqrt(variance) == pytest.approx(np.std(experiments), rel=0.15)


def test_auc_of_two_gaussians():
    rng = np.random.default_rng(1)
    shift = 1.0
    one = classifier.classify(rng.normal(shift, 1, (2500, 1)), rng.normal(0, 1, (2500, 1)), seed=0, repeats=2, epochs=8)
    assert one.auc == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=3 * one.auc_error)
    assert 0 < one.auc_error < 0.03


def test_divergence_of_two_gaussians():
    rng = np.random.default_rng(2)
    x = np.linspace(-8, 9, 20_001)
    p, q = norm.pdf(x, 1), norm.pdf(x)
    m = 0.5 * (p + q)
    exact = 0.5 * np.sum(p * np.log2(p / m) + q * np.log2(q / m)) * (x[1] - x[0])
    verdict = classifier.classify(rng.normal(1, 1, (4000, 1)), rng.normal(0, 1, (4000, 1)), seed=0, repeats=2, epochs=8)
    assert verdict.jsd == pytest.approx(exact, abs=3 * verdict.jsd_error)


def test_identical_distributions_give_one_half():
    rng = np.random.default_rng(3)
    verdict = classifier.classify(rng.normal(size=(1500, 5)), rng.normal(size=(1500, 5)), seed=0, epochs=5)
    assert verdict.auc == pytest.approx(0.5, abs=3 * verdict.auc_error)
    assert verdict.aucs.shape == (3,)


def test_scaled_inputs_are_white_and_constants_vanish():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)) + 5
    x = np.concatenate([x, np.full((400, 1), 3.0), x[:, :1] + x[:, 1:2]], axis=1)
    z = classifier.scaler(x, True)(x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    covariance = np.cov(z.T, bias=True)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    np.testing.assert_allclose(np.sort(np.diag(covariance)), [0, 0, 1, 1, 1, 1], atol=1e-3)


def test_few_training_showers_are_standardised_only():
    x = np.random.default_rng(9).normal(2, 3, size=(15, 4))
    assert not classifier.can_whiten(12, 4)
    assert classifier.can_whiten(14, 4)
    assert not classifier.can_whiten(10**6, 5000)
    np.testing.assert_allclose(classifier.scaler(x, False)(x), (x - x.mean(axis=0)) / x.std(axis=0), rtol=1e-5)


def test_a_small_shift_of_a_sharp_sum_is_found():
    # eight shares of one energy: their sum is known to 1 %, each share only to a third; shift everything by 1 %
    rng = np.random.default_rng(10)
    shares = rng.dirichlet(np.ones(8), 4000) * rng.normal(1, 0.01, (4000, 1))
    shifted = np.concatenate([shares[:2000], shares[2000:] * 1.01])
    verdict = classifier.classify(shifted[:2000], shifted[2000:], seed=0, repeats=1, epochs=8)
    assert verdict.auc == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=4 * verdict.auc_error)


def test_constant_inputs_and_unequal_sizes():
    rng = np.random.default_rng(4)
    verdict = classifier.classify(np.ones((60, 3)), np.ones((200, 3)), seed=0, repeats=1, epochs=2)
    assert verdict.auc == 0.5
    assert verdict.n == 60
    assert classifier.classify(np.full((60, 1), 7.0), rng.random((60, 1)), seed=0, repeats=1, epochs=2).auc >= 0


def test_same_seed_same_result_and_global_random_states_untouched():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(300, 3)), rng.normal(0.3, 1, size=(300, 3))
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, other = (classifier.classify(a, b, seed=s, repeats=2, epochs=2) for s in (1, 1, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_array_equal(one.aucs, two.aucs)
    assert one.jsd == two.jsd
    assert not np.array_equal(one.aucs, other.aucs)


def test_roc_runs_from_corner_to_corner_and_has_the_area():
    rng = np.random.default_rng(6)
    a, b = rng.normal(1, 1, (2000, 1)), rng.normal(0, 1, (2000, 1))
    verdict = classifier.classify(a, b, seed=0, repeats=1, epochs=3)
    assert verdict.roc[:, 0].tolist() == [0, 0]
    assert verdict.roc[:, -1].tolist() == [1, 1]
    assert np.trapezoid(verdict.roc[1], verdict.roc[0]) == pytest.approx(verdict.auc, abs=0.01)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="got 10 showers of one class"):
        classifier.classify(np.ones((10, 2)), np.ones((100, 2)), seed=0)
    with pytest.raises(ValueError, match="use the same inputs"):
        classifier.classify(np.ones((100, 2)), np.ones((100, 3)), seed=0)
    with pytest.raises(ValueError, match="at least 2 of each class"):
        classifier.delong(np.ones(1), np.ones(5))
    with pytest.raises(ValueError, match="not finite"):
        classifier.classify(np.full((60, 1), np.nan), np.ones((60, 1)), seed=0, repeats=1, epochs=1)
