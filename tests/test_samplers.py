import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caloforge.samplers import LEAST_STEPS, SAMPLERS, cosine_levels, cosine_steps, ddpm, karras_levels, require_steps

MEAN, STD = 1.5, 0.6
ORDERS = {"ddim": 1, "heun": 2, "dpmpp_2m": 2}
START = torch.tensor([[3.0, -7.0], [0.5, 9.0]], dtype=torch.float64)


def denoise(y: Tensor, sigma: float) -> Tensor:
    """E[x | y] for x ~ N(MEAN, STD) and y = x + sigma n."""
    return (sigma**2 * MEAN + STD**2 * y) / (sigma**2 + STD**2)


def exact(y: Tensor, high: float, low: float) -> Tensor:
    """The solution of dy/dsigma = (y - D)/sigma keeps (y - MEAN)/sqrt(STD^2 + sigma^2)."""
    return MEAN + (y - MEAN) * math.sqrt((STD**2 + low**2) / (STD**2 + high**2))


def geometric(n: int, high: float, low: float) -> list[float]:
    return [float(v) for v in np.geomspace(high, low, n + 1)]


def test_every_sampler_has_a_stated_order() -> None:
    assert set(SAMPLERS) == set(ORDERS)
    assert set(LEAST_STEPS) == {*SAMPLERS, "ddpm"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_error_falls_with_the_order(name: str) -> None:
    errors = [
        float((SAMPLERS[name](denoise, START, geometric(n, 5.0, 0.2)) - exact(START, 5.0, 0.2)).abs().max())
        for n in (64, 128, 256)
    ]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, ORDERS[name], atol=0.1)


@pytest.mark.parametrize("levels", [karras_levels(40, 0.002, 80.0), cosine_steps(40, 80.0)])
@pytest.mark.parametrize("name", [*SAMPLERS, "ddpm"])
def test_a_gaussian_is_recovered(name: str, levels: list[float]) -> None:
    random = torch.Generator().manual_seed(0)
    n = 40_000
    z = torch.randn(len(levels) - 1, n, generator=random, dtype=torch.float64)
    y = levels[0] * z[0]
    x = ddpm(denoise, y, levels, list(z[1:])) if name == "ddpm" else SAMPLERS[name](denoise, y, levels)
    assert float(x.mean()) == pytest.approx(MEAN, abs=5 * STD / math.sqrt(n) + 0.01)
    # In few steps Euler's method and ancestral sampling leave a few per cent of the spread out.
    assert float(x.std()) == pytest.approx(STD, rel=0.02 if ORDERS.get(name) == 2 else 0.15)


def test_ancestral_sampling_draws_from_the_posterior_of_its_step() -> None:
    """q(y_t | y_s, x): mean x + (t/s)^2 (y - x), variance t^2 (1 - t^2/s^2) (Ho et al. 2020, eq. 7, with abar = 1)."""
    s, t, x = 2.0, 0.5, torch.full((1, 2), 3.0)
    noise = torch.tensor([[1.0, -1.0]])
    seen: list[Tensor] = []

    def record(y: Tensor, sigma: float) -> Tensor:
        seen.append(y)
        return x

    assert torch.equal(ddpm(record, torch.tensor([[5.0, 5.0]]), [s, t, 0.0], [noise]), x)
    spread = t * math.sqrt(1 - (t / s) ** 2)
    torch.testing.assert_close(seen[1], 3 + (t / s) ** 2 * 2 + spread * noise)


def test_a_constant_denoiser_is_reached_exactly() -> None:
    for sampler in SAMPLERS.values():
        levels = [*geometric(3, 4.0, 0.5), 0.0]
        torch.testing.assert_close(
            sampler(lambda y, sigma: torch.full_like(y, 2.0), START, levels), torch.full_like(START, 2.0)
        )


@pytest.mark.parametrize(("name", "evaluations"), [("ddim", 5), ("heun", 9), ("dpmpp_2m", 5)])
def test_evaluations_and_untouched_arguments(name: str, evaluations: int) -> None:
    used: list[float] = []

    def record(y: Tensor, sigma: float) -> Tensor:
        used.append(sigma)
        return denoise(y, sigma)

    before, levels = START.clone(), karras_levels(5, 0.002, 80.0)
    SAMPLERS[name](record, START, levels)
    assert len(used) == evaluations
    assert min(used) > 0
    assert torch.equal(START, before)


def test_levels_of_karras() -> None:
    levels = karras_levels(18, 0.002, 80.0)
    assert len(levels) == 19
    assert levels[0] == pytest.approx(80)
    assert levels[-2:] == [pytest.approx(0.002), 0.0]
    np.testing.assert_allclose(np.diff(np.array(levels[:-1]) ** (1 / 7), n=2), 0, atol=1e-12)
    assert levels == sorted(levels, reverse=True)
    assert karras_levels(1, 0.002, 80.0) == [80.0, 0.0]


def test_levels_of_the_cosine_schedule() -> None:
    levels = cosine_levels()
    assert len(levels) == 401
    assert levels[0] == 0
    assert levels == sorted(levels)
    # The last beta, 1, is clipped to 0.9999; before, abar is the square of a cosine, divided by that at t = 0.
    assert (1 + levels[400] ** 2) / (1 + levels[399] ** 2) == pytest.approx(1e4, rel=1e-6)
    start, middle = (math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0.0, 0.5))
    assert 1 / (1 + levels[200] ** 2) == pytest.approx(middle / start, rel=1e-9)
    some = cosine_steps(2, 80.0)
    assert some == [max(level for level in levels if level <= 80), levels[198], 0.0]
    assert len(set(cosine_steps(396, 80.0))) == 397


TOO_FEW: dict[str, Callable[[], Any]] = {
    "dpmpp_2m": lambda: SAMPLERS["dpmpp_2m"](denoise, START, [80.0, 0.0]),
    "heun": lambda: SAMPLERS["heun"](denoise, START, [80.0, 0.0]),
    "ddim": lambda: require_steps("ddim", 0),
}


@pytest.mark.parametrize("name", TOO_FEW)
def test_too_few_steps_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"got model\.n_steps = \d for sampler '{name}', expected at least \d"):
        TOO_FEW[name]()


def test_the_cosine_schedule_has_no_more_steps_than_levels() -> None:
    with pytest.raises(ValueError, match="which has 396 steps up to sigma 80, expected at most"):
        cosine_steps(397, 80.0)
