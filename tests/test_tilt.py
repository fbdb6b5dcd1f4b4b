"""Imposed sums: moments of showers, momenta of jets."""

import numpy as np
import pytest
import torch

from caloforge.export import IR_VERSION, _folded, session
from caloforge.geometry import Geometry, Layer, regular
from caloforge.simulate import detectors, jets
from caloforge.testing import small_geometry
from caloforge.tilt import JetMomentum, Moments, Tilt, _solved


def sparse(n: int, n_voxels: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.gamma(0.3, 100.0, (n, n_voxels)) * (rng.random((n, n_voxels)) < 0.4), dtype=torch.float32)


def test_the_solver_solves() -> None:
    root = torch.randn(7, 5, 5, dtype=torch.float64)
    matrix, right = root @ root.transpose(1, 2) + torch.eye(5), torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(_solved(matrix, right), torch.linalg.solve(matrix, right), rtol=1e-6, atol=1e-8)


def test_two_voxels_share_what_is_asked() -> None:
    tilt = Tilt(np.array([[1.0, 0.0], [1.0, 1.0]]))
    out = tilt.impose(torch.tensor([[3.0, 1.0]]), torch.tensor([[[4.0, 2.5]]]))
    torch.testing.assert_close(out, torch.tensor([[1.5, 2.5]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("geometry", [small_geometry(), detectors.find("lhcb").geometry], ids=lambda g: g.name)
def test_moments_of_other_showers_are_imposed(geometry) -> None:  # type: ignore[no-untyped-def]
    moments = Moments(geometry)
    truth = sparse(200, geometry.n_voxels, 0)
    q = moments.values(truth)
    other = truth * torch.exp(0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)))
    out = moments.impose(other, q)
    good = (moments.values(out) - q).abs().amax(1) < 1e-3
    assert good.float().mean() > 0.95  # moments that few voxels cannot have are left where they end up
    assert torch.equal(out > 0, other > 0)
    torch.testing.assert_close(out.sum(1), other.sum(1), rtol=1e-4, atol=0)


def test_a_layer_may_have_fewer_voxels_than_moments() -> None:
    rings = Layer("polar", regular(-np.pi, np.pi, 1), (0.0, 10.0, 20.0, 50.0, 80.0), (1, 2))
    geometry = Geometry("few", (small_geometry().layers[0], rings))
    voxels = sparse(100, geometry.n_voxels, 0)
    moments = Moments(geometry)
    out = moments.impose(voxels * torch.linspace(1, 1.3, geometry.n_voxels), moments.values(voxels))
    assert ((moments.values(out) - moments.values(voxels)).abs().amax(1) < 1e-3).float().mean() > 0.8


@pytest.mark.parametrize("radial", [False, True])
def test_the_brightest_voxel_gets_its_share_and_the_others_the_rest_of_the_moments(radial: bool) -> None:
    layers = [Layer("polar", regular(-np.pi, np.pi, 8), (0.0, 10.0, 20.0, 50.0, 80.0), (k, k + 1)) for k in range(2)]
    geometry = Geometry("rings", tuple(layers)) if radial else small_geometry()
    moments = Moments(geometry, radial, brightest=True)
    truth = sparse(300, geometry.n_voxels, 0)
    q = moments.values(truth)
    n = 3 if radial else 6
    top = moments.members.largest(truth) / moments.members.sums(truth).clamp_min(1e-9)
    torch.testing.assert_close(torch.exp(q[:, n - 1 :: n]).float(), torch.where(top > 0, top, 1.0), rtol=1e-5, atol=0)
    other = truth * torch.exp(0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)))
    out = moments.impose(other, q)
    assert ((moments.values(out) - q).abs().amax(1) < 1e-3).float().mean() > (0.8 if radial else 0.55)
    assert torch.equal(out > 0, other > 0)
    torch.testing.assert_close(moments.members.sums(out), moments.members.sums(other), rtol=1e-4, atol=1e-4)


def test_radial_moments_known_by_hand() -> None:
    geometry = Geometry("rings", (Layer("polar", regular(-np.pi, np.pi, 4), (0.0, 10.0, 20.0, 30.0)),))
    voxels = torch.zeros(1, 12)
    voxels[0, 0], voxels[0, 5] = 3.0, 1.0  # r = 5 and 25 mm
    r, log_r = Moments(geometry, radial=True).values(voxels)[0].tolist()
    assert r == pytest.approx(0.010)
    assert log_r == pytest.approx(np.log(0.75 * 0.25 * 0.02**2), rel=1e-3)


def test_radial_moments_are_those_of_polar_layers() -> None:
    with pytest.raises(ValueError, match=r"got impose 'radial' for 'lhcb', expected polar layers only; set it to"):
        Moments(detectors.find("lhcb").geometry, radial=True)


def test_one_filled_voxel_gives_moments_with_a_density() -> None:
    geometry = detectors.find("lhcb").geometry
    voxels = torch.zeros(500, geometry.n_voxels)
    voxels[:, 7] = 100.0
    moments = Moments(geometry)
    spread = moments.values(voxels, 1 - torch.rand(500, 5, generator=torch.Generator().manual_seed(0)))
    assert all(len(column.unique()) > 450 for column in spread.T)
    pitch = 1e-3 * (geometry.layers[0].first[1] - geometry.layers[0].first[0])
    torch.testing.assert_close(spread[:, :2], moments.values(voxels)[:, :2], rtol=0, atol=0.02 * pitch)
    assert torch.all(spread[:, 2:4] <= moments.values(voxels)[:, 2:4])


@pytest.mark.parametrize("subjets", [False, True])
def test_the_momentum_of_a_jet_is_imposed(subjets: bool) -> None:
    momentum = JetMomentum(jets.geometry(), subjets)
    truth = sparse(200, 625, 1)
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


def test_an_empty_shower_stays_empty() -> None:
    geometry = small_geometry()
    moments = Moments(geometry)
    empty = torch.zeros(2, geometry.n_voxels)
    assert not moments.impose(empty, moments.values(empty)).any()


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_leaves_an_empty_layer_empty() -> None:
    pytest.importorskip("onnxscript")
    geometry = small_geometry()
    moments = Moments(geometry)
    voxels = sparse(4, geometry.n_voxels, 0)
    voxels[1, geometry.offsets[1] :] = 0
    q = moments.values(sparse(4, geometry.n_voxels, 1)).float()
    moments.forward = moments.impose  # type: ignore[method-assign]
    n = torch.export.Dim("N")
    program = torch.onnx.export(
        moments, (voxels, q), dynamo=True, opset_version=18, dynamic_shapes=({0: n}, {0: n}), optimize=False,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    graph = _folded(program.model)
    graph.ir_version = IR_VERSION
    feed = dict(zip([v.name for v in graph.graph.input], (voxels.numpy(), q.numpy()), strict=True))
    (out,) = session(graph.SerializeToString()).run(None, feed)
    np.testing.assert_allclose(out, moments.impose(voxels, q).numpy(), rtol=1e-3, atol=1e-3)
    assert not out[1, geometry.offsets[1] :].any()
