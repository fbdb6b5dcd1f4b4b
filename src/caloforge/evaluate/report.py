"""Report: what ``evaluate`` found, and how it is written down (metrics.json and one self-contained report.html)."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Array
from ..showers import Showers

METRICS, PAGE, TEMPLATE = "metrics.json", "report.html", "report.html.j2"
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
    values: observables of both, name -> (N,) and name -> (M,); roc: curve name -> false and true positive rate (2, P).
    """

    scores: Mapping[str, Score]
    provenance: Mapping[str, Any]
    reference: Showers
    candidate: Showers
    values: tuple[Mapping[str, Array], Mapping[str, Array]]
    roc: Mapping[str, Array]

    @property
    def name(self) -> str:
        """What the candidate is called."""
        return str(self.provenance["candidate_name"])

    def to_dict(self) -> dict[str, Any]:
        """Scores and provenance as plain data; numbers that are not finite become None."""
        scores = {name: asdict(score) for name, score in self.scores.items()}
        return {"scores": _plain(scores), "provenance": _plain(dict(self.provenance))}

    def worst(self, n: int = N_WORST) -> list[str]:
        """Observables with the largest separation power, the worst first."""
        prefix = "separation/"
        names = [name.removeprefix(prefix) for name in self.scores if name.startswith(prefix)]
        return sorted(names, key=lambda name: -self.scores[prefix + name].value)[:n]

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write metrics.json and report.html to a new folder; ``force`` replaces these two files in an existing one."""
        folder = Path(folder)
        if folder.exists() and not force:
            raise FileExistsError(
                f"got output {folder}, which exists, expected a new name; choose another or give --force"
            )
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"got output {folder}, which is a file, expected a folder; choose another name")
        if not folder.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"got output {folder}, expected an existing folder {folder.absolute().parent}; create it"
            )
        contents = {METRICS: json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", PAGE: self.to_html()}
        with _temporary_folder(folder) as temporary:
            for name, text in contents.items():
                (temporary / name).write_text(text, encoding="utf-8")
            if not folder.exists():
                temporary.rename(folder)
            else:
                for name in contents:
                    (temporary / name).replace(folder / name)
        return folder

    def to_html(self) -> str:
        """The report page: HTML that needs no other file and no network."""
        import jinja2

        from .plots import figures

        source = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        environment.filters |= {"number": format_number, "pair": _unbroken_pair}
        page = environment.from_string(source)
        return page.render(report=self, figures=figures(self), groups=_groups(self.scores))


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the final one that is gone after the block, moved or removed."""
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        if temporary.exists():
            for file in temporary.iterdir():
                file.unlink()
            temporary.rmdir()


def _groups(scores: Mapping[str, Score]) -> dict[str, dict[str, Score]]:
    """Scores by the part of the name before the slash; names without one come first under 'classifier'."""
    out: dict[str, dict[str, Score]] = {}
    for name, score in scores.items():
        group, _, rest = name.rpartition("/")
        out.setdefault(group or "classifier", {})[rest] = score
    return out


def format_number(value: float | None, digits: int = 3) -> str:
    """A number for people: three significant digits, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def format_pair(value: float, error: float) -> str:
    """value ± error, both with the decimals of the error's second digit: 0.5312 ± 0.0071."""
    if not (math.isfinite(value) and math.isfinite(error)):
        return "–"
    if not error > 0:
        return format_number(value)
    decimals = 1 - math.floor(math.log10(error))
    if not 0 <= decimals <= 6:
        return f"{value:.2e} ± {error:.0e}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _unbroken_pair(value: float, error: float) -> str:
    """``format_pair`` for narrow pages: a line may end before the ±, not behind it."""
    return format_pair(value, error).replace("± ", "±\u00a0")


def _plain(value: Any) -> Any:
    """Plain JSON data: numpy numbers and paths converted, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
