import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caloforge.fastsim import FastSim
from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import MODELS, Generator, Objective, Sizes
from caloforge.models.flow_matching import FlowMatchingConfig
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import PreprocessConfig
from caloforge.showers import Incident, Showers
from caloforge.testing import small_geometry, small_showers
from caloforge.train import TrainConfig, _rate, fit

SHOWERS = small_showers()
FLOW = FlowMatchingConfig(width=16, depth=1, dropout=0.1, n_steps=1, layer_hidden=8, layer_transforms=1)
VAE = VAEConfig(n_latent=3, width=16, depth=1, dropout=0.1, layer_hidden=8, layer_transforms=1)
CONFIG = TrainConfig(
    steps=10, batch=16, warmup=2, validation=0.2, bf16=False, ema=0.9, log_every=1, checkpoint_every=5, seed=3
)


class Interruption(Exception):
    pass


def train(config: TrainConfig = CONFIG, model: Any = FLOW, folder: Path | None = None, resume: bool = False,
          stop: int | None = None, showers: Showers = SHOWERS) -> FastSim:  # fmt: skip
    """A trained model; interrupted after ``stop`` steps."""
    fast = FastSim.create(showers.geometry, model, valid=showers.incident)

    def progress(done: int, total: int, note: str) -> None:
        if done == stop:
            raise Interruption

    fit(fast, showers, config, folder=folder, resume=resume, progress=progress)
    return fast


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_equal_weights(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[name])), name


@pytest.mark.parametrize("model", [FLOW, VAE], ids=["flow_matching", "vae"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, model: Any, keep: Any) -> None:
    config = replace(CONFIG, keep=keep, bf16=keep == "best")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    uninterrupted = train(config, model, whole)
    with pytest.raises(Interruption):
        train(config, model, parts, stop=7)
    resumed = train(config, model, parts, resume=True)  # from the checkpoint at step 5
    assert_equal_weights(uninterrupted.state_dict(), resumed.state_dict())
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (whole, parts)]
    for key in ("generator", "average"):
        assert_equal_weights(states[0][key], states[1][key])
    assert states[0]["step"] == states[1]["step"] == 10


def test_training_is_a_function_of_the_seed_and_leaves_global_random_states_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = train()
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    torch.rand(3)
    assert_equal_weights(first.state_dict(), train().state_dict())
    other = train(replace(CONFIG, seed=4)).state_dict()
    assert any(not torch.equal(v, other[k]) for k, v in first.state_dict().items())


def test_resume_needs_the_same_recipe_and_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got nothing to resume, expected .*last.pt; train without --resume"):
        train(folder=tmp_path, resume=True)
    with pytest.raises(Interruption):
        train(folder=tmp_path, stop=7)
    with pytest.raises(ValueError, match=r"got train.lr = 0.5 to resume a run with 0.001, expected the same recipe"):
        train(replace(CONFIG, lr=0.5), folder=tmp_path, resume=True)


