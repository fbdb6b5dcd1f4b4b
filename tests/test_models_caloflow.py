"""CaloFlow: sizes to the digit, inversion, Jacobians, likelihood, and what the student learns."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caloforge.geometry import Geometry, Layer, regular
from caloforge.models.base import Sizes
from caloforge.models.caloflow import (
    CaloFlow,
    CaloFlowConfig,
    CaloFlowStudent,
    CaloFlowStudentConfig,
    caloflow_student_from,
    voxel_context,
)
from caloforge.models.made import MADE, AutoregressiveFlow, Degrees, MaskedLinear
from caloforge.simulate import detectors
from caloforge.testing import small_geometry

SMALL = {"n_blocks": 3, "width": 30, "layer_hidden": 8, "layer_transforms": 2, "bins": 4}


def rows(*n_voxels: int) -> Geometry:
    """Layers of one row of voxels each."""
    return Geometry("rows", tuple(Layer("cartesian", (0.0, 1.0), regular(0, 1, n)) for n in n_voxels))


def sizes(geometry: Geometry, n_conditions: int = 1) -> Sizes:
    return Sizes(geometry.n_layers, geometry.n_voxels, n_conditions, geometry, (1e3, 1e5))


def teacher(geometry: Geometry | None = None, factor: float = 2.0, **changes: Any) -> CaloFlow:
    torch.manual_seed(0)
    model: CaloFlow = shaken(CaloFlow(CaloFlowConfig(**(SMALL | changes)), sizes(geometry or small_geometry())), factor)
    return model.eval()


def shaken(model: Any, factor: float) -> Any:
    """Larger weights, so that splines are far from the identity; masked ones stay 0."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


