"""Statistical amplification: laws of truth samples, controls on toys with a known answer, and the shower protocol."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from caloforge import io
from caloforge.cli import run
from caloforge.evaluate import amplification as amp
from caloforge.evaluate import amplification_showers as on_showers
from caloforge.evaluate.amplification_toys import amplify_toys, grid_counts, kde
from caloforge.evaluate.amplification_truths import TOYS, CamelBack, Shell, fit_two_gaussians
from caloforge.showers import Incident, Showers
from caloforge.testing import small_geometry, small_showers

TRUTH_MSE = {10: 9.00e-4, 20: 4.75e-4, 50: 1.96e-4}  # 100 points, (1 - 1/N_q)/(N_q N)
FIT_N_EQ = {10: 240, 20: 429, 50: 1023}  # five parameters from 100 points


def equal_counts(n: int, n_boxes: int, repetitions: int, seed: int = 0) -> np.ndarray:
    """Counts of truth samples in boxes of equal probability, (repetitions, n_boxes)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n_boxes, 1 / n_boxes), size=repetitions)


@pytest.mark.parametrize("n_quantiles", TRUTH_MSE)
def test_the_mse_of_a_truth_sample_is_multinomial(n_quantiles: int) -> None:
    law = amp.expected_mse(100, n_quantiles)
    assert law == pytest.approx(TRUTH_MSE[n_quantiles], rel=2e-3)
    assert amp.equivalent(law, n_quantiles) == pytest.approx(100)
    drawn = amp.quantile_mse(equal_counts(100, n_quantiles, 20_000))
    assert drawn.mean() == pytest.approx(law, rel=0.02)
    assert amp.sampling_noise(equal_counts(100, n_quantiles, 20_000)).mean() == pytest.approx(law, rel=0.01)


def test_boxes_of_unequal_probability_have_their_own_law() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    counts = np.random.default_rng(0).multinomial(200, p, size=20_000)
    assert amp.quantile_mse(counts, p).mean() == pytest.approx(amp.expected_mse(200, 4, p), rel=0.02)
    assert amp.equivalent(amp.expected_mse(200, 4, p), 4, p) == pytest.approx(200)


def test_the_jensen_shannon_divergence_falls_like_chi_squared() -> None:
    for n, n_boxes in ((2000, 20), (10_000, 64)):
        jsd = amp.jensen_shannon(equal_counts(n, n_boxes, 2000)).mean()
        assert jsd == pytest.approx(amp.expected_jsd(n, n_boxes), rel=0.02)
        assert amp.equivalent_jsd(jsd, n_boxes) == pytest.approx(n, rel=0.02)
    assert amp.jensen_shannon(np.array([1, 0]), np.array([0.0, 1.0])) == pytest.approx(math.log(2))  # disjoint
    assert amp.jensen_shannon(np.array([3, 3])) == 0
    assert math.isnan(amp.equivalent_jsd(0.0, 4))
    assert math.isnan(amp.equivalent(-1e-9, 4))


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_a_toy_knows_its_own_distribution(toy: Any) -> None:
    u = toy.uniform(toy.sample(20_000, np.random.default_rng(1)))
    assert u.shape == (20_000, toy.dimensions)
    for column in u.T:
        assert kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(u.T) - np.eye(toy.dimensions)).max() < 0.03
    counts = grid_counts(u, 2)
    assert counts.shape == (2**toy.dimensions,)
    assert counts.sum() == 20_000
    assert abs(counts / 20_000 - 2.0**-toy.dimensions).max() < 5 * math.sqrt(2.0**-toy.dimensions / 20_000)


def test_the_control_loses_nothing_and_the_right_function_wins() -> None:
    """The 5-parameter fit has N_eq = 240, 429, 1023 for 10, 20, 50 quantiles; the bootstrap what it was given."""
    toy = CamelBack(n_gen=(100, 1000, 10_000), divisions=(10, 20, 50))
    result = amplify_toys((toy,), ("sample", "bootstrap", "fit"), repetitions=1000, seed=0)
    for n_quantiles, expected in FIT_N_EQ.items():
        found = {name: {p.n_quantiles: p for p in result.select(toy.name, name)}[n_quantiles]
                 for name in result.contestants}  # fmt: skip
        assert found["fit"].n_eq == pytest.approx(expected, rel=0.10)
        assert found["fit"].n_eq_error < 0.03 * expected
        assert found["fit"].gain == found["fit"].n_eq / 100
        for control in ("sample", "bootstrap"):
            assert found[control].n_eq == pytest.approx(100, abs=4 * found[control].n_eq_error)
            assert found[control].n_eq_error < 2.5
        assert found["fit"].training_variance + found["fit"].bias2 == pytest.approx(found["fit"].mse, rel=0.02)
        assert found["fit"].n_eq_most > 20 * found["fit"].n_eq  # its bias is small
    first = {c.n_quantiles: c for c in result.curves if c.contestant == "bootstrap"}[50]
    assert first.n[0] == 100
    assert amp.equivalent(first.value[0], 50) == pytest.approx(1 / (1 / 100 + 0.99 / 100), rel=0.03)  # 50.3


