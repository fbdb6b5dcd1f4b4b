"""The classifier test: known AUC, null test, DeLong against its slow twin, calibration, random states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from caloforge.evaluate import classifier, networks


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


# the configuration: networks and settings of the CaloChallenge

CHALLENGE, RESNET = classifier.CHALLENGE, classifier.CHALLENGE_RESNET
SMALL = {
    "standard": (classifier.STANDARD, None),
    "challenge": (replace(CHALLENGE, width=64, learning_rate=1e-3, batch=100), None),
    "resnet": (replace(RESNET, width=4, learning_rate=1e-3, batch=50), (2, 3, 3)),
}
SETTINGS = {"repeats": 2, "epochs": 4}


def images(n, shift, seed):
    """A column of incident energies and 18 voxels of unit width, whose means lie ``shift`` along the diagonal."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(3, 6, (n, 1)), rng.normal(shift / np.sqrt(18), 1, (n, 18))], axis=1)


@pytest.mark.parametrize("network", SMALL)
def test_every_network_finds_the_auc_of_two_gaussians(network):
    config, shape = SMALL[network]
    shift, n = 1.5, 1200 if network == "resnet" else 2500
    a, b = images(n, shift, 1), images(n, 0, 2)
    verdict = classifier.classify(a, b, seed=0, config=config, shape=shape, **SETTINGS)
    best = norm.cdf(shift / np.sqrt(2))
    slack = 0.03 if network == "resnet" else 0  # it has to find out that all voxels count alike
    assert best - slack - 3 * verdict.auc_error < verdict.auc < best + 3 * verdict.auc_error


@pytest.mark.parametrize("network", SMALL)
def test_every_network_gives_one_half_for_identical_distributions(network):
    config, shape = SMALL[network]
    verdict = classifier.classify(images(900, 0, 3), images(900, 0, 4), seed=1, config=config, shape=shape, **SETTINGS)
    assert verdict.auc == pytest.approx(0.5, abs=3 * verdict.auc_error)
    assert verdict.jsd == pytest.approx(0, abs=3 * verdict.jsd_error)


def test_challenge_settings_by_number():
    assert (CHALLENGE.network, CHALLENGE.width, CHALLENGE.repeats, CHALLENGE.epochs) == ("challenge", 2048, 10, 50)
    assert (CHALLENGE.learning_rate, CHALLENGE.batch, CHALLENGE.dtype) == (2e-4, 1000, "float64")
    assert (CHALLENGE.scale, CHALLENGE.keep, CHALLENGE.quote) == ("none", "accuracy", "calibrated")
    assert (RESNET.network, RESNET.width, RESNET.dtype, RESNET.epochs) == ("resnet", 32, "float64", 50)
    cuts = [classifier._cuts(CHALLENGE, n).tolist() for n in (121_000, 120_800, 100_000, 1000)]
    assert np.diff(cuts, prepend=0).tolist() == [
        [80_000, 20_000, 21_000], [80_000, 20_000, 20_800], [60_000, 20_000, 20_000], [600, 200, 200],
    ]  # fmt: skip
    assert classifier._cuts(classifier.STANDARD, 121_000).tolist() == [72_600, 96_800, 121_000]


def test_challenge_settings_are_honoured(monkeypatch):
    seen, create = [], networks.create

    def spied(*arguments):
        net = create(*arguments)
        net.register_forward_pre_hook(lambda module, given: seen.append((module.training, given[0].clone())))
        return net

    monkeypatch.setattr(networks, "create", spied)
    monkeypatch.setattr(classifier, "scaler", None)  # never called
    monkeypatch.setitem(classifier.OFFICIAL_SPLITS, 700, (600, 60))
    rng = np.random.default_rng(5)
    a, b = rng.normal(100, 1, (700, 2)), rng.normal(100.5, 1, (900, 2))
    config = replace(CHALLENGE, width=8, chunk=50)
    verdict = classifier.classify(a, b, seed=0, config=config, repeats=3, epochs=2)
    steps = [x for training, x in seen if training]
    assert {x.dtype for _, x in seen} == {torch.float64}
    assert [len(x) for x in steps] == [1000, 200] * 2 * 3  # 2 x 600 showers in batches of 1000, 2 epochs, 3 trainings
    assert set(np.concatenate(steps[:2])[:, 0]) <= {*a[:, 0], *b[:, 0]}  # inputs as they are
    assert max(len(x) for training, x in seen if not training) == 50
    assert [len(v) for v in (*verdict.index, *verdict.scores, *verdict.probabilities)] == [40] * 6
    assert not verdict.whitened
    assert (verdict.n, verdict.n_train, verdict.aucs.shape) == (700, 600, (3,))
    assert (verdict.config.epochs, verdict.config.repeats, verdict.config.width) == (2, 3, 8)


def test_mean_spread_and_delong_error_of_the_trainings():
    a, b = images(300, 0.5, 6), images(300, 0, 7)
    verdict = classifier.classify(a, b, seed=0, config=replace(CHALLENGE, width=16), repeats=3, epochs=2)
    auc, variance = classifier.delong(*verdict.probabilities)  # quoted from calibrated probabilities
    assert verdict.aucs[0] == auc
    assert verdict.auc == pytest.approx(verdict.aucs.mean())
    assert verdict.std == pytest.approx(np.std(verdict.aucs))
    assert verdict.delong == pytest.approx(np.sqrt(variance), rel=0.2)
    assert verdict.auc_error == pytest.approx(np.hypot(verdict.delong, np.std(verdict.aucs, ddof=1)))
    standard = classifier.classify(a, b, seed=0, repeats=1, epochs=2)
    assert standard.aucs[0] == classifier.delong(*standard.scores)[0]  # quoted from logits
    assert standard.std == 0


