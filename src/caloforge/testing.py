"""Conformance suites: subclass one in a test file, and pytest checks that a model or a simulator keeps its promises.

    class TestMine(GeneratorContract):
        config = MineConfig(width=16)               # small: it is trained for some hundred steps

    class TestFactory(SimulatorContract):
        incident = Incident([1e3, 5e3], pdg=11)     # at least two particles

        def simulator(self): return MySimulator()

A model has to be a row of MODELS. Its notation: x features (N, L + V), c context (N, C), z latent noise (N, Z).
"""

import json
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor

from .config import Recipe, dump_recipe
from .fastsim import FastSim
from .geometry import Geometry, Layer, regular
from .models import ModelConfig, Objective
from .preprocess import PreprocessConfig
from .showers import FIELDS, Incident, Showers
from .simulate import Simulator
from .train import TrainConfig, fit

__all__ = ["GeneratorContract", "SimulatorContract", "small_geometry", "small_showers"]

N = 64  # showers of the small sample


def small_geometry() -> Geometry:
    """Two layers, 22 voxels: 4 x 3 polar ones before 2 x 5 cartesian ones."""
    polar = Layer("polar", regular(-np.pi, np.pi, 4), (0.0, 5.0, 20.0, 50.0), (0.0, 100.0))
    return Geometry("small", (polar, Layer("cartesian", (-50, 0, 50), regular(-50, 50, 5), (100, 250))))


def small_showers(geometry: Geometry | None = None, n: int = N, seed: int = 0) -> Showers:
    """n showers of 1 to 100 GeV with sparse, correlated voxels; not physics, but something to learn."""
    geometry = geometry or small_geometry()
    rng = np.random.default_rng(seed)
    incident = Incident(np.exp(rng.uniform(np.log(1e3), np.log(1e5), n)), pdg=np.full(n, 11))
    depth = rng.beta(2, 2, (n, 1))  # share of the last layers
    place = (geometry.layer_index + 0.5) / geometry.n_layers
    mean = np.exp(-8 * (place - depth) ** 2) / geometry.n_voxels * incident.energy[:, None]
    filled = rng.random(mean.shape) < 0.2 + 0.6 * depth
    return Showers(geometry, incident, mean * filled * rng.gamma(4, 0.2, mean.shape), None, {"engine": "small"})


