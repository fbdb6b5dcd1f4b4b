import math

import numpy as np
import pytest
import torch

from caloforge.solvers import SOLVERS, Bespoke, bespoke, euler, midpoint, rk4

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


def bimodal(x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """Velocity E[x_1 - x_0 | x_t = x] from x_0 ~ N(0, 1) to x_1 ~ N(2, w^2) or N(-2, w^2), with w = 0.3."""
    variance = (1 - t) ** 2 + (0.3 * t) ** 2
    side = torch.tanh(2 * t * x / variance)
    return 2 * side + (0.09 * t - (1 - t)) / variance * (x - 2 * t * side)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bespoke_solver_starts_as_eulers_bit_for_bit(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(20, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(Bespoke(n)(bimodal, x), euler(bimodal, x, n))


def test_numbers_of_learned_coefficients_and_evaluations() -> None:
    solver, times = Bespoke(5), []

    def record(x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        times.append(float(t))
        return x

    assert [p.numel() for p in solver.parameters()] == [5, 15, 4]
    with torch.no_grad():
        solver(record, START)
    assert times == [k * (1 / 5) for k in range(5)]


def test_knots_rise_from_0_to_1_whatever_is_learned() -> None:
    solver = Bespoke(6)
    with torch.no_grad():
        solver.knots.normal_(std=2.0, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
        times = solver.coefficients()[2]
    assert times[0] == 0
    assert float(times[-1]) == pytest.approx(1, abs=1e-15)
    assert (times.diff() > 0).all()


def test_the_coefficients_mean_what_they_say() -> None:
    """The midpoint rule is a bespoke solver: x_1 = x_0 + v(x_0)/2, x_2 = x_0 + 0 v(x_0) + v(x_1)."""
    a, b = torch.ones(2, dtype=torch.float64), torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(bespoke(velocity, START, a, b, times), midpoint(velocity, START, 1))
    torch.testing.assert_close(bespoke(lambda x, t: 0 * x, START, 3 * a, b, times), 3 * START)


def test_the_loss_is_that_of_steps_from_the_exact_path() -> None:
    solver = Bespoke(3)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))

    def truncation(a: torch.Tensor, b: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        exact = [(START + 2) * math.exp(t) - 2 * (1 + t) for t in times.tolist()]
        slopes = [velocity(x, t) for x, t in zip(exact, times.tolist(), strict=False)]
        rows = [b[:1], b[1:3], b[3:]]
        made = [a[i] * START + sum(w * v for w, v in zip(rows[i], slopes, strict=False)) for i in range(3)]
        return sum((x - y).square().mean().sqrt() for x, y in zip(made, exact[1:], strict=True))  # type: ignore[return-value]

    with torch.no_grad():
        expected = truncation(*solver.coefficients()) / truncation(*Bespoke(3).coefficients())
        assert float(solver.loss(velocity, START)) == pytest.approx(float(expected), rel=1e-4)


def test_the_loss_changes_with_the_knots_as_its_gradient_says() -> None:
    solver = Bespoke(4)
    with torch.no_grad():
        solver.b.fill_(0.05)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver.loss(bimodal, x).backward()
    assert solver.knots is not None
    for k in range(3):
        sides = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                solver.knots[k] += step
                sides.append(float(solver.loss(bimodal, x)))
                solver.knots[k] -= step
        assert (sides[0] - sides[1]) / 2e-4 == pytest.approx(float(solver.knots.grad[k]), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("n", [4, 8])
def test_a_trained_bespoke_solver_beats_midpoint_with_as_many_evaluations(n: int) -> None:
    random = torch.Generator().manual_seed(0)
    solver = Bespoke(n)
    optimiser = torch.optim.Adam(solver.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)
    for _ in range(250):
        loss = solver.loss(bimodal, torch.randn(64, 1, generator=random))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x = torch.randn(2000, 1, generator=random)
    exact = rk4(bimodal, x, 200)
    with torch.no_grad():
        errors = [float((y - exact).square().mean()) for y in (solver(bimodal, x), midpoint(bimodal, x, n // 2))]
    assert float(loss.detach()) < 0.2
    assert errors[0] < 0.7 * errors[1]
