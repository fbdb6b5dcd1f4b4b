"""Networks of tokens: how geometries are cut, sizes, what they start as, and flow matching with them."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from caloforge.export import OPSET, session
from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import Sizes
from caloforge.models.flow_matching import FLOOR, FlowMatching, FlowMatchingConfig
from caloforge.models.tokens import Attention, Run, TokenMixer, TokenTransformer, patch_shape, runs
from caloforge.simulate import detectors
from caloforge.solvers import SOLVERS, euler
from caloforge.testing import GeneratorContract, small_geometry

CALOGAN = detectors.find("calogan").geometry
WHEEL = Geometry("wheel", (Layer("polar", regular(-np.pi, np.pi, 16), regular(0, 46.5, 9)),) * 45)
MIXED = Geometry(
    "mixed",
    (
        Layer("cartesian", regular(0, 1, 5), regular(0, 1, 4)),
        Layer("cartesian", regular(0, 1, 5), regular(0, 1, 4)),
        Layer("cartesian", regular(0, 1, 5), regular(0, 1, 4)),
        Layer("cartesian", regular(0, 1, 1), regular(0, 1, 7)),
    ),
)


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("shape", "most", "patch"),
    [
        ((3, 96), 12, (3, 4)), ((12, 12), 12, (4, 3)), ((12, 6), 12, (4, 3)), ((1, 8), 12, (1, 8)),
        ((16, 9), 48, (16, 3)), ((16, 9), 144, (16, 9)), ((50, 18), 48, (5, 9)), ((3, 96), 6, (3, 2)),
        ((5, 4), 1, (1, 1)),
    ],
)  # fmt: skip
def test_a_layer_is_cut_into_the_fewest_patches(shape: tuple[int, int], most: int, patch: tuple[int, int]) -> None:
    assert patch_shape(shape, most) == patch


def test_runs_of_equal_layers_are_cut_together() -> None:
    assert [(r.start, r.mesh, r.patch, r.n_tokens) for r in runs(CALOGAN, 12)] == [
        (0, (1, 3, 96), (1, 3, 4), 24),
        (288, (1, 12, 12), (1, 4, 3), 12),
        (432, (1, 12, 6), (1, 4, 3), 6),
    ]
    assert [(r.mesh, r.patch, r.grid) for r in runs(WHEEL, 48, 3)] == [((45, 16, 9), (3, 16, 1), (15, 1, 9))]
    assert [(r.start, r.mesh, r.patch, r.grid) for r in runs(MIXED, 12, 2)] == [
        (0, (3, 5, 4), (2, 5, 1), (2, 1, 4)),
        (60, (1, 1, 7), (1, 1, 7), (1, 1, 1)),
    ]


@pytest.mark.parametrize("geometry", [CALOGAN, MIXED, small_geometry()], ids=lambda g: g.name)
@pytest.mark.parametrize(("most", "n_layers"), [(1, 1), (5, 1), (12, 2), (48, 3)])
def test_joining_undoes_splitting(geometry: Geometry, most: int, n_layers: int) -> None:
    v = torch.arange(2.0 * geometry.n_voxels).reshape(2, -1)
    cuts = runs(geometry, most, n_layers)
    patches = [run.split(v) for run in cuts]
    assert all(math.prod(run.patch) <= most for run in cuts)
    for run, patch in zip(cuts, patches, strict=True):
        assert patch.shape == (2, run.n_tokens, math.prod(run.patch))
    joined = torch.cat([run.join(patch) for run, patch in zip(cuts, patches, strict=True)], dim=1)
    assert torch.equal(joined, v)


def test_patches_hold_neighbours_and_zeros_where_they_stick_out() -> None:
    run = Run(1, (3, 2, 3), (2, 1, 2))
    v = torch.arange(19.0)[None]
    mesh = v[0, 1:].reshape(3, 2, 3)
    patches = run.split(v)[0]
    assert run.grid == (2, 2, 2)
    assert torch.equal(patches[0], torch.stack([mesh[0, 0, :2], mesh[1, 0, :2]]).flatten())
    assert patches[7].tolist() == [mesh[2, 1, 2], 0, 0, 0]


SHAPES: dict[str, Any] = {"n_context": 5, "width": 8, "depth": 2, "dropout": 0.0}


def network(kind: str, geometry: Geometry = MIXED, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    cuts = runs(geometry, 12)
    settings = SHAPES | changes
    return TokenMixer(cuts, **settings) if kind == "mixer" else TokenTransformer(cuts, **settings, heads=2)


def woken(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return net


@pytest.mark.parametrize("kind", ["mixer", "transformer"])
def test_the_output_starts_at_zero_and_then_depends_on_every_voxel_and_condition(kind: str) -> None:
    net = network(kind)
    v, c = torch.randn(2, 67, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    assert not net(v, c).any()
    out = woken(net)(v, c)
    assert out.shape == v.shape
    for column in (0, 66):
        slopes = torch.autograd.grad(out[0, column], (v, c), retain_graph=True)
        assert all(slope[0].all() and not slope[1].any() for slope in slopes)


@pytest.mark.parametrize("kind", ["mixer", "transformer"])
def test_a_shared_modulation_has_an_offset_per_block_and_else_one_layer_each(kind: str) -> None:
    d, depth = 8, 3
    shared, own = (network(kind, depth=depth, shared=flag) for flag in (True, False))
    layer = 6 * d * d + 6 * d
    assert n_parameters(own) - n_parameters(shared) == (depth - 1) * layer - depth * 6 * d
    with torch.no_grad():
        shared.modulations.offsets[1] = 1.0  # type: ignore[union-attr, index, operator]
        every = shared.modulations(torch.randn(2, d))  # type: ignore[operator]
    assert [float(m.mean()) for m in every] == [0, 1, 0]


def test_numbers_of_parameters() -> None:
    cuts, d, depth, c = runs(CALOGAN, 12), 16, 2, 5
    tokens = 3 * (12 * d + d) + 42 * d + 3 * (d * 12 + 12)  # three kinds of layers
    context = (c * d + d) + (d * d + d) + (6 * d * d + 6 * d) + depth * 6 * d
    attention = (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d)
    mixing = (2 * 42 * 84 + 84 + 42) + (4 * d * d + 3 * d)
    shape: dict[str, Any] = {"n_context": c, "width": d, "depth": depth, "dropout": 0.0}
    assert n_parameters(TokenTransformer(cuts, **shape)) == tokens + context + depth * attention
    assert n_parameters(TokenMixer(cuts, **shape)) == tokens + context + depth * mixing


def test_layers_of_one_shape_share_their_embedding() -> None:
    net = network("mixer", WHEEL)
    assert len(net.enter) == len(net.leave) == 1  # type: ignore[arg-type]
    assert len(network("mixer", CALOGAN).enter) == 3  # type: ignore[arg-type]


def test_attention_equals_a_slow_twin() -> None:
    torch.manual_seed(0)
    layer, h = Attention(6, 2), torch.randn(1, 4, 6)
    q, k, v = (layer.qkv(h)[0, :, i : i + 6].reshape(4, 2, 3) for i in (0, 6, 12))
    slow = torch.empty(4, 2, 3)
    for token in range(4):
        for head in range(2):
            weights = torch.softmax(k[:, head] @ q[token, head] / math.sqrt(3), dim=0)
            slow[token, head] = weights @ v[:, head]
    torch.testing.assert_close(layer(h)[0], layer.out(slow.reshape(4, 6)))


SIZES = Sizes(4, 22, 1, small_geometry(), (1e3, 1e5))


def flow_matching(**changes: Any) -> FlowMatching:
    torch.manual_seed(0)
    config = {"width": 8, "depth": 1, "heads": 2, "layer_hidden": 8, "layer_transforms": 1, "n_steps": 4} | changes
    return FlowMatching(FlowMatchingConfig(**config), SIZES).eval()


@pytest.mark.parametrize("backbone", ["mlp", "mixer", "transformer"])
def test_every_backbone_starts_as_independent_normals(backbone: str) -> None:
    model, x = flow_matching(backbone=backbone), torch.randn(5, 22)
    with torch.no_grad():
        v = model.velocity(x, 0.2, torch.randn(5, 4), torch.rand(5, 1))
    torch.testing.assert_close(v, (0.4 - 1) / (0.04 + 0.64) * x)


def test_a_predicted_shower_gives_the_velocity_towards_it() -> None:
    model = flow_matching(prediction="x")
    clean, g, c = torch.randn(5, 22), torch.randn(5, 4), torch.rand(5, 1)
    model.network.forward = lambda v, context: clean  # type: ignore[method-assign]
    eps = torch.randn(5, 22)
    for t in (0.0, 0.4, 0.9):
        v = model.velocity((1 - t) * eps + t * clean, t, g, c)
        torch.testing.assert_close(v, clean - eps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.velocity(eps, 1.0, g, c), (clean - eps) / FLOOR)


def test_both_predictions_have_the_same_loss_where_they_give_the_same_velocity() -> None:
    models = [flow_matching(prediction=name, t_mean=-1.0, t_std=0.2) for name in ("v", "x")]  # 1 - t above the floor
    x, c = torch.randn(64, 26, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 1)

    def zero_velocity(v: torch.Tensor, t: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return -(2 * t - 1) / (t**2 + (1 - t) ** 2).sqrt() * v

    models[0]._output = zero_velocity  # type: ignore[method-assign]
    models[1]._output = lambda v, t, *given: v  # type: ignore[method-assign]
    losses = [float(m._shape_loss(x, c, torch.Generator().manual_seed(1))) for m in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize("backbone", ["mixer", "transformer"])
def test_one_shower_is_learnt_and_drawn(prediction: str, backbone: str) -> None:
    """Where all showers are the same, the clean features are known at every t: the loss can fall to 0."""
    model = flow_matching(prediction=prediction, backbone=backbone, solver="midpoint", n_steps=20, dropout=0.0)
    shower, random = torch.linspace(-1.5, 1.5, 26), torch.Generator().manual_seed(0)
    x, c = shower.expand(64, -1), torch.zeros(64, 1)
    optimiser = torch.optim.Adam(model.network.parameters(), lr=2e-2)
    losses = []
    for _ in range(150):
        loss = model._shape_loss(x, c, random)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    most = {"v": 0.4, "x": 0.15}[prediction]  # "v" has to carry the noise through its eight channels too
    assert np.mean(losses[-20:]) < most * np.mean(losses[:3])
    model.layers.decode = lambda z, c: x[: len(z), :4]  # type: ignore[method-assign]
    with torch.no_grad():
        drawn = model.decode(torch.randn(20, 26, generator=random), c[:20])
    assert float((drawn[:, 4:] - shower[4:]).square().mean()) < (0.2 if prediction == "x" else 0.5)


def test_an_untrained_bespoke_solver_is_eulers() -> None:
    bespoke, plain = flow_matching(solver="bespoke"), flow_matching(solver="euler")
    for model in (bespoke, plain):
        woken(model.network)
    plain.network.load_state_dict(bespoke.network.state_dict())
    plain.layers.load_state_dict(bespoke.layers.state_dict())
    z, c = torch.randn(3, 26), torch.rand(3, 1)
    assert SOLVERS["euler"] is euler
    with torch.no_grad():
        assert torch.equal(bespoke.decode(z, c), plain.decode(z, c))


def test_the_solver_is_trained_late_and_without_the_network() -> None:
    model = flow_matching(solver="bespoke", solver_since=7, solver_rate=3.0, dropout=0.5).train()
    woken(model.network)
    objective = next(o for o in model.objectives() if o.name == "solver")
    assert (objective.since, objective.rate) == (7, 3.0)
    assert {id(p) for p in objective.parameters} == {id(p) for p in model.solver.parameters()}  # type: ignore[union-attr]
    x, c = torch.randn(8, 26), torch.rand(8, 1)
    loss = objective.loss(x, c, torch.Generator().manual_seed(0))
    assert float(loss.detach()) == pytest.approx(1, abs=1e-6)  # in units of Euler's
    loss.backward()
    assert all(p.grad is None for p in model.network.parameters())
    assert model.network.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch": 0}, r"got model\.patch = 0, expected at least 1"),
        ({"backbone": "transformer", "heads": 3}, r"got model\.heads = 3, expected a divisor of model\.width = 8"),
        ({"solver_since": -1}, r"got model\.solver_since = -1"),
        ({"solver_rate": 0.0}, r"solver_rate = 0\.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow_matching(**wrong)


def test_tokens_need_a_mesh() -> None:
    with pytest.raises(ValueError, match="got no geometry for flow_matching of tokens"):
        FlowMatching(FlowMatchingConfig(backbone="mixer"), Sizes(4, 22, 1))


TINY: dict[str, Any] = {
    "width": 8, "depth": 1, "heads": 2, "patch": 6, "layer_hidden": 8, "layer_transforms": 1, "layer_bins": 4,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["mixer", "transformer"])
def test_the_networks_run_in_onnx_runtime(kind: str) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    net, n = woken(network(kind, depth=1)).eval(), torch.export.Dim("N")
    arguments = torch.randn(3, 67), torch.randn(3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, arguments, dynamo=True, opset_version=OPSET, verbose=False, input_names=["v", "context"],
            dynamic_shapes={"v": {0: n}, "context": {0: n}}, external_data=False,
        )  # fmt: skip
    assert program is not None
    graph = session(program.model_proto.SerializeToString())
    for rows in (1, 3):
        v, c = (a[:rows] for a in arguments)
        with torch.no_grad():
            ours = net(v, c).numpy()
        np.testing.assert_allclose(
            graph.run(None, {"v": v.numpy(), "context": c.numpy()})[0], ours, rtol=1e-3, atol=1e-5
        )


class TestMixer(GeneratorContract):
    falling = ("layers",)  # x-prediction weighs times near the data up to 400 times: too noisy to fall within 120 steps
    config = FlowMatchingConfig(**TINY, backbone="mixer", prediction="x", solver="euler", n_steps=2)
    test_the_onnx_graph_equals_pytorch = None  # type: ignore[assignment]  # takes long, and the network's is above


class TestTransformer(GeneratorContract):
    config = FlowMatchingConfig(
        **TINY, backbone="transformer", solver="bespoke", solver_since=110, n_steps=2, shared_modulation=False
    )
