"""Weights: analytic weights of two Gaussians, their sizes and tails, calibration, reweighting down to AUC 0.5."""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from caloforge import io
from caloforge.evaluate import classifier, weights
from caloforge.evaluate.observables import observables
from caloforge.evaluate.reweight import fresh_auc, reweight
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers

SHIFT = 0.8  # of the reference, in standard deviations: ln w = SHIFT x - SHIFT^2/2


def gaussians(n: int, seed: int = 0, shift: float = SHIFT) -> tuple[weights.Pair, weights.Pair]:
    """Values of reference and candidate, and their exact ln w."""
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1, n), rng.normal(0, 1, n)
    return x, (shift * x[0] - shift**2 / 2, shift * x[1] - shift**2 / 2)


def box(n: int, seed: int, slope: float = 0.0) -> Showers:
    """Showers of 4 x 4 cells; the response, normal with a width of 10 %, is ``slope`` widths too high."""
    rng = np.random.default_rng(seed)
    geometry = Geometry("box", (Layer("cartesian", regular(-20, 20, 4), regular(-20, 20, 4)),))
    incident = Incident(rng.uniform(1e3, 2e3, n))
    share = rng.dirichlet(np.full(16, 20.0), n)
    response = 0.8 * (1 + 0.1 * (rng.normal(size=n) + slope))
    return Showers(geometry, incident, share * (incident.energy * np.maximum(response, 0.1))[:, None], None, {"a": 1})


# --- calibration


def test_temperature_of_exact_and_of_too_sure_scores() -> None:
    _, log_w = gaussians(20_000)
    assert weights.temperature(log_w) == pytest.approx(1, abs=0.06)
    assert weights.temperature((3 * log_w[0], 3 * log_w[1])) == pytest.approx(3 * weights.temperature(log_w), rel=1e-6)


def test_temperature_is_the_minimum_of_the_loss() -> None:
    (p, q), _ = gaussians(300)
    scores = 2 * p - 0.3, 2 * q - 0.3

    def loss(t: float) -> float:
        return float(np.logaddexp(0, -scores[0] / t).mean() + np.logaddexp(0, scores[1] / t).mean())

    t = weights.temperature(scores)
    assert loss(t) <= min(loss(0.99 * t), loss(1.01 * t))


def test_scores_that_know_nothing_give_weights_of_one() -> None:
    s = np.random.default_rng(0).normal(size=100)
    assert weights.temperature((s, s + 1)) == np.inf  # the wrong way round
    for log_w in weights.log_weights((s, s + 1), (s, s + 1)):
        np.testing.assert_array_equal(np.exp(log_w), 1)
    assert weights.temperature((s * 0 + 1, s * 0 - 1)) == weights.COLDEST  # nothing to learn: separated


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_calibrated_weights_are_the_exact_ones(method: str) -> None:
    _, exact = gaussians(20_000)
    _, other = gaussians(20_000, seed=1)
    scores, calibration = [(2.5 * a, 2.5 * b) for a, b in (exact, other)]
    for log_w in (weights.log_weights(scores, calibration, method=method), weights.log_weights(scores, method=method)):
        bulk = np.abs(exact[1]) < 2
        assert np.abs(log_w[1] - exact[1])[bulk].mean() < 0.1
        diagnosis = weights.diagnostics(log_w)
        for name in ("mean_weight", "mean_inverse"):
            value, error = diagnosis[name]
            assert value == pytest.approx(1, abs=4 * error + 0.02), name
        curve = weights.reliability(weights.probabilities(log_w))
        assert curve.chi2 / curve.ndf < 2.5


def test_the_reliability_curve_finds_scores_that_are_too_sure() -> None:
    _, log_w = gaussians(5000)
    right, wrong = (weights.reliability(weights.probabilities((k * log_w[0], k * log_w[1]))) for k in (1, 2))
    assert right.ndf == wrong.ndf == 10
    assert right.chi2 / right.ndf < 2
    assert wrong.chi2 / wrong.ndf > 10
    np.testing.assert_allclose(right.n, 1000, atol=1)
    np.testing.assert_allclose(right.observed, right.predicted, atol=4 * right.error.max())
    constant = weights.reliability((np.full(5, 0.5), np.full(9, 0.5)))
    assert (constant.observed.tolist(), constant.ndf) == (pytest.approx([0.5]), 1)
    assert constant.chi2 == pytest.approx(0)


