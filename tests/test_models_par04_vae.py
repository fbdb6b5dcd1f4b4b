import pytest
import torch
from torch import nn

from caloforge.models import Sizes
from caloforge.models.par04_vae import Par04VAE, Par04VAEConfig


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_it_has_the_parameters_of_the_example() -> None:
    model = Par04VAE(Par04VAEConfig(), Sizes(0, 18 * 50 * 45, 4))
    assert count(model.decoder, model.leave) == 4_097_528
    assert count(model.encoder, model.mean, model.log_variance) == 4_057_532
    assert model.n_noise == 10


def test_voxels_are_shares_of_the_incident_energy() -> None:
    model = Par04VAE(Par04VAEConfig(), Sizes(0, 30, 4)).eval()
    x = model.decode(torch.randn(5, 10), torch.randn(5, 4))
    assert x.shape == (5, 30)
    assert (x > 0).all()
    assert (x < 1).all()


def test_the_prior_weighs_one_over_the_batch() -> None:
    x, c = torch.rand(8, 30), torch.randn(8, 4)
    losses = []
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        model = Par04VAE(Par04VAEConfig(beta=beta), Sizes(0, 30, 4)).eval()
        losses.append(model._loss(x, c, torch.Generator().manual_seed(1)))
    h = model.encoder(torch.cat([x, c], dim=1))
    q = torch.distributions.Normal(model.mean(h), torch.exp(0.5 * model.log_variance(h)))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(8 * 30 * (losses[1] - losses[0]), kl, rtol=1e-2, atol=1e-3)


def test_layer_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got features of layers for par04_vae, expected preprocess.voxels = 'ratio'"):
        Par04VAE(Par04VAEConfig(), Sizes(4, 30, 4))
