"""Fixed-step solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data), unrolled so that they can be exported.

The bespoke one learns its coefficients (non-stationary solver, Shaul et al. 2024, 2403.01329; for showers CaloDREAM,
Favaro et al. 2024, 2405.09629). With n evaluations of v, at the times t_0 = 0 < t_1 < .. < t_{n-1} < t_n = 1,

    x_{i+1} = a_i x_0 + sum_{j <= i} b_ij v(x_j, t_j)        i = 0 .. n - 1
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Velocity = Callable[[Tensor, float], Tensor]
AnyVelocity = Callable[[Tensor, float | Tensor], Tensor]  # also takes a learned time, float64, ()


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
        x, _ = _rk4_step(v, x, k * h, h)
    return x


def _rk4_step(v: Velocity, x: Tensor, t: float, h: float) -> tuple[Tensor, Tensor]:
    """x(t + h) from x(t), and v(x(t), t)."""
    k1 = v(x, t)
    k2 = v(x + 0.5 * h * k1, t + 0.5 * h)
    k3 = v(x + 0.5 * h * k2, t + 0.5 * h)
    k4 = v(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), k1


def bespoke(v: AnyVelocity, x: Tensor, a: Tensor, b: Tensor, times: Tensor) -> Tensor:
    """The solver of the module docstring: a (n,), b (n (n + 1)/2,) row after row, times (n + 1,)."""
    start, velocities = x, []
    for i in range(len(a)):
        velocities.append(v(x, times[i]))
        x = a[i] * start
        for j, velocity in enumerate(velocities):  # in this order the sum is Euler's, bit for bit, before training
            x = x + b[i * (i + 1) // 2 + j] * velocity
    return x


class Bespoke(nn.Module):
    """Learned coefficients of ``bespoke`` with n_steps evaluations; before training it is Euler's method.

    Parameters, in float64, are distances from Euler's: a_i - 1, b_ij - 1/n, and n - 1 of the knots, whose steps
    t_{i+1} - t_i are proportional to |1 + knots_i| and, for the last one, 1.
    """

    N_FINE = 4  # steps of the exact path per evaluation
    FEWEST_FINE = 24

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.a = nn.Parameter(torch.zeros(n_steps, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(n_steps * (n_steps + 1) // 2, dtype=torch.float64))
        self.knots = nn.Parameter(torch.zeros(n_steps - 1, dtype=torch.float64)) if n_steps > 1 else None

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and times of ``bespoke``."""
        start = self.a.new_zeros(1)
        steps = start + 1 if self.knots is None else torch.cat([(1 + self.knots).abs(), start + 1])
        times = torch.cat([start, steps.cumsum(0) * (1 / steps.sum())])
        return 1 + self.a, 1 / self.n_steps + self.b, times

    def forward(self, v: AnyVelocity, x: Tensor) -> Tensor:
        """x(0) -> x(1), both (N, V)."""
        return bespoke(v, x, *self.coefficients())

    def loss(self, v: Velocity, x: Tensor) -> Tensor:
        """Local truncation errors from x(0) (N, V), summed over the steps, in units of Euler's: 1 before training.

        Step i starts from the exact path x(t_j), j <= i, instead of from its own earlier points, so that v needs no
        gradient: a fine path is interpolated, which also gives the change with the knots.
        """
        points, slopes = self._path(v, x)
        a, b, times = self.coefficients()
        with torch.no_grad():
            even = torch.arange(self.n_steps + 1, device=times.device, dtype=times.dtype) / self.n_steps
            euler = _truncation(points, slopes, torch.ones_like(a), torch.full_like(b, 1 / self.n_steps), even)
        return _truncation(points, slopes, a, b, times) / euler

    @torch.no_grad()
    def _path(self, v: Velocity, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points and velocities of an almost exact path at regular times, each (M + 1, N, V)."""
        n = max(self.N_FINE * self.n_steps, self.FEWEST_FINE)
        points, slopes = [x], []
        for k in range(n):
            x, slope = _rk4_step(v, x, k / n, 1 / n)
            points.append(x)
            slopes.append(slope)
        return torch.stack(points), torch.stack([*slopes, v(x, 1.0)])


def _truncation(points: Tensor, slopes: Tensor, a: Tensor, b: Tensor, times: Tensor) -> Tensor:
    """Sum over the steps of the root mean square of step_i(x(t_0) .. x(t_i)) - x(t_{i+1})."""
    path, velocity = _interpolated(points, slopes, times)
    errors = []
    for i in range(len(a)):
        row = b[i * (i + 1) // 2 :][: i + 1].to(path.dtype)
        step = a[i] * path[0] + torch.einsum("j,jnv->nv", row, velocity[: i + 1])
        errors.append((step - path[i + 1]).square().mean())
    return (torch.stack(errors) + 1e-16).sqrt().sum()


def _interpolated(points: Tensor, slopes: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """x and dx/dt (K, N, V) at times (K,), by cubic Hermite polynomials between regular points (M + 1, N, V)."""
    n = len(points) - 1
    place = (times.detach() * n).long().clamp(0, n - 1)
    s = (times * n - place).to(points.dtype)[:, None, None]  # within its interval, 0 .. 1
    x0, x1, v0, v1 = points[place], points[place + 1], slopes[place] / n, slopes[place + 1] / n
    c2, c3 = 3 * (x1 - x0) - 2 * v0 - v1, v0 + v1 - 2 * (x1 - x0)
    return x0 + s * (v0 + s * (c2 + s * c3)), n * (v0 + s * (2 * c2 + 3 * s * c3))


SOLVERS = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}
