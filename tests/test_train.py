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

import caloforge.train
from caloforge.fastsim import FastSim
from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import MODELS, Generator, Objective, Sizes
from caloforge.models.flow_matching import FlowMatching, FlowMatchingConfig
from caloforge.models.vae import VAEConfig
from caloforge.parallel import Processes
from caloforge.preprocess import PreprocessConfig
from caloforge.showers import Incident, Showers
from caloforge.testing import small_geometry, small_showers
from caloforge.train import TrainConfig, _gradients, _pieces, _prepare, _rate, fit

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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_equal_weights(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[name])), name


@pytest.mark.parametrize("model", [FLOW, VAE], ids=["flow_matching", "vae"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, model: Any, keep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caloforge.train, "has_fast_bf16", lambda device: True)
    config = replace(CONFIG, keep=keep, bf16=keep == "best", parts=2 if keep == "best" else 1)
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
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"got train\.lr = 0\.5 instead of 0\.001 to resume a run, expected the same"):
        train(replace(CONFIG, lr=0.5), folder=tmp_path, resume=True)
    with pytest.raises(
        ValueError, match=r"got train\.batch = 8 instead of 16, train\.seed = 4 instead of 3, train\.showers = \w+ inst"
    ):
        train(replace(CONFIG, batch=8, seed=4), folder=tmp_path, resume=True, showers=SHOWERS[1:])
    assert contents(tmp_path) == before


def test_a_checkpoint_without_later_settings_is_resumed(tmp_path: Path) -> None:
    whole = train(folder=tmp_path)
    with pytest.raises(Interruption):
        train(folder=tmp_path, stop=7)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    for name in ("parts", "device"):
        del state["config"][name]
    torch.save(state, tmp_path / "last.pt")
    assert_equal_weights(whole.state_dict(), train(folder=tmp_path, resume=True).state_dict())


