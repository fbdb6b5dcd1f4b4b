"""The coupling flow: splines against a slow twin, Jacobians, the published size, densities that are known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caloforge.fastsim import CHUNK, FastSim
from caloforge.geometry import Geometry
from caloforge.models import Sizes
from caloforge.models.coupling_flow import CouplingFlow, CouplingFlowConfig, _moves
from caloforge.models.splines import MIN_BIN, MIN_SLOPE, n_parameters, spline
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import PreprocessConfig
from caloforge.testing import small_geometry, small_showers

PAPER: dict[str, Any] = {"n_blocks": 12, "width": 256, "depth": 4, "bins": 10, "bound": 18.0, "rank": 0}
SMALL: dict[str, Any] = {"n_blocks": 4, "width": 16, "depth": 2, "bins": 5, "bound": 5.0, "rank": 2}


def flow(n: int = 6, noise: float = 0.1, **changes: Any) -> CouplingFlow:
    """A small flow of n features, two conditions, with noise on all weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CouplingFlow(CouplingFlowConfig(**(SMALL | changes)), Sizes(1, n - 1, 2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn(parameter.shape))
    return model.eval()


def normals(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def twin(x: float, parameters: np.ndarray, bound: float) -> tuple[float, float]:
    """One spline (3 K - 1,) at one number, step by step: image and slope."""
    if abs(x) >= bound:
        return x, 1.0
    bins = (len(parameters) + 1) // 3
    corners = []
    for logits in (parameters[:bins], parameters[bins : 2 * bins]):
        shares = np.exp(logits) / np.exp(logits).sum()
        corners.append(-bound + 2 * bound * np.cumsum([0.0, *(MIN_BIN + (1 - MIN_BIN * bins) * shares)]))
    shift = math.log(math.exp(1 - MIN_SLOPE) - 1)
    slopes = [1.0, *(MIN_SLOPE + np.log1p(np.exp(parameters[2 * bins :] + shift))), 1.0]
    k = int(np.searchsorted(corners[0], x, side="right")) - 1
    w, h = (c[k + 1] - c[k] for c in corners)
    s, xi = h / w, (x - corners[0][k]) / w
    q = s + (slopes[k] + slopes[k + 1] - 2 * s) * xi * (1 - xi)
    y = corners[1][k] + h * (s * xi**2 + slopes[k] * xi * (1 - xi)) / q
    slope = s**2 * (slopes[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slopes[k] * (1 - xi) ** 2) / q**2
    return y, slope


def test_the_spline_equals_a_slow_twin() -> None:
    x, parameters = 2.5 * normals(20, 7, dtype=torch.float64), normals(20, 17, 7, seed=2, dtype=torch.float64)
    y, log_slope = spline(x, parameters, 4.0)
    for i in range(20):
        for j in range(7):
            image, slope = twin(float(x[i, j]), parameters[i, :, j].numpy(), 4.0)
            assert float(y[i, j]) == pytest.approx(image, abs=1e-12)
            assert float(log_slope[i, j]) == pytest.approx(math.log(slope), abs=1e-10)


def test_the_spline_of_zeros_is_the_identity_and_tails_are_one() -> None:
    x = torch.linspace(-7, 7, 101)[:, None]
    for inverse in (False, True):
        y, log_slope = spline(x, torch.zeros(101, n_parameters(8), 1), 5.0, inverse=inverse)
        torch.testing.assert_close(y, x, rtol=0, atol=2e-6)
        assert log_slope.abs().max() < 2e-6
    parameters = normals(1, n_parameters(8), 1).expand(101, -1, -1)
    y, log_slope = spline(x, parameters, 5.0)
    tails = x.abs() >= 5
    torch.testing.assert_close(y[tails], x[tails], rtol=0, atol=1e-5)
    assert log_slope[tails].abs().max() < 1e-5
    assert (y.diff(dim=0) > 0).all()


@pytest.mark.parametrize(("n_voxels", "n_layers", "n", "published"),
                         [(368, 5, 18_803_664, 18.82e6), (533, 7, 26_575_272, 26.59e6)])  # fmt: skip
def test_it_has_the_published_number_of_parameters(n_voxels: int, n_layers: int, n: int, published: float) -> None:
    model = CouplingFlow(CouplingFlowConfig(**PAPER), Sizes(n_layers, n_voxels, 1))
    assert sum(p.numel() for p in model.parameters()) == n == pytest.approx(published, rel=1e-3)
    last = sum(block.last.weight.numel() for block in model.blocks)  # type: ignore[union-attr, operator]
    assert last / n == pytest.approx(0.9, abs=0.02)
    low = CouplingFlow(CouplingFlowConfig(**PAPER | {"rank": 32}), Sizes(n_layers, n_voxels, 1))
    assert sum(p.numel() for p in low.parameters()) == {368: 4_402_896, 533: 5_626_536}[n_voxels]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
def test_both_directions_undo_each_other(n: int, rank: int, dtype: torch.dtype, limit: float) -> None:
    model = flow(n, rank=rank).to(dtype)
    x, c = 2 * normals(500, n, dtype=dtype), normals(500, 2, seed=2, dtype=dtype)
    with torch.no_grad():
        z, there = model.transform(x, c)
        again, back = model.transform(z, c, inverse=True)
        assert torch.equal(model.decode(z, c), again)
    assert (z - x).abs().mean() > 0.05
    assert (again - x).abs().max() < limit
    assert (there + back).abs().max() < limit


@pytest.mark.parametrize("inverse", [False, True])
def test_the_determinant_is_that_of_the_jacobian(inverse: bool) -> None:
    model = flow().double()
    x, c = 2 * normals(20, 6, dtype=torch.float64), normals(20, 2, seed=2, dtype=torch.float64)
    log_slope = model.transform(x, c, inverse=inverse)[1]
    for i in range(20):
        jacobian = torch.autograd.functional.jacobian(
            lambda y, i=i: model.transform(y[None], c[i : i + 1], inverse=inverse)[0][0], x[i]
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_slope[i], rtol=0, atol=1e-8)


@pytest.mark.parametrize("rank", [0, 3])
def test_the_density_of_two_features_integrates_to_one(rank: int) -> None:
    model, axis = flow(2, 0.1, rank=rank), torch.linspace(-8, 8, 401)
    x = torch.cartesian_prod(axis, axis)
    for c in ([0.0, 0.0], [1.0, -2.0]):
        with torch.no_grad():
            p = model.log_prob(x, torch.tensor([c]).expand(len(x), -1)).exp()
        assert float(p.double().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=2e-3)


def test_an_untrained_flow_is_the_identity() -> None:
    model, x, c = flow(11, noise=0.0), normals(50, 11), normals(50, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(x, c), x, rtol=0, atol=1e-5)
        expected = -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
        torch.testing.assert_close(model.log_prob(x, c), expected, rtol=1e-5, atol=1e-4)
        assert float(model.loss(x, c, torch.Generator())) == pytest.approx(-float(expected.mean()) / 11, rel=1e-5)


def test_all_features_are_moved_equally_often_and_come_back_to_their_places() -> None:
    for n in (2, 3, 8, 51):
        moves, moved = _moves(n, 6, seed=3), torch.zeros(n)
        order = torch.arange(n)
        for move in moves[:-1]:
            order = order[move]
            moved[order[n - n // 2 :]] += 1
        assert torch.equal(order[moves[-1]], torch.arange(n))
        assert moved.max() - moved.min() <= 1
        assert n < 8 or not torch.equal(_moves(n, 6, seed=4), moves)


def test_the_order_is_stored_with_the_weights() -> None:
    first, other = flow(order_seed=1), flow(order_seed=2)
    x, c = normals(9, 6), normals(9, 2)
    other.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first.log_prob(x, c), other.log_prob(x, c))
        assert torch.equal(first.decode(x, c), other.decode(x, c))


def test_it_learns_correlated_normals_and_their_entropy() -> None:
    """x = A eps + B c: the entropy given c is D/2 (1 + ln 2 pi) + ln |det A|, and E[ln p - ln p_model] = KL >= 0."""
    a = torch.eye(4) + 0.5 * normals(4, 4).tril(-1)
    b = 0.5 * normals(4, 2, seed=2)
    model = flow(4, noise=0.0, rank=4)
    random, steps = torch.Generator().manual_seed(3), 200
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        eps, c = torch.randn(256, 4, generator=random), torch.randn(256, 2, generator=random)
        loss = model.loss(eps @ a.T + c @ b.T, c, random)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimiser.step()
    eps, c = torch.randn(20_000, 4, generator=random), torch.randn(20_000, 2, generator=random)
    with torch.no_grad():
        found = model.log_prob(eps @ a.T + c @ b.T, c)
    log_det = float(torch.linalg.slogdet(a).logabsdet)
    truth = -0.5 * (eps.square() + math.log(2 * math.pi)).sum(1) - log_det
    entropy = 2 * (1 + math.log(2 * math.pi)) + log_det
    kl, error = float((truth - found).mean()), float((truth - found).std()) / math.sqrt(20_000)
    assert -3 * error < kl < 0.02
    assert -float(found.mean()) == pytest.approx(entropy, abs=0.02 + 4 * float(truth.std()) / math.sqrt(20_000))


@pytest.fixture(scope="module")
def fast() -> FastSim:
    """An untrained flow on small showers."""
    showers = small_showers(n=200)
    made = FastSim.create(showers.geometry, CouplingFlowConfig(**SMALL), valid=showers.incident)
    made.fit_transform(showers)
    return made


def test_the_likelihood_of_showers_is_that_of_their_features(fast: FastSim) -> None:
    """Before training it is the density of independent normals."""
    showers = small_showers(n=200)
    found = fast.log_likelihood(showers, seed=4)
    assert found.shape == (200,)
    assert found.dtype == np.float64
    x, _ = fast.encode(showers)
    uniform = np.random.default_rng([4, 0]).random((200, 22), dtype=np.float32)
    x = fast.transform.dequantise(x, torch.from_numpy(uniform)).double()
    expected = -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)
    np.testing.assert_array_equal(found, fast.log_likelihood(showers, seed=4))
    assert not np.array_equal(found, fast.log_likelihood(showers, seed=5))


def test_the_likelihood_comes_in_chunks(fast: FastSim) -> None:
    showers = small_showers(n=CHUNK + 20)
    wide = fast.with_card(valid=fast.card.valid | {"energy": (1e3, 1e5)})
    found = wide.log_likelihood(showers)
    assert found.shape == (CHUNK + 20,)
    np.testing.assert_allclose(wide.log_likelihood(showers[:CHUNK]), found[:CHUNK], rtol=1e-4)
    assert np.isfinite(found).all()


def test_what_has_no_likelihood_says_so(fast: FastSim) -> None:
    showers = small_showers()
    made = FastSim.create(showers.geometry, VAEConfig(width=8, depth=1), valid=showers.incident)
    made.fit_transform(showers)
    with pytest.raises(ValueError, match=r"^got a likelihood asked of vae, expected a model with one: .*coupling_flow"):
        made.log_likelihood(showers)
    other = Geometry("other", small_geometry().layers[:1])
    with pytest.raises(ValueError, match="expected"):
        fast.log_likelihood(small_showers(other))
    with pytest.raises(ValueError, match="incident energy"):
        fast.with_card(valid=fast.card.valid | {"energy": (1.0, 2.0)}).log_likelihood(showers)


@pytest.mark.parametrize("wrong", [{"n_blocks": 0}, {"depth": 0}, {"width": 1}, {"bins": 1}, {"bins": 1000},
                                   {"bound": 0.0}, {"rank": -1}])  # fmt: skip
def test_impossible_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^got model\.{next(iter(wrong))} = .*, expected .*; \w+( it)?$"):
        CouplingFlowConfig(**wrong)


def test_single_voxels_are_refused() -> None:
    showers = small_showers()
    with pytest.raises(ValueError, match=r"single voxels for coupling_flow, expected .*'gaussian'"):
        FastSim.create(
            showers.geometry, CouplingFlowConfig(), valid=showers.incident, preprocess=PreprocessConfig(voxels="linear")
        )