def test_the_log_has_one_json_object_per_line(tmp_path: Path) -> None:
    train(replace(CONFIG, log_every=4), folder=tmp_path)
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == [4, 8, 10]
    for row in rows:
        assert {"lr", "showers_per_s", "loss/layers", "loss/shape", "validation/layers", "validation/shape"} < set(row)
        assert all(math.isfinite(v) for v in row.values())


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(steps=1000, warmup=100, lr=0.01)
    rates = [_rate(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[99] == rates[100] == max(rates) == 0.01
    assert rates[550] == pytest.approx(0.005)
    assert 0 < rates[-1] < 1e-5
    np.testing.assert_array_less(np.diff(rates[100:]), 0)


@dataclass(frozen=True)
class ToyConfig:
    """fault: step at which the second loss is NaN; target: what the first parameter is drawn to."""

    fault: int = -1
    every: int = 1


class Toy(Generator):
    """Two numbers, each drawn to a value by a loss of its own; counts how often each loss is taken."""

    def __init__(self, config: ToyConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes, self.n_noise = config, sizes, sizes.n_globals + sizes.n_voxels
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.taken = {"a": 0, "b": 0}

    def objectives(self) -> Iterator[Objective]:
        yield Objective("a", [self.a], self._a)
        yield Objective("b", [self.b], self._b, every=self.config.every)

    def _a(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        self.taken["a"] += self.training
        # Validation likes a small a, training a large one: the best step is the first.
        return (self.a - 1).square().sum() if self.training else self.a.square().sum()

    def _b(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        self.taken["b"] += self.training
        loss = (self.b - 1).square().sum()
        return loss * float("nan") if self.taken["b"] > self.config.fault >= 0 else loss

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return z + self.a + self.b


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> FastSim:
    monkeypatch.setitem(MODELS, "toy", (ToyConfig, Toy))
    config: Any = ToyConfig()
    return FastSim.create(SHOWERS.geometry, config, valid=SHOWERS.incident)


def test_a_loss_that_is_not_finite_names_objective_and_step(toy: FastSim, tmp_path: Path) -> None:
    toy.generator.config = ToyConfig(fault=6)  # type: ignore[assignment]
    with pytest.raises(
        FloatingPointError, match=r"got a loss of nan for objective 'b' at step 6, expected a finite .*;"
    ):
        fit(toy, SHOWERS, CONFIG, folder=tmp_path)
    assert log(tmp_path)[-1]["step"] == 6
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 5  # what was good stays


def test_an_objective_is_taken_every_so_many_steps(toy: FastSim) -> None:
    toy.generator.config = ToyConfig(every=3)  # type: ignore[assignment]
    fit(toy, SHOWERS, CONFIG)
    assert toy.generator.taken == {"a": 10, "b": 4}


def test_early_stopping_keeps_the_best_step_of_each_objective(toy: FastSim, tmp_path: Path) -> None:
    fit(toy, SHOWERS, replace(CONFIG, lr=0.1, clip=10.0), folder=tmp_path)
    best = torch.load(tmp_path / "last.pt", weights_only=True)["best"]
    assert (best["a"]["step"], best["b"]["step"]) == (1, 10)
    first, second = float(toy.generator.a.detach()), float(toy.generator.b.detach())
    assert 0 < first < 0.1 < second


def test_without_early_stopping_the_average_is_kept(toy: FastSim) -> None:
    fit(toy, SHOWERS, replace(CONFIG, lr=0.1, clip=10.0, keep="last"))
    a, b = float(toy.generator.a.detach()), float(toy.generator.b.detach())
    assert a == pytest.approx(b)
    assert a > 0.1


PLANE = Geometry("plane", (Layer("cartesian", regular(-30, 30, 3), regular(-40, 40, 4), (0, 10)),))


def test_mirrors_are_for_particles_on_the_axis() -> None:
    showers = small_showers(PLANE)
    train(replace(CONFIG, mirror=True), showers=showers)
    for name in ("x", "y", "theta"):
        incident = Incident(**{"energy": showers.incident.energy, "pdg": showers.incident.pdg, name: 0.1})
        with pytest.raises(ValueError, match=r"got train.mirror with inclined or displaced particles, expected theta"):
            train(replace(CONFIG, mirror=True), showers=replace(showers, incident=incident))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch": 0}, {"log_every": 0}, {"checkpoint_every": 0}, {"validation": 1.0}, {"ema": 1.0},
     {"lr": 0.0}, {"clip": 0.0}, {"lr": float("nan")}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got TrainConfig.*expected .*; (raise|correct) them"):
        TrainConfig(**wrong)


def test_showers_of_another_detector_and_too_few_are_refused() -> None:
    fast = FastSim.create(small_geometry(), FLOW, valid=SHOWERS.incident)
    with pytest.raises(ValueError, match=r"got training showers with geometry 'plane' .* expected 'small'"):
        fit(fast, small_showers(PLANE), CONFIG)
    with pytest.raises(ValueError, match=r"got 2 showers with validation 0.9, expected at least 2"):
        fit(fast, SHOWERS[:2], replace(CONFIG, validation=0.9))
    with pytest.raises(ValueError, match=r"the range this model was made for"):
        fit(FastSim.create(small_geometry(), FLOW, valid=SHOWERS.incident[:2]), SHOWERS, CONFIG)


def test_a_constant_schedule_stays_at_the_rate() -> None:
    config = TrainConfig(steps=100, warmup=10, schedule="constant", lr=1e-3)
    assert [_rate(step, config) for step in (4, 10, 99)] == pytest.approx([5e-4, 1e-3, 1e-3])


def test_separation_needs_held_out_showers() -> None:
    with pytest.raises(ValueError, match="keep = 'separation' with validation 0"):
        TrainConfig(keep="separation", validation=0.0)


def test_mirror_images_would_move_imposed_centres() -> None:
    showers = small_showers(n=100)
    fast = FastSim.create(
        showers.geometry, VAEConfig(width=8), valid=showers.incident, preprocess=PreprocessConfig(impose="moments")
    )
    with pytest.raises(ValueError, match=r"train\.mirror with preprocess\.impose"):
        fit(fast, showers, TrainConfig(steps=1, mirror=True))
