"""Imposed sums: moments of showers, momenta of jets."""

import numpy as np
import pytest
import torch

from caloforge.export import IR_VERSION, _folded, session
from caloforge.geometry import Geometry, Layer, regular
from caloforge.simulate import detectors
from caloforge.testing import small_geometry
from caloforge.tilt import Moments, Tilt, _solved, scaled_to


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


def test_a_soft_tilt_has_the_sums_and_leaves_faint_voxels_alone() -> None:
    place = np.linspace(-1, 1, 40)
    basis = np.stack([place * 0 + 1, place, place**2], axis=1)
    truth = sparse(100, 40, 3)
    sums = Tilt(basis).sums(
        truth * torch.exp(0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3)))
    )
    faint = (truth > 0) & (truth < 1e-3 * truth.sum(1, keepdim=True))
    change = []
    for tilt in (Tilt(basis), Tilt(basis, steps=12, soft=0.02)):
        out = tilt.impose(truth, sums)
        missed = (tilt.sums(out) / sums[:, :, :1] - sums / sums[:, :, :1]).abs().amax((1, 2))
        assert missed.quantile(0.9) < 1e-5
        change.append(torch.log(out[faint] / truth[faint]).abs().mean())
    assert change[1] < 0.1 * change[0]


def test_voxels_are_scaled_to_a_total_the_bright_ones_first() -> None:
    energy = torch.tensor([[1.0, 100.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0]], dtype=torch.float64)
    out = scaled_to(torch.tensor([51.0, 3.0, 400.0]).double(), energy, torch.full((3, 1), 10.0).double())
    torch.testing.assert_close(out.sum(1), torch.tensor([51.0, 0.0, 400.0]).double())
    assert out[0, 0] > 0.9  # all of them times the same: 0.5
    torch.testing.assert_close(out[2, 2] / out[2, 0], torch.tensor(2.0).double(), rtol=0.4, atol=0)


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
