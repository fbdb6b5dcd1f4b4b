"""Results of the amplification experiment: N_eq per contestant and number of boxes, and how they are written down."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import io
from ..geometry import Array
from . import amplification
from .numbers import format_number

JSON_NAME, FIGURE_NAME = "amplification.json", "amplification.png"
ONE_SIDED_95 = 1.645  # standard deviations, of a lower limit
SEEN = 2.0  # standard deviations above zero from which an MSE counts as measured


@dataclass(frozen=True)
class Point:
    """N_eq of one contestant, measured with boxes of one size.

    subject: toy or observable; n_quantiles: boxes asked for, n_boxes: boxes that the values of the observable can tell
    apart; mse: what is left for N_gen to infinity and an exact truth; n_eq: NaN where mse is compatible with none at
    all, then only n_eq_limit, its lower limit at 95 %, is known; bias2, training_variance, generation_variance: the
    parts of the mean over ``repetitions`` trainings, NaN where a single one cannot tell them apart; n_eq_most: N_eq
    that the bias allows with any number of training showers, c/bias^2; ratio: MSE of the training samples themselves
    over ``mse``; n_eq_jsd: N_eq from the JSD instead of the MSE.
    """

    subject: str
    contestant: str
    n_train: int
    n_quantiles: int
    n_boxes: int
    repetitions: int
    mse: float
    mse_error: float
    n_eq: float
    n_eq_error: float
    n_eq_limit: float
    bias2: float = math.nan
    bias2_error: float = math.nan
    training_variance: float = math.nan
    generation_variance: float = math.nan
    n_eq_most: float = math.nan
    ratio: float = math.nan
    n_eq_jsd: float = math.nan

    @property
    def gain(self) -> float:
        """Amplification N_eq/N_train."""
        return self.n_eq / self.n_train

    @property
    def gain_error(self) -> float:
        return self.n_eq_error / self.n_train


@dataclass(frozen=True)
class Curve:
    """Mean MSE, or N_eq, against a number of showers n (K,); ``error`` is that of the mean."""

    subject: str
    contestant: str
    n_quantiles: int
    n: tuple[int, ...]
    value: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Amplification:
    """What an experiment found. kind: 'toys' or 'showers'; curves: MSE(N_gen) of toys, N_eq(N) of truth subsets."""

    kind: str
    points: tuple[Point, ...]
    curves: tuple[Curve, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def select(self, subject: str, contestant: str) -> list[Point]:
        """Points of one subject and contestant, by rising number of quantiles."""
        chosen = [p for p in self.points if p.subject == subject and p.contestant == contestant]
        return sorted(chosen, key=lambda p: p.n_quantiles)

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys(p.subject for p in self.points))

    @property
    def contestants(self) -> list[str]:
        return list(dict.fromkeys(p.contestant for p in self.points))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become None."""
        points = [asdict(p) | {"gain": p.gain, "gain_error": p.gain_error} for p in self.points]
        out = {
            "format": "caloforge-amplification", "kind": self.kind, "settings": dict(self.settings),
            "notes": list(self.notes), "points": points, "curves": [asdict(c) for c in self.curves],
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(out), parse_constant=lambda _: None)
        return plain

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write amplification.json and amplification.png; ``force`` replaces these two in an existing folder."""
        from .amplification_plots import png

        folder = require_folder(folder, force)
        contents = {
            FIGURE_NAME: png(self),
            JSON_NAME: (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode(),
        }
        folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            with io.new_file(folder / name, force=force) as temporary:
                temporary.write_bytes(content)
        return folder


def require_folder(folder: str | Path, force: bool) -> Path:
    """The folder, if nothing is there yet or it may be written to again."""
    folder = io.require_absent(folder, force, folder=True)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"got output {folder}, which is a file, expected a folder; choose another name")
    return folder


def point(mse: float, mse_error: float, n_boxes: int, probability: Array | None = None, **facts: Any) -> Point:
    """A Point from the MSE that is left and its error; ``facts`` are the other fields."""
    c = amplification.unit_variance(n_boxes, probability)
    value = c / mse if mse > SEEN * mse_error else math.nan
    limit = c / (max(mse, 0.0) + ONE_SIDED_95 * mse_error) if mse_error > 0 or mse > 0 else math.nan
    bias2, bias2_error = facts.get("bias2", math.nan), facts.get("bias2_error", math.nan)
    most = c / bias2 if bias2 > SEEN * bias2_error else math.nan
    return Point(
        n_boxes=n_boxes, mse=mse, mse_error=mse_error, n_eq=value, n_eq_error=value * mse_error / abs(mse or 1),
        n_eq_limit=limit, n_eq_most=most, **facts,
    )  # fmt: skip


def summary(result: Amplification) -> str:
    """N_eq of every contestant as a table: toys by number of boxes, showers by observable."""

    def cell(p: Point) -> str:
        if math.isfinite(p.n_eq):
            return f"{p.n_eq:,.0f} ± {p.n_eq_error:,.0f} ({p.gain:,.{1 if p.gain < 100 else 0}f}x)"
        return f"> {format_number(p.n_eq_limit)}"

    heads = ("", "boxes", *(f"{name}" for name in result.contestants))
    rows = [heads]
    for subject in result.subjects:
        table = {name: {p.n_quantiles: p for p in result.select(subject, name)} for name in result.contestants}
        for n_quantiles in sorted({n for points in table.values() for n in points}):
            found = [table[name].get(n_quantiles) for name in result.contestants]
            rows.append((subject, str(n_quantiles), *("" if p is None else cell(p) for p in found)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    return "\n".join(["N_eq (N_eq/N_train)", *lines, *result.notes])