def test_kernels_win_over_the_sample_in_one_dimension() -> None:
    toy = CamelBack(n_gen=(100, 10_000), divisions=(50,))
    points = amplify_toys((toy, Shell(n_gen=(100, 10_000), divisions=(7,))), ("kde",), repetitions=60).points
    assert all(2 < p.gain < 10 for p in points)
    assert all(p.bias2 > 3 * p.bias2_error for p in points)  # smoothing is a bias


def test_the_width_of_kernels_follows_the_data() -> None:
    x = np.random.default_rng(0).standard_normal((2, 400, 1)) * np.array([1.0, 10.0])[:, None, None]
    draw = kde(CamelBack(), x, np.random.default_rng(1))
    added = [draw(r, 50_000, np.random.default_rng(2)).var() / x[r].var() - 1 for r in (0, 1)]
    assert all(0.02 < extra < 0.3 for extra in added)  # h^2/s^2, h about 0.3 s
    assert added[1] == pytest.approx(added[0], rel=0.8)


def test_the_fit_finds_its_parameters() -> None:
    rng = np.random.default_rng(3)
    x = np.where(rng.random((2, 10_000)) < 0.3, rng.normal(-2, 0.5, (2, 10_000)), rng.normal(3, 1.5, (2, 10_000)))
    weight, mean, width = fit_two_gaussians(x)
    assert weight == pytest.approx(np.array([[0.3, 0.7]] * 2), abs=0.02)
    assert mean == pytest.approx(np.array([[-2, 3]] * 2), abs=0.08)
    assert width == pytest.approx(np.array([[0.5, 1.5]] * 2), abs=0.08)


def test_a_line_in_the_inverse_size_is_extrapolated_exactly() -> None:
    n = (100, 1000, 50_000)
    mse = np.array([[2e-4 + 3e-2 / k for k in n], [1e-4 + 5e-2 / k for k in n]])
    left, slope = amp.extrapolate(n, mse)
    assert left == pytest.approx([2e-4, 1e-4])
    assert slope == pytest.approx([3e-2, 5e-2])
    with pytest.raises(ValueError, match="expected two different ones"):
        amp.extrapolate((10, 10), mse[:, :2])


def test_both_corrections_for_the_generated_size_agree() -> None:
    """The line in 1/N_gen and the unbiased estimate from one N_gen, for a generator with fixed wrong shares."""
    rng = np.random.default_rng(0)
    p = np.full(20, 1 / 20)
    q = p * (1 + 0.2 * np.where(np.arange(20) % 2, 1, -1))
    counts = [rng.multinomial(n, q, size=2000) for n in (500, 5000)]
    wrong = float(((q - p) ** 2).mean())
    by_line = amp.extrapolate((500, 5000), np.stack([amp.quantile_mse(c) for c in counts], axis=1))[0]
    directly = amp.quantile_mse(counts[1]) - amp.sampling_noise(counts[1])
    assert by_line.mean() == pytest.approx(wrong, rel=0.02)
    assert directly.mean() == pytest.approx(wrong, rel=0.01)


def test_the_parts_of_the_mse_are_told_apart() -> None:
    """Shares q + d with a fixed bias q - p and d that changes with the training, then multinomial counts."""
    rng = np.random.default_rng(1)
    b, r, n = 25, 400, 4000
    bias, spread = 0.006 * np.where(np.arange(b) % 2, 1, -1), 0.004
    bias -= bias.mean()
    d = spread * rng.standard_normal((r, b))
    shares = 1 / b + bias + d - d.mean(axis=1, keepdims=True)
    counts = np.stack([rng.multinomial(n, q) for q in shares])
    parts = amp.decompose(counts)
    assert parts.bias2 + parts.training + parts.generation == pytest.approx(amp.quantile_mse(counts).mean(), rel=1e-9)
    assert parts.bias2 == pytest.approx((bias**2).mean(), abs=4 * parts.bias2_error)
    assert parts.training == pytest.approx(spread**2 * (1 - 1 / b), rel=0.05)
    assert parts.generation == pytest.approx((1 - 1 / b) / b / n, rel=0.03)
    with pytest.raises(ValueError, match="got 1 training"):
        amp.decompose(counts[:1])


