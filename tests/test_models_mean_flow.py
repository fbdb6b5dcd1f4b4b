from dataclasses import replace

import pytest
import torch

from caloforge.distill import distill
from caloforge.fastsim import FastSim
from caloforge.models.flow_matching import FlowMatchingConfig
from caloforge.models.mean_flow import MeanFlow, MeanFlowConfig
from caloforge.models.vae import VAEConfig
from caloforge.testing import small_geometry, small_showers
from caloforge.train import TrainConfig, fit

GEOMETRY = small_geometry()
SHOWERS = small_showers(GEOMETRY, n=300)
TEACHER = FlowMatchingConfig(width=32, depth=1, n_steps=4, layer_hidden=8, layer_transforms=1, layer_passes=3)
STUDENT = MeanFlowConfig(width=32, depth=1)
TRAIN = TrainConfig(steps=20, batch=64, warmup=5, bf16=False, log_every=20, checkpoint_every=1000)


@pytest.fixture(scope="module")
def teacher() -> FastSim:
    fast = FastSim.create(GEOMETRY, TEACHER, valid=SHOWERS.incident)
    fit(fast, SHOWERS, TRAIN)
    return fast


def untrained(teacher: FastSim) -> MeanFlow:
    student = distill(teacher, SHOWERS, STUDENT, replace(TRAIN, steps=1, lr=1e-12)).generator
    assert isinstance(student, MeanFlow)
    return student.eval()


def test_without_its_network_it_is_the_exact_flow_of_independent_normals(teacher: FastSim) -> None:
    student = untrained(teacher)
    torch.nn.init.zeros_(student.network.leave.weight)
    torch.nn.init.zeros_(student.network.leave.bias)
    v = torch.randn(5, GEOMETRY.n_voxels)
    g, c = torch.randn(5, student.sizes.n_globals), torch.randn(5, student.sizes.n_conditions)
    t, r = torch.full((5, 1), 0.2), torch.full((5, 1), 0.7)
    there = v * ((0.7**2 + 0.3**2) / (0.2**2 + 0.8**2)) ** 0.5
    torch.testing.assert_close(v + 0.5 * student.velocity(v, t, r, g, c), there)
    slope = (2 * 0.2 - 1) / (0.2**2 + 0.8**2) * v
    torch.testing.assert_close(student.velocity(v, t, t, g, c), slope)


def test_the_target_is_the_teachers_average_velocity(teacher: FastSim) -> None:
    """Trained long on few showers, one step ends nearer to the teacher's many steps than an untrained student."""
    config = replace(TRAIN, steps=300, lr=3e-3, log_every=300, keep="last", ema=0.9)
    student = distill(teacher, SHOWERS, replace(STUDENT, width=64), config)
    c = student.encode(SHOWERS)[1]
    z = torch.randn(len(c), student.n_noise, generator=torch.Generator().manual_seed(1))
    models = student.generator.eval(), untrained(teacher)
    with torch.no_grad():
        wanted = teacher.generator.decode(z, c)
        off = [(model.decode(z, c) - wanted).square().mean() for model in models]
    assert off[0] < 0.7 * off[1]


def test_a_student_takes_over_what_its_teacher_has(teacher: FastSim) -> None:
    student = distill(teacher, SHOWERS, STUDENT, TRAIN)
    for name in ("encoder", "transform"):
        for key, value in getattr(teacher, name).state_dict().items():
            torch.testing.assert_close(getattr(student, name).state_dict()[key], value)
    assert student.card.config["layer_passes"] == 3
    assert isinstance(student.generator, MeanFlow)
    assert student.generator.teacher is None
    weights = student.generator.layers.state_dict()
    for key, value in teacher.generator.layers.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(weights[key], value)


def test_several_steps_end_where_one_does_if_the_velocity_is_the_average_one(teacher: FastSim) -> None:
    student = untrained(teacher)
    z, c = torch.randn(7, student.n_noise), torch.zeros(7, student.sizes.n_conditions)
    torch.nn.init.zeros_(student.network.leave.weight)
    torch.nn.init.zeros_(student.network.leave.bias)
    one = student.decode(z, c)
    student.config = replace(STUDENT, n_steps=5)
    torch.testing.assert_close(student.decode(z, c), one)


def test_only_flow_matching_can_teach_it() -> None:
    vae = FastSim.create(GEOMETRY, VAEConfig(width=8, layer_hidden=8), valid=SHOWERS.incident)
    with pytest.raises(ValueError, match="got a teacher of family vae for mean_flow, expected flow_matching; choose"):
        distill(vae, SHOWERS, STUDENT, TRAIN)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got model.same = 1.5, expected a part of the training"):
        MeanFlowConfig(same=1.5)
