"""Toys whose truth is known (Butter et al., "GANplifying event samples", 2008.06545).

A toy maps its points x (N, d) to u (N, d), independent and uniform in [0, 1) under the truth (its probability integral
transform), so the k^d cells of a regular grid in u are boxes of exactly equal probability.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..geometry import Array

Draw = Callable[[int, int, np.random.Generator], Array]  # training r, n, rng -> points (n, d)
EM_STEPS = 200
SMALLEST_WIDTH = 0.05  # of a fitted component, in standard deviations: a likelihood without it has no maximum


class Toy(Protocol):
    """A truth. n_train: training points; n_gen: generated points; divisions: k of the k^d boxes."""

    @property
    def name(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def n_train(self) -> int: ...
    @property
    def n_gen(self) -> tuple[int, ...]: ...
    @property
    def divisions(self) -> tuple[int, ...]: ...

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """n points of the truth, (n, d)."""

    def uniform(self, x: Array) -> Array:
        """The probability integral transform of points (N, d) -> (N, d) in [0, 1]."""

    def fit(self, x: Array, rng: np.random.Generator) -> Draw:
        """The truth's own functional form, its parameters estimated from R samples x (R, n, d)."""


@dataclass(frozen=True)
class CamelBack:
    """p(x) = 1/2 N(-mean, 1) + 1/2 N(mean, 1) in one dimension."""

    mean: float = 4.0
    name: str = "camel-back"
    dimensions: int = 1
    n_train: int = 100
    n_gen: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    divisions: tuple[int, ...] = (5, 10, 20, 50, 100)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """n points, (n, 1)."""
        return np.asarray((rng.choice([-self.mean, self.mean], n) + rng.standard_normal(n))[:, None])

    def uniform(self, x: Array) -> Array:
        """u = 1/2 Phi(x + mean) + 1/2 Phi(x - mean), (N, 1) -> (N, 1)."""
        from scipy.special import ndtr

        return np.asarray(0.5 * (ndtr(x + self.mean) + ndtr(x - self.mean)))

    def fit(self, x: Array, rng: np.random.Generator) -> Draw:
        """Maximum likelihood of five parameters: two means, two widths and a relative weight."""
        weight, mean, width = fit_two_gaussians(x[:, :, 0])

        def draw(r: int, n: int, rng: np.random.Generator) -> Array:
            second = (rng.random(n) < weight[r, 1]).astype(int)
            return np.asarray((mean[r, second] + width[r, second] * rng.standard_normal(n))[:, None])

        return draw


def fit_two_gaussians(x: Array, steps: int = EM_STEPS) -> tuple[Array, Array, Array]:
    """Weights, means and widths (R, 2) of two Gaussians by expectation maximisation on R samples x (R, n).

    Dempster, Laird, Rubin (1977): with the responsibilities g_ik ~ w_k N(x_i; m_k, s_k), sum_k g_ik = 1, the next
    w_k = <g_k>, m_k = <g_k x>/w_k, s_k^2 = <g_k (x - m_k)^2>/w_k.
    """
    spread = x.std(axis=1, keepdims=True)
    mean = np.quantile(x, (0.25, 0.75), axis=1).T
    width = np.repeat(0.5 * spread, 2, axis=1)
    weight = np.full(mean.shape, 0.5)
    for _ in range(steps):
        log_density = -0.5 * ((x[:, :, None] - mean[:, None]) / width[:, None]) ** 2 + np.log(weight / width)[:, None]
        share = np.exp(log_density - log_density.max(axis=2, keepdims=True))
        share /= share.sum(axis=2, keepdims=True)
        total = share.sum(axis=1)
        weight = total / x.shape[1]
        mean = (share * x[:, :, None]).sum(axis=1) / total
        variance = (share * (x[:, :, None] - mean[:, None]) ** 2).sum(axis=1) / total
        width = np.maximum(np.sqrt(variance), SMALLEST_WIDTH * spread)
    return weight, mean, width


@dataclass(frozen=True)
class Shell:
    """x = r e in d dimensions: r ~ N(radius, 1), e uniform on the unit sphere; a ring for d = 2."""

    name: str = "ring"
    dimensions: int = 2
    n_train: int = 100
    n_gen: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    divisions: tuple[int, ...] = (2, 3, 5, 7, 10)
    radius: float = 4.0

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """n points, (n, d)."""
        return self._points(self.radius + rng.standard_normal(n), rng)

    def _points(self, r: Array, rng: np.random.Generator) -> Array:
        direction = rng.standard_normal((len(r), self.dimensions))
        return np.asarray(r[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True))

    def uniform(self, x: Array) -> Array:
        """Radius and d - 1 hyperspherical angles, each through its distribution function; (N, d) -> (N, d).

        |r| is folded normal: F(r) = Phi(r - radius) - Phi(-r - radius). With r_i^2 = x_i^2 + ... + x_d^2 and t = x_i/
        r_i, the first coordinate of a uniform direction in n = d - i + 1 dimensions has the density (1 - t^2)^((n -
        3)/2), so (1 + t)/2 is Beta((n - 1)/2, (n - 1)/2); the last two coordinates give an angle in the plane.
        """
        from scipy.special import betainc, ndtr

        squares = np.cumsum((x**2)[:, ::-1], axis=1)[:, ::-1]
        r = np.sqrt(squares)
        out = [ndtr(r[:, 0] - self.radius) - ndtr(-r[:, 0] - self.radius)]
        for i in range(self.dimensions - 2):
            shape = 0.5 * (self.dimensions - i - 1)
            out.append(betainc(shape, shape, np.clip(0.5 + 0.5 * x[:, i] / r[:, i], 0, 1)))
        out.append(0.5 + np.arctan2(x[:, -1], x[:, -2]) / (2 * np.pi))
        return np.stack(out, axis=1)

    def fit(self, x: Array, rng: np.random.Generator) -> Draw:
        """Mean and width of the radius (moments); that directions are uniform around the origin is known."""
        r = np.linalg.norm(x, axis=2)
        mean, width = r.mean(axis=1), r.std(axis=1, ddof=1)
        return lambda k, n, rng: self._points(mean[k] + width[k] * rng.standard_normal(n), rng)


TOYS: tuple[Toy, ...] = (
    CamelBack(),
    Shell(),
    Shell("shell-5d", 5, n_train=500, n_gen=(500, 5000, 50_000), divisions=(2, 3, 4, 5, 6)),
)
