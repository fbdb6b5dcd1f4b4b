"""Preprocessing relative to layers and to the incident energy."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caloforge.fastsim import FastSim
from caloforge.fractions import ALPHA, MARGIN, FractionTransform
from caloforge.geometry import Geometry
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import PreprocessConfig
from caloforge.testing import small_geometry, small_showers

SHOWERS = small_showers(n=400)
ENERGY = torch.tensor(SHOWERS.energy)
INCIDENT = torch.tensor(SHOWERS.incident.energy, dtype=torch.float32)
SINGLE = Geometry("single", small_geometry().layers[:1])
THRESHOLD = 0.1
NOTHING = torch.zeros(ENERGY.shape)  # no noise


def fitted(energy: torch.Tensor = ENERGY, geometry: Geometry | None = None, **config: Any) -> FractionTransform:
    settings = {"voxels": "fractions", "threshold_mev": THRESHOLD} | config
    transform = FractionTransform(geometry or small_geometry(), PreprocessConfig(**settings))
    transform.fit(energy, INCIDENT)
    return transform


def layer_sums(energy: torch.Tensor) -> torch.Tensor:
    return torch.stack([energy[:, a:b].double().sum(1) for a, b in pairwise(small_geometry().offsets)], dim=1)


@pytest.mark.parametrize("voxels", ["fractions", "ratio"])
@pytest.mark.parametrize("map_", ["logit", "log", "linear"])
@pytest.mark.parametrize("standardise", ["none", "voxel", "all"])
def test_the_inverse_undoes_the_preprocessing(voxels: str, map_: str, standardise: str) -> None:
    transform = fitted(voxels=voxels, map=map_, standardise=standardise, noise_mev=0.0)
    encoded = transform(ENERGY, INCIDENT)
    assert encoded.shape == (400, transform.n_fixed + 22)
    x = transform.dequantise(encoded, NOTHING)
    assert x.shape == (400, transform.n_globals + 22)
    assert x.dtype == torch.float32
    assert transform.n_globals == (2 if voxels == "fractions" else 0)
    kept = torch.where(ENERGY < THRESHOLD, 0.0, ENERGY)
    torch.testing.assert_close(transform.inverse(x, INCIDENT), kept, rtol=1e-4, atol=2e-2 if map_ == "linear" else 1e-3)


def test_one_layer_has_one_feature_of_its_own() -> None:
    energy = ENERGY[:, :12]
    transform = fitted(energy, SINGLE, noise_mev=0.0)
    x = transform.dequantise(transform(energy, INCIDENT), NOTHING[:, :12])
    assert x.shape == (400, 13)
    kept = torch.where(energy < THRESHOLD, 0.0, energy)
    torch.testing.assert_close(transform.inverse(x, INCIDENT), kept, rtol=1e-4, atol=1e-3)


@given(st.integers(0, 1000))
def test_voxels_of_a_layer_sum_to_its_energy(seed: int) -> None:
    transform = fitted()
    random = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(len(INCIDENT), 24, generator=random)
    energy = transform.unthresholded(x, INCIDENT)
    torch.testing.assert_close(layer_sums(energy), transform.layer_energies(x, INCIDENT), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        layer_sums(energy).sum(1),
        (transform.ceiling * INCIDENT).double()
        * ((torch.sigmoid(x[:, 0].double()) - ALPHA) / (1 - 2 * ALPHA)).clamp(0, 1),
        rtol=1e-6,
        atol=1e-9,
    )
    out = transform.inverse(x, INCIDENT)
    assert ((out == 0) | (out >= THRESHOLD)).all()
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("map_", ["logit", "log", "linear"])
@pytest.mark.parametrize("value", [-1e30, -30.0, 0.0, 30.0, 1e30])
def test_no_feature_makes_an_energy_that_is_not_finite(map_: str, value: float) -> None:
    for voxels, n in (("fractions", 24), ("ratio", 22)):
        energy = fitted(voxels=voxels, map=map_).inverse(torch.full((400, n), value), INCIDENT)
        assert torch.isfinite(energy).all()
        assert energy.min() >= 0


def test_known_values() -> None:
    """Two layers with 30 of 120 MeV, the first all in one voxel; the ceiling is that of one shower of 100 MeV."""
    energy, incident = torch.zeros(1, 22), torch.tensor([100.0])
    energy[0, 3], energy[0, 12], energy[0, 21] = 30.0, 60.0, 30.0
    transform = FractionTransform(small_geometry(), PreprocessConfig(voxels="fractions", noise_mev=0.0, map="linear"))
    transform.fit(energy, incident)
    assert float(transform.ceiling) == pytest.approx(MARGIN * 1.2, rel=1e-6)
    x = transform.dequantise(transform(energy, incident), torch.zeros(1, 22))[0]
    assert x[:2].tolist() == pytest.approx([1 / MARGIN, 0.25], rel=1e-6)
    assert {k: v for k, v in enumerate(x[2:].tolist()) if v} == pytest.approx({3: 1.0, 12: 2 / 3, 21: 1 / 3}, rel=1e-6)
    transform = FractionTransform(small_geometry(), PreprocessConfig(voxels="fractions", noise_mev=0.0))
    x = transform.dequantise(transform(energy, incident), torch.zeros(1, 22))[0, 2:]
    assert x[3] == -x[0]
    assert float(x[3]) == pytest.approx(np.log((1 - ALPHA) / ALPHA), rel=1e-6)


def test_empty_layers_and_showers_stay_empty() -> None:
    energy = ENERGY.clone()
    energy[0], energy[1, :12], energy[2, 12:] = 0.0, 0.0, 0.0
    for noise in (0.0, 1e-3):
        transform = fitted(energy, noise_mev=noise)
        x = transform.dequantise(transform(energy, INCIDENT), torch.rand(ENERGY.shape))
        assert torch.isfinite(x).all()
        back = transform.inverse(x, INCIDENT)
        assert not back[0].any()
        assert not back[1, :12].any()
        assert not back[2, 12:].any()
        assert back[1, 12:].any()


def test_noise_is_that_of_the_configuration_and_falls_below_the_threshold() -> None:
    transform = fitted(noise_mev=1e-2)
    encoded, uniform = transform(ENERGY, INCIDENT), torch.rand(ENERGY.shape, generator=torch.Generator().manual_seed(0))
    x = transform.dequantise(encoded, uniform)
    noisy = encoded[:, 1:] + 1e-2 * uniform
    torch.testing.assert_close(transform.unthresholded(x, INCIDENT), noisy, rtol=1e-4, atol=2e-3)
    assert ((transform.inverse(x, INCIDENT) > 0) == (encoded[:, 1:] > 0)).all()
    assert x.abs().max() <= 13.82, "features lie within the tails of a spline on -14..14"


@pytest.mark.parametrize("voxels", ["fractions", "ratio"])
def test_standardised_features_have_mean_0_and_deviation_1(voxels: str) -> None:
    for standardise in ("voxel", "all"):
        transform = fitted(voxels=voxels, standardise=standardise)
        uniform = torch.rand(ENERGY.shape, generator=torch.Generator().manual_seed(1))
        x = transform.dequantise(transform(ENERGY, INCIDENT), uniform)
        g, v = x[:, : transform.n_globals], x[:, transform.n_globals :]
        columns = [*g.T, *(v.T if standardise == "voxel" else [v])]
        assert [float(part.mean()) for part in columns] == pytest.approx([0] * len(columns), abs=0.02)
        assert [float(part.std()) for part in columns] == pytest.approx([1] * len(columns), abs=0.02)


def test_statistics_are_those_of_the_mirrored_showers_too() -> None:
    swap = torch.arange(22).flip(0)
    settings = PreprocessConfig(voxels="ratio", standardise="voxel", threshold_mev=THRESHOLD, noise_mev=0.0)
    transform, doubled = (FractionTransform(small_geometry(), settings) for _ in range(2))
    transform.fit(ENERGY, INCIDENT, torch.stack([torch.arange(22), swap]))
    doubled.fit(torch.cat([ENERGY, ENERGY[:, swap]]), INCIDENT.repeat(2))
    torch.testing.assert_close(transform.mean, doubled.mean)
    torch.testing.assert_close(transform.std, doubled.std)


def test_the_transform_is_made_of_buffers_that_travel_with_the_weights() -> None:
    transform = fitted(standardise="voxel")
    again = FractionTransform(small_geometry(), transform.config)
    again.load_state_dict(transform.state_dict())
    encoded = transform(ENERGY, INCIDENT)
    assert torch.equal(again.dequantise(encoded, NOTHING), transform.dequantise(encoded, NOTHING))
    assert not list(transform.parameters())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"voxel energy of -1 MeV, expected >= 0 for preprocess.voxels = 'fractions'"):
        fitted()(ENERGY - 1.0 * (ENERGY == 0), INCIDENT)
    with pytest.raises(ValueError, match=r"got preprocess.noise_mev = -1.0, expected at least 0"):
        PreprocessConfig(noise_mev=-1.0)


def test_settings_of_old_models_have_their_meaning() -> None:
    old = {"voxels": "linear", "threshold_mev": 0.01, "scale_mev": 1e3, "conditions": "polar"}
    assert PreprocessConfig(**old).noise_mev == 1e-3  # type: ignore[arg-type]


def test_a_model_on_fractions_is_saved_and_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from caloforge.export import TOLERANCE, export

    config = VAEConfig(n_latent=3, width=16, depth=1, layer_hidden=8, layer_transforms=1, layer_bins=4)
    preprocess = PreprocessConfig(voxels="fractions", standardise="voxel", threshold_mev=THRESHOLD)
    fast = FastSim.create(SHOWERS.geometry, config, valid=SHOWERS.incident, preprocess=preprocess)
    fast.fit_transform(SHOWERS)
    fast.save(tmp_path / "model")
    again = FastSim.load(tmp_path / "model")
    a, b = (f.simulate(SHOWERS.incident, seed=2).energy for f in (fast, again))
    np.testing.assert_array_equal(a, b)
    assert export(fast, tmp_path / "a.onnx").layer_energy <= TOLERANCE
