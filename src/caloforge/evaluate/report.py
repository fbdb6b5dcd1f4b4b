"""Report: what ``evaluate`` found about one candidate. ``page`` writes one or several of them down."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..geometry import Array
from ..showers import Showers
from .metrics_file import plain

N_WORST = 10  # observables in the verdict table


@dataclass(frozen=True)
class Score:
    """One number with its error, and its floor: the same number between two halves of the Geant4 sample."""

    value: float
    error: float
    floor: float
    floor_error: float

    @property
    def excess(self) -> float:
        """(value - floor) in units of both errors; NaN where undefined."""
        error = math.hypot(self.error, self.floor_error)
        return (self.value - self.floor) / error if error > 0 else (0.0 if self.value == self.floor else math.nan)


@dataclass(frozen=True, eq=False)
class Report:
    """Scores of a candidate against a reference.

    scores: name -> Score; provenance: sizes, seeds, versions, notes; reference, candidate: the showers compared;
    values: observables of both, name -> (N,) and name -> (M,); roc: curve name -> false and true positive rate (2, P);
    extra: what else a figure can show, "calibration/<level>" -> (predicted, observed, error), (B,) each, and
    "weights/<level>" -> (ln w of the reference, ln w of the candidate), (N,) and (M,), w = p(Geant4)/p(candidate).
    """

    scores: Mapping[str, Score]
    provenance: Mapping[str, Any]
    reference: Showers
    candidate: Showers
    values: tuple[Mapping[str, Array], Mapping[str, Array]]
    roc: Mapping[str, Array]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the candidate is called."""
        return str(self.provenance["candidate_name"])

    def to_dict(self) -> dict[str, Any]:
        """Scores and provenance as plain data; numbers that are not finite become None."""
        scores = {name: asdict(score) for name, score in self.scores.items()}
        return {"scores": plain(scores), "provenance": plain(dict(self.provenance))}

    def worst(self, n: int = N_WORST) -> list[str]:
        """Observables with the largest separation power, the worst first."""
        prefix = "separation/"
        names = [name.removeprefix(prefix) for name in self.scores if name.startswith(prefix)]
        return sorted(names, key=lambda name: -self.scores[prefix + name].value)[:n]

    def save(self, folder: str | Path, force: bool = False, figures: bool = False) -> Path:
        """Write report.html, metrics.json and metrics.csv to a new folder, and every figure for papers if asked.

        ``force`` replaces these files in an existing folder and leaves all others alone.
        """
        from .page import save_all

        return save_all([self], folder, force=force, figures=figures)

    def to_html(self) -> str:
        """The report page: HTML that needs no other file and no network."""
        from .page import render

        return render([self])
