"""Amplification on showers: how many Geant4 showers is a generated sample worth? (Bieringer et al., 2202.07352)

Three disjoint samples: truth T lays the boxes and their probabilities p_j, the training showers are what the generator
learned from, the generated showers are judged. Observables are cut into quantiles of T, several together into boxes by
recursive median splits. Sizes are finite, and what they add to the MSE is known and taken away,

    MSE_inf = 1/B sum (x_j - p_j)^2 - 1/B sum x_j (1 - x_j)/(N_gen - 1) - c/N_T,

with the error of what is left, for d_j = x_j - p_j and s_j = x_j (1 - x_j)/N_gen + p_j (1 - p_j)/N_T,

    sigma^2 = 1/B^2 sum (4 d_j^2 s_j + 2 s_j^2).

Two checks run along, with one half of T as the truth and subsets of the other half as contestants: subsets of N showers
must come out at N_eq = N (the calibration line), their bootstrap too (the negative control).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry import Array
from ..showers import Showers
from . import amplification as amp
from .amplification_result import SEEN, Amplification, Curve, Point, point
from .observables import observables as all_observables

QUANTILES = (5, 10, 20, 50, 100)
DEPTHS = tuple(range(3, 11))  # 2^n half-split boxes
PER_BOX = 10  # truth showers per box, at least
HALVINGS = 6  # sizes of the calibration line: pool/2 .. pool/64
N_LAYERS = 2  # layers with the most energy whose observables are taken by default
FEWEST = 200  # showers of each sample
JOINT = "joint half-splits"
GENERATED, TRAINING, BOOTSTRAP, SUBSETS = "generated", "training sample", "bootstrap", "truth subsets"
P_VALUE = 1e-3
Progress = Callable[[int, int, str], None]
Values = Array  # (N, d)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Boxes laid by truth showers: counts of values (N, d) -> (B,), probability (B,), number of those showers."""

    counts: Callable[[Values], Array]
    probability: Array
    n_truth: int
    n_quantiles: int

    @staticmethod
    def lay(truth: Values, n_quantiles: int) -> "_Boxes":
        """Quantiles of one observable (N, 1), half-splits of several."""
        if truth.shape[1] > 1:
            counts = amp.HalfSplits.fit(truth, round(math.log2(n_quantiles))).counts
        else:
            edges = amp.quantile_edges(truth[:, 0], n_quantiles)

            def counts(values: Values) -> Array:
                return np.bincount(np.searchsorted(edges, values[:, 0], side="right"), minlength=len(edges) + 1)

        return _Boxes(counts, amp.shares(counts(truth)), len(truth), n_quantiles)

    @property
    def n_boxes(self) -> int:
        return len(self.probability)

    @property
    def truth_noise(self) -> float:
        """c/N_T, what the finite truth adds to an MSE."""
        return amp.unit_variance(self.n_boxes, self.probability) / self.n_truth


def amplify_showers(
    truth: Showers,
    train: Showers | Sequence[Showers],
    generated: Showers | Sequence[Showers],
    *,
    observables: Sequence[str] | None = None,
    quantiles: Sequence[int] = QUANTILES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Amplification:
    """N_eq of generated showers per observable and number of quantiles, and of several observables jointly.

    train, generated: of one training, or one of each per training (equal sizes). observables: names from
    ``evaluate.observables``; by default response, shower depth and its width, and lateral width, occupied fraction and
    share of the brightest voxel of the two layers with the most energy. truth must not have been used in any training.
    """
    trains, gens = (
        [sample] if isinstance(sample, Showers) else list(sample) for sample in (train, generated)
    )  # fmt: skip
    _check(truth, trains, gens, quantiles, seed)
    names = tuple(observables) if observables else default_observables(truth)
    tables = {id(s): _table(s, names) for s in (truth, *trains, *gens)}
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(truth))
    subjects = {name: [k] for k, name in enumerate(names)}
    if len(names) > 1:
        subjects[JOINT] = list(range(min(len(names), 5)))
    points: list[Point] = []
    curves: list[Curve] = []
    for done, (subject, columns) in enumerate(subjects.items()):
        if progress:
            progress(done, len(subjects), subject)
        pick = {key: table[:, columns] for key, table in tables.items()}
        values = pick[id(truth)], [pick[id(s)] for s in trains], [pick[id(s)] for s in gens]
        sizes = _depths(len(truth)) if len(columns) > 1 else tuple(quantiles)
        for n_quantiles in sizes:
            boxes = _Boxes.lay(values[0], n_quantiles)
            if boxes.n_boxes < 2:
                continue  # the observable is a constant
            points += _contestants(subject, boxes, *values[1:])
            half = len(truth) // 2
            edges = _Boxes.lay(values[0][order[:half]], n_quantiles)
            control, curve = _calibration(subject, edges, values[0][order[half:]], len(trains[0]), len(gens[0]), rng)
            points.append(control)
            curves.append(curve)
    if progress:
        progress(len(subjects), len(subjects), "")
    settings = {
        "observables": list(names), "joint": [names[k] for k in subjects.get(JOINT, [])], "quantiles": list(quantiles),
        "seed": seed, "n_truth": len(truth), "n_train": len(trains[0]), "n_generated": len(gens[0]),
        "trainings": len(trains), "truth": dict(truth.provenance), "generated": dict(gens[0].provenance),
        "train": dict(trains[0].provenance),
    }  # fmt: skip
    return Amplification("showers", tuple(points), tuple(curves), settings, _notes(truth, trains, gens))


