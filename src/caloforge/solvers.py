"""Fixed-step solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data), unrolled so that they can be exported."""

from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def euler(v: Velocity, x: Tensor, n_steps: int) -> Tensor:
    """Order 1, one evaluation per step."""
    h = 1 / n_steps
    for k in range(n_steps):
        x = x + h * v(x, k * h)
    return x


def midpoint(v: Velocity, x: Tensor, n_steps: int) -> Tensor:
    """Order 2, two evaluations per step."""
    h = 1 / n_steps
    for k in range(n_steps):
        x = x + h * v(x + 0.5 * h * v(x, k * h), (k + 0.5) * h)
    return x


def heun(v: Velocity, x: Tensor, n_steps: int) -> Tensor:
    """Order 2, two evaluations per step, with both ends of the step."""
    h = 1 / n_steps
    for k in range(n_steps):
        slope = v(x, k * h)
        x = x + 0.5 * h * (slope + v(x + h * slope, (k + 1) * h))
    return x


def rk4(v: Velocity, x: Tensor, n_steps: int) -> Tensor:
    """Order 4, four evaluations per step."""
    h = 1 / n_steps
    for k in range(n_steps):
        t = k * h
        k1 = v(x, t)
        k2 = v(x + 0.5 * h * k1, t + 0.5 * h)
        k3 = v(x + 0.5 * h * k2, t + 0.5 * h)
        k4 = v(x + h * k3, t + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


SOLVERS = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}