@pytest.mark.parametrize("config", [classifier.STANDARD, replace(CHALLENGE, width=32, learning_rate=1e-2)])
def test_scores_belong_to_the_showers_of_the_index(config):
    rng = np.random.default_rng(8)
    a, b = rng.normal(1, 1, (400, 1)), rng.normal(0, 1, (500, 1))
    verdict = classifier.classify(a, b, seed=0, config=config, repeats=2, epochs=6)
    for sample, index, scores, probabilities in zip(
        (a, b), verdict.index, verdict.scores, verdict.probabilities, strict=True
    ):
        assert len(np.unique(index)) == len(index) == len(scores) == 80
        assert (np.diff(scores[np.argsort(sample[index, 0])]) > -0.2).all()  # the logit rises with the feature
        assert np.corrcoef(sample[index, 0], scores)[0, 1] > 0.9
        assert (np.diff(probabilities[np.argsort(scores)]) >= 0).all()
        assert 1e-6 <= probabilities.min() <= probabilities.max() <= 1 - 1e-6


def test_accuracy_keeps_its_epoch_and_ends_a_perfect_training(monkeypatch):
    epochs, quality = [], classifier._quality
    monkeypatch.setattr(classifier, "_quality", lambda *a: epochs.append(quality(*a)) or epochs[-1])
    rng = np.random.default_rng(9)
    a, b = rng.normal(50, 1, (300, 1)), rng.normal(-50, 1, (300, 1))
    verdict = classifier.classify(a, b, seed=0, config=replace(CHALLENGE, width=16), repeats=1, epochs=30)
    assert len(epochs) < 30
    assert epochs[-1] == (1.0, True)
    assert verdict.auc == 1
    logits, labels = torch.tensor([1.0, -1.0, 2.0, -3.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert quality(logits, labels, "accuracy") == (0.5, True)
    assert quality(logits, labels, "loss")[0] == pytest.approx(
        -float(torch.log1p((-logits * (2 * labels - 1)).exp()).mean())
    )
    assert not quality(logits / 0, labels, "accuracy")[1]


def test_one_shower_left_over_does_not_stop_a_resnet():
    config, shape = replace(SMALL["resnet"][0], batch=29), (2, 3, 3)
    a, b = images(25, 0, 10), images(25, 0, 11)  # 30 training showers: 29 + 1
    verdict = classifier.classify(a, b, seed=0, config=config, shape=shape, repeats=1, epochs=1)
    assert 0 <= verdict.auc <= 1


def test_bfloat16_agrees_with_float32():
    a, b = images(1000, 1.5, 12), images(1000, 0, 13)
    config = replace(SMALL["challenge"][0], dtype="float32")
    full, half = (
        classifier.classify(a, b, seed=0, config=replace(config, bf16=on), **SETTINGS) for on in (False, True)
    )
    assert half.auc == pytest.approx(full.auc, abs=0.01)
    assert not np.array_equal(half.scores[0], full.scores[0])


def test_learning_curve_rises_and_keeps_its_test_split():
    a, b = images(1500, 1.5, 14), images(1500, 0, 15)
    seed = np.random.SeedSequence(3)
    curve = classifier.learning_curve(a, b, [900, 12, 100], seed=seed, repeats=2, epochs=3)
    assert list(curve) == [12, 100, 900]
    assert [v.n_train for v in curve.values()] == [12, 100, 900]
    assert len({v.index[0].tobytes() for v in curve.values()}) == 1
    assert not any(v.whitened for v in curve.values())  # 12 showers are too few for 19 inputs
    assert curve[12].auc + curve[12].auc_error < curve[900].auc
    whole = classifier.classify(a, b, seed=np.random.SeedSequence(3), repeats=2, epochs=3, whiten=False)
    np.testing.assert_array_equal(curve[900].aucs, whole.aucs)
    assert seed.n_children_spawned == 0


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="got network 'cnn', expected one of standard, challenge, resnet"):
        classifier.ClassifierConfig(network="cnn")
    with pytest.raises(ValueError, match="got epochs 0, expected at least 1"):
        classifier.classify(np.ones((30, 2)), np.ones((30, 2)), seed=0, epochs=0)
    with pytest.raises(ValueError, match="got bf16 with dtype float64, expected float32"):
        replace(CHALLENGE, bf16=True)
    with pytest.raises(ValueError, match="use 'standardise' or 'none'"):
        classifier.ClassifierConfig(network="resnet")
    with pytest.raises(ValueError, match="got 31 training showers, expected 1 to 30 of 50 per class"):
        classifier.classify(np.ones((50, 2)), np.ones((50, 2)), seed=0, n_train=31)
    with pytest.raises(ValueError, match=r"got sizes \[\], expected numbers of training showers"):
        classifier.learning_curve(np.ones((50, 2)), np.ones((50, 2)), [], seed=0)
