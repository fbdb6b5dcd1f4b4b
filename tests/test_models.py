"""The contract over every row of MODELS, and oracles of single families."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import MODELS, Generator, ModelConfig, Objective, Sizes, family_of
from caloforge.models.base import LayerFlow
from caloforge.models.flow_matching import FlowMatching, FlowMatchingConfig
from caloforge.models.vae import VAE, VAEConfig
from caloforge.preprocess import PreprocessConfig
from caloforge.showers import Showers
from caloforge.simulate import jets
from caloforge.testing import GeneratorContract, small_geometry, small_showers

SIZES = Sizes(n_globals=4, n_voxels=22, n_conditions=1)
# Sizes that any family may have; a new one is tested with those of these that it knows.
SMALL = {
    "width": 16,
    "depth": 1,
    "n_latent": 3,
    "n_steps": 2,
    "layer_hidden": 8,
    "layer_width": 8,
    "n_slices": 8,
    "layer_transforms": 1,
    "layer_passes": 2,
    "layer_bins": 4,
    "judge_width": 16,
    "n_kernels": 3,
    "n_dims": 2,
    "n_blocks": 2,
    "bins": 4,
    "teacher_width": 16,
    "rank": 2,
    "stem": 8,
    "level_1": 8,
    "level_2": 8,
    "level_3": 8,
    "heads": 2,
    "hidden": 32,
    "energy_steps": 1,
    "patch_layers": 2,
    "patch_first": 2,
    "patch_second": 1,
}
SINGLE = Geometry("single", small_geometry().layers[:1])


def small(kind: type) -> ModelConfig:
    """A configuration of the family with a tiny network."""
    known = {f.name for f in fields(kind)}
    config: ModelConfig = kind(**{key: value for key, value in SMALL.items() if key in known})
    return config


PLANAR = Geometry(
    "planar",
    (
        Layer("cartesian", regular(-30, 30, 2), regular(-40, 40, 8)),
        Layer("cartesian", regular(-30, 30, 4), regular(-40, 40, 4)),
    ),
)
EVEN = Geometry("even", (Layer("polar", regular(-np.pi, np.pi, 4), (0, 5, 20, 50)),) * 2)
CELLS = Geometry("cells", (Layer("cartesian", regular(-30, 30, 9), regular(-30, 30, 9)),))
# Families that make images: the meshes that they take, their preprocessing, and parameters that cancel in their losses.
IMAGES: dict[str, tuple[Geometry, PreprocessConfig, tuple[str, ...]]] = {
    "calodream": (EVEN, PreprocessConfig(voxels="fractions", map="logit", standardise="voxel"), ()),
    "caloflow": (small_geometry(), PreprocessConfig(voxels="fractions", threshold_mev=0.1), ()),
    "caloflow_student": (small_geometry(), PreprocessConfig(voxels="fractions", threshold_mev=0.1), ()),
    "calogan": (PLANAR, PreprocessConfig(voxels="linear"), ("similar",)),
    "lhcb_wgan": (CELLS, PreprocessConfig(voxels="box-cox", threshold_mev=0.1), ("critic.last.bias",)),
    "par04_vae": (small_geometry(), PreprocessConfig(voxels="ratio", map="linear", noise_mev=0.0), ()),
    "one_step": (small_geometry(), PreprocessConfig(voxels="linear", scale_mev=1.0), ()),
    "lagan": (jets.geometry(), PreprocessConfig(voxels="linear", scale_mev=1e4), ("similar.linear.bias",)),
}
ADVERSARIAL = {"gan": ("layers",), "calogan": (), "lagan": (), "lhcb_wgan": ("regressor",)}  # losses that fall


def two_kinds(geometry: Geometry) -> Showers:
    """Small showers of two kinds of particles."""
    showers = small_showers(geometry)
    incident = replace(showers.incident, pdg=np.where(np.arange(len(showers)) % 2, 24, 21))
    return Showers(geometry, incident, showers.energy)


def contract(family: str, geometry: Geometry) -> type:
    """A test class for one family on one geometry."""
    name = f"Test_{family}_on_{geometry.name}"
    members: dict[str, Any] = {"config": small(MODELS[family][0]), "geometry": geometry}
    if family in IMAGES:
        members |= {"preprocess": IMAGES[family][1], "idle": IMAGES[family][2]}
    if family in ADVERSARIAL:
        members["falling"] = ADVERSARIAL[family]
    if family == "diffusion":  # a convolution takes the exporter a second: one evaluation
        members["config"] = replace(members["config"], sampler="ddim", n_steps=1)
    if family == "lagan":
        members["showers"] = lambda self: two_kinds(geometry)
    if ADVERSARIAL.get(family) == ():  # no loss that has to fall, and steps of a second at published sizes
        members["train"] = replace(GeneratorContract.train, steps=3)
    # The export takes seconds: once per family, not voxel by voxel, and of calodream with its own small networks.
    if geometry is SINGLE or family in ("caloflow", "calodream"):
        members["test_the_onnx_graph_equals_pytorch"] = None
    return type(name, (GeneratorContract,), members)


def meshes(family: str) -> tuple[Geometry, ...]:
    return IMAGES[family][:1] if family in IMAGES else (small_geometry(), SINGLE)


for _family in MODELS:
    for _geometry in meshes(_family):
        _test = contract(_family, _geometry)
        globals()[_test.__name__] = _test
del _test


def test_the_contract_covers_every_family() -> None:
    assert all(f"Test_{family}_on_{mesh.name}" in globals() for family in MODELS for mesh in meshes(family))


@dataclass(frozen=True)
class FaultyConfig:
    """fault: what is wrong with the model."""

    fault: str = ""


class Faulty(Generator):
    """A model that breaks one promise."""

    def __init__(self, config: FaultyConfig, sizes: Sizes) -> None:
        super().__init__()
        self.fault, self.n_noise = config.fault, sizes.n_globals + sizes.n_voxels
        self.scale = nn.Parameter(torch.ones(self.n_noise))
        self.idle = nn.Parameter(torch.ones(1))

    def objectives(self) -> Iterator[Objective]:
        yield Objective("a", [self.scale, self.idle][: 2 if self.fault == "unreached" else 1], self._loss)

    def _loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(()) if self.fault == "global noise in the loss" else 0.0
        return (self.scale * x).square().mean() + noise

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        x = z * self.scale
        if self.fault == "mixed":
            x = x - x.mean(0)
        if self.fault == "random":
            x = x + torch.randn(x.shape)
        return x[:, 1:] if self.fault == "narrow" else 0 * x if self.fault == "deaf" else x


FAULTS = {
    "narrow": "test_decode_returns_one_row_of_features_per_shower",
    "idle": "test_every_loss_is_a_finite_scalar_and_every_parameter_belongs_to_one",
    "unreached": "test_gradients_reach_every_parameter_of_each_objective",
    "global noise in the loss": "test_the_loss_is_a_function_of_its_arguments",
    "random": "test_decode_is_deterministic",
    "mixed": "test_output_i_depends_on_input_i_only",
    "deaf": "test_output_i_depends_on_input_i_only",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_finds_the_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "faulty", (FaultyConfig, Faulty))
    case: Any = type("Case", (GeneratorContract,), {"config": FaultyConfig(fault)})()
    with pytest.raises(AssertionError):
        getattr(case, FAULTS[fault])()


def test_family_of_names_the_rows() -> None:
    assert all(family_of(kind()) == family for family, (kind, _) in MODELS.items())
    wrong: Any = PreprocessConfig()
    with pytest.raises(ValueError, match=r"got a model configuration PreprocessConfig, expected one of .*VAEConfig"):
        family_of(wrong)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    "wrong",
    [{"width": 1}, {"depth": 0}, {"dropout": 1.0}, {"layer_dropout": -0.1}, {"n_steps": 0}, {"n_latent": 0},
     {"layer_transforms": 0}, {"layer_bins": 0}, {"t_std": 0.0}, {"beta": -1.0}],
)  # fmt: skip
def test_impossible_settings_are_refused(family: str, wrong: dict[str, Any]) -> None:
    kind, _ = MODELS[family]
    if wrong.keys() <= {f.name for f in fields(kind)}:
        with pytest.raises(ValueError, match=rf"got model\.{next(iter(wrong))} = .*expected"):
            kind(**wrong)


def flow_matching(**changes: Any) -> FlowMatching:
    torch.manual_seed(0)
    config = FlowMatchingConfig(**(SMALL_FLOW | changes))
    return FlowMatching(config, SIZES).eval()


SMALL_FLOW: dict[str, Any] = {key: SMALL[key] for key in ("width", "depth", "layer_hidden", "layer_transforms")}


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_before_training_the_velocity_is_that_of_independent_normals(t: float) -> None:
    """For x_0, x_1 ~ N(0, 1): v(x, t) = E[x_1 - x_0 | x_t = x] = cov(x_1 - x_0, x_t) / var(x_t) x."""
    model = flow_matching()
    x = torch.randn(50, SIZES.n_voxels)
    g, c = torch.randn(50, SIZES.n_globals), torch.rand(50, 1)
    expected = (t - (1 - t)) / (t**2 + (1 - t) ** 2) * x
    with torch.no_grad():
        torch.testing.assert_close(model.velocity(x, t, g, c), expected, rtol=1e-5, atol=1e-6)


def test_the_same_velocity_from_a_simulated_regression() -> None:
    random = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 400_000, generator=random)
    for t in (0.2, 0.7):
        xt = (1 - t) * x0 + t * x1
        slope = float((xt * (x1 - x0)).mean() / xt.square().mean())
        with torch.no_grad():
            v = flow_matching().velocity(torch.ones(1, SIZES.n_voxels), t, torch.zeros(1, 4), torch.zeros(1, 1))
        assert float(v[0, 0]) == pytest.approx(slope, abs=5 * 2 / math.sqrt(400_000))


@pytest.mark.parametrize(("solver", "n_steps"), [("midpoint", 12), ("heun", 12), ("rk4", 6), ("euler", 200)])
def test_before_training_decode_maps_normals_to_normals(solver: str, n_steps: int) -> None:
    """The exact flow of dv/dt = (2 t - 1)/s^2 v is v(1) = s(1)/s(0) v(0) = v(0)."""
    model = flow_matching(solver=solver, n_steps=n_steps)
    z = torch.randn(2000, model.n_noise, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        v = model.decode(z, torch.zeros(2000, 1))[:, SIZES.n_globals :]
    torch.testing.assert_close(v, z[:, SIZES.n_globals :], rtol=0.02, atol=0.02)
    n = v.numel()
    assert float(v.mean()) == pytest.approx(0, abs=5 / math.sqrt(n))
    assert float(v.std()) == pytest.approx(1, abs=0.01)


def test_the_target_of_flow_matching_has_unit_variance() -> None:
    """For independent normal features the loss of the untrained network is the variance of the target: 1 at every t."""
    for t_mean in (-3.0, 0.0, 3.0):
        model = flow_matching(t_mean=t_mean, t_std=0.1)
        x = torch.randn(20_000, SIZES.n_globals + SIZES.n_voxels, generator=torch.Generator().manual_seed(1))
        shape = next(o for o in model.objectives() if o.name == "shape")
        with torch.no_grad():
            loss = float(shape.loss(x, torch.zeros(len(x), 1), torch.Generator().manual_seed(2)))
        assert loss == pytest.approx(1, abs=5 * math.sqrt(2 / (20_000 * SIZES.n_voxels)))


def test_before_training_the_vae_draws_standard_normals_and_its_loss_is_known() -> None:
    model = VAE(VAEConfig(n_latent=3, width=16, depth=1, layer_hidden=8, layer_transforms=1), SIZES).eval()
    x = torch.randn(5000, SIZES.n_globals + SIZES.n_voxels, generator=torch.Generator().manual_seed(1))
    c = torch.zeros(5000, 1)
    z = torch.randn(5000, model.n_noise, generator=torch.Generator().manual_seed(2))
    shape = next(o for o in model.objectives() if o.name == "shape")
    with torch.no_grad():
        torch.testing.assert_close(model.decode(z, c)[:, SIZES.n_globals :], z[:, -SIZES.n_voxels :])
        # q is the prior, so KL = 0; -ln p = v^2 / 2 up to its constant.
        expected = 0.5 * float(x[:, SIZES.n_globals :].square().mean())
        assert float(shape.loss(x, c, torch.Generator().manual_seed(3))) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_generator_is_the_sum_of_its_objectives() -> None:
    model: Generator = flow_matching()
    x, c = torch.randn(16, SIZES.n_globals + SIZES.n_voxels), torch.zeros(16, 1)
    parts = []
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for objective in model.objectives():
            parts.append(float(objective.loss(x, c, random)))
        assert float(model.loss(x, c, torch.Generator().manual_seed(0))) == pytest.approx(sum(parts), rel=1e-6)


@pytest.mark.parametrize("family", ["flow_matching", "vae", "copula", "gan"])
def test_families_with_a_layer_flow_need_layer_features(family: str) -> None:
    kind, model = MODELS[family]
    with pytest.raises(ValueError, match=r"got preprocessing .*expected preprocess\.voxels = 'gaussian'"):
        model(kind(), Sizes(0, 22, 1))


def test_the_likelihood_of_the_copula_is_that_of_its_flow_and_of_normal_numbers() -> None:
    copula = MODELS["copula"][1](MODELS["copula"][0](8, 1, 4), SIZES).eval()
    x, c = torch.randn(30, SIZES.n_globals + SIZES.n_voxels), torch.zeros(30, 1)
    with torch.no_grad():
        log_p = copula.log_prob(x, c)
        other = copula.log_prob(torch.cat([x[:, : SIZES.n_globals], 0 * x[:, SIZES.n_globals :]], dim=1), c)
    torch.testing.assert_close(other - log_p, 0.5 * x[:, SIZES.n_globals :].square().sum(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("passes", "dropout"), [(0, 0.0), (2, 0.0), (3, 0.0), (3, 0.5)])
def test_decoding_undoes_the_density_of_a_layer_flow(passes: int, dropout: float) -> None:
    torch.manual_seed(3)
    flow = LayerFlow(SIZES, hidden=8, transforms=2, bins=4, fast="density", passes=passes, dropout=dropout).eval()
    z, c = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    g = flow.decode(z, c)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda a, b=b: flow.decode(a[None], b[None])[0], one)
                            for one, b in zip(z, c, strict=True)])  # fmt: skip
    normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(flow.log_prob(g, c), normal - torch.linalg.slogdet(jacobian)[1], rtol=1e-6, atol=1e-6)


def test_a_layer_flow_drops_hidden_units_in_training_only() -> None:
    torch.manual_seed(3)
    flow = LayerFlow(SIZES, hidden=8, transforms=1, bins=4, fast="density", dropout=0.5)
    plain = LayerFlow(SIZES, hidden=8, transforms=1, bins=4, fast="density")
    g, c = torch.randn(6, 4), torch.randn(6, 1)
    assert not torch.equal(flow.train().log_prob(g, c), flow.log_prob(g, c))
    assert torch.equal(flow.eval().log_prob(g, c), flow.log_prob(g, c))
    assert flow.state_dict().keys() == plain.state_dict().keys(), "weights fit with and without"
    assert torch.equal(plain.train().log_prob(g, c), plain.log_prob(g, c))


def test_a_layer_flow_of_one_pass_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got layer_passes = 1, expected 0 \(autoregressive\) or at least 2"):
        LayerFlow(SIZES, hidden=8, transforms=2, bins=4, fast="density", passes=1)
