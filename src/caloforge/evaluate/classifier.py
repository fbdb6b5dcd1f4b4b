"""The classifier test: how well a neural network tells candidate showers from Geant4 showers.

By Neyman and Pearson, the most powerful test between the densities p (Geant4) and q (candidate) cuts on p/q, and a
network C trained with the binary cross entropy BCE on equal samples converges to C = p/(p + q). Its AUC is 0.5 if and
only if p = q; the Jensen-Shannon divergence is JSD = ln 2 - BCE, quoted in bits, (ln 2 - BCE)/ln 2 in [0, 1].
A finite network gives a lower bound, so an AUC is always quoted with its network, sample size and inputs.

Network of CaloFlow (Krause, Shih, 2106.05285): two hidden layers of 512 ReLU, Adam, learning rate 2e-4; splits and
isotonic calibration of the CaloChallenge (2410.21611). Label 1 is Geant4, 0 the candidate. Neither of them scales its
inputs; here they are whitened with the training split, because a small shift of a sum of voxels (a 1 % wrong response)
lies along a direction of tiny variance, which a short training on plain inputs does not find.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..geometry import Array

if TYPE_CHECKING:
    import torch

HIDDEN = 512
LEARNING_RATE = 2e-4
BATCH = 1000
STEPS_PER_EPOCH = 20  # at least: small samples get smaller batches
SPLITS = (0.6, 0.2)  # train, calibration; the rest is the test split
CLIP = 1e-6
MOST_WHITENED = 2048  # inputs; beyond, or with less than PER_INPUT training showers per input: standardised only
PER_INPUT = 4
SMALLEST = 1e-8  # variance of standardised inputs below which a direction is rounding
CHUNK = 8192
FEWEST = 25  # showers per class that can be split into three


@dataclass(frozen=True)
class Verdict:
    """Result of ``repeats`` trainings.

    auc, jsd: means over the trainings, with total errors; aucs: every training, (K,); n: showers per class;
    whitened: whether the inputs were whitened, not only standardised; roc: false and true positive rate of the first
    training on its test split, (2, P).
    """

    auc: float
    auc_error: float
    jsd: float
    jsd_error: float
    aucs: Array
    n: int
    whitened: bool
    roc: Array


def classify(
    reference: Array,
    candidate: Array,
    *,
    seed: int | np.random.SeedSequence,
    repeats: int = 3,
    epochs: int = 30,
    whiten: bool | None = None,
    done: Callable[[], None] | None = None,
) -> Verdict:
    """Train ``repeats`` classifiers between two samples of features, (N, F) and (M, F), each on its own split.

    error^2 = (test-sample error: DeLong for AUC, of the mean for BCE)^2 + (spread over the trainings)^2. The larger
    sample is thinned to the size of the smaller. ``whiten``: decorrelate the inputs, by default where ``can_whiten``;
    ``done`` is called after each training.
    """
    n = min(len(reference), len(candidate))
    if n < FEWEST:
        raise ValueError(f"got {n} showers of one class, expected at least {FEWEST} to split; give more showers")
    if reference.shape[1:] != candidate.shape[1:]:
        raise ValueError(
            f"got features of shape {candidate.shape}, expected (M, {reference.shape[1]}); use the same inputs for both"
        )
    whiten = can_whiten(n, reference.shape[1]) if whiten is None else whiten
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    rows: list[tuple[float, float, float, float]] = []
    roc = np.empty((2, 0))
    for index, child in enumerate(root.spawn(repeats)):
        scores, calibrated = _train_once(reference, candidate, n, epochs, whiten, child)
        auc, variance = delong(*scores)
        rows.append((auc, float(np.sqrt(variance)), *_divergence(*calibrated)))
        roc = _roc(*scores) if index == 0 else roc
        if done is not None:
            done()
    table = np.array(rows)
    aucs, jsds = table[:, 0], table[:, 2]
    return Verdict(
        float(aucs.mean()), _total_error(aucs, table[:, 1]), float(jsds.mean()), _total_error(jsds, table[:, 3]),
        aucs, n, whiten, roc,
    )  # fmt: skip


def _total_error(values: Array, errors: Array) -> float:
    """Root mean square of the errors (K,), in quadrature with the spread of the values (K,)."""
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return float(np.sqrt((errors**2).mean() + spread**2))


def _train_once(
    reference: Array, candidate: Array, n: int, epochs: int, whiten: bool, seed: np.random.SeedSequence
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """One split and one training: test logits and calibrated probabilities, each (Geant4 (T,), candidate (T,))."""
    rng = np.random.default_rng(seed)
    cuts = np.round(np.cumsum(SPLITS) * n).astype(int)
    splits = [np.split(rng.permutation(len(sample))[:n], cuts) for sample in (reference, candidate)]
    parts = [np.concatenate([reference[a], candidate[b]]) for a, b in zip(splits[0], splits[1], strict=True)]
    scaled = scaler(parts[0], whiten)
    train, calibration, test = (scaled(part) for part in parts)
    labels = [np.repeat([1.0, 0.0], len(part) // 2).astype(np.float32) for part in (train, calibration)]
    logits = _fit(train, labels[0], calibration, labels[1], epochs, int(rng.integers(2**62)))
    calibration_logits, test_logits = logits(calibration), logits(test)
    probabilities = _calibrate(calibration_logits, labels[1], test_logits)
    half = len(test) // 2
    return (test_logits[:half], test_logits[half:]), (probabilities[:half], probabilities[half:])


def can_whiten(n: int, n_inputs: int) -> bool:
    """Whether n showers per class are enough to whiten the inputs, and the inputs few enough to afford it."""
    return n_inputs <= min(MOST_WHITENED, round(2 * SPLITS[0] * n) // PER_INPUT)


def scaler(train: Array, whiten: bool) -> Callable[[Array], Array]:
    """Function (N, F) -> (N, F) float32 that makes ``train`` (n, F) white: mean 0, variance 1, no correlations.

    u = (x - mean)/std, C = mean of u u^T = V diag(lambda) V^T, output V^T u / sqrt(lambda). Constant inputs and
    directions without variance become 0. Without ``whiten`` the output is u.
    """
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    inverse = np.where(std > 1e-7 * np.abs(mean), 1 / np.where(std > 0, std, 1), 0)
    matrix = None
    if whiten:
        covariance = np.zeros((train.shape[1], train.shape[1]))
        for start in range(0, len(train), CHUNK):
            part = (train[start : start + CHUNK] - mean) * inverse
            covariance += part.T @ part / len(train)
        variance, directions = np.linalg.eigh(covariance)
        matrix = directions * np.where(variance > SMALLEST, 1 / np.sqrt(np.maximum(variance, SMALLEST)), 0)

    def scaled(features: Array) -> Array:
        out = np.empty(features.shape, dtype=np.float32)
        for start in range(0, len(features), CHUNK):
            part = (features[start : start + CHUNK] - mean) * inverse
            out[start : start + CHUNK] = part if matrix is None else part @ matrix
        return out

    return scaled


def _fit(
    x: Array, y: Array, x_calibration: Array, y_calibration: Array, epochs: int, seed: int
) -> Callable[[Array], Array]:
    """Train on x (n, F), y (n,); the function features -> logits of the epoch with the best calibration loss."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    generator = torch.Generator().manual_seed(seed)
    net = _network(x.shape[1], seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    data, target = torch.from_numpy(x), torch.from_numpy(y)
    held, held_target = torch.from_numpy(x_calibration), torch.from_numpy(y_calibration)
    batch = max(1, min(BATCH, len(x) // STEPS_PER_EPOCH))
    best, state = float("inf"), {}
    for _ in range(epochs):
        for index in torch.randperm(len(data), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)
            bce(net(data[index]).squeeze(1), target[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            loss = float(bce(net(held).squeeze(1), held_target))
        if loss < best:
            best, state = loss, {name: value.clone() for name, value in net.state_dict().items()}
    if not state:
        raise ValueError("got a classifier loss that is not finite, expected a number; check the showers for outliers")
    net.load_state_dict(state)

    def logits(features: Array) -> Array:
        with torch.no_grad():
            return np.asarray(net(torch.from_numpy(features)).squeeze(1).numpy(), dtype=np.float64)

    return logits


def _network(n_inputs: int, seed: int) -> "torch.nn.Sequential":
    """F -> 512 -> 512 -> 1 with weights from ``seed``; the global random state of torch stays as it was."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(n_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )


def _calibrate(logits: Array, labels: Array, test_logits: Array) -> Array:
    """Isotonic regression of the labels on the calibration logits (n,), applied to the test logits (T,)."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=CLIP, y_max=1 - CLIP, out_of_bounds="clip").fit(logits, labels)
    return np.clip(np.asarray(model.predict(test_logits), dtype=np.float64), CLIP, 1 - CLIP)


def _divergence(reference: Array, candidate: Array) -> tuple[float, float]:
    """JSD/ln 2 and its error from calibrated probabilities of being Geant4, (T,) and (T,)."""
    losses = [-np.log2(reference), -np.log2(1 - candidate)]
    error = 0.5 * np.hypot(*[v.std(ddof=1) / np.sqrt(len(v)) for v in losses])
    return float(1 - 0.5 * (losses[0].mean() + losses[1].mean())), float(error)


def _midranks(values: Array) -> Array:
    """Ranks from 1, ties share their mean rank: (N,)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first, last = np.searchsorted(ordered, ordered, "left"), np.searchsorted(ordered, ordered, "right")
    ranks = np.empty(len(values))
    ranks[order] = 0.5 * (first + last + 1)
    return ranks


def delong(positive: Array, negative: Array) -> tuple[float, float]:
    """AUC and its variance from scores of the positive (n,) and the negative class (m,).

    AUC = P(s+ > s-) + P(s+ = s-)/2. With psi_i the share of negatives below positive i, and chi_j the share of
    positives above negative j, var = var(psi)/n + var(chi)/m (DeLong et al., Biometrics 44, 1988; by midranks as in
    Sun and Xu, IEEE SPL 21, 2014).
    """
    n, m = len(positive), len(negative)
    if n < 2 or m < 2:
        raise ValueError(f"got {n} and {m} scores, expected at least 2 of each class; give more showers")
    ranks = _midranks(np.concatenate([positive, negative]))
    psi = (ranks[:n] - _midranks(positive)) / m
    chi = 1 - (ranks[n:] - _midranks(negative)) / n
    return float(psi.mean()), float(psi.var(ddof=1) / n + chi.var(ddof=1) / m)


def _roc(positive: Array, negative: Array, n_points: int = 201) -> Array:
    """False and true positive rate, (2, n_points), at equally spaced false positive rates."""
    rate = np.linspace(0, 1, n_points)
    thresholds = np.quantile(negative, 1 - rate)
    passed = 1 - np.searchsorted(np.sort(positive), thresholds, side="left") / len(positive)
    passed[0], passed[-1] = 0.0, 1.0
    return np.stack([rate, passed])
