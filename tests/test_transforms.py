"""Laws of the transforms, and slow twins of their fast kernels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caloforge.geometry import Geometry, Layer, regular
from caloforge.transforms import ConditionalGaussianize, Decorrelate, Gaussianize, LayerFractions
from conftest import random_showers

THRESHOLD = 0.01  # MeV
POLAR = Layer("polar", regular(-np.pi, np.pi, 4), (0.0, 5.0, 20.0, 50.0), (0.0, 100.0))
CARTESIAN = Layer("cartesian", (-50, 0, 50), regular(-50, 50, 5), (100, 250))
MIXED = Geometry("mixed", (POLAR, CARTESIAN, CARTESIAN))
ONE = Geometry("one", (POLAR,))

seeds = st.integers(0, 2**31)
geometries = st.sampled_from([MIXED, ONE])


def random_energy(geometry: Geometry, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse voxel energies over six orders of magnitude, (n, V), and incident energies, (n,), float64."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-2, 3, (n, geometry.n_layers))[:, geometry.layer_index]
    energy = rng.exponential(scale) * (rng.random(scale.shape) < rng.random((n, 1)))
    energy[rng.random(scale.shape) < 0.05] = 0.4 * THRESHOLD
    incident = energy.sum(1) * rng.uniform(1.1, 3, n) + 10
    return torch.from_numpy(energy), torch.from_numpy(incident)


def fractions(geometry: Geometry, energy: torch.Tensor, incident: torch.Tensor) -> LayerFractions:
    transform = LayerFractions(geometry, THRESHOLD).double()
    transform.fit(energy, incident)
    return transform


def slow_fractions(transform: LayerFractions, geometry: Geometry, energy: list[float], incident: float,
                   fill: list[float]) -> tuple[list[float], list[float]]:  # fmt: skip
    """logit(u) and w of one shower, by the formulae of the module docstring."""
    energy = [e if e >= THRESHOLD else 0.0 for e in energy]
    layers = [0.0] * geometry.n_layers
    for voxel, layer in enumerate(geometry.layer_index):
        layers[layer] += energy[voxel]
    w = [np.log(e / layers[k]) if e > 0 else -np.inf for e, k in zip(energy, geometry.layer_index, strict=True)]
    layers = [e if e >= THRESHOLD else THRESHOLD * f for e, f in zip(layers, fill, strict=True)]
    u = [sum(layers) / (float(transform.ceiling) * incident)]
    u += [layers[k] / sum(layers[k:]) for k in range(geometry.n_layers - 1)]
    return [np.log(v / (1 - v)) for v in u], w


@given(geometries, seeds)
@settings(max_examples=20)
def test_fractions_equal_their_slow_twin(geometry: Geometry, seed: int) -> None:
    energy, incident = random_energy(geometry, 8, seed)
    fill = torch.from_numpy(1 - np.random.default_rng(seed).random((8, geometry.n_layers)))
    transform = fractions(geometry, energy, incident)
    logits, w = transform(energy, incident, fill)
    for i in range(8):
        slow = slow_fractions(transform, geometry, energy[i].tolist(), float(incident[i]), fill[i].tolist())
        np.testing.assert_allclose(logits[i], slow[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(w[i], slow[1], rtol=1e-9, atol=1e-12)


def test_layer_sums_equal_a_loop_over_voxels() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(5, MIXED.n_voxels)))
    slow = np.zeros((5, MIXED.n_layers))
    for i in range(5):
        for voxel, layer in enumerate(MIXED.layer_index):
            slow[i, layer] += values[i, voxel]
    np.testing.assert_allclose(LayerFractions(MIXED, THRESHOLD).layer_sums(values), slow, rtol=1e-12)


@given(geometries, seeds)
@settings(max_examples=30)
def test_the_inverse_undoes_the_fractions_above_the_threshold(geometry: Geometry, seed: int) -> None:
    energy, incident = random_energy(geometry, 16, seed)
    transform = fractions(geometry, energy, incident)
    logits, w = transform(energy, incident, torch.full((16, geometry.n_layers), 0.5, dtype=torch.float64))
    back = transform.inverse(logits, w, incident)
    kept = torch.where(energy >= THRESHOLD, energy, 0.0)  # what the threshold leaves
    torch.testing.assert_close(back, kept, rtol=1e-5, atol=1e-9)
    assert torch.equal(back == 0, kept == 0)  # empty voxels stay empty, and no other


@given(geometries, seeds)
@settings(max_examples=30)
def test_layers_sum_to_the_energy_that_the_fractions_give(geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, v, n_layers = 16, geometry.n_voxels, geometry.n_layers
    logits = torch.from_numpy(rng.normal(0, 6, (n, n_layers)))
    w = torch.from_numpy(np.where(rng.random((n, v)) < 0.5, rng.normal(0, 4, (n, v)), -np.inf))
    w[:, torch.from_numpy(geometry.offsets[:-1].copy())] = 0.0  # some voxel is filled in every layer
    incident = torch.from_numpy(10 ** rng.uniform(-1, 5, n))
    transform = LayerFractions(geometry, THRESHOLD).double()
    layers, energy = transform.layer_energies(logits, incident), transform.inverse(logits, w, incident)
    torch.testing.assert_close(transform.layer_sums(energy), layers, rtol=1e-9, atol=0)
    assert torch.all(layers.sum(1) <= incident * (1 + 1e-9))
    assert torch.all((layers == 0) | (layers >= THRESHOLD))
    assert torch.all((energy == 0) | torch.isfinite(w)), "an empty voxel was filled"


def test_a_layer_too_thin_for_its_filled_voxels_shares_its_energy_among_them() -> None:
    transform = LayerFractions(Geometry("a", (CARTESIAN, CARTESIAN)), THRESHOLD).double()
    layers = torch.tensor(
        [[3 * THRESHOLD, 1.0]], dtype=torch.float64
    )  # spread over ten voxels: all below the threshold
    incident = 2 * layers.sum(1)
    logits = torch.stack([torch.zeros(1, dtype=torch.float64), torch.log(layers[:, 0] / layers[:, 1])], dim=1)
    w = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 20)))
    energy = transform.inverse(logits, w, incident)
    torch.testing.assert_close(transform.layer_sums(energy), layers)
    torch.testing.assert_close(energy[0, :10], torch.full((10,), 0.3 * THRESHOLD, dtype=torch.float64))


def test_a_layer_below_the_threshold_is_empty_and_its_fill_does_not_come_back() -> None:
    energy = torch.zeros(4, MIXED.n_voxels, dtype=torch.float64)
    energy[:, 0], energy[:2, 13] = 5.0, 0.9 * THRESHOLD
    incident = torch.full((4,), 10.0, dtype=torch.float64)
    transform = fractions(MIXED, energy, incident)
    fill = torch.tensor([[0.1] * 3, [1 - 1e-9] * 3, [0.5] * 3, [1e-6] * 3], dtype=torch.float64)
    logits, w = transform(energy, incident, fill)
    assert torch.isfinite(logits).all()
    back = transform.inverse(logits, w, incident)
    assert torch.all(back[:, 1:] == 0)
    torch.testing.assert_close(back[:, 0], energy[:, 0], rtol=2e-3, atol=0)  # the fill is energy of its own


def normal_sample(n: int, seed: int, empty: float) -> torch.Tensor:
    """Skewed values, (n, 3), empty with the given probability."""
    rng = np.random.default_rng(seed)
    values = rng.gamma([0.5, 2.0, 9.0], size=(n, 3)) - 8
    return torch.from_numpy(np.where(rng.random((n, 3)) < empty, -np.inf, values)).float()


@given(seeds, st.sampled_from([0.0, 0.3, 0.9]))
@settings(max_examples=15)
def test_the_inverse_undoes_gaussianize(seed: int, empty: float) -> None:
    w = normal_sample(400, seed, empty)
    transform = Gaussianize(3, 33)
    transform.fit(w)
    x = transform(w)
    assert torch.equal(torch.isinf(x), torch.isinf(w))
    back = transform.inverse(
        transform.dequantise(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)))
    )
    assert torch.equal(torch.isinf(back), torch.isinf(w)), "empty entries must stay empty, and no other"
    full = torch.isfinite(w)
    error = (back[full] - w[full]).abs()
    assert error.max() < 0.02  # the table ends just inside the largest value seen
    assert error.quantile(0.95) < 1e-4  # float32


@pytest.mark.parametrize("empty", [0.0, 0.4, 0.95])
def test_gaussianized_features_are_standard_normal(empty: float) -> None:
    n = 20_000
    w = normal_sample(n, 1, empty)
    transform = Gaussianize(3, 129)
    transform.fit(w)
    x = transform.dequantise(transform(w), torch.rand(w.shape, generator=torch.Generator().manual_seed(0)))
    # Kolmogorov-Smirnov distance of 20,000 draws: 1.63/sqrt(n) at 1 %; here with room for the linear interpolation.
    rank = (torch.arange(n) + 0.5) / n
    for column in x.T:
        distance = (torch.special.ndtr(column.sort().values) - rank).abs().max()
        assert distance < 1.63 / n**0.5 + 0.01
    torch.testing.assert_close(x.mean(0), torch.zeros(3), rtol=0, atol=0.03)
    torch.testing.assert_close(x.std(0), torch.ones(3), rtol=0, atol=0.03)


def test_gaussianize_is_rising_and_the_inverse_of_noise_has_the_distribution_of_the_data() -> None:
    w = normal_sample(5000, 2, 0.4)
    transform = Gaussianize(3, 65)
    transform.fit(w)
    z = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    drawn = transform.inverse(z)
    torch.testing.assert_close(torch.isinf(drawn).float().mean(0), torch.isinf(w).float().mean(0), rtol=0, atol=0.02)
    for k in range(3):
        a, b = (v[torch.isfinite(v)] for v in (drawn[:, k], w[:, k]))
        quantiles = torch.linspace(0.05, 0.95, 7)
        torch.testing.assert_close(a.quantile(quantiles), b.quantile(quantiles), rtol=0, atol=0.1 * float(b.std()))
        order = z[:, k].argsort()
        assert torch.all(transform.read(z)[order, k].diff() >= 0)


def test_features_without_spread_or_without_data_stay_finite() -> None:
    w = torch.full((10, 3), -torch.inf)
    w[:, 1], w[4, 2] = 0.0, -17.3
    transform = Gaussianize(3, 33)
    transform.fit(w)
    x = transform(w)
    assert torch.isinf(x[:, 0]).all()  # never filled
    assert torch.isfinite(x[:, 1]).all()
    torch.testing.assert_close(transform.inverse(x), w, rtol=1e-4, atol=1e-4)
    odd = transform(torch.tensor([[0.0, 3.0, -20.0], [-3.0, -3.0, 0.0]]))  # values never seen
    assert torch.isfinite(odd).all()
    assert torch.isinf(transform.inverse(torch.randn(100, 3))[:, 0]).all(), "a voxel that was never filled was filled"


def test_fit_takes_the_largest_response_as_ceiling() -> None:
    showers = random_showers(MIXED, 50)
    transform = LayerFractions(MIXED, THRESHOLD)
    transform.fit(torch.tensor(showers.energy), torch.tensor(showers.incident.energy))
    assert float(transform.ceiling) == pytest.approx(1.02 * (showers.total / showers.incident.energy).max(), rel=1e-5)


def correlated_sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """v (n, 4) with means quadratic in h (n, 2) and correlated noise, and h."""
    rng = np.random.default_rng(3)
    h = rng.normal(size=(n, 2))
    means = h @ rng.normal(size=(2, 4)) + (h[:, :1] * h[:, 1:]) @ rng.normal(size=(1, 4)) - 1
    noise = rng.normal(size=(n, 4)) @ rng.normal(size=(4, 4))
    return torch.from_numpy(means + noise).float(), torch.from_numpy(h).float()


@pytest.mark.parametrize(("limit", "correlate"), [(2048, True), (2, True), (2048, False)])
def test_decorrelated_features_have_no_mean_given_h_and_unit_covariance(
    limit: int, correlate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caloforge.transforms.LARGEST_COVARIANCE", limit)
    v, h = correlated_sample(20_000)
    transform = Decorrelate(4, 2, correlate)
    transform.fit(v, h)
    y = transform(v, h)
    covariance = torch.cov(torch.cat([y, h, h.square()], dim=1).T)
    torch.testing.assert_close(torch.diag(covariance)[:4], torch.ones(4), rtol=0.02, atol=0)
    torch.testing.assert_close(covariance[:4, 4:], torch.zeros(4, 4), rtol=0, atol=0.02)  # nothing of h is left
    if limit > 4 and correlate:
        torch.testing.assert_close(covariance[:4, :4], torch.eye(4), rtol=0, atol=0.02)
    torch.testing.assert_close(transform.inverse(y, h), v, rtol=1e-4, atol=1e-4)


def test_a_loaded_decorrelation_is_the_fitted_one() -> None:
    v, h = correlated_sample(500)
    transform, again = Decorrelate(4, 2), Decorrelate(4, 2)
    transform.fit(v, h)
    again.load_state_dict(transform.state_dict())
    torch.testing.assert_close(again(v, h), transform(v, h))


def test_ranks_by_comparison_equal_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    w = normal_sample(300, 4, 0.3)
    transform = Gaussianize(3, 33)
    transform.fit(w)
    compared = transform(w)
    monkeypatch.setattr("caloforge.transforms.MANY", 0)
    torch.testing.assert_close(transform(w), compared, rtol=0, atol=0)


def scaled_sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of the voxels of MIXED, (n, V), whose size and emptiness change with s (n, L)."""
    rng = np.random.default_rng(5)
    s = rng.normal(size=(n, MIXED.n_layers))
    own = s[:, MIXED.layer_index]
    w = np.where(rng.random(own.shape) < 1 / (1 + np.exp(-own - 1)), rng.normal(own, 0.5 + 0.1 * np.abs(own)), -np.inf)
    return torch.from_numpy(w).float(), torch.from_numpy(s).float()


