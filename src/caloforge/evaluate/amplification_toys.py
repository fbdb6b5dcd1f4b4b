"""The quantile experiment with a known truth (Butter et al., "GANplifying event samples", 2008.06545).

A contestant is trained on R samples x (R, n, d) of a toy at once and returns a function (r, n, rng) -> (n, d) that
draws points from training r. Each repetition is a new training sample, so means over them are means over trainings.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..geometry import Array
from . import amplification as amp
from .amplification_result import Amplification, Curve, Point, point
from .amplification_truths import TOYS, Draw, Toy

Contestant = Callable[[Toy, Array, np.random.Generator], Draw]
Progress = Callable[[int, int, str], None]
KDE_WIDTHS = np.geomspace(0.05, 1.5, 16)  # in standard deviations of the training sample


def bootstrap(toy: Toy, x: Array, rng: np.random.Generator) -> Draw:
    """Negative control: the training points again, with replacement. N_eq = N_train, however many are drawn."""
    return lambda r, n, rng: x[r, rng.integers(0, x.shape[1], n)]


def fit(toy: Toy, x: Array, rng: np.random.Generator) -> Draw:
    """Positive control: the right functional form."""
    return toy.fit(x, rng)


def kde(toy: Toy, x: Array, rng: np.random.Generator) -> Draw:
    """Gaussian kernel density; its width maximises the leave-one-out likelihood of the training points.

    L(h) = sum_i ln sum_(j != i) exp(-|y_i - y_j|^2/(2 h^2)) - n d ln h with y = x over the standard deviation of x.
    """
    scale = x.std(axis=(1, 2))
    width = np.array([scale[r] * _best_width(x[r] / scale[r]) for r in range(len(x))])

    def draw(r: int, n: int, rng: np.random.Generator) -> Array:
        centre = bootstrap(toy, x, rng)(r, n, rng)
        return np.asarray(centre + width[r] * rng.standard_normal(centre.shape))

    return draw


def _best_width(y: Array) -> float:
    distance2 = ((y[:, None] - y[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance2, np.inf)
    nearest = distance2.min(axis=1, keepdims=True)

    def score(h: float) -> float:
        density = np.exp((nearest - distance2) / (2 * h**2)).sum(axis=1)
        return float((np.log(density) - nearest[:, 0] / (2 * h**2)).sum() - y.size * math.log(h))

    return float(max(KDE_WIDTHS, key=score))


def network(toy: Toy, x: Array, rng: np.random.Generator) -> Draw:
    """A small generative network, see ``amplification_network``."""
    from .amplification_network import train

    return train(x, seed=int(rng.integers(2**31)))


CONTESTANTS: Mapping[str, Contestant] = {"bootstrap": bootstrap, "fit": fit, "kde": kde, "network": network}
SAMPLE = "sample"
DEFAULT = (SAMPLE, "bootstrap", "fit", "kde")


def amplify_toys(
    toys: Sequence[Toy] = TOYS,
    contestants: Sequence[str] = DEFAULT,
    *,
    repetitions: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Amplification:
    """N_eq of each contestant on each toy, mean over ``repetitions`` trainings, each on a new training sample.

    "sample" is the training sample itself; MSE_inf of the others is extrapolated in 1/N_gen.
    """
    _check(contestants, repetitions, seed)
    points: list[Point] = []
    curves: list[Curve] = []
    jobs = [(toy, name) for toy in toys for name in contestants]
    seeds = iter(np.random.SeedSequence(seed).spawn(len(toys) + len(jobs)))
    training = {}
    for toy in toys:
        rng = np.random.default_rng(next(seeds))
        training[toy.name] = np.stack([toy.sample(toy.n_train, rng) for _ in range(repetitions)])
    for done, (toy, name) in enumerate(jobs):
        if progress:
            progress(done, len(jobs), f"{toy.name} {name}")
        counts = _generated_counts(toy, name, training[toy.name], np.random.default_rng(next(seeds)))
        for k in toy.divisions:
            found = _point(toy, name, k, counts[k])
            points.append(found[0])
            curves.append(found[1])
    if progress:
        progress(len(jobs), len(jobs), "")
    settings = {
        "repetitions": repetitions, "seed": seed, "n_train": {t.name: t.n_train for t in toys},
        "n_gen": {t.name: list(t.n_gen) for t in toys},
    }  # fmt: skip
    notes = ("Each repetition trains on a new sample of the toy; errors are those of the mean over the repetitions.",)
    return Amplification("toys", tuple(points), tuple(curves), settings, notes)


def _check(contestants: Sequence[str], repetitions: int, seed: int) -> None:
    known = (SAMPLE, *CONTESTANTS)
    for name in contestants:
        if name not in known:
            raise ValueError(f"got contestant {name!r}, expected one of {', '.join(known)}; choose one of them")
    if repetitions < 3:
        raise ValueError(f"got {repetitions} repetitions, expected at least 3 for an error; raise it")
    if seed < 0:
        raise ValueError(f"got seed {seed}, expected 0 or more; raise it")


def grid_counts(u: Array, k: int) -> Array:
    """Points in each of the k^d cells of equal volume: u (N, d) -> (k^d,)."""
    cell = np.minimum((u * k).astype(np.int64), k - 1)
    return np.bincount(cell @ k ** np.arange(u.shape[1]), minlength=k ** u.shape[1])


def _generated_counts(toy: Toy, name: str, x: Array, rng: np.random.Generator) -> dict[int, list[tuple[int, Array]]]:
    """Per k: (N_gen, counts (R, k^d)) for rising N_gen, every smaller sample the beginning of the larger."""
    sizes = (toy.n_train,) if name == SAMPLE else tuple(sorted(toy.n_gen))
    draw = None if name == SAMPLE else CONTESTANTS[name](toy, x, rng)
    rows: dict[tuple[int, int], list[Array]] = {(k, n): [] for k in toy.divisions for n in sizes}
    for r in range(len(x)):
        u = toy.uniform(x[r] if draw is None else draw(r, sizes[-1], rng))
        for k, n in rows:
            rows[k, n].append(grid_counts(u[:n], k).astype(np.int32))
    return {k: [(n, np.stack(rows[k, n])) for n in sizes] for k in toy.divisions}


def _point(toy: Toy, name: str, k: int, counts: list[tuple[int, Array]]) -> tuple[Point, Curve]:
    sizes = [n for n, _ in counts]
    mse = np.stack([amp.quantile_mse(c) for _, c in counts], axis=1)
    left = mse[:, 0] if len(sizes) == 1 else amp.extrapolate(sizes, mse)[0]
    parts = amp.decompose(counts[-1][1])
    r = len(left)
    n_boxes = k**toy.dimensions
    found = point(
        float(left.mean()), float(left.std(ddof=1) / math.sqrt(r)), n_boxes, subject=toy.name, contestant=name,
        n_train=toy.n_train, n_quantiles=n_boxes, repetitions=r, bias2=parts.bias2, bias2_error=parts.bias2_error,
        training_variance=parts.training, generation_variance=parts.generation,
    )  # fmt: skip
    errors = mse.std(axis=0, ddof=1) / math.sqrt(r)
    curve = Curve(toy.name, name, n_boxes, tuple(sizes), tuple(mse.mean(axis=0).tolist()), tuple(errors.tolist()))
    return found, curve
