"""Networks of the classifier test: parameter counts of the official code, shapes, initial weights, seeds."""

import numpy as np
import pytest
import torch

from caloforge.evaluate import networks
from caloforge.evaluate.networks import ResNet, create, n_parameters

COUNTS = {369: 9_152_513, 534: 9_490_433, 6481: 21_669_889, 30: 8_458_241, 46: 8_491_009, 362: 9_138_177}


@pytest.mark.parametrize("n_inputs", COUNTS)
def test_parameters_of_the_official_dnn(n_inputs):
    with torch.device("meta"):
        assert n_parameters(networks.challenge(n_inputs, 2048)) == COUNTS[n_inputs]


@pytest.mark.parametrize("shape", [(45, 16, 9), (45, 50, 18)])
def test_parameters_of_the_official_resnet(shape):
    with torch.device("meta"):
        assert n_parameters(ResNet(shape, 32)) == 2_516_644


def test_layers_of_the_dnns():
    one = networks.challenge(3, 5)
    assert [type(v).__name__ for v in one] == ["Linear", "LeakyReLU"] * 3 + ["Linear"]
    assert one[1].negative_slope == 0.01
    assert [type(v).__name__ for v in networks.standard(3, 5)] == ["Linear", "ReLU"] * 2 + ["Linear"]
    assert n_parameters(networks.challenge(7, 5)) == 7 * 5 + 2 * 5**2 + 4 * 5 + 1


@pytest.mark.parametrize("shape", [(45, 16, 9), (3, 12, 6), (12, 1, 5), (1, 1, 1), (2, 24, 24)])
def test_resnet_takes_any_mesh(shape):
    net = create("resnet", 1 + int(np.prod(shape)), 4, 0, shape)
    out = net(torch.rand(3, 1 + int(np.prod(shape))))
    assert out.shape == (3, 1)
    out.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_resnet_halves_the_mesh_five_times():
    # stem and max-pool: (45, 16, 9) -> (23, 8, 5) -> (12, 4, 3); then stages 2 to 4
    net = ResNet((45, 16, 9), 2)
    image = torch.zeros(1, 1, 45, 16, 9)
    assert net.stem(image).shape == (1, 2, 12, 4, 3)
    assert net.eval().stages(net.stem(image)).shape == (1, 8, 2, 1, 1)


def test_resnet_sees_the_incident_energy_and_every_voxel():
    net = create("resnet", 1 + 4 * 3 * 2, 4, 0, (4, 3, 2)).eval()
    x = torch.rand(1, 25, requires_grad=True)
    net(x).backward()
    assert (x.grad != 0).all()


def test_resnet_knows_layers_from_rings():
    # (L, n_alpha, n_r): a step of one ring is a step along the last axis of the image
    net, x = ResNet((5, 4, 3), 2), torch.arange(1 + 60.0)[None]
    seen = []
    net.stem.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    net.eval()(x)
    assert seen[0].shape == (1, 1, 5, 4, 3)
    assert seen[0][0, 0, 2, 1, 0] == 1 + 2 * 12 + 1 * 3


def test_showers_do_not_see_each_other_after_training():
    net = create("resnet", 25, 4, 0, (4, 3, 2)).eval()
    x = torch.rand(6, 25)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]))


def test_initial_weights_of_convolutions_are_kaiming_fan_out():
    net = create("resnet", 1 + 45 * 16 * 9, 32, 0, (45, 16, 9))
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv3d)]
    assert len(convolutions) == 1 + 16 + 3  # stem, two in each of eight blocks, three shortcuts
    for conv in convolutions:
        assert conv.bias is None
        expected = np.sqrt(2 / (conv.out_channels * np.prod(conv.kernel_size)))
        assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("network", ["standard", "challenge", "resnet"])
def test_weights_come_from_the_seed_alone(network):
    before = torch.get_rng_state().clone()
    one, two, other = (create(network, 9, 8, seed, (2, 2, 2)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    weights = [torch.cat([p.detach().ravel() for p in net.parameters()]) for net in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_wrong_names_and_meshes_are_refused():
    with pytest.raises(ValueError, match="got network 'cnn', expected one of standard, challenge, resnet"):
        create("cnn", 3, 8, 0)
    with pytest.raises(ValueError, match=r"got 10 inputs for a mesh of shape \(2, 2, 2\)"):
        create("resnet", 10, 8, 0, (2, 2, 2))
    with pytest.raises(ValueError, match="got 10 inputs for a mesh of shape None"):
        create("resnet", 10, 8, 0)