class GeneratorContract:
    """What every model promises. Set ``config``; ``geometry`` or ``showers()`` where the small ones do not suit.

    preprocess: of the showers, None for the default. falling: objectives whose loss falls when 64 showers are learnt
    by heart, None for all; a GAN has none of them. idle: parts of the names of parameters without effect, which a
    published architecture may have (a bias that cancels). train: how they are learnt.
    """

    config: ClassVar[ModelConfig]
    geometry: ClassVar[Geometry] = small_geometry()
    preprocess: ClassVar[PreprocessConfig | None] = None
    falling: ClassVar[tuple[str, ...] | None] = None
    idle: ClassVar[tuple[str, ...]] = ()
    train: ClassVar[TrainConfig] = TrainConfig(
        steps=120,
        batch=N,
        lr=5e-3,
        warmup=10,
        ema=0.9,
        bf16=False,
        validation=0.0,
        log_every=1,
        checkpoint_every=10_000,
    )

    def showers(self) -> Showers:
        """Showers to learn, at least 64."""
        return small_showers(self.geometry)

    def fast(self) -> FastSim:
        """An untrained model whose preprocessing knows the showers."""
        showers = self.showers()
        fast = FastSim.create(
            showers.geometry, self.config, valid=showers.incident, preprocess=self.preprocess or PreprocessConfig()
        )
        fast.fit_transform(showers)
        return fast

    def woken(self) -> FastSim:
        """The same with random numbers in parameters that start at zero, as training would leave them."""
        fast, random = self.fast(), torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in fast.generator.parameters():
                if not parameter.any():
                    noise = torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
                    parameter.copy_(0.1 * noise)
        return fast

    def batch(self, fast: FastSim) -> tuple[Tensor, Tensor]:
        """Features (N, L + V) and context (N, C) of the showers, as training sees them."""
        x, c = fast.encode(self.showers())
        uniform = torch.rand(len(x), fast.geometry.n_voxels, generator=torch.Generator().manual_seed(1))
        return fast.transform.dequantise(x, uniform), c

    def test_decode_returns_one_row_of_features_per_shower(self) -> None:
        fast = self.woken()
        x, c = self.batch(fast)
        for n in (1, 7):
            with torch.no_grad():
                out = fast.generator.decode(fast.noise(n, 0), c[:n])
            assert out.shape == (n, x.shape[1]), f"got {tuple(out.shape)}, expected {(n, x.shape[1])} (N, L + V)"
            assert out.dtype == torch.float32, f"got {out.dtype}, expected float32"
            assert torch.isfinite(out).all(), "got features that are not finite"

    def test_every_loss_is_a_finite_scalar_and_every_parameter_belongs_to_one(self) -> None:
        fast = self.woken()
        x, c = self.batch(fast)
        objectives = list(fast.generator.objectives())
        names = [objective.name for objective in objectives]
        assert len(set(names)) == len(names) > 0, f"got objectives {names}, expected different names"
        for objective in objectives:
            loss = objective.loss(x, c, torch.Generator().manual_seed(0))
            assert loss.shape == (), f"got loss {objective.name!r} of shape {tuple(loss.shape)}, expected a scalar"
            assert torch.isfinite(loss), f"got loss {objective.name!r} = {float(loss)}"
        trained = {id(p) for objective in objectives for p in objective.parameters}
        for name, parameter in fast.generator.named_parameters():
            assert id(parameter) in trained or not parameter.requires_grad, f"no objective trains {name}"

    def test_gradients_reach_every_parameter_of_each_objective(self) -> None:
        fast = self.woken()
        x, c = self.batch(fast)
        names = {id(p): name for name, p in fast.generator.named_parameters()}
        fast.generator.train()
        for objective in fast.generator.objectives():
            fast.generator.zero_grad(set_to_none=True)
            _loss(objective, x, c).backward()  # type: ignore[no-untyped-call]
            for parameter in objective.parameters:
                gradient, name = parameter.grad, names[id(parameter)]
                if any(part in name for part in self.idle):
                    continue
                assert gradient is not None, f"objective {objective.name!r} does not reach {name}"
                assert torch.isfinite(gradient).all(), f"objective {objective.name!r}: gradient of {name} not finite"
                assert gradient.any(), f"objective {objective.name!r}: gradient of {name} is zero everywhere"

    def test_the_loss_is_a_function_of_its_arguments(self) -> None:
        fast = self.woken()
        x, c = self.batch(fast)
        state = torch.get_rng_state()
        for objective in fast.generator.eval().objectives():
            a, b = (objective.loss(x, c, torch.Generator().manual_seed(5)) for _ in range(2))
            assert torch.equal(a, b), f"objective {objective.name!r} differs for the same random generator"
        assert torch.equal(state, torch.get_rng_state()), "a loss draws from the global random state"

    def test_decode_is_deterministic(self) -> None:
        fast = self.woken()
        _, c = self.batch(fast)
        z, state = fast.noise(len(c), 0), torch.get_rng_state()
        with torch.no_grad():
            a, b = fast.generator.decode(z, c), fast.generator.decode(z.clone(), c.clone())
        assert torch.equal(a, b), "decode gives two results for one input"
        assert torch.equal(state, torch.get_rng_state()), "decode draws from the global random state"

    def test_output_i_depends_on_input_i_only(self) -> None:
        fast = self.woken()
        _, c = self.batch(fast)
        z = fast.noise(len(c), 0)
        with torch.no_grad():
            whole = fast.generator.decode(z, c)
            reverse, alone = fast.generator.decode(z.flip(0), c.flip(0)).flip(0), fast.generator.decode(z[:1], c[:1])
            other = torch.cat([z[:1], fast.noise(len(c) - 1, 1)])
            beside = fast.generator.decode(other, c)
        torch.testing.assert_close(reverse, whole, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(alone, whole[:1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(beside[:1], whole[:1], rtol=1e-3, atol=1e-4)
        assert not torch.equal(beside[1:], whole[1:]), "the noise does not change the showers"

    def test_save_and_load_give_the_same_showers(self, tmp_path: Path) -> None:
        fast, incident = self.woken(), self.showers().incident
        fast.save(tmp_path / "model")
        again = FastSim.load(tmp_path / "model")
        assert again.card == fast.card
        a, b = (f.simulate(incident, seed=4).energy for f in (fast, again))
        np.testing.assert_array_equal(a, b)

    def test_the_onnx_graph_equals_pytorch(self, tmp_path: Path) -> None:
        absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if absent:
            raise SkipTest(f"no package {absent[0]}: pip install 'caloforge[onnx]'")
        from .export import TOLERANCE, run, session
        from .export import export as export_onnx

        fast = self.woken()
        parity = export_onnx(fast, tmp_path / "a.onnx")
        assert parity.layer_energy <= TOLERANCE
        graph = session(str(tmp_path / "a.onnx"))
        for n in (1, 7):  # the batch is dynamic
            particles = [getattr(self.showers().incident, name)[:n] for name in fast.inputs]
            assert run(graph, fast.noise(n, 0).numpy(), particles).shape == (n, fast.geometry.n_voxels)

    def test_the_loss_falls_when_showers_are_learnt_by_heart(self, tmp_path: Path) -> None:
        fast = self.fast()
        fit(fast, self.showers()[:N], self.train, folder=tmp_path)
        rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        names = [o.name for o in fast.generator.objectives()] if self.falling is None else self.falling
        for name in names:
            losses = [row[f"loss/{name}"] for row in rows if f"loss/{name}" in row]
            tenth = max(1, len(losses) // 10)
            first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
            assert last < first, f"loss {name!r} went from {first:.4f} to {last:.4f}"

    def test_the_recipe_round_trips(self) -> None:
        recipe = Recipe(model=self.config, preprocess=self.preprocess or PreprocessConfig())
        assert Recipe.from_dict(tomllib.loads(dump_recipe(recipe))) == recipe


def _loss(objective: Objective, x: Tensor, c: Tensor) -> Tensor:
    return objective.loss(x, c, torch.Generator().manual_seed(0))


class SimulatorContract:
    """What every simulator promises. Set ``incident``, two particles or more, and write ``simulator``.

    extendable: whether the showers of the first particles stay the same when particles are added behind them.
    """

    incident: ClassVar[Incident]
    extendable: ClassVar[bool] = False

    def simulator(self) -> Simulator:
        """The simulator under test."""
        raise NotImplementedError

    def test_the_same_seed_gives_the_same_showers(self) -> None:
        simulator = self.simulator()
        state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
        a, b = (simulator.simulate(self.incident, seed=7).energy for _ in range(2))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, self.simulator().simulate(self.incident, seed=7).energy)
        after: Any = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
        assert np.array_equal(state, after), "simulate draws from the global random state"

    def test_another_seed_gives_other_showers(self) -> None:
        a, b = (self.simulator().simulate(self.incident, seed=seed).energy for seed in (7, 8))
        assert not np.array_equal(a, b)

    def test_geometry_and_particles_are_kept(self) -> None:
        simulator = self.simulator()
        showers = simulator.simulate(self.incident, seed=1)
        simulator.geometry.require_same(showers.geometry, "simulated showers")
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(showers.incident, name), getattr(self.incident, name))

    def test_energies_are_finite_and_not_negative(self) -> None:
        showers = self.simulator().simulate(self.incident, seed=1)
        assert showers.energy.shape == (len(self.incident), self.simulator().geometry.n_voxels)
        assert np.isfinite(showers.energy).all()
        assert (showers.energy >= 0).all()
        assert showers.total.any(), "all showers are empty"

    def test_provenance_is_plain_data(self) -> None:
        simulator = self.simulator()
        for provenance in (simulator.provenance(), simulator.simulate(self.incident, seed=1).provenance):
            assert json.loads(json.dumps(dict(provenance)))["engine"]

    def test_more_particles_leave_the_first_showers_alone(self) -> None:
        if not self.extendable:
            raise SkipTest("not promised: showers are the same for the same list of particles")
        whole = self.simulator().simulate(self.incident, seed=2).energy
        first = self.simulator().simulate(self.incident[:-1], seed=2).energy
        np.testing.assert_allclose(first, whole[:-1], rtol=1e-3, atol=1e-2)
