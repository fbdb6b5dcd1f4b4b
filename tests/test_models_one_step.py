import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caloforge.fastsim import FastSim
from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import Sizes
from caloforge.models.matching import energy_distance
from caloforge.models.one_step import OneStep, OneStepConfig, _shares
from caloforge.preprocess import PreprocessConfig
from caloforge.testing import small_geometry, small_showers
from caloforge.transforms import LayerFractions

PLANAR = Geometry(
    "planar",
    (
        Layer("cartesian", regular(-30, 30, 4), regular(-40, 40, 8)),
        Layer("cartesian", regular(-30, 30, 3), regular(-40, 40, 5)),
    ),
)
SHOWERS = small_showers(PLANAR)
SMALL: dict[str, Any] = {"width": 16, "layer_width": 8, "n_slices": 16}


def student(geometry: Geometry = PLANAR, **changes: Any) -> OneStep:
    torch.manual_seed(0)
    sizes = Sizes(0, geometry.n_voxels, 1, geometry, (1e3, 1e5))
    return OneStep(OneStepConfig(**(SMALL | changes)), sizes).eval()


def noise(model: OneStep, n: int = 50) -> Tensor:
    return torch.randn(n, model.n_noise, generator=torch.Generator().manual_seed(1))


def test_layer_energies_are_those_of_the_preprocessing() -> None:
    for n_layers in (1, 2, 5):
        layers = tuple(Layer("cartesian", regular(-1, 1, 1), regular(-1, 1, 2)) for _ in range(n_layers))
        fractions = LayerFractions(Geometry("stack", layers), 1e-9)
        fractions.ceiling = torch.tensor(1.3)
        u = torch.randn(20, n_layers, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = torch.nn.functional.softplus(torch.cat([-u, u], dim=1)) @ _shares(n_layers).double()
        expected = fractions.layer_energies(u, torch.full((20,), 1e4)) / (1.3 * 1e4)
        torch.testing.assert_close(ours.exp(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("per_layer", [4, 7])
def test_every_layer_has_its_energy_and_filled_voxels_hold_the_threshold(per_layer: int) -> None:
    model = student(per_layer=per_layer)
    with torch.no_grad():
        made = model._decoded(noise(model), torch.zeros(50, 1))
    u = torch.linspace(-4.5, 4.5, model.config.n_read)  # the default tables give g itself
    layers = torch.nn.functional.softplus(torch.cat([-made.g[:, :2], made.g[:, :2]], dim=1).clamp(u[0], u[-1]))
    expected = torch.exp(layers @ _shares(2)) * 1e4  # c = 0 is the middle of 1 to 100 GeV
    torch.testing.assert_close(model.members.sums(made.e), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(made.e > 0, made.m >= 0)
    assert float(made.e[made.e > 0].min()) >= float(model.threshold)


def test_the_tables_interpolate_between_margins_and_layer_energies() -> None:
    """q = a + m + 0.1 ln E_l is linear in both, so that the energy before closing is known."""
    model = student(Geometry("one", PLANAR.layers[:1]), n_nodes=4)
    nodes = torch.linspace(2.0, 12.0, 4)[None]
    q = torch.linspace(0, 9.0, 48) - 3 + 0.1 * nodes.T[:, :, None].expand(4, 32, 1)
    g = torch.linspace(-4.5, 4.5, 246).repeat(model.n_globals, 1)
    model.adopt_tables(1e-3, 1.0, torch.full((model.n_globals,), -4.5), g, nodes, q)
    with torch.no_grad():
        made = model._decoded(noise(model), torch.zeros(50, 1))
    energy = made.e.sum(1, keepdim=True)
    filled = made.m >= 0
    expected = (torch.exp(made.m - 3 + 0.1 * torch.log(energy)) - 1e-3) * filled
    excess = made.e - 1e-3 * filled
    torch.testing.assert_close(
        excess / excess.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True), rtol=1e-3, atol=1e-6
    )


def test_the_tilt_is_learned_from_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(per_layer=7)
    model.adopt_units(torch.full((2, 2), 20.0))

    def moments(e: Tensor) -> Tensor:
        return model.moments.means(e)[:, :5]

    with torch.no_grad():
        middle = moments(model._decoded(noise(model, 400), torch.zeros(400, 1)).tilts[0][1]).mean(0)
    monkeypatch.setattr(model, "_wanted", lambda raw: middle.expand(len(raw), -1, -1))
    with torch.no_grad():
        made = model._decoded(noise(model, 400), torch.zeros(400, 1))
        _, excess, wanted = made.tilts[0]
        exact, reached = model.moments.exact(excess, wanted)
        off = (moments(excess * exact.clamp(-2.0, 2.0).exp()) - middle).abs().amax(1)
    assert float(reached.mean()) > 0.3  # of layers with few filled voxels not all can have them
    assert float(off[reached > 0].quantile(0.95)) < 1e-3
    tilt = next(objective for objective in model.objectives() if objective.name == "tilt")
    optimizer = torch.optim.Adam(tilt.parameters, lr=3e-3)
    losses, x, c = [], torch.zeros(256, model.sizes.n_voxels), torch.zeros(256, 1)
    for step in range(60):
        loss = tilt.loss(x, c, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward(inputs=tilt.parameters)  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_moments_and_tilt_are_sums_over_the_voxels_of_a_layer() -> None:
    alike = Geometry("alike", (Layer("cartesian", regular(-30, 30, 4), regular(-40, 40, 5)),) * 3)
    for geometry in (PLANAR, alike):
        model = student(geometry, per_layer=7)
        n = geometry.n_layers
        e = torch.rand(7, geometry.n_voxels, generator=torch.Generator().manual_seed(0))
        power = torch.randn(7, 5, n, generator=torch.Generator().manual_seed(1))
        means = model.moments.means(e)
        exponent = model.moments._exponent(power, means, model.moments.basis)
        x, y = model.places / 10.0
        for layer in range(n):
            own = model.members.index == layer
            expected = torch.zeros(7, int(own.sum()))
            for k, b in enumerate([x, y, x * x, y * y, x * y]):
                mean = (e[:, own] * b[own]).sum(1) / e[:, own].sum(1)
                torch.testing.assert_close(means[:, k, layer], mean, rtol=1e-5, atol=1e-5)
                expected = expected + power[:, k, layer, None] * (b[own] - mean[:, None])
            torch.testing.assert_close(exponent[:, own], expected, rtol=1e-4, atol=1e-4)


def test_radial_moments_are_those_of_r() -> None:
    polar = Layer("polar", regular(-np.pi, np.pi, 4), (0.0, 10.0, 20.0, 50.0))
    model = student(Geometry("polar", (polar, polar)), radial=True, impose=True)
    e = torch.rand(7, 24, generator=torch.Generator().manual_seed(0))
    r = model.places.norm(dim=0) / 10.0  # the units of an untrained student
    for layer in range(2):
        own = model.members.index == layer
        for k in (1, 2):
            mean = (e[:, own] * r[own] ** k).sum(1) / e[:, own].sum(1)
            torch.testing.assert_close(model.moments.means(e)[:, k - 1, layer], mean, rtol=1e-5, atol=1e-5)
    g = torch.randn(7, model.n_globals, generator=torch.Generator().manual_seed(1))
    wanted = model._wanted(g)
    torch.testing.assert_close(wanted[:, 0], g[:, 4:6])
    torch.testing.assert_close(wanted[:, 1] - wanted[:, 0] ** 2, g[:, 6:8])


def test_a_second_count_brings_the_number_of_filled_voxels_nearer() -> None:
    off, geometry = [], Geometry("one", (Layer("cartesian", regular(-1, 1, 2), regular(-1, 1, 4)),))
    for recount in (False, True):
        model = student(geometry, recount=recount)
        with torch.no_grad():  # 4.4 is a number of 4; without training about half of the 8 voxels are filled
            made = model._decoded(noise(model, 400), torch.zeros(400, 1), torch.full((400, model.n_globals), 4.4))
        off.append(float((model.members.sums((made.e > 0).float()) - 4).abs().mean()))
    assert off[1] < 0.6 * off[0]


def test_a_tilt_about_the_centre_does_not_depend_on_where_the_shower_is() -> None:
    """The same excesses and missing moments, moved along with the mesh, are tilted by the same factors."""
    exponents = []
    for move in (0.0, 30.0):
        mesh = Layer("cartesian", regular(-30 + move, 30 + move, 4), regular(-40 - move, 40 - move, 5))
        model = student(Geometry("one", (mesh,)), per_layer=7, centred=True)
        j = torch.randn(25, generator=torch.Generator().manual_seed(2))
        model.newton[-1].bias.data.copy_(j)  # type: ignore[operator,union-attr]
        e = torch.rand(7, 20, generator=torch.Generator().manual_seed(0))
        other = torch.rand(7, 20, generator=torch.Generator().manual_seed(1))
        wanted = model.moments.means(other)[:, :5]
        exponents.append(model._tilt(model.newton, e, wanted, torch.zeros(7, 8)))
    torch.testing.assert_close(exponents[0], exponents[1], rtol=1e-3, atol=1e-3)


def slow_energy_distance(x: Tensor, y: Tensor) -> float:
    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        d = (a[:, None] - b[None]).abs().double()
        return float(d.sum() / (len(a) * (len(a) - 1) if same else len(a) * len(b)))

    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


def test_the_energy_distance_equals_its_slow_twin_and_its_expectation() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 1, generator=random), 1.0 + torch.randn(200, 1, generator=random)
    ours = float(energy_distance(x, y, 4, random))
    assert ours == pytest.approx(slow_energy_distance(x[:, 0], y[:, 0]), rel=1e-4)
    # E|N(d, 2)| = 2/sqrt(pi) exp(-d^2/4) + d erf(d/2); the other two terms are its values at d = 0.
    expected = 2 * (2 / math.sqrt(math.pi) * (math.exp(-0.25) - 1) + math.erf(0.5))
    values = []
    for _ in range(200):
        x, y = torch.randn(100, 1, generator=random), 1.0 + torch.randn(100, 1, generator=random)
        values.append(float(energy_distance(x, y, 1, random)))
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / math.sqrt(len(values)))


def test_the_energy_distance_of_equal_samples_is_zero_on_average() -> None:
    random = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(60, 3, generator=random), torch.randn(60, 3, generator=random)) for _ in range(300)]
    values = [float(energy_distance(x, y, 2, random)) for x, y in pairs]
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / math.sqrt(len(values)))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="tables of 3 knots"):
        OneStepConfig(n_knots=2)
    with pytest.raises(ValueError, match="expected voxels = 'linear' with scale_mev = 1"):
        OneStep(OneStepConfig(), Sizes(8, 22, 1, small_geometry()))
    with pytest.raises(ValueError, match="got no geometry for one_step"):
        OneStep(OneStepConfig(), Sizes(0, 22, 1))


def test_half_storage_leaves_the_tables_of_the_layers_exact(tmp_path: Path) -> None:
    fast = FastSim.create(
        PLANAR, OneStepConfig(**SMALL), valid=SHOWERS.incident, preprocess=PreprocessConfig("linear", scale_mev=1.0)
    )
    fast.save(tmp_path / "half", half=True)
    again = FastSim.load(tmp_path / "half")
    whole, half = (dict(f.generator.named_buffers()) for f in (fast, again))
    for name in set(OneStep.exact) & set(whole):
        assert torch.equal(whole[name], half[name]), name
    assert not all(torch.equal(a, b) for a, b in zip(fast.parameters(), again.parameters(), strict=True))
