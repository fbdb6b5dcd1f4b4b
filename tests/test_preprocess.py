from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caloforge.geometry import Geometry, Layer, mirrors, regular
from caloforge.preprocess import CONDITIONS, ConditionEncoder, PreprocessConfig, ShowerTransform
from caloforge.testing import small_geometry, small_showers

SQUARE = Layer("cartesian", regular(-30, 30, 3), regular(-40, 40, 4), (0, 10))
PLANAR = Geometry("planar", (SQUARE, Layer("cartesian", regular(-30, 30, 2), regular(-40, 40, 1), (10, 20))))
SINGLE = Geometry("single", (SQUARE,))
THRESHOLD = 1.0


def fitted(
    geometry: Geometry, n: int = 500, seed: int = 0, refill: bool = False
) -> tuple[ShowerTransform, torch.Tensor, torch.Tensor]:
    """A transform, the showers (n, V) it was fitted on, and their incident energies (n,)."""
    showers = small_showers(geometry, n, seed)
    energy, incident = torch.tensor(showers.energy), torch.tensor(showers.incident.energy, dtype=torch.float32)
    transform = ShowerTransform(geometry, PreprocessConfig(threshold_mev=THRESHOLD, n_knots=65, refill=refill))
    transform.fit(energy, incident)
    return transform, energy, incident


