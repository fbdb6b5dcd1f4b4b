"""Tuning: known constants come back, statistics have the errors they claim, refusals are one sentence."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import caloforge.simulate.tune as tuning_steps
from caloforge import hub, io
from caloforge.cli import run
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from caloforge.simulate.detectors import Detector, Readout, calogan
from caloforge.simulate.parametric import Parametric
from caloforge.simulate.summary import Summary
from caloforge.simulate.tune import PRIORS, STAGES, Stage, descend, tune
from caloforge.simulate.tuning import FOLDER, Tuning

LAYERS = tuple(
    Layer("cartesian", regular(-120, 120, n), regular(-120, 120, n), depth)
    for n, depth in ((16, (0, 90)), (8, (90, 240)), (8, (240, 480)))
)
SMALL = replace(calogan(), readout=Readout(Geometry("small", LAYERS)))
TRUE = replace(
    Tuning(**{name: prior.value for name, prior in PRIORS.items() if name != "stochastic"}),
    depth=1.08, depth_spread=1.2, response=0.9, core=0.8, halo=0.1,
)  # fmt: skip
FEW = (
    Stage("depth", ("depth", "depth_spread"), ("fraction",), 3),
    Stage("response", ("response", "stochastic"), ("response",), 3),
    Stage("radius", ("core", "halo", "halo_energy", "spot_floor"), ("ring", "count", "width"), 4),
)


def incident(n: int, seed: int = 0) -> Incident:
    return Incident(np.exp(np.random.default_rng(seed).uniform(np.log(5e3), np.log(5e4), n)), pdg=-11)


def sample(n: int, seed: int = 0, detector: Detector = SMALL) -> Showers:
    return Parametric(detector, 0.05, tuning=TRUE).simulate(incident(n, seed), seed=seed)


def test_known_constants_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_steps, "STAGES", FEW)
    steps = []
    model = tune(sample(600), SMALL, seed=1, rounds=1, progress=lambda done, total, note: steps.append((done, total)))
    assert model.spread == pytest.approx(0.05, rel=0.15)
    errors = {"response": 0.01, "depth": 0.03, "depth_spread": 0.15, "core": 0.15, "halo": 0.2, "halo_energy": 0.15,
              "spot_floor": 0.2}  # fmt: skip
    for name, error in errors.items():
        assert getattr(model.tuning, name) == pytest.approx(getattr(TRUE, name), rel=error), name
    assert model.origin["misfit_tuned"] < 1.4 < 5 < model.origin["misfit_textbook"]
    assert model.origin["n_showers"] == 600
    assert steps[0] == (0, 10)
    assert steps[-1] == (10, 10)


def test_residuals_of_the_truth_are_statistical() -> None:
    summary = Summary(sample(1500, seed=0), SMALL.moliere, "detector")
    r = summary.residuals(sample(1500, seed=1))
    assert r.shape[1] == len(summary.names) > 80
    assert np.sqrt(np.mean(r**2)) == pytest.approx(1, abs=0.25)
    wrong = replace(TRUE, response=0.95)
    other = Parametric(SMALL, 0.05, tuning=wrong).simulate(incident(1500, 1), seed=1)
    assert summary.residuals(other, ("response",)).max() > 10
    assert np.abs(summary.residuals(other, ("ring",))).max() < 6


def test_a_summary_does_not_care_where_the_shower_enters() -> None:
    model = Parametric(SMALL, 0.05, tuning=TRUE)
    there = Incident(incident(300).energy, theta=0.2, phi=1.0, x=-20.0, y=20.0, pdg=-11)
    summary = Summary(model.simulate(there, seed=0), SMALL.moliere, "detector")
    assert np.sqrt(np.mean(summary.residuals(model.simulate(there, seed=1)) ** 2)) == pytest.approx(1, abs=0.3)
    features = summary.features(model.simulate(there, seed=1))
    straight = Summary(sample(300), SMALL.moliere, "detector").features(sample(300))
    assert features["width_0"].mean() == pytest.approx(straight["width_0"].mean(), rel=0.15)


def test_any_mesh_has_statistics() -> None:
    tube = tuple(
        Layer("polar", regular(-np.pi, np.pi, 8), regular(0, 160, 8), (480 / 45 * i, 480 / 45 * (i + 1)))
        for i in range(45)
    )
    polar = replace(SMALL, readout=Readout(Geometry("tube", tube), "shower"))
    one = replace(SMALL, readout=Readout(Geometry("one", (replace(LAYERS[0], depth=(0, 480)),))))
    for detector, has_depth in ((polar, True), (one, False)):
        showers = sample(200, detector=detector)
        summary = Summary(showers, detector.moliere, detector.frame)
        assert np.all(np.isfinite(summary.residuals(sample(200, 1, detector))))
        assert any(k.startswith("fraction") for k in summary.names) == has_depth
        assert max(int(k[-1]) for k in summary.names if k.startswith("width") and "^" not in k) <= 5


def test_descent_finds_the_minimum_between_data_and_prior() -> None:
    matrix = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, -1.0]]) / 50
    centre, width, true = np.zeros(2), np.ones(2), np.array([0.5, -0.3])

    def residuals(x: np.ndarray) -> np.ndarray:
        return matrix @ (x - true) * 100

    x = descend(residuals, np.zeros(2), centre, width, 20)
    normal = 1e4 * matrix.T @ matrix + np.eye(2)
    np.testing.assert_allclose(x, np.linalg.solve(normal, 1e4 * matrix.T @ matrix @ true), atol=0.02)
    blind = descend(lambda x: np.zeros(3), np.full(2, 0.4), centre, width, 20)
    np.testing.assert_allclose(blind, 0, atol=0.02)


def test_every_constant_has_one_stage_and_a_prior() -> None:
    names = [name for stage in STAGES for name in stage.constants]
    assert sorted(names) == sorted(PRIORS)
    assert set(names) - {"stochastic"} <= set(Tuning.__dataclass_fields__)


def test_samples_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="got 50 showers and 2 rounds, expected 200"):
        tune(sample(50), SMALL)
    with pytest.raises(ValueError, match="got sample with geometry 'small'"):
        tune(sample(200), calogan())
    pions = Showers(SMALL.geometry, Incident(np.full(200, 1e4), pdg=211), sample(200).energy)
    with pytest.raises(ValueError, match="got particle 211, expected"):
        tune(pions, SMALL)


def test_the_command_tunes_and_simulates_with_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning_steps, "STAGES", FEW[1:2])
    truth = Parametric(calogan(), 0.01, tuning=replace(TRUE, response=0.95)).simulate(incident(200), seed=0)
    io.write(truth, "truth.h5")
    assert run(["tune", "truth.h5", "-o", "card.json", "--seed", "3"]) == 0
    assert re.match(r"card.json: tuned to 200 showers, misfit \d+\.\d\d \(textbook \d+", capsys.readouterr().out)
    origin = Parametric.load("card.json").origin
    assert origin["sample"] == "truth.h5"
    assert origin["sample_sha256"] == hashlib.sha256(Path("truth.h5").read_bytes()).hexdigest()
    fast = ["simulate", "calogan", "--engine", "parametric", "-n", "30", "--energy", "20GeV", "--card", "card.json"]
    assert run([*fast, "-o", "fast.h5"]) == 0
    made = io.read("fast.h5")
    assert made.provenance["constants"]["response"] == Parametric.load("card.json").tuning.response
    assert "--card card.json" in made.provenance["command"]
    assert made.total.mean() / 2e4 == pytest.approx(0.95 * 0.994, abs=0.01)
    capsys.readouterr()
    for command, words in (
        (["tune", "truth.h5", "-o", "card.json"], "which exists"),
        (["tune", "truth.h5", "-o", "other.json", "--detector", "lhcb"], "expected 'lhcb'"),
        (["simulate", "lhcb", *fast[2:], "-o", "x.h5"], "expected one of 'lhcb'"),
        (["simulate", "calogan", "-n", "1", "--card", "card.json", "-o", "x.h5"], "with engine geant4"),
    ):
        assert run(command) == 2
        assert words in capsys.readouterr().err
    assert not Path("x.h5").exists()
    assert not Path("other.json").exists()


@pytest.mark.parametrize("card", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_shipped_cards_can_be_used(card: str) -> None:
    model = Parametric.load(card)
    assert model.origin["sample"] == f"{card}-train"
    assert 0 < model.origin["misfit_tuned"] < model.origin["misfit_textbook"]
    particles = Incident(np.full(20, 2e4), pdg=model.origin["pdg"][0])
    share = model.simulate(particles, seed=0).total.mean() / 2e4
    assert share == pytest.approx(model.detector.sampling_fraction * np.mean(model.detector.layer_scale), rel=0.3)


def test_the_shipped_card_is_nearer_to_geant4_than_the_textbook() -> None:
    tuned, textbook = Parametric.load("calogan-eplus"), Parametric(calogan())
    assert tuned.detector == calogan()
    truth = io.read(hub.sample("calogan-eplus-test"), n=600)
    summary = Summary(truth, calogan().moliere, "detector")
    far, near = (
        np.sqrt(np.mean(summary.residuals(m.simulate(truth.incident, seed=0)) ** 2)) for m in (textbook, tuned)
    )
    assert near < 2 < 10 < far
