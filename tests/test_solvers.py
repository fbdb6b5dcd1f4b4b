import numpy as np
import pytest
import torch

from caloforge.solvers import SOLVERS

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """dx/dt = x + 2 t, solved by x(t) = (x(0) + 2) exp(t) - 2 (1 + t)."""
    return x + 2 * t


START = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
EXACT = (START + 2) * np.e - 4


def test_every_solver_has_a_stated_order() -> None:
    assert set(SOLVERS) == set(ORDERS)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_falls_with_the_order(name: str) -> None:
    errors = [float((SOLVERS[name](velocity, START, n) - EXACT).abs().max()) for n in (16, 32, 64)]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, ORDERS[name], atol=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_constant_velocity_is_followed_exactly(name: str) -> None:
    for n in (1, 3):
        torch.testing.assert_close(SOLVERS[name](lambda x, t: torch.full_like(x, 2.0), START, n), START + 2)


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_evaluations_per_step_and_times(name: str, evaluations: int) -> None:
    times: list[float] = []

    def record(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return torch.zeros_like(x)

    before = START.clone()
    SOLVERS[name](record, START, 5)
    assert len(times) == 5 * evaluations
    assert min(times) == 0
    assert max(times) <= 1 + 1e-12
    assert torch.equal(START, before)
