"""The classifier test: how well a neural network tells candidate showers from Geant4 showers.

By Neyman and Pearson, the most powerful test between the densities p (Geant4) and q (candidate) cuts on p/q, and a
network C trained with the binary cross entropy BCE on equal samples converges to C = p/(p + q). Its AUC is 0.5 if and
only if p = q; the Jensen-Shannon divergence is JSD = ln 2 - BCE, quoted in bits, (ln 2 - BCE)/ln 2 in [0, 1].
A finite network gives a lower bound, so an AUC is always quoted with its network, sample size and inputs.

``STANDARD``: network of CaloFlow (Krause, Shih, 2106.05285): two hidden layers of 512 ReLU, Adam, learning rate 2e-4;
splits and isotonic calibration of the CaloChallenge (2410.21611). Label 1 is Geant4, 0 the candidate. Neither of them
scales its inputs; here they are whitened with the training split, because a small shift of a sum of voxels (a 1 % wrong
response) lies along a direction of tiny variance, which a short training on plain inputs does not find.

``CHALLENGE`` and ``CHALLENGE_RESNET``: classifiers of the CaloChallenge as they are, on inputs from ``challenge``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

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
OFFICIAL_SPLITS = {121_000: (80_000, 20_000), 120_800: (80_000, 20_000), 100_000: (60_000, 20_000)}  # by showers/class

Shape = tuple[int, int, int]
Pair = tuple[Array, Array]


@dataclass(frozen=True)
class ClassifierConfig:
    """One classifier test: network, training, and what is quoted.

    network, width: see ``networks``; the width of a resnet is that of its stem. batch, steps_per_epoch: showers per
    step at most, and steps per epoch at least. bf16: products in bfloat16, for wide networks. scale: of the inputs.
    keep: the epoch with the best loss or the best accuracy on the calibration split; with accuracy a perfect epoch
    ends the training. splits: 60/20/20 %, or the numbers of the CaloChallenge for samples of the sizes it has. quote:
    AUC from the logits, calibrated as they are; or from the calibrated probabilities, where the isotonic regression
    sees the sigmoid of the logits, as in the challenge. chunk: showers outside the training that the network sees at
    once, None for all. device: where torch computes.
    """

    network: Literal["standard", "challenge", "resnet"] = "standard"
    width: int = HIDDEN
    repeats: int = 3
    epochs: int = 30
    learning_rate: float = LEARNING_RATE
    batch: int = BATCH
    steps_per_epoch: int = STEPS_PER_EPOCH
    dtype: Literal["float32", "float64"] = "float32"
    bf16: bool = False
    scale: Literal["whiten", "standardise", "none"] = "whiten"
    keep: Literal["loss", "accuracy"] = "loss"
    splits: Literal["fractions", "official"] = "fractions"
    quote: Literal["logits", "calibrated"] = "logits"
    chunk: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"got {name} {getattr(self, name)!r}, expected one of {', '.join(known)}; choose one")
        for name in ("width", "repeats", "epochs", "batch", "steps_per_epoch", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"got {name} {value}, expected at least 1; raise it")
        if self.bf16 and self.dtype != "float32":
            raise ValueError(f"got bf16 with dtype {self.dtype}, expected float32; leave one of them out")
        if self.network == "resnet" and self.scale == "whiten":
            raise ValueError("got scale 'whiten' for a resnet, which mixes voxels; use 'standardise' or 'none'")


CHOICES = {
    "network": ("standard", "challenge", "resnet"),
    "dtype": ("float32", "float64"),
    "scale": ("whiten", "standardise", "none"),
    "keep": ("loss", "accuracy"),
    "splits": ("fractions", "official"),
    "quote": ("logits", "calibrated"),
}
STANDARD = ClassifierConfig()
CHALLENGE = ClassifierConfig(
    network="challenge", width=2048, repeats=10, epochs=50, steps_per_epoch=1, dtype="float64", scale="none",
    keep="accuracy", splits="official", quote="calibrated", chunk=CHUNK,
)  # fmt: skip
CHALLENGE_RESNET = replace(CHALLENGE, network="resnet", width=32, chunk=BATCH)


@dataclass(frozen=True)
class Verdict:
    """Result of ``repeats`` trainings.

    auc, jsd: means over the trainings, with total errors; aucs: every training, (K,); n: showers per class;
    whitened: whether the inputs were whitened; roc: false and true positive rate of the first training on its test
    split, (2, P). std: population standard deviation of the aucs, what the CaloChallenge quotes; delong: error of one
    AUC from the finite test split. Of the first training, for its test split of T showers of each class, reference and
    candidate: index: which showers of the samples they are, (T,); scores: their logits, (T,); probabilities: of
    being Geant4, calibrated, (T,). n_train: training showers per class.
    """

    auc: float
    auc_error: float
    jsd: float
    jsd_error: float
    aucs: Array
    n: int
    whitened: bool
    roc: Array
    std: float
    delong: float
    index: Pair
    scores: Pair
    probabilities: Pair
    n_train: int
    config: ClassifierConfig


@dataclass(frozen=True)
class _Training:
    """One training, on its test split; pairs are (Geant4 (T,), candidate (T,))."""

    index: Pair
    scores: Pair
    probabilities: Pair


def classify(
    reference: Array,
    candidate: Array,
    *,
    seed: int | np.random.SeedSequence,
    config: ClassifierConfig = STANDARD,
    repeats: int | None = None,
    epochs: int | None = None,
    whiten: bool | None = None,
    shape: Shape | None = None,
    n_train: int | None = None,
    done: Callable[[], None] | None = None,
) -> Verdict:
    """Train classifiers between two samples of features, (N, F) and (M, F), each training on its own split.

    error^2 = (test-sample error: DeLong for AUC, of the mean for BCE)^2 + (spread over the trainings)^2. The larger
    sample is thinned to the size of the smaller. repeats, epochs: instead of those of the config; whiten: decorrelate
    the inputs where config.scale is "whiten", by default where ``can_whiten``; shape: of the voxels as an image, for a
    resnet; n_train: train on so many showers per class only, the other splits stay; done: called after each training.
    """
    config = replace(config, repeats=config.repeats if repeats is None else repeats)
    config = replace(config, epochs=config.epochs if epochs is None else epochs)
    n = min(len(reference), len(candidate))
    if n < FEWEST:
        raise ValueError(f"got {n} showers of one class, expected at least {FEWEST} to split; give more showers")
    if reference.shape[1:] != candidate.shape[1:]:
        raise ValueError(
            f"got features of shape {candidate.shape}, expected (M, {reference.shape[1]}); use the same inputs for both"
        )
    cuts = _cuts(config, n)
    enough = n if n_train is None else round(n_train / SPLITS[0])
    n_train = int(cuts[0]) if n_train is None else n_train
    if not 1 <= n_train <= cuts[0]:
        raise ValueError(f"got {n_train} training showers, expected 1 to {cuts[0]} of {n} per class; change the size")
    whiten = can_whiten(enough, reference.shape[1]) if whiten is None else whiten
    config = replace(config, scale="standardise") if config.scale == "whiten" and not whiten else config
    trainings = []
    for child in _sequence(seed).spawn(config.repeats):
        trainings.append(_train_once((reference, candidate), cuts, n_train, config, shape, child))
        if done is not None:
            done()
    return _verdict(trainings, n, n_train, config)


def _verdict(trainings: list[_Training], n: int, n_train: int, config: ClassifierConfig) -> Verdict:
    rows: list[tuple[float, float, float, float]] = []
    for one in trainings:
        auc, variance = delong(*_quoted(one, config))
        rows.append((auc, float(np.sqrt(variance)), *_divergence(*one.probabilities)))
    table = np.array(rows)
    aucs, jsds, first = table[:, 0], table[:, 2], trainings[0]
    return Verdict(
        auc=float(aucs.mean()), auc_error=_total_error(aucs, table[:, 1]),
        jsd=float(jsds.mean()), jsd_error=_total_error(jsds, table[:, 3]),
        aucs=aucs, n=n, whitened=config.scale == "whiten", roc=_roc(*_quoted(first, config)),
        std=float(aucs.std()), delong=float(np.sqrt((table[:, 1] ** 2).mean())),
        index=first.index, scores=first.scores, probabilities=first.probabilities, n_train=n_train, config=config,
    )  # fmt: skip


def _quoted(training: _Training, config: ClassifierConfig) -> Pair:
    return training.scores if config.quote == "logits" else training.probabilities


def _sequence(seed: int | np.random.SeedSequence) -> np.random.SeedSequence:
    return seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)


def _cuts(config: ClassifierConfig, n: int) -> Array:
    """Where the training, calibration and test split of n showers end, (3,)."""
    if config.splits == "official" and n in OFFICIAL_SPLITS:
        return np.array([*np.cumsum(OFFICIAL_SPLITS[n]), n])
    return np.array([*np.round(np.cumsum(SPLITS) * n).astype(int), n])


def learning_curve(
    reference: Array,
    candidate: Array,
    sizes: Sequence[int],
    *,
    seed: int | np.random.SeedSequence,
    config: ClassifierConfig = STANDARD,
    repeats: int | None = None,
    epochs: int | None = None,
    shape: Shape | None = None,
    done: Callable[[], None] | None = None,
) -> dict[int, Verdict]:
    """AUC against the size of the training sample: training showers per class -> Verdict.

    Every size is trained with the same seeds: the same test and calibration splits, and each training sample is part of
    the next larger one. An AUC that still rises at the largest size is a lower bound that more showers would raise.
    Inputs are whitened at every size or at none, as the smallest allows. done: called after each training.
    """
    sizes = sorted(set(sizes))
    if not sizes or sizes[0] < 2:
        raise ValueError(f"got sizes {sizes}, expected numbers of training showers of at least 2; give some")
    root = _sequence(seed)
    whiten = can_whiten(round(sizes[0] / SPLITS[0]), reference.shape[1])
    out = {}
    for size in sizes:
        again = np.random.SeedSequence(root.entropy, spawn_key=root.spawn_key)  # spawning changes its state
        out[size] = classify(
            reference, candidate, seed=again, config=config, repeats=repeats, epochs=epochs, whiten=whiten,
            shape=shape, n_train=size, done=done,
        )  # fmt: skip
    return out


def _total_error(values: Array, errors: Array) -> float:
    """Root mean square of the errors (K,), in quadrature with the spread of the values (K,)."""
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return float(np.sqrt((errors**2).mean() + spread**2))


def _train_once(
    samples: Pair,
    cuts: Array,
    n_train: int,
    config: ClassifierConfig,
    shape: Shape | None,
    seed: np.random.SeedSequence,
) -> _Training:
    """One split and one training."""
    from scipy.special import expit

    rng = np.random.default_rng(seed)
    splits = [np.split(rng.permutation(len(sample))[: cuts[2]], cuts[:2]) for sample in samples]
    index = splits[0][2], splits[1][2]
    for split in splits:
        split[0] = split[0][:n_train]
    parts = [np.concatenate([samples[0][a], samples[1][b]]) for a, b in zip(splits[0], splits[1], strict=True)]
    scaled = scaler(parts[0], config.scale == "whiten", config.dtype) if config.scale != "none" else None
    train, calibration, test = (
        part.astype(config.dtype, copy=False) if scaled is None else scaled(part) for part in parts
    )
    labels = [np.repeat([1.0, 0.0], len(part) // 2).astype(config.dtype) for part in (train, calibration)]
    logits = _fit((train, labels[0]), (calibration, labels[1]), config, shape, int(rng.integers(2**62)))
    scores = logits(calibration), logits(test)
    seen = scores if config.quote == "logits" else (expit(scores[0]), expit(scores[1]))
    probabilities = _calibrate(seen[0], labels[1], seen[1])
    half = len(test) // 2
    return _Training(index, (scores[1][:half], scores[1][half:]), (probabilities[:half], probabilities[half:]))


def can_whiten(n: int, n_inputs: int) -> bool:
    """Whether n showers per class are enough to whiten the inputs, and the inputs few enough to afford it."""
    return n_inputs <= min(MOST_WHITENED, round(2 * SPLITS[0] * n) // PER_INPUT)


def scaler(train: Array, whiten: bool, dtype: str = "float32") -> Callable[[Array], Array]:
    """Function (N, F) -> (N, F) of ``dtype`` that makes ``train`` (n, F) white: mean 0, variance 1, no correlations.

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
        out = np.empty(features.shape, dtype=dtype)
        for start in range(0, len(features), CHUNK):
            part = (features[start : start + CHUNK] - mean) * inverse
            out[start : start + CHUNK] = part if matrix is None else part @ matrix
        return out

    return scaled