def test_quantile_edges_of_ties_are_not_repeated() -> None:
    values = np.array([0.0] * 50 + [1.0] * 30 + list(np.linspace(2, 3, 20)))
    edges = amp.quantile_edges(values, 10)
    assert edges.tolist() == sorted(set(edges.tolist()))
    assert edges[0] > 0
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    assert counts.min() > 0
    assert counts[0] == 50
    assert len(amp.quantile_edges(np.zeros(10), 5)) == 0
    continuous = np.random.default_rng(0).standard_normal(1000)
    assert len(amp.quantile_edges(continuous, 50)) == 49
    with pytest.raises(ValueError, match="got 1 quantiles"):
        amp.quantile_edges(continuous, 1)


@pytest.mark.parametrize("depth", [1, 4, 7])
def test_half_splits_have_equal_probability(depth: int) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 3))
    laid, new = (rng.standard_normal((20_000, 3)) @ mixing for _ in range(2))
    splits = amp.HalfSplits.fit(laid, depth)
    own = splits.counts(laid)
    assert own.shape == (2**depth,)
    assert own.max() - own.min() <= depth  # medians of odd numbers
    p = 2.0**-depth
    assert np.abs(splits.counts(new) / 20_000 - p).max() < 5 * math.sqrt(2 * p / 20_000)
    index = splits.index(new)
    assert index.min() >= 0
    assert index.max() < 2**depth


def test_half_splits_cut_one_observable_after_the_other() -> None:
    values = np.array([[0.0, 0], [0, 1], [1, 0], [1, 5], [0, 1], [0, 0], [1, 5], [1, 0]])
    splits = amp.HalfSplits.fit(values, 2)
    assert splits.threshold.tolist() == [0, 0, 0]
    assert splits.index(np.array([[-1.0, -1], [-1, 9], [9, -1], [9, 9]])).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="got depth 4 for 8 showers"):
        amp.HalfSplits.fit(values, 4)


def test_sampling_noise_of_both_samples_is_taken_away() -> None:
    """With quantiles of a finite truth, what is left of truth itself is 0 within its error, which is the right one."""
    rng = np.random.default_rng(5)
    pulls, copies = [], []
    for _ in range(300):
        boxes = on_showers._Boxes.lay(rng.standard_normal((1000, 1)), 20)
        left, error = on_showers._left(boxes.counts(rng.standard_normal((3000, 1)))[None], boxes)
        pulls.append(left[0] / error[0])
        own, _ = on_showers._left(boxes.counts(0.9 * rng.standard_normal((3000, 1)))[None], boxes)
        copies.append(own[0])
    assert abs(np.mean(pulls)) < 0.25
    assert 0.7 < np.std(pulls) < 1.3
    quantiles = np.quantile(rng.standard_normal(2_000_000), np.arange(1, 20) / 20)
    q = np.diff([0, *(np.mean(0.9 * rng.standard_normal(500_000)[:, None] < quantiles, axis=0)), 1])
    assert np.mean(copies) == pytest.approx(((q - 1 / 20) ** 2).mean(), rel=0.15)


def narrower(showers: Showers, factor: float) -> Showers:
    """Showers whose total energy fluctuates more or less around its mean."""
    mean = showers.total.mean() / showers.incident.energy.mean()
    ratio = showers.total / showers.incident.energy / mean
    scale = np.maximum(1 + (factor - 1) * (ratio - 1) / ratio, 0)
    return Showers(showers.geometry, showers.incident, showers.energy * scale[:, None].astype(np.float32))


@pytest.fixture(scope="module")
def samples() -> dict[str, Showers]:
    sizes = {"truth": 6000, "train": 800, "copy": 8000}
    out = {name: small_showers(n=n, seed=k) for k, (name, n) in enumerate(sizes.items())}
    return out | {"wrong": narrower(out["copy"], 0.8)}