def test_the_chi2_of_the_reliability_curve_has_its_expectation() -> None:
    chi2 = []
    for seed in range(100):
        curve = weights.reliability(weights.probabilities(gaussians(500, seed=seed)[1]))
        chi2.append(curve.chi2 / curve.ndf)
    assert np.mean(chi2) == pytest.approx(1, abs=0.15)


# --- what the weights say


def test_divergence_tails_and_size_of_two_gaussians() -> None:
    _, log_w = gaussians(20_000)
    found = weights.diagnostics(log_w)
    tail = norm.sf((np.log(2) + SHIFT**2 / 2) / SHIFT) + norm.cdf((-np.log(2) + SHIFT**2 / 2) / SHIFT)
    exact = {
        "kl": SHIFT**2 / 2, "reverse_kl": SHIFT**2 / 2, "ess": np.exp(-(SHIFT**2)), "mean_weight": 1,
        "mean_inverse": 1, "quantile_999": np.exp(SHIFT * norm.ppf(0.999) - SHIFT**2 / 2), "beyond_2_candidate": tail,
        "beyond_2_reference": tail,
    }  # fmt: skip
    for name, value in exact.items():
        assert found[name][0] == pytest.approx(value, abs=4 * found[name][1]), name
        assert 0 < found[name][1] < 0.1 * value + 0.3, name
    assert found["beyond_10_candidate"][0] < found["beyond_2_candidate"][0]


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_effective_size_law(values: list[float]) -> None:
    w = np.array(values)
    ess, _ = weights.effective_size(w)
    assert 1 / len(w) - 1e-9 <= ess <= 1 + 1e-9
    assert weights.effective_size(7 * w)[0] == pytest.approx(ess)
    assert weights.effective_size(np.ones(5))[0] == 1
    assert weights.effective_size(np.array([1.0, 0, 0, 0]))[0] == 0.25


def test_errors_are_the_spread_of_experiments() -> None:
    table = [weights.diagnostics(gaussians(2000, seed=s, shift=0.5)[1]) for s in range(150)]
    for name in ("kl", "ess", "mean_weight", "mean_inverse", "quantile_999", "beyond_2_reference"):
        values, errors = np.array([row[name] for row in table]).T
        assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35), name


def test_mean_weights_in_bins_follow_the_ratio_of_densities() -> None:
    x, log_w = gaussians(20_000)
    along = weights.marginal(log_w[1], x[0], x[1])
    centre = 0.5 * (along.edges[1:] + along.edges[:-1])
    exact = norm.pdf(centre, SHIFT) / norm.pdf(centre)
    full = np.isfinite(along.weight[1:-1]) & (along.ratio_error[1:-1] < 0.3 * along.ratio[1:-1])
    np.testing.assert_allclose(along.weight[1:-1][full], exact[full], rtol=0.05)
    assert along.chi2 / along.ndf < 2
    rng = np.random.default_rng(1)
    blind = weights.marginal(log_w[1], rng.normal(size=20_000), rng.normal(size=20_000))
    pull = (blind.weight - 1) / blind.weight_error
    assert np.nanstd(pull) < 2
    wrong = weights.marginal(np.zeros(20_000), x[0], x[1])
    assert wrong.chi2 / wrong.ndf > 10


def test_extreme_showers_differ_in_the_wrong_observable() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=3000)
    log_w = -2 * (np.abs(x) > 2).astype(float) * 2  # beyond two widths there is no Geant4 shower
    values = {"good": rng.normal(size=3000), "bad": x, "constant": np.ones(3000)}
    found = weights.extremes(log_w, values, "low")
    assert len(found.chosen) == (np.abs(x) > 2).sum()
    assert found.differences[0].observable == "bad"
    worst, other = found.differences[0], {d.observable: d for d in found.differences}["good"]
    assert worst.separation > 0.5
    assert other.separation == pytest.approx(other.floor[0], abs=4 * other.floor[1])
    high = weights.extremes(SHIFT * x, values, "high")
    assert high.differences[0].observable == "bad"
    assert high.differences[0].shift > 1
    assert (SHIFT * x[high.chosen]).min() == pytest.approx(high.log_threshold)
    few = weights.extremes(0.01 * x, values, "high")  # none beyond 2: the extreme per cent
    assert len(few.chosen) == 30
    with pytest.raises(ValueError, match="expected at least 40"):
        weights.extremes(np.zeros(30), {"a": np.ones(30)}, "low")