def _fit(
    train: Pair, calibration: Pair, config: ClassifierConfig, shape: Shape | None, seed: int
) -> Callable[[Array], Array]:
    """Train on features (n, F) and labels (n,); the function features -> logits of the best epoch."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    from . import networks

    generator = torch.Generator().manual_seed(seed)
    (data, target), (held, held_target) = ([torch.from_numpy(v) for v in pair] for pair in (train, calibration))
    net = networks.create(config.network, data.shape[1], config.width, seed, shape).to(config.device, data.dtype)
    batch = max(1, min(config.batch, len(data) // config.steps_per_epoch))

    def logits(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bf16):
            out = net(features.to(config.device))
        return torch.as_tensor(out.squeeze(1).to(data.dtype))

    def held_logits(features: torch.Tensor) -> torch.Tensor:
        net.eval()
        with torch.no_grad():
            return torch.cat([logits(part).cpu() for part in features.split(config.chunk or len(features))])  # type: ignore[no-untyped-call]

    def quality() -> float:
        value, finite = _quality(held_logits(held), held_target, config.keep)
        return value if finite else float("nan")

    networks.train_best(
        net,
        lambda index: bce(logits(data[index]), target[index].to(config.device)),
        quality,
        len(data),
        epochs=config.epochs,
        batch=batch,
        learning_rate=config.learning_rate,
        generator=generator,
        # One shower has no variance to normalise with; another epoch shuffles it into a batch.
        smallest=2 if config.network == "resnet" else 1,
        best_possible=1.0 if config.keep == "accuracy" else float("inf"),
    )
    return lambda features: np.asarray(held_logits(torch.from_numpy(features)).numpy(), dtype=np.float64)


def _quality(logits: "torch.Tensor", labels: "torch.Tensor", keep: str) -> tuple[float, bool]:
    """What an epoch is kept for, the larger the better, and whether its loss is finite; (n,) each."""
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    loss = float(bce(logits, labels))
    accuracy = float(((logits > 0) == (labels > 0.5)).double().mean())
    return (accuracy if keep == "accuracy" else -loss), bool(np.isfinite(loss))


def _calibrate(scores: Array, labels: Array, test_scores: Array) -> Array:
    """Isotonic regression of the labels on the calibration scores (n,), applied to the test scores (T,)."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=CLIP, y_max=1 - CLIP, out_of_bounds="clip").fit(scores, labels)
    return np.clip(np.asarray(model.predict(test_scores), dtype=np.float64), CLIP, 1 - CLIP)


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