def test_showers_of_the_truth_have_no_measurable_error(samples: dict[str, Showers]) -> None:
    result = on_showers.amplify_showers(samples["truth"], samples["train"], samples["copy"], quantiles=(10, 20, 50))
    assert result.subjects[-1] == on_showers.JOINT
    assert {"response", "shower_depth", "occupied_0"} <= set(result.subjects)
    copies = [p for s in result.subjects for p in result.select(s, on_showers.GENERATED)]
    pulls = np.array([p.mse / p.mse_error for p in copies])
    assert abs(pulls.mean()) < 1  # strongly correlated
    assert np.abs(pulls).max() < 4
    assert all(math.isnan(p.n_eq) or p.n_eq > 2 * p.n_train for p in copies)
    limits = [p.n_eq_limit for p in result.select(on_showers.JOINT, on_showers.GENERATED)]
    assert limits[-1] > 8 * 800  # more boxes, sharper limit
    assert sum("One training only" in note for note in result.notes) == 1
    assert sum("Incident energies" in note for note in result.notes) == 1


def test_controls_and_calibration_come_out_at_their_size(samples: dict[str, Showers]) -> None:
    result = on_showers.amplify_showers(samples["truth"], samples["train"], samples["copy"], quantiles=(20, 50))
    joint = result.select(on_showers.JOINT, on_showers.BOOTSTRAP)[-1]
    assert joint.n_train == 750  # the subset of the pool of 3,000 that is nearest to 800
    assert joint.gain == pytest.approx(1, abs=4 * joint.gain_error)
    assert joint.gain_error < 0.3
    own = result.select(on_showers.JOINT, on_showers.TRAINING)[-1]
    assert own.n_eq == pytest.approx(800, abs=3 * own.n_eq_error)
    curves = [c for c in result.curves if c.subject == on_showers.JOINT]
    assert curves[-1].n == (46, 93, 187, 375, 750, 1500)
    for n, value, error in zip(curves[-1].n[:4], curves[-1].value, curves[-1].error, strict=False):
        assert value == pytest.approx(n, abs=4 * error)
        assert error < 0.2 * n


def test_a_wrong_generator_is_worth_few_showers(samples: dict[str, Showers]) -> None:
    result = on_showers.amplify_showers(
        samples["truth"],
        samples["train"],
        samples["wrong"],
        observables=("response", "shower_depth"),
        quantiles=(5, 50),
    )
    wrong, right = (result.select(name, on_showers.GENERATED) for name in ("response", "shower_depth"))
    assert wrong[0].n_eq < 800
    assert wrong[0].n_eq_error < 0.3 * wrong[0].n_eq
    assert wrong[1].n_eq > wrong[0].n_eq  # fine boxes forgive a smooth error
    assert wrong[0].ratio < 1.5
    assert all(math.isnan(p.n_eq) or p.n_eq > 1500 for p in right)
    assert 0.3 < wrong[0].n_eq_jsd / wrong[0].n_eq < 3
    assert result.select(on_showers.JOINT, on_showers.GENERATED)


def test_generators_are_trained_again_and_again() -> None:
    truth = small_showers(n=8000, seed=3)

    def again(train: Showers, seed: int) -> Showers:
        return train[np.random.default_rng(seed).integers(0, len(train), 4000)]

    result = on_showers.amplify_trainings(
        truth, again, n_train=400, repetitions=10, observables=("shower_depth",), quantiles=(50,), seed=1
    )
    point = result.select("shower_depth", on_showers.GENERATED)[0]
    assert point.repetitions == 10
    assert point.n_train == 400
    assert point.gain == pytest.approx(1, abs=4 * point.gain_error)
    assert point.gain_error < 0.2
    assert point.training_variance == pytest.approx(amp.expected_mse(400, 50), rel=0.3)
    assert abs(point.bias2) < 4 * point.bias2_error
    assert not any("One training" in note for note in result.notes)
    with pytest.raises(ValueError, match="expected no shower twice"):
        on_showers.amplify_trainings(truth, again, n_train=401, repetitions=10)


def test_mistakes_are_said(samples: dict[str, Showers]) -> None:
    truth, train, copy = samples["truth"], samples["train"], samples["copy"]
    other = small_showers(type(small_geometry())("other", small_geometry().layers[:1]), n=300)
    for arguments, options, message in (
        ((truth, truth[:500], copy), {}, "got 500 showers that are both truth and training"),
        ((truth, train[:100], copy), {}, "got 100 training showers, expected at least 200"),
        ((truth, [train, train[:300]], [copy, copy]), {}, "samples of different sizes"),
        ((truth, [train], [copy, copy]), {}, "expected pairs"),
        ((truth, train, other), {}, "other"),
        ((truth, train, copy), {"observables": ("mass",)}, "got observable 'mass', expected one of"),
        ((truth, train, copy), {"quantiles": (1000,)}, r"expected 2\.\.300"),
        ((truth, train, copy), {"seed": -1}, "got seed -1"),
    ):
        with pytest.raises(ValueError, match=message):
            on_showers.amplify_showers(*arguments, **options)
    with pytest.raises(ValueError, match="got contestant 'magic'"):
        amplify_toys(contestants=("magic",))
    with pytest.raises(ValueError, match="got 2 repetitions"):
        amplify_toys(repetitions=2)