# --- weighted AUC


def slow_auc(positive: np.ndarray, negative: np.ndarray, w: np.ndarray) -> float:
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return float((wins * w).sum() / (w.sum() * len(positive)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=20),
       st.lists(st.integers(0, 5), min_size=2, max_size=20))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_weighted_auc_equals_its_slow_twin(negative: list[tuple[int, int]], positive: list[int]) -> None:
    s, w = np.array(negative, float).T
    p = np.array(positive, float)
    if w.sum() > 0:
        assert weights.weighted_auc(p, s, w)[0] == pytest.approx(slow_auc(p, s, w))
    auc, error = weights.weighted_auc(p, s, np.full(len(s), 3.0))
    plain, variance = classifier.delong(p, s)
    assert (auc, error**2) == pytest.approx((plain, variance))


def test_exact_weights_bring_the_auc_to_one_half_and_its_error_is_right() -> None:
    aucs = []
    for seed in range(200):
        (p, q), log_w = gaussians(1000, seed=seed)
        aucs.append(weights.weighted_auc(p, q, np.exp(log_w[1])))
    values, errors = np.array(aucs).T
    assert values.mean() == pytest.approx(0.5, abs=4 * values.std() / np.sqrt(200))
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


# --- reweighting


def test_fresh_classifier_with_and_without_exact_weights() -> None:
    (p, q), log_w = gaussians(3000)
    options = {"seed": 0, "repeats": 2, "epochs": 10, "hidden": 32}
    before = fresh_auc(p[:, None], q[:, None], **options)
    assert before[0] == pytest.approx(norm.cdf(SHIFT / np.sqrt(2)), abs=4 * before[1])
    after = fresh_auc(p[:, None], q[:, None], np.exp(log_w[1]), **options)
    assert after[0] == pytest.approx(0.5, abs=4 * after[1])
    assert fresh_auc(p[:2000, None], q[:, None], **options)[0] == pytest.approx(before[0], abs=4 * before[1])
    with pytest.raises(ValueError, match="expected at least 25"):
        fresh_auc(p[:20, None], q[:, None], seed=0)


@pytest.fixture(scope="module")
def samples() -> tuple[Showers, Showers]:
    return box(1600, 0), box(1600, 1, slope=SHIFT)


OPTIONS = {"epochs": 15, "hidden": 64, "repeats": 1}


def test_reweighted_showers_are_like_geant4(samples: tuple[Showers, Showers]) -> None:
    state = torch.get_rng_state().clone()
    result = reweight(*samples, **OPTIONS)
    assert torch.equal(state, torch.get_rng_state())
    assert result.auc_before[0] > 0.5 + 5 * result.auc_before[1]
    assert result.auc_after[0] == pytest.approx(0.5, abs=4 * result.auc_after[1])
    assert result.auc_after[0] < result.auc_before[0] - 0.1
    assert result.weight is not None
    assert result.weight.mean() == pytest.approx(1)
    assert result.ess[0] == pytest.approx(np.exp(-(SHIFT**2)), abs=0.15)
    truth, response = (observables(s)["response"] for s in samples)
    exact = -SHIFT * (response / 0.08 - 10) + SHIFT**2 / 2  # ln w of the response, which is all that differs
    assert np.corrcoef(result.log_weights[1], exact)[0, 1] > 0.9
    error = 0.08 / np.sqrt(1600 * result.ess[0])
    assert np.average(response, weights=result.weight) == pytest.approx(truth.mean(), abs=4 * error)
    assert abs(response.mean() - truth.mean()) > 10 * error
    assert result.showers.provenance["reweighted"]["method"] == "weights"


def test_accepted_showers_are_like_geant4_and_need_no_weights(samples: tuple[Showers, Showers]) -> None:
    result = reweight(*samples, method="rejection", cap=4.0, **OPTIONS)
    assert result.weight is None
    n = len(result.showers)
    assert n == pytest.approx(1600 * result.efficiency, abs=5 * np.sqrt(1600 * result.efficiency))
    truth, response = (observables(s)["response"] for s in (samples[0], result.showers))
    assert response.mean() == pytest.approx(truth.mean(), abs=5 * 0.08 / np.sqrt(n))
    assert result.auc_after[0] == pytest.approx(0.5, abs=4 * result.auc_after[1])


