import numpy as np
import pytest
import torch

from caloforge.jet_momentum import JetMomentum
from caloforge.simulate import jets


@pytest.mark.parametrize("subjets", [False, True])
def test_the_momentum_of_a_jet_is_imposed(subjets: bool) -> None:
    momentum = JetMomentum(jets.geometry(), subjets)
    rng = np.random.default_rng(1)
    truth = torch.tensor(rng.gamma(0.3, 100.0, (200, 625)) * (rng.random((200, 625)) < 0.4), dtype=torch.float32)
    q = momentum.values(truth)
    other = truth * torch.exp(0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)))
    found = momentum.values(momentum.impose(other, q))
    torch.testing.assert_close(found[:, :10], q[:, :10], rtol=1e-5, atol=1e-4)


def test_the_brightest_pixel_of_the_second_subjet_gets_its_share() -> None:
    momentum = JetMomentum(jets.geometry(), subjets=True)
    pixels = torch.zeros(200, 25, 25)
    pixels[:, 12, 12], pixels[:, 12, 6] = 150e3, 60e3
    around = torch.tensor([[11, 6], [13, 6], [12, 5], [12, 7], [11, 5], [13, 8], [12, 13], [12, 11], [11, 12]])
    generator = torch.Generator().manual_seed(2)
    pixels[:, around[:, 0], around[:, 1]] = 1e4 * torch.rand(200, 9, generator=generator)
    truth = pixels.flatten(1)
    q = momentum.values(truth)
    other = truth * torch.exp(0.3 * torch.randn(truth.shape, generator=generator))
    missed = (momentum.values(momentum.impose(other, q)) - q)[:, 10].abs()
    assert missed.quantile(0.95) < 0.02
    assert (momentum.values(other) - q)[:, 10].abs().median() > 0.05


def test_two_pixels_have_a_mass_known_by_hand() -> None:
    pixels = torch.zeros(1, 625)
    middle, below = 12 * 25 + 12, 12 * 25 + 6  # delta phi = -0.6
    pixels[0, middle], pixels[0, below] = 150e3, 100e3
    log_pt, mass, eta, phi = JetMomentum(jets.geometry()).values(pixels)[0].tolist()
    assert mass == pytest.approx(np.sqrt(2 * 150e3 * 100e3 * (1 - np.cos(0.6))))
    assert np.exp(log_pt) == pytest.approx(np.hypot(150e3 + 100e3 * np.cos(0.6), 100e3 * np.sin(0.6)))
    assert eta == pytest.approx(0, abs=1e-9)
    assert phi < 0


def test_the_second_subjet_is_what_lies_below_and_its_single_pixel_gets_a_density() -> None:
    pixels = torch.zeros(300, 625)
    middle, below = 12 * 25 + 12, 12 * 25 + 6  # delta phi = -0.6
    pixels[:, middle], pixels[:, below] = 150e3, 100e3
    pixels[:, [middle + 1, middle + 24, middle - 26]] = 5e3  # touch the middle with an edge or a corner
    pixels[:, middle + 2] = 7e3
    momentum = JetMomentum(jets.geometry(), subjets=True)
    log_pt, mass, eta, phi, share, around, brightest = momentum.values(pixels)[0, 4:].tolist()
    assert np.exp(log_pt) == pytest.approx(100e3)
    assert mass == pytest.approx(0.5e-3 * 100e3, rel=1e-3)
    assert (eta, phi) == pytest.approx((0, -0.6))
    assert share == pytest.approx(150e3 / np.exp(momentum.values(pixels)[0, 0].item()))
    assert around == pytest.approx(share / 10)
    assert brightest == pytest.approx(0, abs=1e-3)
    spread = momentum.values(pixels, 1 - torch.rand(300, 11, generator=torch.Generator().manual_seed(0)))
    assert all(len(column.unique()) > 250 for column in spread[:, 5:].T)


def sparse() -> torch.Tensor:
    rng = np.random.default_rng(4)
    return torch.tensor(rng.gamma(0.3, 5e3, (100, 625)) * (rng.random((100, 625)) < 0.05), dtype=torch.float32)


def test_without_subjets_an_image_is_scaled_as_a_whole() -> None:
    momentum, truth = JetMomentum(jets.geometry()), sparse()
    q = momentum.values(truth)
    torch.testing.assert_close(momentum.scaled(3 * truth, q), truth, rtol=1e-5, atol=1e-3)
    assert momentum.missing(truth, q).abs().max() < 1e-6


def test_scaling_leaves_an_image_of_its_own_momentum_as_it_is_and_has_gradients() -> None:
    momentum, truth = JetMomentum(jets.geometry(), subjets=True), sparse()
    truth[:10, momentum.parts[:, 0] > 0] = 0.0  # no second subjet
    q = momentum.values(truth)
    torch.testing.assert_close(momentum.scaled(truth, q), truth, rtol=1e-4, atol=1e-2)
    assert momentum.missing(truth, q).abs().max() < 1e-6
    other = (2 * truth).requires_grad_()
    missing = momentum.missing(momentum.scaled(other, q.roll(1, 0)), q.roll(1, 0))
    assert missing[:, 4:8].abs().amax(1)[11:].min() > 0
    assert (missing[1:10, 4:8] == 0).all()
    missing.square().sum().backward()
    assert torch.isfinite(other.grad).all()