def test_notes_say_what_the_numbers_do_not(samples: dict[str, Showers]) -> None:
    truth, train = samples["truth"], samples["train"]
    same = Showers(truth.geometry, truth.incident, np.roll(truth.energy, 1, axis=0))
    high = Showers(truth.geometry, Incident(1.5 * truth.incident.energy), truth.energy)
    for generated, words in ((same, "have the incident energies of the truth"), (high, "distributed differently")):
        notes = on_showers.amplify_showers(truth, train, generated, observables=("response",), quantiles=(5,)).notes
        assert sum(words in note for note in notes) == 1


def test_the_same_seed_gives_the_same_result() -> None:
    toy = CamelBack(n_gen=(100, 500), divisions=(5,))
    first, second, other = (amplify_toys((toy,), ("kde",), repetitions=3, seed=seed).points for seed in (4, 4, 5))
    assert [p.n_eq for p in first] == [p.n_eq for p in second]
    assert [p.mse for p in first] != [p.mse for p in other]


def test_a_small_network_is_trained_for_every_sample() -> None:
    torch = pytest.importorskip("torch")
    from caloforge.evaluate.amplification_network import train

    x = np.random.default_rng(0).normal(5, 2, (2, 100, 1))
    state = torch.random.get_rng_state()
    draw = train(x, seed=0, steps=60)
    assert torch.equal(state, torch.random.get_rng_state())
    points = [draw(r, 2000, np.random.default_rng(1)) for r in (0, 1)]
    assert points[0].shape == (2000, 1)
    assert [p.mean() for p in points] == pytest.approx([5, 5], abs=0.8)
    assert [p.std() for p in points] == pytest.approx([2, 2], abs=0.8)
    assert not np.array_equal(*points)
    np.testing.assert_array_equal(points[1], train(x, seed=0, steps=60)(1, 2000, np.random.default_rng(1)))


def test_the_command_line_writes_numbers_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: dict[str, Showers], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("truth", "train", "wrong"):
        io.write(samples[name], f"{name}.h5")
    command = ["amplify", "truth.h5", "train.h5", "wrong.h5", "-o", "out", "--quantiles", "10", "20"]
    assert run([*command, "--observables", "response", "shower_depth"]) == 0
    printed = capsys.readouterr().out
    assert "joint half-splits" in printed
    assert "One training only" in printed
    found = json.loads(Path("out/amplification.json").read_text(), parse_constant=pytest.fail)
    assert found["kind"] == "showers"
    assert found["settings"]["n_train"] == 800
    assert {p["contestant"] for p in found["points"]} == {"generated", "training sample", "bootstrap"}
    assert Path("out/amplification.png").read_bytes()[:4] == b"\x89PNG"
    before = {p: p.read_bytes() for p in Path("out").iterdir()}
    assert run(command) == 2
    assert "give --force" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in Path("out").iterdir()} == before
    assert run([*command, "--observables", "response", "--force"]) == 0
    for wrong in (["amplify", "truth.h5", "-o", "new"], ["amplify", "truth.h5", "truth.h5", "wrong.h5", "-o", "new"]):
        assert run(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("caloforge: got ")
        assert error.count("\n") == 1
    assert not Path("new").exists()


def test_toys_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from caloforge.evaluate import amplification_toys

    small = (CamelBack(n_gen=(100, 400), divisions=(5, 10)), Shell(n_gen=(100, 400), divisions=(2, 3)))
    monkeypatch.setattr(amplification_toys.amplify_toys, "__defaults__", (small, amplification_toys.DEFAULT))
    assert run(["amplify", "toys", "-o", str(tmp_path / "toys"), "--repetitions", "5"]) == 0
    printed = capsys.readouterr().out
    assert "camel-back" in printed
    assert "ring" in printed
    assert {p.name for p in (tmp_path / "toys").iterdir()} == {"amplification.json", "amplification.png"}
