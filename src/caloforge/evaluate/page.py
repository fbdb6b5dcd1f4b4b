"""The report on paper: one self-contained page for one or more candidates with the same reference, and its files.

The page is a template with a style sheet and two scripts from ``assets``, put into one file; it asks no network.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .metrics_file import metrics_csv, metrics_json
from .numbers import format_number, format_signed, unbroken_pair
from .verdict import beside_floor, level_name, sentence, stands_out, worst_first

if TYPE_CHECKING:
    from .report import Report

METRICS, TABLE, PAGE, FIGURES = "metrics.json", "metrics.csv", "report.html", "figures"
TEMPLATE, ASSETS = "report.html.j2", ("report.css", "report.js", "viewer.js")
GROUPS = {
    "overall": "AUC: 0.5 same, 1 always told apart; JSD and distances: 0 same; precision to PRD: 1 same",
    "response": "candidate over Geant4, minus 1",
    "occupancy": "difference of the mean fraction of voxels above zero",
    "separation": "0 identical, 1 disjoint",
    "w1": "Wasserstein-1 in standard deviations of Geant4",
    "ks": "largest distance of the cumulative distributions, 0 to 1",
    "tv": "total variation, 0 to 1",
    "kl": "Kullback-Leibler divergence",
    "js": "Jensen-Shannon divergence",
    "chi2": "χ² per degree of freedom, 1 same",
    "weights": "of w = p(Geant4)/p(candidate) from the classifier",
}
OPEN = ("overall", "response", "occupancy")  # groups that are unfolded at first


def save_all(reports: "Sequence[Report]", folder: str | Path, force: bool = False, figures: bool = False) -> Path:
    """Write report.html, metrics.json and metrics.csv of all candidates to a new folder; figures: also as PNG and PDF.

    ``force`` replaces these files in an existing folder and leaves all others alone.
    """
    folder = Path(folder)
    require_free(folder, force)
    require_comparable(reports)
    contents = {METRICS: metrics_json(reports), TABLE: metrics_csv(reports), PAGE: render(reports)}
    with _temporary_folder(folder) as temporary:
        for name, text in contents.items():
            (temporary / name).write_text(text, encoding="utf-8")
        if figures:
            from .plots import write_figures

            (temporary / FIGURES).mkdir()
            write_figures(reports, temporary / FIGURES)
        if not folder.exists():
            temporary.rename(folder)
        else:
            for file in [path for path in temporary.rglob("*") if path.is_file()]:
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                file.replace(target)
    return folder


def render(reports: "Sequence[Report]") -> str:
    """One page for all candidates: HTML that needs no other file and no network."""
    import jinja2

    from .plots import figures
    from .scene import scene

    require_comparable(reports)
    assets = files(__package__).joinpath("assets")
    texts = {
        name: assets.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "viewer.js")
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": format_number, "signed": format_signed, "pair": unbroken_pair, "words": beside_floor,
        "verdict": sentence, "inputs": level_name,
    }  # fmt: skip
    page = environment.from_string(assets.joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return page.render(
        reports=reports,
        facts=reports[0].provenance,
        geometry=reports[0].reference.geometry,
        groups=_groups(reports),
        about=GROUPS,
        unfolded=OPEN,
        worst_first=worst_first,
        stands_out=stands_out,
        figures=figures(reports),
        scene=json.dumps(scene(reports), separators=(",", ":")).replace("<", "\\u003c"),
        assets=texts,
    )


def require_comparable(reports: "Sequence[Report]") -> None:
    """Raise ValueError unless there are reports, with different names and one reference sample."""
    if not reports:
        raise ValueError("got no reports, expected at least one; evaluate a candidate first")
    names = [report.name for report in reports]
    if len(set(names)) < len(names):
        raise ValueError(
            f"got candidates called {', '.join(names)}, expected different names; give each candidate_name"
        )
    first = reports[0].reference
    for report in reports[1:]:
        first.geometry.require_same(report.reference.geometry, f"the reference of {report.name}")
        same = first is report.reference or (
            np.array_equal(first.incident.energy, report.reference.incident.energy)
            and np.array_equal(first.total, report.reference.total)
        )
        if not same:
            raise ValueError(
                f"got {report.name} with another reference than {names[0]}, expected one sample for all; evaluate all "
                "candidates against the same showers"
            )


def _groups(reports: "Sequence[Report]") -> dict[str, dict[str, list[Any]]]:
    """Scores of each candidate (None where it has none) by group, the part of the name before the last slash, and the
    rest of the name; names without a slash come under 'overall'."""
    out: dict[str, dict[str, list[Any]]] = {}
    for name in dict.fromkeys(name for report in reports for name in report.scores):
        group, _, rest = name.rpartition("/")
        out.setdefault(group or "overall", {})[rest] = [report.scores.get(name) for report in reports]
    return out


def require_free(folder: Path, force: bool) -> None:
    """Raise unless the folder can be written."""
    if folder.exists() and not force:
        raise FileExistsError(f"got output {folder}, which exists, expected a new name; choose another or give --force")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"got output {folder}, which is a file, expected a folder; choose another name")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"got output {folder}, expected an existing folder {folder.absolute().parent}; create it"
        )


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the final one that is gone after the block, moved or removed."""
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
