"""Preprocessing of single voxels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import boxcox

from caloforge.testing import small_geometry, small_showers
from caloforge.voxelwise import VoxelTransform, box_cox_power

ENERGY = torch.tensor(small_showers(n=300).energy)
NOTHING = torch.empty(0)


def fitted(scale: float | None, threshold: float = 0.1) -> VoxelTransform:
    transform = VoxelTransform(small_geometry(), threshold=threshold, scale=scale)
    transform.fit(ENERGY, NOTHING)
    return transform


@pytest.mark.parametrize("scale", [None, 1e3])
def test_the_inverse_undoes_the_transform(scale: float | None) -> None:
    transform = fitted(scale)
    kept = torch.where(ENERGY < 0.1, 0.0, ENERGY)
    torch.testing.assert_close(transform.inverse(transform(ENERGY, NOTHING), NOTHING), kept, rtol=2e-3, atol=0)


def test_box_cox_features_lie_between_0_and_1() -> None:
    x = fitted(None)(ENERGY, NOTHING)
    assert x.min() == 0
    assert x.max() == 1


@given(st.floats(-1e6, 1e6, width=32))
def test_no_feature_makes_an_energy_that_is_not_finite(value: float) -> None:
    energy = fitted(None).inverse(torch.full((1, 22), value), NOTHING)
    assert torch.isfinite(energy).all()
    assert energy.min() >= 0
    assert energy.max() < 2 * ENERGY.max()


def test_lambda_is_the_one_of_scipy() -> None:
    energy = np.random.default_rng(0).gamma(0.5, 100.0, 20_000) + 1e-3
    assert box_cox_power(energy) == pytest.approx(boxcox(energy)[1], abs=1e-3)


def test_a_logarithm_is_the_limit_of_small_lambda() -> None:
    energy = np.exp(np.random.default_rng(1).normal(size=50_000))
    assert abs(box_cox_power(energy)) < 0.02


def test_negative_energies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"voxel energy of -2 MeV, expected >= 0 for the Box-Cox transform"):
        fitted(None)(ENERGY - 2.0 * (ENERGY == 0), NOTHING)
    with pytest.raises(ValueError, match="expected > 0 for the Box-Cox transform"):
        box_cox_power(np.array([1.0, -1.0]))


def test_empty_showers_have_no_lambda() -> None:
    transform = VoxelTransform(small_geometry(), threshold=1.0, scale=None)
    with pytest.raises(ValueError, match=r"lower preprocess.threshold_mev"):
        transform.fit(torch.zeros(3, 22), NOTHING)