def test_a_torn_log_is_resumed_and_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    whole = train(folder=tmp_path)
    rows = log(tmp_path)
    with pytest.raises(Interruption):
        train(folder=tmp_path, stop=7)
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text()[:-9])
    assert_equal_weights(whole.state_dict(), train(folder=tmp_path, resume=True).state_dict())
    assert [row["step"] for row in log(tmp_path)] == [row["step"] for row in rows]
    for damaged in (b"junk", (tmp_path / "last.pt").read_bytes()[:5000]):
        (tmp_path / "last.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"got .*last\.pt, expected a checkpoint; it is damaged, train anew"):
            train(folder=tmp_path, resume=True)


def test_the_log_has_one_json_object_per_line(tmp_path: Path) -> None:
    train(replace(CONFIG, log_every=4), folder=tmp_path)
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == [4, 8, 10]
    for row in rows:
        assert {"lr", "showers_per_s", "loss/layers", "loss/shape", "validation/layers", "validation/shape"} < set(row)
        assert row.pop("precision") == "float32"
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
    """fault: step at which the second loss is NaN, or only its gradient if ``finite``; every: of the second loss."""

    fault: int = -1
    every: int = 1
    finite: bool = False


class Toy(Generator):
    """Two numbers, each drawn to a value by a loss of its own; counts how often each loss is taken."""

    def __init__(self, config: ToyConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes, self.n_noise = config, sizes, sizes.n_globals + sizes.n_voxels
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.taken = {"a": 0, "b": 0}
        self.sizes_seen: set[int] = set()
        self.bf16_seen: set[bool] = set()

    def objectives(self) -> Iterator[Objective]:
        yield Objective("a", [self.a], self._a)
        yield Objective("b", [self.b], self._b, every=self.config.every)

    def _a(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        self.taken["a"] += self.training
        self.bf16_seen.add(torch.is_autocast_enabled("cpu"))
        if self.training:
            self.sizes_seen.add(len(x))
        # Validation likes a small a, training a large one: the best step is the first.
        return (self.a - 1).square().sum() if self.training else self.a.square().sum()

    def _b(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        self.taken["b"] += self.training
        loss = (self.b - 1).square().sum()
        if not self.taken["b"] > self.config.fault >= 0:
            return loss
        return loss + (self.b - self.b).sum().sqrt() if self.config.finite else loss * float("nan")

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return z + self.a + self.b


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> FastSim:
    monkeypatch.setitem(MODELS, "toy", (ToyConfig, Toy))
    config: Any = ToyConfig()
    return FastSim.create(SHOWERS.geometry, config, valid=SHOWERS.incident)


@pytest.mark.parametrize("finite", [False, True], ids=["loss", "gradient"])
def test_what_is_not_finite_names_objective_and_step_and_leaves_the_last_good_checkpoint(
    toy: FastSim, tmp_path: Path, finite: bool
) -> None:
    good, bad, model = tmp_path / "good", tmp_path / "bad", toy.generator
    for folder, fault in ((good, -1), (bad, 6)):
        folder.mkdir()
        model.config, model.taken["b"] = ToyConfig(fault=fault, finite=finite), 0  # type: ignore[assignment]
        with torch.no_grad():
            model.a.zero_(), model.b.zero_()
        config = replace(CONFIG, steps=6 if fault < 0 else 10, schedule="constant", checkpoint_every=1)
        if fault < 0:
            fit(toy, SHOWERS, config, folder=folder)
            continue
        what = "gradient norm" if finite else "loss"
        with pytest.raises(FloatingPointError, match=rf"got a {what} of nan for objective 'b' at step 6, expected a f"):
            fit(toy, SHOWERS, config, folder=folder)
    assert log(bad)[-1]["step"] == 6
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (good, bad)]
    assert states[0]["step"] == states[1]["step"] == 6
    assert_equal_weights(states[0]["generator"], states[1]["generator"])


def test_a_checkpoint_before_the_bad_step_stays_as_it_is(toy: FastSim, tmp_path: Path) -> None:
    toy.generator.config = ToyConfig(fault=6)  # type: ignore[assignment]
    with pytest.raises(FloatingPointError):
        fit(toy, SHOWERS, CONFIG, folder=tmp_path)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 5
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "log.jsonl"}


def test_a_batch_in_pieces_is_the_same_batch(toy: FastSim, tmp_path: Path) -> None:
    fit(toy, SHOWERS, replace(CONFIG, parts=4), folder=tmp_path)
    assert toy.generator.sizes_seen == {4}
    assert toy.generator.taken == {"a": 40, "b": 40}
    a, b = toy.generator.a.clone(), toy.generator.b.clone()
    with torch.no_grad():
        toy.generator.a.zero_(), toy.generator.b.zero_()
    (tmp_path / "whole").mkdir()
    fit(toy, SHOWERS, CONFIG, folder=tmp_path / "whole")  # these losses do not look at the showers
    assert torch.equal(a, toy.generator.a)
    assert torch.equal(b, toy.generator.b)
    for row, whole in zip(log(tmp_path), log(tmp_path / "whole"), strict=True):
        assert row["loss/a"] == whole["loss/a"]


def test_the_gradient_of_a_batch_is_the_mean_of_its_pieces() -> None:
    """A loss without noise: the layer flow."""
    fast = FastSim.create(SHOWERS.geometry, FLOW, valid=SHOWERS.incident)
    data, _ = _prepare(fast, SHOWERS, CONFIG, False)
    objective = next(o for o in fast.generator.objectives() if o.name == "layers")
    found = []
    for parts in (1, 4):
        config = replace(CONFIG, parts=parts)
        for parameter in objective.parameters:
            parameter.grad = None
        pieces = _pieces(3, config, fast, data, Processes())
        assert [len(piece.x) for piece in pieces] == [16 // parts] * parts
        loss = _gradients(objective, pieces, fast.generator, config, Processes())
        found.append((loss, [p.grad for p in objective.parameters], torch.cat([p.x for p in pieces])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-7, atol=1e-9)
    assert torch.equal(found[0][2], found[1][2])


def test_pieces_have_noise_of_their_own() -> None:
    fast = FastSim.create(SHOWERS.geometry, FLOW, valid=SHOWERS.incident)
    data, _ = _prepare(fast, SHOWERS, CONFIG, False)
    config = replace(CONFIG, parts=2)
    pieces = [*_pieces(0, config, fast, data, Processes()), *_pieces(1, config, fast, data, Processes())]
    assert len({piece.seed for piece in pieces}) == 4
    assert len({float(torch.rand(1, generator=piece.random)) for piece in pieces}) == 4
    again = [_pieces(0, config, fast, data, Processes(rank, 2))[0] for rank in (0, 1)]
    for piece, other in zip(pieces, again, strict=False):
        assert piece.seed == other.seed
        assert torch.equal(piece.x, other.x)
        assert torch.equal(piece.c, other.c)


@pytest.mark.parametrize("fast_bf16", [False, True])
def test_bfloat16_is_for_processors_that_have_it(
    toy: FastSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_bf16: bool
) -> None:
    monkeypatch.setattr(caloforge.train, "has_fast_bf16", lambda device: fast_bf16)
    fit(toy, SHOWERS, replace(CONFIG, bf16=True), folder=tmp_path)
    assert toy.generator.bf16_seen == {fast_bf16}
    assert {row["precision"] for row in log(tmp_path)} == {"bfloat16" if fast_bf16 else "float32"}
    fit(toy, SHOWERS, replace(CONFIG, bf16=True), folder=tmp_path, resume=True)  # another machine may resume it


def test_a_gpu_that_is_absent_is_said_and_auto_takes_the_cpu(
    toy: FastSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"got train\.device = 'cuda' where PyTorch finds no GPU, expected one; set"):
        fit(toy, SHOWERS, replace(CONFIG, device="cuda"), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    fit(toy, SHOWERS, replace(CONFIG, device="auto"))
    assert next(toy.generator.parameters()).device.type == "cpu"


def test_a_transform_that_is_kept_stays_bit_for_bit() -> None:
    fast = FastSim.create(SHOWERS.geometry, FLOW, valid=SHOWERS.incident)
    fast.fit_transform(SHOWERS[:40])
    before = {k: v.clone() for k, v in fast.state_dict().items() if not k.startswith("generator.")}
    generator = {k: v.clone() for k, v in fast.generator.state_dict().items()}
    fit(fast, SHOWERS, CONFIG, keep_transform=True)
    assert_equal_weights(before, {k: v for k, v in fast.state_dict().items() if not k.startswith("generator.")})
    assert any(not torch.equal(v, generator[k]) for k, v in fast.generator.state_dict().items())
    fit(fast, SHOWERS, CONFIG)
    after = fast.state_dict()
    assert any(not torch.equal(v, after[k]) for k, v in before.items())


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
    [{"steps": 0}, {"batch": 0}, {"parts": 0}, {"log_every": 0}, {"checkpoint_every": 0}, {"validation": 1.0},
     {"ema": 1.0}, {"lr": 0.0}, {"clip": 0.0}, {"lr": float("nan")}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got TrainConfig.*expected .*; (raise|correct) them"):
        TrainConfig(**wrong)


def test_pieces_of_a_batch_are_equal() -> None:
    with pytest.raises(ValueError, match=r"got train\.batch = 16 in train\.parts = 3, expected equal pieces; choose a"):
        TrainConfig(batch=16, parts=3)


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


def test_mirror_images_become_showers_where_moments_are_imposed() -> None:
    geometry = Geometry("planar", (Layer("cartesian", regular(-30, 30, 4), regular(-40, 40, 5)),))
    showers = small_showers(geometry, n=100)
    config = TrainConfig(steps=1, mirror=True, validation=0.1)
    for impose, n, n_images in (("none", 90, 4), ("moments", 360, 1)):
        preprocess = PreprocessConfig(impose=impose)  # type: ignore[arg-type]
        fast = FastSim.create(geometry, VAEConfig(width=8), valid=showers.incident, preprocess=preprocess)
        train, held = _prepare(fast, showers, config, keep=False)
        assert held is not None
        assert (len(train.x), len(train.mirrors), len(held.x)) == (n, n_images, 10)


def test_of_many_rotations_some_become_showers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments along x and y turn with the shower; sixteen rotations and their mirror images are too many.

    Fewer where showers are many: here 3 of the 90 showers of 48 voxels fit.
    """
    geometry = Geometry("rings", (Layer("polar", regular(-np.pi, np.pi, 16), regular(0, 40, 3)),))
    showers = small_showers(geometry, n=100)
    fast = FastSim.create(geometry, VAEConfig(width=8), valid=showers.incident)
    train, _ = _prepare(fast, showers, TrainConfig(steps=1, mirror=True, validation=0.1), keep=False)
    assert (len(train.x), len(train.mirrors)) == (8 * 90, 1)
    for voxels, n_images in [(3 * 90 * 48, 3), (100, 1)]:
        monkeypatch.setattr(caloforge.train, "MOST_IMAGED", voxels)
        train, _ = _prepare(fast, showers, TrainConfig(steps=1, mirror=True, validation=0.1), keep=False)
        assert (len(train.x), len(train.mirrors)) == (n_images * 90, 1)


def test_a_family_that_never_looks_at_voxels_gets_the_same_layer_features(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = FastSim.create(SHOWERS.geometry, FLOW, valid=SHOWERS.incident)
    data, _ = _prepare(fast, SHOWERS, CONFIG, False)
    whole = _pieces(3, CONFIG, fast, data, Processes())[0]
    monkeypatch.setattr(FlowMatching, "sees_voxels", False)
    layers = _pieces(3, CONFIG, fast, data, Processes())[0]
    assert layers.x.shape == (CONFIG.batch, fast.transform.n_globals)
    assert torch.equal(layers.x, whole.x[:, : layers.x.shape[1]])
    assert torch.equal(layers.c, whole.c)
