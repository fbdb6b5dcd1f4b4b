"""CaloDiffusion: published sizes to the digit, symmetries, the adapter, known denoisers, what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caloforge.config import load_recipe
from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import Sizes
from caloforge.models.diffusion import Diffusion, DiffusionConfig
from caloforge.models.glam import GLaM, split, union
from caloforge.models.unet import Convolution, LinearAttention, Transposed, UNet, after_halving
from caloforge.simulate import detectors
from caloforge.testing import small_geometry

TURN = (-np.pi, np.pi)
CALOGAN = detectors.find("calogan").geometry
PHOTONS, PIONS = (detectors.find(f"ds1-like-{name}").geometry for name in ("photons", "pions"))


def cylinder(n_layers: int, n_alpha: int, n_r: int) -> Geometry:
    layer = Layer("polar", regular(*TURN, n_alpha), regular(0, 50, n_r))
    return Geometry(f"cylinder{n_layers}x{n_alpha}x{n_r}", (layer,) * n_layers)


def model(geometry: Geometry, n_globals: int = 0, n_conditions: int = 1, **changes: Any) -> Diffusion:
    torch.manual_seed(0)
    tiny = dict.fromkeys(("stem", "level_1", "level_2", "level_3"), 8) | {"width": 16, "n_steps": 3}
    tiny |= {"layer_hidden": 8, "layer_transforms": 1, "layer_bins": 4}
    return Diffusion(
        DiffusionConfig(**(tiny | changes)), Sizes(n_globals, geometry.n_voxels, n_conditions, geometry, (1e3, 1e6))
    ).eval()


def woken(module: Diffusion) -> Diffusion:
    """With another last layer than the one that starts at zero."""
    nn.init.normal_(module.network.leave.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return module


PUBLISHED = {
    "data set 1, photons": (PHOTONS, (16, 16, 16, 32), 521_581, (5, 10, 30)),
    "data set 1, pions": (PIONS, (16, 16, 16, 32), 525_901, (7, 10, 23)),
    "data set 2": (cylinder(45, 16, 9), (16, 16, 16, 32), 517_969, (45, 16, 9)),
    "data set 3": (cylinder(45, 50, 18), (32, 32, 32, 32), 1_221_153, (45, 50, 18)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_number_of_parameters(name: str) -> None:
    geometry, channels, n_parameters, shape = PUBLISHED[name]
    names = ("stem", "level_1", "level_2", "level_3")
    network = model(geometry, width=128, **dict(zip(names, channels, strict=True)))
    assert network.grid.shape == shape
    assert sum(p.numel() for p in network.parameters()) == n_parameters


@pytest.mark.parametrize(("n_alpha", "shift"), [(8, 4), (6, 2), (3, 1), (1, 1)])
def test_turning_the_shower_turns_the_estimate(n_alpha: int, shift: int) -> None:
    """Exact for multiples of 2 per halving of the angle: 8 -> 4 -> 2, 6 -> 3, and none below 4 bins."""
    geometry = cylinder(3, n_alpha, 5)
    diffusion = woken(model(geometry))
    y = torch.randn(2, geometry.n_voxels)

    def turned(x: Tensor) -> Tensor:
        return x.reshape(2, 3, n_alpha, 5).roll(shift, 2).flatten(1)

    with torch.no_grad():
        before, after = (diffusion.denoise(x, 0.7, torch.zeros(2, 1)) for x in (y, turned(y)))
    torch.testing.assert_close(after, turned(before), rtol=1e-4, atol=1e-5)
    if n_alpha > 1:
        assert not torch.allclose(after, before, atol=1e-3)


def test_cartesian_layers_are_not_wrapped() -> None:
    layer = Layer("cartesian", regular(-4, 4, 8), regular(-4, 4, 8))
    diffusion = woken(model(Geometry("plane", (layer,))))
    assert not diffusion.grid.circular
    assert diffusion.positions.shape == (1, 3, 1, 8, 8)
    assert model(cylinder(2, 8, 3)).positions.shape == (1, 2, 2, 8, 3)  # no angle
    assert model(PHOTONS).positions.shape == (1, 3, 5, 10, 30)


@pytest.mark.parametrize(
    "halved", [(True, True, True), (False, True, False), (False, False, True), (True, False, True)]
)
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("shape", [(45, 16, 9), (4, 5, 6), (7, 4, 7)])
def test_the_way_back_has_the_shape_it_came_from(
    shape: tuple[int, int, int], circular: bool, halved: tuple[bool, bool, bool]
) -> None:
    x = torch.randn(1, 2, *shape)
    down, up = Convolution(2, 2, circular, halved), Transposed(2, circular, halved, shape)
    assert up(down(x)).shape == x.shape


@pytest.mark.parametrize("circular", [False, True])
def test_cylindrical_convolutions_equal_a_slow_twin(circular: bool) -> None:
    layer, x = Convolution(2, 3, circular), torch.randn(1, 2, 4, 5, 3)
    weight, bias = layer.convolution.weight, layer.convolution.bias
    assert bias is not None
    slow = bias.reshape(1, 3, 1, 1, 1).repeat(1, 1, 4, 5, 3)
    for a, b, c in np.ndindex(3, 3, 3):
        for z, i, r in np.ndindex(4, 5, 3):
            from_z, from_i, from_r = z + a - 1, i + b - 1, r + c - 1
            from_i = from_i % 5 if circular else from_i
            if 0 <= from_z < 4 and 0 <= from_i < 5 and 0 <= from_r < 3:
                slow[0, :, z, i, r] += weight[:, :, a, b, c] @ x[0, :, from_z, from_i, from_r]
    torch.testing.assert_close(layer(x), slow, rtol=1e-4, atol=1e-5)


def test_linear_attention_equals_a_slow_twin() -> None:
    attention, x = LinearAttention(8), torch.randn(1, 8, 2, 3, 2)
    with torch.no_grad():
        q, k, v = attention.enter(attention.before(x)).flatten(2)[0].split(32)
        k, q = k.exp() / k.exp().sum(1, keepdim=True), q.exp() / q.exp().sum(0)
        seen = torch.stack([sum(float(q[:, n] @ k[:, m]) * v[:, m] for m in range(12)) for n in range(12)], dim=1)  # type: ignore[misc]
        out = attention.after(attention.leave((seen / math.sqrt(32)).reshape(1, 32, 2, 3, 2)))
        torch.testing.assert_close(attention(x), x + out, rtol=1e-4, atol=1e-5)


def test_halving_stops_at_short_axes() -> None:
    assert after_halving((45, 16, 9)) == (23, 8, 4)
    assert after_halving((3, 12, 2)) == (3, 6, 2)
    network = UNet(1, 1, 1, (8, 8, 8, 8), 16, (1, 1, 2), False)
    assert network(torch.randn(2, 1, 1, 1, 2), torch.ones(2, 1), torch.ones(2, 1)).shape == (2, 1, 1, 1, 2)


MESHES = {
    "rings": (PHOTONS, (0, 0), (5, 10, 30), 1),
    "more rings": (PIONS, (0, 12), (7, 10, 12), 2),
    "CaloGAN": (CALOGAN, (0, 0), (3, 12, 96), 1),
    "CaloGAN, folded": (CALOGAN, (6, 24), (3, 6, 24), 8),
    "both kinds": (small_geometry(), (0, 0), (2, 4, 6), 1),
    "equal layers": (cylinder(3, 6, 4), (0, 0), (3, 6, 4), 1),
    "equal layers, folded": (cylinder(3, 6, 5), (4, 3), (3, 3, 3), 4),
    "one layer": (Geometry("one", (CALOGAN.layers[0],)), (0, 0), (1, 3, 96), 1),
}


@pytest.mark.parametrize("name", MESHES)
def test_to_the_common_grid_and_back_is_the_identity(name: str) -> None:
    geometry, limits, shape, n_channels = MESHES[name]
    grid = GLaM(geometry, limits)
    assert (grid.shape, grid.n_channels) == (shape, n_channels)
    v = torch.randn(4, geometry.n_voxels)
    h = grid.encode(v)
    assert h.shape == (4, n_channels, *shape)
    torch.testing.assert_close(grid.decode(h), v, rtol=1e-4, atol=1e-4)


def test_equal_layers_are_only_reshaped() -> None:
    grid, v = GLaM(cylinder(3, 6, 4)), torch.randn(2, 72)
    assert not list(grid.parameters())
    assert torch.equal(grid.encode(v), v.reshape(2, 1, 3, 6, 4))


def test_rings_are_split_by_area_and_the_angle_evenly() -> None:
    wide = Layer("polar", regular(*TURN, 1), (0.0, 2.0, 3.0))
    fine = Layer("polar", regular(*TURN, 4), (0.0, 1.0, 2.0, 4.0))
    grid = GLaM(Geometry("rings", (wide, fine)))
    h = grid.encode(torch.tensor([[1.0, 0.0] + [0.0] * 12]))[0, 0, 0]
    assert grid.shape == (2, 4, 4)  # rings to 1, 2, 3, 4
    assert torch.equal(h, h[:1].expand(4, -1))
    torch.testing.assert_close(h[0, 1], 3 * h[0, 0])  # 4 - 1 against 1
    assert torch.equal(h[0, 2:], torch.zeros(2))
    assert {name for name, _ in grid.named_parameters()} == {
        f"maps.1.{way}_{layer}" for way in ("up", "down") for layer in (0, 1)
    }


def test_unit_variance_stays_unit_variance_on_the_grid() -> None:
    grid = GLaM(CALOGAN)
    h = grid.encode(torch.randn(4000, CALOGAN.n_voxels, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(h.square().mean((0, 1, 3, 4)).detach().numpy(), 1, atol=0.02)


def test_folding_makes_channels_of_neighbours() -> None:
    grid, v = GLaM(Geometry("one", (Layer("cartesian", (0, 1, 2), regular(0, 6, 6)),)), (0, 3)), torch.arange(12.0)
    h = grid.encode(v[None])[0]
    assert torch.equal(h[:, 0, 0], torch.tensor([[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]))
    # A circle is folded into parts of one size, or it would not close.
    assert GLaM(cylinder(1, 10, 3), (4, 0)).shape == (1, 2, 3)


def test_edges_that_are_one_up_to_rounding_are_one() -> None:
    third = np.array([0.0, 1 / 3, 2 / 3, 1.0])
    edges = union([third, np.array([0.0, 0.1 + 0.2 + 1 / 30, 1.0])])
    np.testing.assert_allclose(edges, third)
    np.testing.assert_array_equal(split(third, edges, 1), np.eye(3))


def test_before_training_edm_knows_the_denoiser_of_normals() -> None:
    """x ~ N(0, 1), y = x + sigma n: E[x | y] = y/(1 + sigma^2); its sampler keeps normals what they are."""
    diffusion = model(cylinder(2, 4, 3), n_steps=40)
    y = torch.randn(10, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(diffusion.denoise(y, 2.0, torch.zeros(10, 1)), y / 5)
        torch.testing.assert_close(diffusion.decode(y, torch.zeros(10, 1)), y, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("parametrisation", ["edm", "cosine"])
def test_the_loss_before_training_is_the_variance_of_the_target(parametrisation: str) -> None:
    diffusion = model(cylinder(2, 4, 3), parametrisation=parametrisation)
    x = torch.randn(1000, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        loss = float(diffusion.loss(x, torch.zeros(1000, 1), torch.Generator().manual_seed(4)))
    assert loss == pytest.approx(1, abs=5 * math.sqrt(2 / (1000 * 24)))


@pytest.mark.parametrize("parametrisation", ["edm", "cosine"])
def test_the_exact_denoiser_has_the_least_loss(parametrisation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For x ~ N(0, s) the best F follows from D = s^2/(s^2 + sigma^2) y; then denoise returns D, and decode samples."""
    s, diffusion = 0.5, model(cylinder(2, 4, 3), parametrisation=parametrisation, n_steps=40)

    def ideal(y: Tensor, sigma: Tensor, given: Tensor) -> Tensor:
        best = s**2 / (s**2 + sigma**2) * y
        if parametrisation == "cosine":
            return (y - best) / sigma
        return (best - y / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma

    y = torch.randn(2000, 24, generator=torch.Generator().manual_seed(5))
    losses = []
    for stretch in (0.9, 1.0, 1.1):
        monkeypatch.setattr(diffusion, "_network", lambda *a, k=stretch: k * ideal(*a))
        losses.append(float(diffusion.loss(s * y, torch.zeros(2000, 1), torch.Generator().manual_seed(6))))
    assert losses[1] == min(losses)
    monkeypatch.setattr(diffusion, "_network", ideal)
    torch.testing.assert_close(diffusion.denoise(y, 0.5, torch.zeros(2000, 1)), 0.5 * y)
    v = diffusion.decode(y, torch.zeros(2000, 1))
    assert float(v.mean()) == pytest.approx(0, abs=5 * s / math.sqrt(v.numel()))
    assert float(v.std()) == pytest.approx(s, rel=0.02)


def test_ancestral_noise_is_part_of_z() -> None:
    geometry = cylinder(2, 4, 3)
    diffusion = woken(model(geometry, n_globals=2, sampler="ddpm", n_steps=3))
    assert diffusion.n_noise == 2 + 3 * 24
    z, c = torch.randn(2, diffusion.n_noise), torch.zeros(2, 1)
    with torch.no_grad():
        whole = diffusion.decode(z, c)
        z[:, -1] += 1.0  # noise of the last step that adds some
        other = diffusion.decode(z, c)
    assert whole.shape == (2, 2 + 24)
    assert not torch.equal(whole, other)
    torch.testing.assert_close(whole[:, :2], other[:, :2])


def test_layer_features_are_conditions() -> None:
    diffusion = woken(model(cylinder(2, 4, 3), n_globals=2))
    assert [o.name for o in diffusion.objectives()] == ["layers", "shape"]
    assert [o.name for o in model(cylinder(2, 4, 3)).objectives()] == ["shape"]
    y, given = torch.randn(1, 24).expand(2, -1), torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    with torch.no_grad():
        a, b = diffusion.denoise(y, 0.5, given)
    assert not torch.equal(a, b)


WRONG: dict[str, dict[str, Any]] = {
    r"got model\.level_2 = 12, expected a multiple of 8": {"level_2": 12},
    r"got model\.width = 18, expected a multiple of 4": {"width": 18},
    r"got model\.n_steps = 65 for sampler 'ddpm', expected at most 64": {"sampler": "ddpm", "n_steps": 65},
    r"got model\.n_steps = 1 for sampler 'dpmpp_2m', expected at least 2": {"n_steps": 1},
    r"got model\.n_steps = 500 of the cosine schedule": {"parametrisation": "cosine", "n_steps": 500},
    r"expected first_bins and second_bins >= 0": {"first_bins": -1},
    r"expected log_sigma_std > 0 and 0 < sigma_min": {"sigma_min": 100.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_impossible_settings_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**WRONG[message])


def test_a_mesh_is_needed() -> None:
    with pytest.raises(ValueError, match="got no geometry for diffusion"):
        Diffusion(DiffusionConfig(), Sizes(0, 22, 1))


def test_the_recipe_fits_its_detector() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "calogan-eplus-diffusion.toml")
    assert isinstance(recipe.model, DiffusionConfig)
    assert not recipe.train.bf16
    diffusion = Diffusion(recipe.model, Sizes(12, CALOGAN.n_voxels, 1, CALOGAN, (1e3, 1e5)))
    v = torch.randn(2, CALOGAN.n_voxels)
    torch.testing.assert_close(diffusion.grid.decode(diffusion.grid.encode(v)), v, rtol=1e-4, atol=1e-4)
