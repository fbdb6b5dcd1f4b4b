"""Samplers of diffusion models, unrolled over fixed noise levels so that they can be exported.

All of them work on y = x + sigma n with the denoiser D(y, sigma) = E[x | y], as in Karras et al. 2022, 2206.00364. A
process with a scale, y' = sqrt(abar) x + sqrt(1 - abar) n, is the same with y = y'/sqrt(abar), sigma^2 = 1/abar - 1.
Without fresh noise the showers follow

    dy/dsigma = (y - D(y, sigma)) / sigma

from the first of the ``levels``, sigma_0 > sigma_1 > ... > sigma_n, to the last, which may be 0.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
LEAST_STEPS = {"ddpm": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}


def require_steps(sampler: str, n_steps: int) -> None:
    """ValueError where a sampler has too few steps for its order: the step to sigma = 0 is of order 1 in all."""
    if n_steps < LEAST_STEPS[sampler]:
        raise ValueError(
            f"got model.n_steps = {n_steps} for sampler {sampler!r}, expected at least {LEAST_STEPS[sampler]}: it is "
            "of order 2 from the second step on; raise it or choose 'ddim'"
        )


def ddpm(denoise: Denoiser, y: Tensor, levels: Sequence[float], noise: Sequence[Tensor]) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, 2006.11239), DDIM with eta = 1: each step draws from q(y_k+1 | y_k, D).

    noise: n - 1 tensors like y, ~ N(0, 1); the last step adds none.
    """
    for k, (s, t) in enumerate(pairwise(levels)):
        x = denoise(y, s)
        mean = x + (t / s) ** 2 * (y - x)
        y = mean + t * math.sqrt(1 - (t / s) ** 2) * noise[k] if k < len(levels) - 2 else mean
    return y


def ddim(denoise: Denoiser, y: Tensor, levels: Sequence[float]) -> Tensor:
    """Order 1, one evaluation per step (Song et al. 2020, 2010.02502, eta = 0): Euler's method in sigma."""
    for s, t in pairwise(levels):
        x = denoise(y, s)
        y = x + t / s * (y - x)
    return y


def heun(denoise: Denoiser, y: Tensor, levels: Sequence[float]) -> Tensor:
    """Order 2, two evaluations per step, one in a last step to sigma = 0 (Karras et al. 2022, 2206.00364)."""
    require_steps("heun", len(levels) - 1)
    for s, t in pairwise(levels):
        slope = (y - denoise(y, s)) / s
        ahead = y + (t - s) * slope
        if t > 0:
            slope = 0.5 * (slope + (ahead - denoise(ahead, t)) / t)
        y = y + (t - s) * slope
    return y


def dpmpp_2m(denoise: Denoiser, y: Tensor, levels: Sequence[float]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, 2211.01095): order 2, one evaluation per step.

    It is exact where D is linear in ln sigma; the first step and a last one to sigma = 0 take D as constant.
    """
    require_steps("dpmpp_2m", len(levels) - 1)
    before: Tensor | None = None
    width = 0.0
    for s, t in pairwise(levels):
        x = ahead = denoise(y, s)
        if t > 0:
            h = math.log(s / t)
            if before is not None:
                ahead = x + 0.5 * h / width * (x - before)
            width = h
        y = ahead + t / s * (y - ahead)
        before = x
    return y


SAMPLERS = {"ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}


def karras_levels(n_steps: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """n_steps + 1 noise levels from ``high`` over ``low`` to 0, evenly spaced in sigma^(1/rho) (2206.00364, eq. 5)."""
    if n_steps == 1:
        return [high, 0.0]
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return [*((top + k / (n_steps - 1) * (bottom - top)) ** rho for k in range(n_steps)), 0.0]


def cosine_levels(n_levels: int = 400, offset: float = 0.008) -> list[float]:
    """sigma_t, t = 0 .. n_levels, of the cosine schedule (Nichol and Dhariwal 2021, 2102.09672); sigma_0 = 0.

    abar_t = prod (1 - beta), where beta follows abar ~ cos^2((t/T + s)/(1 + s) pi/2), clipped to 0.0001 .. 0.9999.
    """
    angles = [(t / n_levels + offset) / (1 + offset) * math.pi / 2 for t in range(n_levels + 1)]
    levels, kept = [0.0], 1.0
    for a, b in pairwise(angles):
        kept *= 1 - min(max(1 - (math.cos(b) / math.cos(a)) ** 2, 1e-4), 0.9999)
        levels.append(math.sqrt(1 / kept - 1))
    return levels


def cosine_steps(n_steps: int, high: float) -> list[float]:
    """n_steps + 1 of the ``cosine_levels``, evenly spaced in t from the last one up to ``high`` down to 0.

    The few levels above are left out: there an error of the predicted noise is an error of x sigma times as large.
    """
    levels = cosine_levels()
    top = sum(level <= high for level in levels) - 1
    if n_steps > top:
        raise ValueError(
            f"got model.n_steps = {n_steps} of the cosine schedule, which has {top} steps up to sigma {high:g}, "
            "expected at most as many; lower it"
        )
    return [levels[round(top * (1 - k / n_steps))] for k in range(n_steps + 1)]