@pytest.mark.parametrize("refill", [False, True])
@pytest.mark.parametrize("geometry", [small_geometry(), PLANAR, SINGLE], ids=lambda g: g.name)
def test_the_inverse_undoes_the_preprocessing(geometry: Geometry, refill: bool) -> None:
    transform, energy, incident = fitted(geometry, refill=refill)
    x = transform(energy, incident)
    assert x.shape == (500, transform.n_fixed + geometry.n_voxels)
    x = transform.dequantise(x, torch.rand(energy.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(x).all()
    back = transform.inverse(x, incident)
    kept = torch.where(energy >= THRESHOLD, energy, 0.0)
    # Rounding in the decorrelation may exchange a voxel on its border with an empty one just below its own.
    exchanged = (back == 0) != (kept == 0)
    assert exchanged.float().mean() < 1e-3, "empty voxels must stay empty, and no other"
    back, kept = (torch.where(exchanged.any(1, keepdim=True), 0.0, v) for v in (back, kept))
    # The quantile tables end inside the extreme values seen: few are off by 2 %, most by less than 0.1 %.
    assert ((back - kept).abs() > 0.02 * kept + 0.1).float().mean() < 1e-3
    worst = ((back - kept).abs() / kept.clamp_min(1e-9))[kept > 0]
    assert worst.median() < 1e-3
    torch.testing.assert_close(back.sum(1), kept.sum(1), rtol=2e-3, atol=0.1)


@given(st.integers(0, 1000))
@settings(max_examples=10)
def test_noise_becomes_showers_with_the_layer_energies_of_the_fractions(seed: int) -> None:
    transform, _, incident = fitted(small_geometry(), 100)
    x = 1.5 * torch.randn(100, transform.n_globals + 22, generator=torch.Generator().manual_seed(seed))
    energy = transform.inverse(x, incident)
    logits = transform.layers.read(x[:, : transform.n_globals].double())[:, : transform.n_layers]
    layers = transform.fractions.layer_energies(logits, incident)
    torch.testing.assert_close(transform.fractions.layer_sums(energy).double(), layers, rtol=1e-5, atol=0)
    assert torch.isfinite(energy).all()
    assert torch.all(
        (energy == 0) | (energy >= THRESHOLD * (1 - 1e-5)) | (layers < 22 * THRESHOLD).any(1, keepdim=True)
    )


def test_a_layer_with_energy_but_no_filled_voxel_gets_exactly_its_energy() -> None:
    transform, _, incident = fitted(small_geometry(), 100)
    x = torch.zeros(100, transform.n_globals + 22)
    x[:, transform.n_globals :] = torch.linspace(-6, -5, 22)  # every voxel below its threshold
    energy = transform.inverse(x, incident)
    layers = transform.fractions.layer_energies(
        transform.layers.read(x[:, : transform.n_globals].double())[:, :2], incident
    )
    assert torch.all(layers > 0)
    torch.testing.assert_close(transform.fractions.layer_sums(energy).double(), layers, rtol=1e-5, atol=0)


def test_features_of_the_training_showers_are_about_standard_normal() -> None:
    transform, energy, incident = fitted(small_geometry(), 16_000)
    x = transform(energy, incident)
    x = transform.dequantise(x, torch.rand(energy.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), rtol=0, atol=0.06)
    torch.testing.assert_close(x.std(0), torch.ones(x.shape[1]), rtol=0, atol=0.06)


def test_the_transform_is_made_of_buffers_that_travel_with_the_weights() -> None:
    transform, energy, incident = fitted(small_geometry(), 100)
    again = ShowerTransform(small_geometry(), PreprocessConfig(threshold_mev=THRESHOLD, n_knots=65))
    again.load_state_dict(transform.state_dict())
    torch.testing.assert_close(again(energy, incident), transform(energy, incident), rtol=0, atol=0)
    assert not list(transform.parameters())


@given(st.floats(1e3, 1e5), st.floats(0, 0.3), st.floats(-3, 3), st.floats(-20, 20))
@settings(max_examples=50)
def test_conditions_lie_within_minus_one_and_one(energy: float, theta: float, phi: float, x: float) -> None:
    valid = {"energy": (1e3, 1e5), "theta": (0.0, 0.3), "phi": (-3.0, 3.0), "x": (-20.0, 20.0), "y": (5.0, 5.0)}
    encoder = ConditionEncoder(valid)
    assert encoder.n_conditions == 4  # y does not vary
    c = encoder(*(torch.tensor([v], dtype=torch.float32) for v in (energy, theta, phi, x, 5.0)))
    assert c.shape == (1, 4)
    assert c.abs().max() <= 1 + 1e-5
    ends = torch.tensor(list(valid.values())).T
    torch.testing.assert_close(encoder(*(ends[:, i] for i in range(5))), torch.tensor([[-1.0], [1.0]]).expand(2, 4))


def test_a_single_energy_is_a_condition_without_noise() -> None:
    for value in np.random.default_rng(0).uniform(1, 1e5, 100):
        encoder = ConditionEncoder(dict.fromkeys(CONDITIONS, (0.0, 0.0)) | {"energy": (value, value)})
        particles = [torch.tensor([value], dtype=torch.float32), *([torch.zeros(1)] * 4)]
        assert encoder(*particles).abs().max() <= 1 + 1e-5


def test_mirrors_are_involutions_that_flip_the_centres() -> None:
    permutations = mirrors(PLANAR)
    centres = PLANAR.centres()
    assert permutations.shape == (4, PLANAR.n_voxels)
    for permutation, signs in zip(permutations, [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)], strict=True):
        np.testing.assert_array_equal(np.sort(permutation), np.arange(PLANAR.n_voxels))
        np.testing.assert_array_equal(permutation[permutation], np.arange(PLANAR.n_voxels))
        np.testing.assert_allclose(centres[permutation], centres * signs, atol=1e-9)


def test_a_polar_mesh_turns_and_mirrors() -> None:
    rings = [Layer("polar", regular(-np.pi, np.pi, n), (0.0, 5.0, 20.0, 50.0), (n, n + 1)) for n in (6, 1, 4)]
    geometry = Geometry("rings", tuple(rings))
    permutations, centres = mirrors(geometry), geometry.centres()[:, 0] + 1j * geometry.centres()[:, 1]
    assert permutations.shape == (4, geometry.n_voxels)  # turns by half, which both meshes have, and their mirrors
    resolved = geometry.layer_index != 1  # the other layer has one bin in angle
    for permutation, image in zip(permutations, (centres, -centres, centres.conj(), -centres.conj()), strict=True):
        np.testing.assert_array_equal(np.sort(permutation), np.arange(geometry.n_voxels))
        np.testing.assert_allclose(centres[permutation][resolved], image[resolved], atol=1e-9)
        np.testing.assert_allclose(centres[permutation][~resolved], centres[~resolved])


def test_other_layers_have_no_mirrors() -> None:
    odd = Layer("cartesian", (-30, 0, 20), regular(-40, 40, 4), (0, 10))
    part = Layer("polar", regular(0, np.pi, 4), (0.0, 5.0, 20.0))
    for geometry in (small_geometry(), Geometry("odd", (SQUARE, odd)), Geometry("part", (part,))):
        np.testing.assert_array_equal(mirrors(geometry), np.arange(geometry.n_voxels)[None])


@pytest.mark.parametrize("config", [{"threshold_mev": 0.0}, {"threshold_mev": float("nan")}, {"n_knots": 2}])
def test_impossible_settings_are_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"got threshold .* expected"):
        PreprocessConfig(**config)


