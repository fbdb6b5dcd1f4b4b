import json
from pathlib import Path

import numpy as np
import pytest

from caloforge import io
from caloforge.cli import run
from caloforge.evaluate import evaluate
from caloforge.evaluate.beyond import with_interpolation, with_log_posteriors, with_memorisation
from caloforge.showers import Incident, Showers
from caloforge.testing import small_geometry

FAST = {"repeats": 1, "epochs": 3}


def toy(n: int, seed: int, shift: float = 1.0) -> Showers:
    rng, geometry = np.random.default_rng(seed), small_geometry()
    incident = Incident(rng.uniform(1e3, 1e4, n), pdg=22)
    shape = rng.gamma(4 * shift, 1, (n, geometry.n_voxels)) * (rng.random((n, geometry.n_voxels)) < 0.7)
    return Showers(geometry, incident, incident.energy[:, None] * shape / geometry.n_voxels / 4)


@pytest.fixture(scope="module")
def samples() -> dict[str, Showers]:
    return {"truth": toy(600, 0), "good": toy(600, 1), "bad": toy(600, 2, 1.6)}


def test_the_better_candidate_has_the_larger_log_posterior(samples: dict[str, Showers]) -> None:
    reports = [evaluate(samples["truth"], samples[n], candidate_name=n, n_bootstrap=5, **FAST) for n in ("good", "bad")]
    good, bad = with_log_posteriors(reports, repeats=1, epochs=10)
    assert good.scores["log_posterior"].value > -np.log(2) > bad.scores["log_posterior"].value
    assert good.provenance["multi_class"]["ranking"] == ["good", "bad"]
    assert with_log_posteriors(reports[:1]) == reports[:1]


def test_copies_of_training_showers_are_counted(samples: dict[str, Showers]) -> None:
    training = toy(500, 5)
    mixed = Showers.concat([samples["good"][:500], training[:40]])
    report = with_memorisation(evaluate(samples["truth"], mixed, n_bootstrap=5, **FAST), training)
    assert report.scores["memorisation/copies"].value == 40
    assert report.scores["memorisation/very_close"].value > 0.05


def test_windows_of_energy_are_compared(samples: dict[str, Showers]) -> None:
    report = with_interpolation(evaluate(samples["truth"], samples["good"], n_bootstrap=5, **FAST), [(3e3, 5e3)])
    penalty = report.scores["interpolation/penalty"]
    assert abs(penalty.value) < 5 * penalty.error


def test_several_candidates_on_the_command_line(samples: dict[str, Showers], tmp_path: Path) -> None:
    for name, showers in samples.items():
        io.write(showers, tmp_path / f"{name}.h5")
    io.write(toy(300, 9), tmp_path / "seen.h5")
    files = [str(tmp_path / f"{name}.h5") for name in samples]
    more = ["--training", str(tmp_path / "seen.h5"), "--held-out", "3..5GeV", "--repeats", "1", "--epochs", "3"]
    assert run(["evaluate", *files, "-o", str(tmp_path / "report"), *more]) == 0
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    text = json.dumps(metrics)
    for word in ("log_posterior", "memorisation/copies", "interpolation/penalty", "good", "bad"):
        assert word in text


def test_the_learning_curve_and_the_worst_showers_are_told(samples: dict[str, Showers]) -> None:
    report = evaluate(samples["truth"], samples["bad"], learning_curve=True, repeats=1, epochs=8, n_bootstrap=5)
    curve = report.provenance["auc_against_training_showers"]["high"]
    assert list(curve) == ["45", "90", "180", "360"]
    assert curve["360"][0] > 0.6
    worst = report.provenance["worst_showers_high"]["low_weights"]
    assert worst["showers"] > 0
    assert any("differ in" in note for note in report.provenance["notes"])
    assert any(name.startswith("weights_high_marginal/") for name in report.scores)


def test_the_challenge_profile_judges_any_mesh(samples: dict[str, Showers], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="minimum"):
        evaluate(samples["truth"], samples["good"], profile="calochallenge", repeats=1, epochs=1)
    with pytest.raises(ValueError, match="got level 'resnet' for profile standard"):
        evaluate(samples["truth"], samples["good"], levels=("resnet",))
    with pytest.raises(ValueError, match="got profile 'strict'"):
        evaluate(samples["truth"], samples["good"], profile="strict")