def test_nothing_to_correct_leaves_the_sample_alone() -> None:
    result = reweight(box(600, 3), box(600, 4), seed=1, **OPTIONS)
    assert result.ess[0] > 0.9
    assert result.auc_before[0] == pytest.approx(0.5, abs=4 * result.auc_before[1])
    assert result.auc_after[0] == pytest.approx(0.5, abs=4 * result.auc_after[1])


def test_the_same_seed_gives_the_same_weights() -> None:
    pair = box(200, 5), box(150, 6, slope=0.5)
    one, two, other = (reweight(*pair, seed=s, epochs=2, hidden=8, repeats=1, level="low") for s in (0, 0, 1))
    np.testing.assert_array_equal(one.weight, two.weight)
    assert one.auc_after == two.auc_after
    assert not np.array_equal(one.weight, other.weight)


def test_bad_input_is_refused() -> None:
    a, b = box(200, 5), box(200, 6)
    with pytest.raises(ValueError, match=r"accepted showers in one half.*lower the cap of 1000"):
        reweight(box(150, 5), box(150, 6, slope=4), method="rejection", cap=1e3, epochs=20, hidden=32, repeats=1)
    for options, said in (({"method": "x"}, "got method 'x'"), ({"level": "x"}, "got level 'x'"), ({"cap": 0.5}, "cap"),
                          ({"epochs": 0}, "got epochs 0")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            reweight(a, b, **options)
    with pytest.raises(ValueError, match="stand in both samples"):
        reweight(a, a)
    with pytest.raises(ValueError, match="expected at least 100; simulate more"):
        reweight(a[:50], b)
    with pytest.raises(ValueError, match="not finite"):
        weights.temperature((np.array([1.0, np.nan]), np.ones(3)))
    with pytest.raises(ValueError, match="expected 'temperature' or 'isotonic'"):
        weights.log_weights((np.ones(3), np.ones(3)), method="platt")
    with pytest.raises(ValueError, match="expected some above 0"):
        weights.weighted_auc(np.ones(3), np.ones(2), np.zeros(2))


# --- files and the command


def test_weights_in_files(tmp_path: Path) -> None:
    showers, w = box(10, 0), np.arange(10.0)
    io.write(showers, tmp_path / "w.h5", weight=w)
    io.write(showers, tmp_path / "n.h5")
    np.testing.assert_array_equal(io.read_weight(tmp_path / "w.h5"), w)
    assert io.read_weight(tmp_path / "n.h5") is None
    np.testing.assert_array_equal(io.read(tmp_path / "w.h5").energy, showers.energy)
    with io.Writer(tmp_path / "parts.h5", showers.geometry, {}) as file:
        file.append(showers[:4], w[:4])
        with pytest.raises(ValueError, match="with and without weights"):
            file.append(showers[4:])
        file.append(showers[4:], w[4:])
    np.testing.assert_array_equal(io.read_weight(tmp_path / "parts.h5"), w)
    for bad in (w[:3], w - 1, w * np.nan):
        with pytest.raises(ValueError, match="got weights of shape"):
            io.write(showers, tmp_path / "bad.h5", weight=bad)
    assert not (tmp_path / "bad.h5").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from caloforge.cli import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("caloforge.evaluate.reweight.reweight", partial(reweight, epochs=2, hidden=8, repeats=1))
    io.write(box(150, 0), "geant4.h5")
    io.write(box(120, 1, slope=0.5), "fast.h5")
    threads = torch.get_num_threads()
    assert run(["reweight", "geant4.h5", "fast.h5", "-o", "out.h5", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "AUC of a fresh classifier (high): before 0." in out
    assert "effective sample size" in out
    weight = io.read_weight("out.h5")
    assert weight is not None
    assert len(weight) == 120
    with h5py.File("out.h5") as file:
        assert file["weight"].dtype == np.float64
    assert run(["reweight", "geant4.h5", "fast.h5", "-o", "out.h5"]) == 2
    command = ["reweight", "geant4.h5", "fast.h5", "-o", "few.h5", "--method", "rejection", "--cap", "2"]
    assert run([*command, "--threads", "1"]) == 0
    assert 0 < len(io.read("few.h5")) < 120
    assert io.read_weight("few.h5") is None
    torch.set_num_threads(threads)


def test_weights_without_bounds_give_finite_numbers() -> None:
    sure = np.linspace(-900, 900, 60)
    for value in weights.diagnostics((sure + 300, sure - 300)).values():
        assert np.isfinite(value[0]), value