def batch(model: CaloFlow | CaloFlowStudent, n: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Features, context and noise, far into the tails too."""
    random = torch.Generator().manual_seed(1)
    x, z = (k * torch.randn(n, model.n_noise, generator=random) for k in (4, 1))
    return x.double(), 2 * torch.rand(n, 1, generator=random).double() - 1, z.double()


def n_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


PUBLISHED = {
    "photons": (rows(8, 160, 190, 5, 5), 378, 736, 97_842, 28_043_810, 56_554_930),
    "pions": (rows(8, 100, 100, 5, 150, 160, 10), 533, 500, 116_550, 57_079_326, 53_426_622),
    "calogan": (detectors.find("calogan").geometry, 378, 504, 79_134, 37_914_414, 51_003_294),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_caloflow_has_the_published_numbers_of_parameters(name: str) -> None:
    geometry, width, student_width, layers, whole, student = PUBLISHED[name]
    with torch.device("meta"):
        model = CaloFlow(CaloFlowConfig(width=width), sizes(geometry))
        other = CaloFlowStudent(CaloFlowStudentConfig(width=student_width, teacher_width=width), sizes(geometry))
    assert n_parameters(model.layers) == layers
    assert n_parameters(model) == whole
    assert n_parameters(other) - n_parameters(other.teacher) == student


def test_orders_reverse_and_shuffle_voxels_within_their_layer() -> None:
    orders = teacher(n_blocks=5).voxels.orders
    index = torch.from_numpy(small_geometry().layer_index)
    for order in orders:
        torch.testing.assert_close(index[order], index)
    backwards = torch.cat([torch.arange(12).flip(0), torch.arange(12, 22).flip(0)])
    assert torch.equal(orders[0], backwards)
    assert torch.equal(orders[2], backwards)
    assert torch.equal(orders[-1], torch.arange(22))
    assert not torch.equal(orders[1], orders[3])
    assert torch.equal(orders[1].sort().values, torch.arange(22))


def made(n: int, width: int = 24, degrees: Degrees = "cyclic") -> MADE:
    torch.manual_seed(0)
    network = MADE(n, 3, width=width, n_hidden=2, bins=4, dropout=0.0, degrees=degrees)
    return shaken(network, 3.0).double().eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("degrees", ["cyclic", "even"])
@pytest.mark.parametrize("width", [6, 24])
def test_the_jacobian_of_a_block_is_triangular(degrees: Degrees, width: int) -> None:
    """In the order of the block before the features are put in another one; a permutation of it afterwards."""
    network, c = made(10, width, degrees), torch.randn(1, 3).double()
    flow = AutoregressiveFlow([network], torch.randperm(10)[None], bound=6.0, fast="density")
    x = torch.randn(10).double()
    j = torch.autograd.functional.jacobian(lambda v: flow.encode(v[None], c).end[0], x)[flow.places[0]]
    assert not j.triu(1).any()
    assert (j.diagonal() > 0).all()
    path = flow.encode(x[None], c)
    torch.testing.assert_close(j.diagonal().log().sum(), path.log_slope[0])
    reads = network(x[None], c)  # of the first feature: none, not even the context
    assert torch.equal(reads[:, :, 0], network(x[None] + 1, c + 1)[:, :, 0])


READ = {("cyclic", 6): 6, ("even", 6): 8, ("cyclic", 24): 9, ("even", 24): 9}  # units of degrees 1 .. 6; 1 2 4 5 7 8


@pytest.mark.parametrize(("degrees", "width"), READ)
def test_a_narrow_network_reads_the_first_features_only_unless_its_degrees_are_even(
    degrees: Degrees, width: int
) -> None:
    network = made(10, width, degrees)
    masks = [layer.keep().double() for layer in (network.leave, *network.hidden, network.enter)]  # type: ignore[operator, union-attr]
    reads = (torch.linalg.multi_dot(masks) > 0).unflatten(0, (-1, 10))
    assert torch.equal(reads[0], reads[-1])
    assert reads[0, 9].tolist() == [i < READ[degrees, width] for i in range(10)]
    assert not reads[0].triu().any()


def test_a_masked_layer_equals_a_slow_twin_and_keeps_its_zeros() -> None:
    layer = MaskedLinear(torch.tensor([1, 2, 3]), torch.tensor([1, 1, 2, 3]), strict=True)
    kept = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    assert torch.equal(layer.weight != 0, kept)
    x, optimiser = torch.randn(5, 3), torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        optimiser.step()
    assert torch.equal(layer.weight != 0, kept)
    with torch.no_grad():
        without = layer(x)
    torch.testing.assert_close(layer(x), without, rtol=0, atol=0)


@pytest.mark.parametrize("fast", ["density", "decode"])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_going_back_feature_by_feature_undoes_one_pass(n: int, fast: Any) -> None:
    torch.manual_seed(0)
    blocks = [made(n), made(n, 7, "even")]
    flow = AutoregressiveFlow(blocks, torch.stack([torch.randperm(n) for _ in blocks]), bound=6.0, fast=fast)
    x, c = 3 * torch.randn(50, n).double(), torch.randn(50, 3).double()
    there = flow.encode(x, c)
    back = flow.decode(there.end, c)
    torch.testing.assert_close(back.end, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back.log_slope, -there.log_slope, rtol=0, atol=1e-8)
    assert [len(path.states) for path in (there, back)] == [3, 3]
    for a, b in zip(there.states, reversed(back.states), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)
    assert [len(there.thetas), len(back.thetas)] == ([2, 0] if fast == "density" else [0, 2])


def test_decode_undoes_the_density_in_either_precision() -> None:
    model = teacher(factor=1.5)
    x, c, _ = batch(model)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        copied, v, context = copy.deepcopy(model).to(dtype), x.to(dtype), c.to(dtype)
        with torch.no_grad():
            u = v[:, :2]
            given = voxel_context(u, context, copied.sizes)
            z = torch.cat([copied.layers.encode(u, context).end, copied.voxels.encode(v[:, 2:], given).end], dim=1)
            torch.testing.assert_close(copied.decode(z, context), v, rtol=0, atol=tolerance)


def test_the_likelihood_integrates_to_one() -> None:
    """One voxel in one layer: two features, over all that a spline on -6 .. 6 and its tails reach."""
    student = shaken(CaloFlowStudent(student_config(), sizes(rows(1))), 1.5).eval()
    for model in (teacher(rows(1), 1.5, bound=6.0).double(), student.double()):
        edges = torch.linspace(-9, 9, 301, dtype=torch.float64)
        middle = 0.5 * (edges[1:] + edges[:-1])
        x = torch.cartesian_prod(middle, middle)
        for condition in (-1.0, 0.5):
            with torch.no_grad():
                density = model.log_prob(x, torch.full((len(x), 1), condition, dtype=torch.float64)).exp()
            assert float(density.sum()) * float(edges[1] - edges[0]) ** 2 == pytest.approx(1, abs=2e-3)


def student_config(**changes: Any) -> CaloFlowStudentConfig:
    return CaloFlowStudentConfig(**(SMALL | {"teacher_width": 30, "bound": 6.0} | changes))


def test_the_loss_is_the_negative_likelihood_per_feature() -> None:
    model = teacher()
    x, c, _ = batch(model)
    model = model.double()
    with torch.no_grad():
        losses = [float(o.loss(x, c, torch.Generator())) for o in model.objectives()]
        assert 2 * losses[0] + 22 * losses[1] == pytest.approx(-float(model.log_prob(x, c).mean()), rel=1e-9)


def test_the_context_holds_the_layer_energies() -> None:
    """u_0 = 0.5, u_1 = 0.25 of 10 GeV, the range ending at 100 GeV: 1.25 and 3.75 GeV."""
    data = sizes(small_geometry())
    u = torch.logit(torch.tensor([[0.5, 0.25], [0.5, 1.0]]).double(), eps=1e-12)
    c = torch.tensor([[0.0], [0.0]]).double()
    out = voxel_context(u, c, data)
    torch.testing.assert_close(
        out[0], torch.tensor([0.0, np.log10(0.0125) + 1, np.log10(0.0375) + 1]).double(), rtol=1e-6, atol=1e-6
    )
    assert float(out[1, 2]) == pytest.approx(-7, abs=1e-3)  # an empty layer: the floor of 1e-8


def constant(model: CaloFlow) -> CaloFlow:
    """Splines that do not depend on what the networks read: both directions have the same parameters."""
    with torch.no_grad():
        for block in model.voxels.blocks:
            block.leave.weight.zero_()  # type: ignore[operator, union-attr]
            block.leave.bias.normal_(0, 2)  # type: ignore[operator, union-attr]
    return model


def test_a_student_with_the_parameters_of_its_teacher_has_no_loss() -> None:
    model = constant(teacher(bound=6.0))
    student = caloflow_student_from(model, student_config()).eval()
    student.voxels.load_state_dict(model.voxels.state_dict())
    x, c, z = batch(student)
    student = student.double()
    with torch.no_grad():
        losses = student.losses(x, c, torch.Generator().manual_seed(0))
        assert [float(loss) for loss in losses] == pytest.approx([0, 0], abs=1e-12)
        torch.testing.assert_close(student.decode(z, c), model.double().decode(z, c), rtol=0, atol=1e-8)
        torch.testing.assert_close(student.log_prob(x, c), model.log_prob(x, c), rtol=0, atol=1e-8)


def test_the_loss_of_the_student_equals_a_slow_twin() -> None:
    student = caloflow_student_from(teacher(bound=6.0), student_config(width=17, beta=0.3)).double().eval()
    x, c, _ = batch(student)
    with torch.no_grad():
        losses = student.losses(x, c, torch.Generator().manual_seed(7))
        context, v = voxel_context(x[:, :2], c, student.sizes), x[:, 2:]
        there = student.teacher.voxels.encode(v, context)
        back = student.voxels.decode(there.end, context)
        slow = (back.end - v).square().sum(1)
        for k in range(4):
            slow += (back.states[k] - there.states[3 - k]).square().sum(1)
        for k in range(3):
            slow += (back.thetas[k] - there.thetas[2 - k]).square().sum((1, 2))
        assert float(losses[0]) == pytest.approx(float(slow.mean()), rel=1e-9)
        objective = next(student.objectives())
        whole = float(objective.loss(x, c, torch.Generator().manual_seed(7)))
        assert whole == pytest.approx(0.3 * float(losses[0]) + 0.7 * float(losses[1]), rel=1e-9)


def test_a_student_adopts_all_of_its_teacher_and_trains_its_own_network_only() -> None:
    model = teacher(bound=6.0)
    student = caloflow_student_from(model, student_config(width=16)).train()
    assert torch.equal(student.voxels.orders, model.voxels.orders)
    _, c, z = batch(student)
    with torch.no_grad():
        u = student.decode(z.float(), c.float())[:, :2]
        torch.testing.assert_close(u, model.decode(z.float(), c.float())[:, :2], rtol=0, atol=0)
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("voxels.") for name in trained)
    assert not student.teacher.training, "no dropout in the teacher"
    assert student.voxels.training
    assert student.helpers == ("teacher",)


def test_a_student_learns_its_teacher() -> None:
    small = {"n_blocks": 2, "layer_transforms": 1, "bound": 6.0}
    student = caloflow_student_from(teacher(rows(3), **small), student_config(width=32, **small)).train()  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(student.voxels.parameters(), lr=2e-2)
    random, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        x, c = torch.randn(64, 4, generator=random), 2 * torch.rand(64, 1, generator=random) - 1
        loss = student.loss(x, c, random)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": 1}, r"got model\.bins = 1, expected 2 to 999"),
        ({"bound": 0.0}, r"got model\.bound = 0.0, expected above 0"),
        ({"beta": 1.5}, r"got model\.beta = 1.5, expected 0 <= beta <= 1"),
        ({"teacher_width": 0}, r"got model\.teacher_width = 0, expected at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaloFlowStudentConfig(**changes)
    if changes.keys() <= {f.name for f in dataclasses.fields(CaloFlowConfig)}:
        with pytest.raises(ValueError, match=message):
            CaloFlowConfig(**changes)


def test_what_the_flows_cannot_take_is_said() -> None:
    gaussian = dataclasses.replace(sizes(small_geometry()), n_globals=8)
    with pytest.raises(ValueError, match=r"got 8 features of layers for caloflow, expected 2.*voxels = 'fractions'"):
        CaloFlow(CaloFlowConfig(**SMALL), gaussian)
    with pytest.raises(ValueError, match=r"got a teacher with .*, expected .*teacher_width"):
        caloflow_student_from(teacher(), student_config(teacher_width=31))


def test_an_untrained_flow_is_near_the_identity() -> None:
    torch.manual_seed(0)
    model = CaloFlow(CaloFlowConfig(**SMALL), sizes(small_geometry())).eval()
    x, c, _ = batch(model)
    with torch.no_grad():
        log_p = model.log_prob(x.float(), c.float())
    normal = -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
    assert float((log_p - normal).abs().mean()) < 0.05 * float(normal.abs().mean())