def amplify_trainings(
    truth: Showers,
    generate: Callable[[Showers, int], Showers],
    *,
    n_train: int,
    repetitions: int = 10,
    observables: Sequence[str] | None = None,
    quantiles: Sequence[int] = QUANTILES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Amplification:
    """The whole experiment: a generator trained ``repetitions`` times, each time on new showers of the truth.

    One half of ``truth`` judges; from the other half ``generate(train, seed) -> generated`` is given n_train showers at
    a time, no shower twice. It must start from nothing: preprocessing constants, stopping times or settings found with
    more showers are information that the training sample does not have.
    """
    half = len(truth) // 2
    if repetitions * n_train > len(truth) - half:
        raise ValueError(
            f"got {repetitions} trainings of {n_train} showers from a pool of {len(truth) - half}, expected no shower "
            "twice; give more truth or ask for less"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(truth))
    trains, gens = [], []
    for k in range(repetitions):
        if progress:
            progress(k, repetitions, "trainings")
        trains.append(truth[order[half + k * n_train : half + (k + 1) * n_train]])
        gens.append(generate(trains[-1], seed + k))
    return amplify_showers(
        truth[order[:half]], trains, gens, observables=observables, quantiles=quantiles, seed=seed, progress=progress
    )


def default_observables(truth: Showers) -> tuple[str, ...]:
    """Names of observables of the whole shower, and of the layers that hold the most energy."""
    known = all_observables(truth[:1])
    layers = np.sort(np.argsort(-truth.layer_energy.mean(axis=0), kind="stable")[:N_LAYERS])
    widths = [f"lateral_width_{i}" if f"lateral_width_{i}" in known else f"width_r_{i}" for i in layers]
    wanted = ["response", "shower_depth", "shower_depth_width", *widths, *(f"occupied_{i}" for i in layers)]
    return tuple(name for name in [*wanted, *(f"brightest_1_{i}" for i in layers)] if name in known)


def _table(showers: Showers, names: Sequence[str]) -> Values:
    """Observables side by side, (N, len(names))."""
    known = all_observables(showers)
    for name in names:
        if name not in known:
            raise ValueError(f"got observable {name!r}, expected one of {', '.join(known)}; choose among these")
    return np.stack([known[name] for name in names], axis=1)


def _depths(n_truth: int) -> tuple[int, ...]:
    """Numbers 2^n of half-split boxes for which half of the truth still has enough showers in each."""
    return tuple(2**n for n in DEPTHS if n_truth // 2 >= PER_BOX * 2**n)


def _left(counts: Array, boxes: _Boxes) -> tuple[Array, Array]:
    """MSE_inf and its error of samples, counts (R, B) -> (R,), (R,): formulas at the top."""
    x, p = amp.shares(counts), boxes.probability
    left = amp.quantile_mse(counts, p) - amp.sampling_noise(counts) - boxes.truth_noise
    noise = x * (1 - x) / counts.sum(axis=-1, keepdims=True) + p * (1 - p) / boxes.n_truth
    true2 = np.maximum((x - p) ** 2 - noise, 0)
    return left, np.sqrt((4 * true2 * noise + 2 * noise**2).sum(axis=-1)) / boxes.n_boxes


def _mean_left(counts: Array, boxes: _Boxes) -> tuple[float, float]:
    """Mean of MSE_inf over trainings, and its error: their spread, and the truth that all of them share."""
    left, each = _left(counts, boxes)
    r = len(left)
    if r == 1:
        return float(left[0]), float(each[0])
    p = boxes.probability
    shared = p * (1 - p) / boxes.n_truth
    true2 = np.maximum((amp.shares(counts).mean(axis=0) - p) ** 2 - shared, 0)
    common = math.sqrt(float((4 * true2 * shared + 2 * shared**2).sum())) / boxes.n_boxes
    return float(left.mean()), math.hypot(float(left.std(ddof=1)) / math.sqrt(r), common)


def _contestants(subject: str, boxes: _Boxes, trains: list[Values], gens: list[Values]) -> list[Point]:
    """The generated showers and the training showers themselves, judged with the whole truth."""
    counts = np.stack([boxes.counts(v) for v in gens]), np.stack([boxes.counts(v) for v in trains])
    facts = {"subject": subject, "n_train": len(trains[0]), "n_quantiles": boxes.n_quantiles, "repetitions": len(gens)}
    mse, error = _mean_left(counts[0], boxes)
    # The training showers are the contestant here, so their own sampling noise is what is measured.
    own = amp.quantile_mse(counts[1], boxes.probability) - boxes.truth_noise
    own_error = [_left(c[None], boxes)[1][0] for c in counts[1]]
    parts = {}
    if len(gens) > 1:
        found = amp.decompose(counts[0], boxes.probability)
        parts = {
            "bias2": found.bias2 - boxes.truth_noise, "bias2_error": math.hypot(found.bias2_error, error),
            "training_variance": found.training, "generation_variance": found.generation,
        }  # fmt: skip
    ratio = float(own.mean()) / mse if mse > SEEN * error else math.nan
    return [
        point(mse, error, boxes.n_boxes, boxes.probability, contestant=GENERATED, ratio=ratio,
                  n_eq_jsd=_jsd(counts[0], boxes), **facts, **parts),
        point(float(own.mean()), float(np.mean(own_error)) / math.sqrt(len(own)), boxes.n_boxes, boxes.probability,
                  contestant=TRAINING, **facts),
    ]  # fmt: skip


def _jsd(counts: Array, boxes: _Boxes) -> float:
    """N_eq from the mean JSD, less the (B - 1)/8 (1/N_gen + 1/N_T) of finite sizes; NaN where nothing is left."""
    noise = amp.expected_jsd(1 / (1 / counts[0].sum() + 1 / boxes.n_truth), boxes.n_boxes)
    left = float(amp.jensen_shannon(counts, boxes.probability).mean()) - noise
    spread = noise * math.sqrt(2 / (boxes.n_boxes - 1))  # of a chi^2 with B - 1 degrees of freedom
    return amp.equivalent_jsd(left, boxes.n_boxes) if left > SEEN * spread else math.nan


def _calibration(
    subject: str, boxes: _Boxes, pool: Values, n_train: int, n_gen: int, rng: np.random.Generator
) -> tuple[Point, Curve]:
    """Bootstrap control at the size nearest to n_train, and N_eq of disjoint subsets of the pool (M, d)."""
    c = amp.unit_variance(boxes.n_boxes, boxes.probability)
    p = boxes.probability
    common = math.sqrt(float((2 * (p * (1 - p) / boxes.n_truth) ** 2).sum())) / boxes.n_boxes
    rows = []
    subsets = {}
    for k in range(1, HALVINGS + 1):
        size = len(pool) >> k
        counts = np.stack([boxes.counts(pool[i * size : (i + 1) * size]) for i in range(2**k)])
        left = amp.quantile_mse(counts, p) - boxes.truth_noise
        error = math.hypot(float(left.std(ddof=1)) / math.sqrt(len(left)), common)
        n_eq = c / float(left.mean()) if left.mean() > SEEN * error else math.nan
        rows.append((size, n_eq, n_eq * error / float(left.mean())))
        subsets[size] = counts
    rows.sort()
    curve = Curve(subject, SUBSETS, boxes.n_quantiles, *(tuple(column) for column in zip(*rows, strict=True)))
    size = min(subsets, key=lambda n: abs(math.log(n / n_train)))
    drawn = np.stack([rng.multinomial(n_gen, x) for x in amp.shares(subsets[size])])
    left = amp.quantile_mse(drawn, p) - amp.sampling_noise(drawn) - boxes.truth_noise
    error = math.hypot(float(left.std(ddof=1)) / math.sqrt(len(left)), common)
    control = point(
        float(left.mean()), error, boxes.n_boxes, p, subject=subject, contestant=BOOTSTRAP, n_train=size,
        n_quantiles=boxes.n_quantiles, repetitions=len(left),
    )  # fmt: skip
    return control, curve


def _check(
    truth: Showers, trains: list[Showers], gens: list[Showers], quantiles: Sequence[int], seed: int
) -> None:  # fmt: skip
    if len(trains) != len(gens) or not trains:
        raise ValueError(f"got {len(trains)} training and {len(gens)} generated samples, expected pairs; match them")
    for what, samples in (("training", trains), ("generated", gens)):
        if len({len(s) for s in samples}) > 1:
            raise ValueError(f"got {what} samples of different sizes, expected one size; cut them to the smallest")
    for what, showers in [("truth", truth), *(("training", s) for s in trains), *(("generated", s) for s in gens)]:
        truth.geometry.require_same(showers.geometry, f"{what} showers")
        if len(showers) < FEWEST:
            raise ValueError(f"got {len(showers)} {what} showers, expected at least {FEWEST}; simulate more")
    seen = _fingerprints(truth)
    for showers in trains:
        shared = np.intersect1d(seen, _fingerprints(showers)).size
        if shared:
            raise ValueError(
                f"got {shared} showers that are both truth and training, expected disjoint samples; the truth must be "
                "new to the generator"
            )
    most = len(truth) // 2 // PER_BOX
    for n in quantiles:
        if not 2 <= n <= most:
            raise ValueError(f"got {n} quantiles for {len(truth)} truth showers, expected 2..{most}; change it")
    if seed < 0:
        raise ValueError(f"got seed {seed}, expected 0 or more; raise it")


def _fingerprints(showers: Showers) -> Array:
    """A number per shower that two showers share only if they are the same one: their bytes, hashed; without empty."""
    filled = showers.energy[showers.total > 0]
    return np.array([hash(row.tobytes()) for row in filled], dtype=np.int64)


def _notes(truth: Showers, trains: list[Showers], gens: list[Showers]) -> tuple[str, ...]:
    """What the numbers do not say."""
    from scipy.stats import ks_2samp

    notes = []
    if len(trains) == 1:
        notes.append(
            "One training only: errors are those of the finite truth and generated samples. How much N_eq varies "
            "between training samples and trainings is not measured, nor bias told from variance."
        )
    notes.append(
        "N_eq > N_train is no new information: it is what the generator's smoothness adds, and holds for these "
        "observables and boxes only. It grows with the number of boxes for any smooth generator."
    )
    energy = truth.incident.energy
    if np.ptp(energy) > 0.01 * energy.mean():
        notes.append(
            f"Incident energies from {energy.min() / 1e3:.3g} to {energy.max() / 1e3:.3g} GeV: quantiles mix energies, "
            "and the law for N_eq assumes that the generated showers draw theirs from the same distribution anew."
        )
    for what, samples in (("training", trains), ("generated", gens)):
        if float(ks_2samp(energy, samples[0].incident.energy, method="asymp").pvalue) < P_VALUE:
            notes.append(f"The incident energies of the {what} showers are distributed differently from the truth's.")
    if len(np.unique(energy)) > 50 and np.isin(gens[0].incident.energy, energy).mean() > 0.5:
        notes.append(
            "The generated showers have the incident energies of the truth: they agree better with it than independent "
            "showers would, and N_eq comes out too high. Draw the energies anew."
        )
    return tuple(notes)
