"""CaloDREAM: the published sizes to the digit, its start, the causal order of the layers, what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import Sizes
from caloforge.models.base import LayerFlow
from caloforge.models.calodream import CaloDREAM, CaloDREAMConfig, Transfermer, sinusoids
from caloforge.preprocess import PreprocessConfig
from caloforge.simulate import detectors
from caloforge.testing import GeneratorContract


def wheel(n_layers: int, n_alpha: int, n_r: int) -> Geometry:
    layer = Layer("polar", regular(-np.pi, np.pi, n_alpha), regular(0, 50, n_r))
    return Geometry("wheel", (layer,) * n_layers)


def sizes(geometry: Geometry, n_globals: int | None = None) -> Sizes:
    n = geometry.n_layers if n_globals is None else n_globals
    return Sizes(n, geometry.n_voxels, 1, geometry, (1e3, 1e6))


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


SMALL = wheel(4, 4, 3)
CONFIG: dict[str, Any] = {
    "patch_layers": 2, "patch_first": 4, "patch_second": 1, "width": 12, "depth": 2, "hidden": 16, "n_steps": 2,
    "energy_steps": 2,
}  # fmt: skip


def small(**changes: Any) -> CaloDREAM:
    torch.manual_seed(0)
    return CaloDREAM(CaloDREAMConfig(**(CONFIG | changes)), sizes(SMALL)).eval()


def woken(model: CaloDREAM) -> CaloDREAM:
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model


PUBLISHED = {
    "data set 2": (CaloDREAMConfig(), wheel(45, 16, 9), 135, 26_042_688, 28_427_393),
    "data set 3": (
        CaloDREAMConfig(patch_first=5, patch_second=2, width=240, hidden=720), wheel(45, 50, 18), 1350, 5_868_870,
        8_253_575,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_numbers_of_parameters(name: str) -> None:
    config, geometry, n_tokens, shape, total = PUBLISHED[name]
    model = CaloDREAM(config, sizes(geometry))
    assert model.network.run.n_tokens == n_tokens
    assert n_parameters(model.network) == shape
    assert n_parameters(model.layers) == 2_384_705
    assert n_parameters(model) == total
    assert config.n_steps * 4 == 200  # evaluations


def test_the_velocity_is_zero_before_training_and_then_depends_on_all_it_is_given() -> None:
    model = small()
    v, given = torch.randn(3, 48), torch.randn(3, 5, requires_grad=True)
    assert not model.velocity(v, 0.3, given).any()
    out = woken(model).velocity(v, 0.3, given)
    assert torch.autograd.grad(out[0, 0], given)[0][0].all()
    assert not torch.equal(out, model.velocity(v, 0.31, given))


def test_tokens_know_their_place() -> None:
    """Equal patches get different velocities only through their positions."""
    model = woken(small())
    positions = model.network.positions
    assert n_parameters(positions) == 6
    assert positions().shape == (6, 12)
    out = model.velocity(torch.zeros(1, 48), 0.5, torch.zeros(1, 5)).reshape(2, 2, 4, 3)
    assert len(torch.unique((out[:, 0, 0] * 1e4).round())) == 6
    with torch.no_grad():
        positions.frequencies.zero_()
    out = model.velocity(torch.zeros(1, 48), 0.5, torch.zeros(1, 5)).reshape(2, 2, 4, 3)
    torch.testing.assert_close(out, out[:1, :, :, :1].expand_as(out))


def test_the_embedding_of_the_flow_time() -> None:
    out = sinusoids(torch.tensor([[0.0], [0.002]]))
    assert out.shape == (2, 256)
    assert torch.equal(out[0], torch.tensor([1.0] * 128 + [0.0] * 128))
    assert float(out[1, 128]) == pytest.approx(np.sin(2.0), abs=1e-5)


def test_the_loss_of_an_untrained_network_is_the_variance_of_its_target() -> None:
    x = torch.randn(4000, 52, generator=torch.Generator().manual_seed(0))
    shape = next(o for o in small().objectives() if o.name == "shape")
    with torch.no_grad():
        loss = float(shape.loss(x, torch.zeros(4000, 1), torch.Generator().manual_seed(1)))
    assert loss == pytest.approx(2, abs=0.05)


def test_a_layer_is_told_of_the_earlier_ones_only() -> None:
    torch.manual_seed(0)
    network = Transfermer(5, 1, 2).eval()
    u, c = torch.randn(2, 5), torch.rand(2, 1)
    changed = u.clone()
    changed[:, 2] += 1
    told, again = (network._told(v[:, :-1], network._encoded(c)) for v in (u, changed))
    torch.testing.assert_close(told[:, :3], again[:, :3])
    assert (told[:, 3:] - again[:, 3:]).abs().amax(2).min() > 1e-3
    assert (told - network._told(u[:, :-1], network._encoded(c + 1))).abs().amax(2).min() > 1e-3


def test_drawn_layers_follow_the_velocity_of_the_training_loss() -> None:
    """Layer after layer, ``decode`` gives the solution for the earlier layers that it has drawn itself."""
    torch.manual_seed(0)
    network = Transfermer(3, 1, 50).eval()
    z, c = torch.randn(4, 3), torch.rand(4, 1)
    with torch.no_grad():
        u = network.decode(z, c)
        told, x, h = network._told(u[:, :-1], network._encoded(c)), z, 1 / 400
        for k in range(400):  # midpoint rule, all layers at once
            middle = x + 0.5 * h * network._velocity(x, torch.full_like(x, k * h), told)
            x = x + h * network._velocity(middle, torch.full_like(x, (k + 0.5) * h), told)
    torch.testing.assert_close(u, x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("energy", ["transfermer", "spline"])
def test_the_network_of_the_layers_is_a_setting(energy: str) -> None:
    model = small(energy=energy)
    assert isinstance(model.layers, LayerFlow if energy == "spline" else Transfermer)
    with torch.no_grad():
        out = model.decode(torch.randn(3, model.n_noise), torch.rand(3, 1))
    assert out.shape == (3, 52)


UNEVEN = Geometry("uneven", (Layer("cartesian", (0, 1, 2), (0, 1, 2)), Layer("cartesian", (0, 1), (0, 1, 2))))
REFUSED: dict[str, tuple[dict[str, Any], Sizes, str]] = {
    "layers of different shapes": ({}, sizes(detectors.find("calogan").geometry), "got layers of 3 shapes in .*use"),
    "two shapes": ({}, sizes(UNEVEN), "got layers of 2 shapes in 'uneven', expected one for calodream"),
    "patches that stick out": ({"patch_first": 3}, sizes(SMALL), "got patches of 2 x 3 x 1 for a mesh of 4 x 4 x 3"),
    "Gaussian features": ({}, sizes(SMALL, 16), "got 16 layer features for 4 layers.*voxels = 'fractions'"),
    "no features of layers": ({}, sizes(SMALL, 0), "got 0 layer features for 4 layers"),
    "no geometry": ({}, Sizes(4, 48, 1), "got no geometry for calodream"),
    "too many layers": ({"patch_layers": 1}, sizes(wheel(64, 4, 3)), "got 64 layers and 1 conditions.*'spline'"),
    "an odd width": ({"width": 15, "heads": 3}, sizes(SMALL), "got model.width = 15, expected an even multiple"),
    "too many heads": ({"heads": 5}, sizes(SMALL), "expected an even multiple of model.heads = 5"),
    "no steps": ({"energy_steps": 0}, sizes(SMALL), r"got model\.energy_steps = 0, expected at least 1"),
    "a rate of zero": ({"solver_rate": 0.0}, sizes(SMALL), "solver_rate = 0.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_take_is_said(case: str) -> None:
    changes, data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        CaloDREAM(CaloDREAMConfig(**(CONFIG | changes)), data)


class TestBespoke(GeneratorContract):
    """On one layer, for a short graph; tests/test_models.py has two."""

    geometry = wheel(1, 4, 3)
    preprocess = PreprocessConfig(voxels="fractions", map="logit", standardise="voxel")
    config = CaloDREAMConfig(
        **(CONFIG | {"patch_layers": 1, "depth": 1, "energy_steps": 1}), solver="bespoke", solver_since=110
    )

    @pytest.fixture(autouse=True)
    def _few_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"BLOCKS": 1, "FEED_FORWARD": 16, "HIDDEN": 16, "DEPTH": 1}.items():
            monkeypatch.setattr(Transfermer, name, value)