RANGES = {"energy": (1e3, 1e5), "theta": (0.0, 0.5), "phi": (-np.pi, np.pi), "x": (-5.0, 5.0), "y": (0.0, 0.0)}


def particles(n: int, seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.uniform(*RANGES[name], n), dtype=torch.float32) for name in CONDITIONS]


def test_directions_have_no_jump_in_phi() -> None:
    encoder = ConditionEncoder(RANGES, (11,), PreprocessConfig())
    energy, theta, x, y = (torch.tensor([v, v]) for v in (1e4, 0.3, 1.0, 0.0))
    c = encoder(energy, theta, torch.tensor([np.pi - 1e-6, -np.pi + 1e-6], dtype=torch.float32), x, y)
    torch.testing.assert_close(c[0], c[1], atol=1e-5, rtol=0)
    assert encoder.n_conditions == 4
    assert encoder.n_given == 3


def test_conditions_are_scaled_by_their_spread_but_the_energy_by_its_range() -> None:
    encoder = ConditionEncoder(RANGES, (11,), PreprocessConfig(depth_mm=100.0))
    given = particles(5000)
    encoder.fit(*given)
    c = encoder(*given)
    torch.testing.assert_close(c[:, 1:].mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(c[:, 1:].std(0), torch.full((4,), 0.5), atol=1e-3, rtol=0)
    assert c[:, 0].min() >= -1
    assert c[:, 0].max() <= 1


def test_positions_are_taken_in_the_depth_that_is_asked_for() -> None:
    encoder = ConditionEncoder(RANGES, (11,), PreprocessConfig(depth_mm=100.0))
    energy, theta, phi, x, y = particles(50)
    moved = encoder._values(energy, theta, phi, x, y)
    torch.testing.assert_close(moved[:, 3], x + 100 * torch.tan(theta) * torch.cos(phi))


def test_kinds_of_particles_are_one_hot() -> None:
    encoder = ConditionEncoder(RANGES, (21, 24), PreprocessConfig())
    c = encoder(*particles(3), torch.tensor([24.0, 21.0, 24.0]))
    assert c[:, -2:].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert ConditionEncoder(RANGES, (21, 24), PreprocessConfig(conditions="polar")).n_classes == 0


def test_moments_that_are_drawn_are_those_of_the_showers() -> None:
    fine = Geometry("fine", (Layer("cartesian", regular(-40, 40, 10), regular(-40, 40, 10)),))
    showers = small_showers(fine, 400)
    energy, incident = torch.tensor(showers.energy), torch.tensor(showers.incident.energy, dtype=torch.float32)
    transform = ShowerTransform(fine, PreprocessConfig(threshold_mev=THRESHOLD, impose="moments"))
    transform.fit(energy, incident)
    assert transform.n_globals == 7
    x = transform(energy, incident)
    voxels = torch.randn(400, fine.n_voxels, generator=torch.Generator().manual_seed(0))  # of other showers
    out = transform.inverse(torch.cat([x[:, :7], voxels], dim=1), incident)
    wanted = transform.layers.read(x[:, :7].double())[:, 2:]
    found = transform.imposed.values(out)  # type: ignore[union-attr]
    assert ((found - wanted).abs().amax(1) < 2e-2).float().mean() > 0.9


@pytest.mark.parametrize("layers", ["logs", "rest", "ratios"])
def test_layer_energies_as_logarithms_come_back_and_stay_below_the_ceiling(layers: Any) -> None:
    showers = small_showers(n=300)
    energy, incident = torch.tensor(showers.energy), torch.tensor(showers.incident.energy, dtype=torch.float32)
    transform = ShowerTransform(small_geometry(), PreprocessConfig(threshold_mev=THRESHOLD, layers=layers))
    transform.fit(energy, incident)
    x = transform.dequantise(transform(energy, incident), torch.rand(energy.shape))
    sums = transform.fractions.layer_sums
    close = torch.isclose(sums(transform.inverse(x, incident)), sums(energy), rtol=2e-2, atol=2 * THRESHOLD)
    assert close.float().mean() > 0.99  # the ends of the tables are coarse
    raw = transform.layers.read(x[:, : transform.n_globals].double())[:, :2] + 3.0
    total = transform.fractions.layer_energies(raw, incident).sum(1)
    assert torch.all(total <= 1.001 * transform.fractions.ceiling * incident)


def test_in_a_deep_detector_voxels_depend_on_the_layers_beside_them_only() -> None:
    layers = tuple(Layer("polar", regular(-np.pi, np.pi, 2), (0.0, 5.0, 20.0, 50.0), (k, k + 1)) for k in range(10))
    geometry = Geometry("deep", layers)
    for impose in ("none", "radial"):
        config = PreprocessConfig(threshold_mev=THRESHOLD, impose=impose)  # type: ignore[arg-type]
        transform, showers = ShowerTransform(geometry, config), small_showers(geometry, n=1500)
        energy, incident = torch.tensor(showers.energy), torch.tensor(showers.incident.energy, dtype=torch.float32)
        transform.fit(energy, incident)
        x = transform.dequantise(transform(energy, incident), torch.rand(energy.shape))
        voxels = x[:, transform.n_globals :]
        assert voxels.mean(0).abs().max() < 0.2
        assert abs(float(voxels.std(0).median()) - 1) < 0.25  # 1,500 showers fix 150 terms so well
        slopes = transform.decorrelate.slopes[1 : 1 + transform.n_fixed]  # the linear ones
        used = (slopes != 0).reshape(transform.n_fixed, 10, 6).any(2)
        assert used[0].all()
        assert used[4].nonzero().flatten().tolist() == [3, 4, 5]
        assert used[10:20].sum() == 28
        assert transform.inverse(x, incident).sum(1).numpy() == pytest.approx(showers.total, rel=0.1)


def test_a_jet_is_one_cartesian_layer() -> None:
    with pytest.raises(ValueError, match="got impose 'jet' for 'small', expected an image"):
        ShowerTransform(small_geometry(), PreprocessConfig(impose="jet"))


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.3])
def test_refilled_voxels_keep_their_spectrum_above_the_threshold(shift: float) -> None:
    energy, incident = torch.tensor(small_showers(SINGLE, 500, 0).energy), torch.full((500,), 1e4)
    transform = ShowerTransform(SINGLE, PreprocessConfig(threshold_mev=THRESHOLD, n_nodes=1, refill=True))
    transform.fit(energy, incident)
    v = torch.randn(500_000, 4, generator=torch.Generator().manual_seed(5))
    border = torch.linspace(0.8, 1.6, 4).expand_as(v)
    valued = transform._valued(v, border, v + shift)
    levels = torch.tensor([0.1, 0.5, 0.9])
    for k in range(4):
        true = (v[:, k] - border[:, k])[v[:, k] >= border[:, k]].quantile(levels)
        found = (valued[:, k] - border[:, k])[v[:, k] + shift >= border[:, k]].quantile(levels)
        torch.testing.assert_close(found, true, rtol=0.08, atol=0)
