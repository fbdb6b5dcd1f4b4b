"""The published GANs: sizes to the digit, what they refuse, locally connected layers against a slow twin."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import MODELS, Sizes
from caloforge.models.calogan import CaloGAN, CaloGANConfig
from caloforge.models.gan import GAN, GANConfig
from caloforge.models.image_judge import ImageJudge
from caloforge.models.lagan import LAGAN, LAGANConfig
from caloforge.models.lhcb_wgan import LHCbWGAN, LHCbWGANConfig
from caloforge.models.local import LocallyConnected, MinibatchDiscrimination, flipped
from caloforge.preprocess import PreprocessConfig, ShowerTransform
from caloforge.simulate import detectors, jets

CALOGAN = detectors.find("calogan").geometry
LHCB = detectors.find("lhcb").geometry


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sizes(geometry: Geometry, n_conditions: int = 1, n_classes: int = 0, n_globals: int = 0) -> Sizes:
    return Sizes(n_globals, geometry.n_voxels, n_conditions, geometry, (1e3, 1e5), n_classes)


@pytest.fixture(scope="module")
def calogan() -> CaloGAN:
    return CaloGAN(CaloGANConfig(), sizes(CALOGAN))


def test_calogan_has_the_published_numbers_of_parameters(calogan: CaloGAN) -> None:
    assert n_parameters(calogan.generator) == 29_726_280
    assert n_parameters(calogan.discriminator) == 2_744_332
    assert [n_parameters(stream) for stream in calogan.generator.streams] == [18_241_584, 7_304_118, 4_172_370]
    assert [n_parameters(gate) for gate in calogan.generator.gates] == [5_472, 2_736]
    assert [judge.n_features for judge in calogan.discriminator.judges] == [1000, 448, 336]
    assert calogan.discriminator.last.in_features == 1863


def test_calogan_starts_with_its_streams_only(calogan: CaloGAN) -> None:
    h = torch.randn(8, 1024) * torch.rand(8, 1)
    with torch.no_grad():
        images = [stream(h) for stream in calogan.generator.streams]
        parts = zip(calogan.generator.gates, calogan.generator.carry, itertools.pairwise(images), strict=True)
        for gate, carry, (before, image) in parts:
            nothing = torch.zeros_like(image)
            assert gate.weights(nothing, nothing)[:, 1].max() < 1e-4  # type: ignore[operator]
            assert gate.weights(image, carry(before))[:, 1].mean() < 1e-4  # type: ignore[operator]


def test_calogan_sees_the_requested_energy_in_gev(calogan: CaloGAN) -> None:
    c = torch.tensor([[-1.0], [0.0], [1.0]])
    torch.testing.assert_close(calogan.sizes.incident_energy(c), torch.tensor([1e3, 1e4, 1e5]), rtol=1e-5, atol=0)


def test_carried_images_are_repeated_and_averaged(calogan: CaloGAN) -> None:
    image = torch.arange(3 * 96, dtype=torch.float32).reshape(1, 1, 3, 96)
    carried = calogan.generator.carry[0](image)
    assert carried.shape == (1, 1, 12, 12)
    assert carried[0, 0, 0, 0] == image[0, 0, 0, :8].mean()
    assert torch.equal(carried[0, 0, 0], carried[0, 0, 3])
    assert calogan.generator.carry[1](carried).shape == (1, 1, 12, 6)


def test_lagan_has_the_published_numbers_of_parameters() -> None:
    model = LAGAN(LAGANConfig(), sizes(jets.geometry(), 3, 2))
    assert n_parameters(model.generator) == 3_586_932
    assert n_parameters(model.discriminator) == 1_398_986
    image = model.decode(torch.randn(5, 200), torch.tensor([[0.0, 1.0, 0.0]] * 5))
    assert image.shape == (5, 625)
    assert image.min() == 0


def test_lagan_draws_another_image_for_another_class() -> None:
    model = LAGAN(LAGANConfig(), sizes(jets.geometry(), 3, 2)).eval()
    z = torch.randn(1, 200)
    first, second = (model.decode(z, torch.tensor([c])) for c in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
    assert not torch.equal(first, second)


def test_the_lhcb_wgan_crops_32_cells_to_30() -> None:
    model = LHCbWGAN(LHCbWGANConfig(), sizes(LHCB, 5))
    assert model.n_noise == 512
    assert model.generator.start == (256, 4, 4)
    assert model.generator.crop == (1, 1)
    assert model.decode(torch.randn(2, 512), torch.randn(2, 5)).shape == (2, 900)
    assert model.critic(torch.randn(2, 900)).shape == (2,)
    assert model.regressor(torch.randn(2, 900)).shape == (2, 5)


def test_the_regressor_is_trained_first_and_then_frozen() -> None:
    objectives = {o.name: o for o in LHCbWGAN(LHCbWGANConfig(regressor_steps=10), sizes(LHCB, 5)).objectives()}
    assert [objectives["regressor"].due(step) for step in (0, 9, 10)] == [True, True, False]
    assert [objectives["critic"].due(step) for step in (9, 10, 11)] == [False, True, True]
    assert [objectives["generator"].due(step) for step in (10, 11, 12)] == [True, False, True]


def test_the_gan_starts_as_the_copula_of_its_preprocessing() -> None:
    model = GAN(GANConfig(), sizes(LHCB, 5, n_globals=7))
    z = torch.randn(3, model.n_noise)
    torch.testing.assert_close(model.decode(z, torch.randn(3, 5))[:, 7:], z[:, 7 : 7 + 900])


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 2), (4, 1), (1, 5)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, (1, 2), 1), (2, (1, 1), 0), (5, (2, 2), 2)])
def test_locally_connected_layers_equal_a_slow_twin(
    n_in: int, n_out: int, kernel: int, stride: tuple[int, int], padding: int
) -> None:
    layer = LocallyConnected(n_in, n_out, (6, 7), kernel, stride=stride, padding=padding)
    with torch.no_grad():
        layer.bias.normal_()  # type: ignore[union-attr]
    x = torch.randn(2, n_in, 6, 7)
    padded = nn.functional.pad(x, (padding,) * 4)
    slow = torch.empty(2, n_out, *layer.shape)
    for place, (i, j) in enumerate(itertools.product(*map(range, layer.shape))):
        corner = i * stride[0], j * stride[1]
        patch = padded[:, :, corner[0] : corner[0] + kernel, corner[1] : corner[1] + kernel]
        flat = patch.permute(0, 2, 3, 1).reshape(2, -1)
        slow[:, :, i, j] = flat @ layer.weight[place] + layer.bias[place]  # type: ignore[index]
    torch.testing.assert_close(layer(x), slow, rtol=1e-4, atol=1e-5)


def test_both_ways_to_apply_local_weights_agree() -> None:
    layer = LocallyConnected(4, 3, (5, 6), 3, padding=1)
    x = nn.functional.pad(torch.randn(2, 4, 5, 6), (1,) * 4).permute(2, 3, 0, 1).contiguous()
    torch.testing.assert_close(layer._gathered(x), layer._scattered(x), rtol=1e-4, atol=1e-5)


def test_minibatch_discrimination_counts_equal_samples() -> None:
    layer = MinibatchDiscrimination(3, 4, 2)
    same, apart = torch.ones(5, 3), 1e3 * torch.eye(3)
    torch.testing.assert_close(layer(same), torch.full((5, 4), 5.0))
    torch.testing.assert_close(layer(apart), torch.ones(3, 4))


def test_flips_have_their_probability() -> None:
    out = flipped(torch.zeros(20_000), 0.09, torch.Generator().manual_seed(0))
    assert abs(float(out.mean()) - 0.09) < 0.006


UNEVEN = Geometry(
    "uneven", (Layer("cartesian", (0, 1, 2, 3), (0, 1, 2)), Layer("cartesian", (0, 1, 2), (0, 1, 2)))
)  # fmt: skip
ROUND = Geometry("round", (Layer("polar", (0, 1, 2), (0, 1, 2)),))
REFUSED = {
    "a ratio that is not whole": ("calogan", sizes(UNEVEN), "layer 0 with 3 voxels along axis 0 before one with 2"),
    "polar layers": ("calogan", sizes(ROUND), "layer 0 of 'round', which is polar"),
    "several layers": ("lhcb_wgan", sizes(CALOGAN), "got 3 layers, expected one"),
    "another image": ("lagan", sizes(LHCB, 3, 2), r"expected one of 25 x 25"),
    "one class": ("lagan", sizes(jets.geometry(), 1), "got 1 kinds of particles, expected 2 classes"),
    "Gaussian features": ("calogan", sizes(CALOGAN, n_globals=12), "preprocess.voxels = 'linear'"),
    "single voxels": ("gan", sizes(CALOGAN), "preprocess.voxels = 'gaussian'"),
    "no geometry": ("calogan", Sizes(0, 504, 1), "expected the mesh"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_architecture_cannot_take_is_said(case: str) -> None:
    family, data, message = REFUSED[case]
    kind, model = MODELS[family]
    with pytest.raises(ValueError, match=message):
        model(kind(), data)


@pytest.mark.parametrize("family", ["calogan", "lagan", "gan"])
def test_one_shower_is_no_minibatch(family: str) -> None:
    config = {"calogan": CaloGANConfig(n_latent=4, width=2), "lagan": LAGANConfig(), "gan": GANConfig(width=8)}[family]
    data = {
        "calogan": sizes(UNEVEN_FREE), "lagan": sizes(jets.geometry(), 3, 2), "gan": sizes(UNEVEN_FREE, n_globals=4)
    }[family]  # fmt: skip
    model = MODELS[family][1](config, data)
    loss = next(o for o in model.objectives() if o.name == "discriminator").loss
    n = data.n_globals + data.n_voxels
    with pytest.raises(ValueError, match="batch of 1 shower, expected at least 2"):
        loss(torch.rand(1, n), torch.zeros(1, data.n_conditions), torch.Generator())


UNEVEN_FREE = Geometry("even", (Layer("cartesian", regular(0, 1, 2), regular(0, 1, 4)),))


def images(n: int) -> tuple[GAN, ShowerTransform, torch.Tensor, torch.Tensor]:
    """A GAN with a discriminator of images, its preprocessing, and features and context of n images of two classes."""
    random = np.random.default_rng(7)
    energy = torch.tensor(random.gamma(0.3, 5e3, (n, 625)) * (random.random((n, 625)) < 0.05), dtype=torch.float32)
    incident = torch.full((n,), 1e4)
    kinds = torch.eye(2)[torch.arange(n) % 2]
    transform = ShowerTransform(jets.geometry(), PreprocessConfig(n_knots=20, n_nodes=1, impose="subjets"), 2)
    transform.fit(energy, incident, given=kinds)
    noise = torch.rand(n, 625, generator=torch.Generator().manual_seed(7))
    x = transform.dequantise(transform(energy, incident, kinds), noise)
    config = GANConfig(width=16, judge_width=16, layer_hidden=8, layer_transforms=1, images=True)
    model = GAN(config, sizes(jets.geometry(), 3, 2, transform.n_globals))
    model.watch(transform)
    return model, transform, x, torch.cat([torch.zeros(n, 1), kinds], dim=1)


def test_a_gan_of_images_learns_to_bring_its_momenta_near_those_that_are_asked() -> None:
    model, _, x, c = images(64)
    objective = {o.name: o for o in model.objectives()}
    optimiser = torch.optim.Adam(objective["generator"].parameters, lr=3e-3)
    losses = []
    for step in range(30):
        random = torch.Generator().manual_seed(step)
        objective["discriminator"].loss(x, c, random)
        loss = objective["generator"].loss(x, c, random)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    names = {key.split(".")[0] for key in model.state_dict()}
    assert "transform" not in names
    assert "imposed" not in names


def test_the_discriminator_of_images_remembers_their_means() -> None:
    judge, random = ImageJudge(625, 2, 2), torch.Generator().manual_seed(8)
    classes = torch.eye(2)[torch.arange(100) % 2]
    real, fake = torch.rand(2, 100, 625, generator=random).unbind(0)
    judge.remember(real, fake, classes)
    torch.testing.assert_close(judge.means[0, 1], real[1::2].mean(0))
    for _ in range(300):
        judge.remember(2 * real, fake, classes)
    torch.testing.assert_close(judge.means[0, 1], 2 * real[1::2].mean(0), rtol=1e-2, atol=0)
    torch.testing.assert_close(judge.scale, real.sum(1).mean())
    more = (fake * 1.01).requires_grad_()
    judge.mean_loss(more, classes).backward()
    assert more.grad is not None
    assert more.grad.sum() < 0  # the real ones are brighter


def test_images_need_a_square_and_imposed_momenta() -> None:
    with pytest.raises(ValueError, match=r"got 504 voxels .* expected a square; turn images off"):
        ImageJudge(504, 2, 0)
    model, _, _, _ = images(64)
    with pytest.raises(ValueError, match=r"got model.images .* 'jet' or 'subjets'; turn images off"):
        model.watch(ShowerTransform(jets.geometry(), PreprocessConfig(n_knots=20)))
