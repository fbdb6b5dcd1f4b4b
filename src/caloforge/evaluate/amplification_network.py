"""A small generative network for the toys of the amplification experiment: flow matching, R trainings at once.

Flow matching (Lipman et al., 2210.02747): on the line x_t = (1 - t) z + t x from noise z to data x the velocity is
x - z; a network v(x_t, t) learns its mean, and dx/dt = v(x, t) carries noise to new points. R networks of the same
shape are trained side by side with weights (R, in, out), each on its own training sample.

The numbers below were chosen once and never tuned: a choice made by looking at the truth would be information that did
not come from the training sample.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch

from ..geometry import Array

HIDDEN = 64
STEPS = 1500
BATCH = 256
LEARNING_RATE = 2e-3
N_MIDPOINTS = 25
CHUNK = 50_000


def train(x: Array, *, seed: int, steps: int = STEPS) -> Callable[[int, int, np.random.Generator], Array]:
    """Train on R samples x (R, n, d); returns draw(r, n, rng) -> (n, d)."""
    mean, std = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True)
    data = torch.tensor((x - mean) / std, dtype=torch.float32)
    n_runs, n_points, d = data.shape
    generator = torch.Generator().manual_seed(seed)
    weights = _weights(n_runs, (d + 1, HIDDEN, HIDDEN, HIDDEN, d), generator)
    optimizer = torch.optim.Adam(weights, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    runs = torch.arange(n_runs)[:, None]
    for _ in range(steps):
        chosen = data[runs, torch.randint(n_points, (n_runs, BATCH), generator=generator)]
        z = torch.randn(chosen.shape, generator=generator)
        t = torch.rand((n_runs, BATCH, 1), generator=generator)
        velocity = _velocity(weights, (1 - t) * z + t * chosen, t)
        loss = ((velocity - (chosen - z)) ** 2).mean(dim=(1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()

    def draw(r: int, n: int, rng: np.random.Generator) -> Array:
        own = [w.detach()[r : r + 1] for w in weights]
        noise = rng.standard_normal((n, d), dtype=np.float32)
        parts = [_flow(own, torch.from_numpy(noise[k : k + CHUNK])) for k in range(0, n, CHUNK)]
        return np.asarray(np.concatenate(parts) * std[r] + mean[r])

    return draw


def _weights(n_runs: int, sizes: tuple[int, ...], generator: torch.Generator) -> list[torch.Tensor]:
    """Weights (R, in, out) and biases (R, 1, out) in turn, uniform in +-1/sqrt(in)."""
    out = []
    for n_in, n_out in itertools.pairwise(sizes):
        for rows in (n_in, 1):
            value = (2 * torch.rand((n_runs, rows, n_out), generator=generator) - 1) / n_in**0.5
            out.append(value.requires_grad_())
    return out


def _velocity(weights: list[torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """v(x, t): x (R, n, d), t (R, n, 1) -> (R, n, d)."""
    h = torch.cat([x, t], dim=2)
    last = len(weights) // 2 - 1
    for layer in range(last + 1):
        h = torch.baddbmm(weights[2 * layer + 1], h, weights[2 * layer])
        h = h if layer == last else torch.nn.functional.silu(h)
    return h


@torch.no_grad()
def _flow(weights: list[torch.Tensor], z: torch.Tensor) -> Array:
    """Noise (n, d) to points (n, d) by midpoint steps."""
    x, h = z[None], 1 / N_MIDPOINTS
    for k in range(N_MIDPOINTS):
        t = torch.full((1, len(z), 1), k * h)
        middle = x + 0.5 * h * _velocity(weights, x, t)
        x = x + h * _velocity(weights, middle, t + 0.5 * h)
    return np.asarray(x[0].double())
