"""The network of the weighted and of the many-class tests, and how it is trained.

F inputs, two hidden layers of ReLU, K outputs s (logits). Showers i have inputs x_i, a label y_i and a weight w_i. For
one output the loss is the weighted binary cross entropy, for K > 1 the negative logarithm of the softmax:

    L = sum_i w_i [y_i ln(1 + e^-s_i) + (1 - y_i) ln(1 + e^s_i)] / sum_i w_i
    L = -sum_i w_i ln p(y_i | x_i) / sum_i w_i,   p(k | x) = e^s_k / sum_j e^s_j

The network kept is that of the epoch with the lowest loss on showers held out. Sizes, learning rate and batches are
those of ``classifier``, and like there nothing is tuned per model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..geometry import Array
from .classifier import BATCH, CHUNK, HIDDEN, LEARNING_RATE, STEPS_PER_EPOCH

Scores = Callable[[Array], Array]


@dataclass(frozen=True)
class Examples:
    """Labelled showers: inputs x (n, F) float32, labels y (n,) from 0, weights w (n,) or None for 1."""

    x: Array
    y: Array
    w: Array | None = None

    @property
    def weight(self) -> Array:
        """Weights scaled to mean 1, (n,) float32."""
        if self.w is None:
            return np.ones(len(self.x), dtype=np.float32)
        return np.asarray(self.w / np.mean(self.w), dtype=np.float32)


def fit(train: Examples, held: Examples, n_outputs: int = 1, *, epochs: int, seed: int, hidden: int = HIDDEN) -> Scores:
    """Train a network; the function inputs (N, F) -> logits, (N,) float64 for one output and (N, K) for more."""
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    from . import networks

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the global random state stays as it was
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(train.x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, n_outputs),
        )  # fmt: skip

    def loss(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        scores = net(x)
        if n_outputs == 1:
            return (w * binary_cross_entropy_with_logits(scores.squeeze(1), y, reduction="none")).mean()
        return (w * cross_entropy(scores, y, reduction="none")).mean()

    kind = np.float32 if n_outputs == 1 else np.int64
    data, check = ([torch.from_numpy(a) for a in (p.x, p.y.astype(kind), p.weight)] for p in (train, held))

    def quality() -> float:
        with torch.no_grad():
            value = float(loss(*check))
        return -value

    networks.train_best(
        net,
        lambda index: loss(*(part[index] for part in data)),
        quality,
        len(train.x),
        epochs=epochs,
        batch=max(1, min(BATCH, len(train.x) // STEPS_PER_EPOCH)),
        learning_rate=LEARNING_RATE,
        generator=generator,
    )

    def scores(features: Array) -> Array:
        with torch.no_grad():
            parts = [
                net(torch.from_numpy(features[i : i + CHUNK])).numpy() for i in range(0, max(len(features), 1), CHUNK)
            ]
        out = np.concatenate(parts).astype(np.float64)
        return np.asarray(out[:, 0] if n_outputs == 1 else out)

    return scores