@pytest.mark.parametrize("n_nodes", [1, 7])
def test_the_inverse_undoes_the_conditional_gaussianize(n_nodes: int) -> None:
    w, s = scaled_sample(800)
    transform = ConditionalGaussianize(MIXED, 33, n_nodes)
    transform.fit(w, s)
    x = transform.dequantise(transform(w, s), s, torch.rand(w.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(x).all()
    back = transform.inverse(x, s)
    assert ((back > -torch.inf) != (w > -torch.inf)).float().mean() < 1e-3  # a value on its border may round below it
    both = torch.isfinite(w) & torch.isfinite(back)
    error = (back[both] - w[both]).abs()
    assert error.quantile(0.95) < 1e-3
    assert error.median() < 1e-5


def test_conditionally_gaussianized_voxels_are_normal_at_every_scale() -> None:
    w, s = scaled_sample(20_000)
    transform = ConditionalGaussianize(MIXED, 41, 7)
    transform.fit(w, s)
    x = transform.dequantise(transform(w, s), s, torch.rand(w.shape, generator=torch.Generator().manual_seed(0)))
    for low, high in ((-2.4, -1.2), (-0.5, 0.5), (1.2, 2.4)):
        for voxel in range(MIXED.n_voxels):
            own = s[:, MIXED.layer_index[voxel]]
            part = x[(own > low) & (own < high), voxel]
            assert abs(float(part.mean())) < 0.15
            assert abs(float(part.std()) - 1) < 0.15
