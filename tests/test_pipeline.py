"""The whole path through the command line: simulate, train, generate, evaluate, export, show."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from caloforge import io
from caloforge.cli import run
from caloforge.config import load_recipe
from caloforge.evaluate import distances, observables
from caloforge.fastsim import FastSim
from caloforge.showers import Showers
from caloforge.simulate.gun import Gun

RECIPE = """[model]
family = "vae"
n_latent = 4
width = 64
depth = 1
layer_hidden = 24
layer_transforms = 1
layer_bins = 6
[preprocess]
threshold_mev = 0.1
n_knots = 17
[train]
steps = 250
batch = 128
lr = 3e-3
warmup = 20
ema = 0.98
bf16 = false
mirror = true
log_every = 50
checkpoint_every = 250
"""
MARGIN = 0.7  # mean W1 of all observables, trained over untrained; 0.17 / 0.30 when this was written


def mean_distance(reference: Showers, candidate: Showers) -> float:
    """Wasserstein-1 distance in standard deviations of the reference, averaged over the observables."""
    values = [observables.observables(s) for s in (reference, candidate)]
    few = distances.Bootstrap.draw(len(reference), len(candidate), 2, np.random.default_rng(0))
    spreads = {name: distances.spread(column) for name, column in values[0].items()}
    found = [distances.wasserstein(values[0][k], values[1][k], few, s)[0] for k, s in spreads.items() if s > 0]
    assert len(found) > 20
    return float(np.mean(found))


def test_from_simulation_to_a_judged_and_exported_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    Path("recipe.toml").write_text(RECIPE)
    sample = ["simulate", "calogan", "--engine", "parametric", "--energy", "1..3GeV"]
    assert run([*sample, "-n", "1000", "--seed", "1", "-o", "train.h5"]) == 0
    assert run([*sample, "-n", "400", "--seed", "2", "-o", "test.h5"]) == 0
    assert run(["train", "train.h5", "-o", "run", "--recipe", "recipe.toml", "--threads", "1"]) == 0
    assert run(["generate", "run", "--like", "test.h5", "-o", "fast.h5", "--seed", "3", "--threads", "1"]) == 0
    evaluate = ["evaluate", "test.h5", "fast.h5", "-o", "report", "--repeats", "1", "--threads", "1"]
    assert run(evaluate) == 0
    torch.set_num_threads(threads)

    truth, fast = io.read("test.h5"), io.read("fast.h5")
    np.testing.assert_array_equal(fast.incident.energy, truth.incident.energy)
    assert fast.provenance["model_training"]["data"] == "train.h5"
    train, recipe = io.read("train.h5"), load_recipe("recipe.toml")
    gun = Gun.from_description(train.provenance["gun"])
    untrained = FastSim.create(truth.geometry, recipe.model, valid=gun, preprocess=recipe.preprocess)
    untrained.fit_transform(train)
    before = mean_distance(truth, untrained.simulate(truth.incident, seed=3))
    after = mean_distance(truth, fast)
    assert after < MARGIN * before, f"trained {after:.3f}, untrained {before:.3f}"

    scores = json.loads(Path("report/metrics.json").read_text())["candidates"]["fast"]["scores"]
    assert {"auc_low", "auc_high", "response/mean", "response/width"} <= set(scores)
    assert abs(scores["response/mean"]["value"]) < 0.05
    assert Path("report/report.html").stat().st_size > 10_000

    shown = [("train.h5", "parametric"), ("run", "vae")]
    if all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        assert run(["export", "run", "-o", "a.onnx"]) == 0
        assert "layer energies equal PyTorch's" in capsys.readouterr().out
        shown.append(("a.onnx", "vae"))
    capsys.readouterr()
    for thing, word in shown:
        assert run(["show", thing]) == 0
        assert word in capsys.readouterr().out
