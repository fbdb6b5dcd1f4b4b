"""Quality against time: the published submissions of the CaloChallenge, and our models on the samples they come with.

Published points are facts re-typed from Krause et al., "CaloChallenge 2022", 2410.21611 (``data/leaderboard.csv``).
Our shipped models bring their scores on their cards and their timings in ``data/timings.json``; others are added from
the metrics.json that ``evaluate`` and the benchmark.json that ``benchmark`` write.

Published points were judged by one referee on one computer. Ours were not: their AUCs come from another classifier with
whitened inputs (docs/metrics.md) and other sample sizes, their times from another core, and their showers from another
Geant4 sample. Picture and table say which is which, and bring the floor of each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import io
from .leaderboard_sources import AUC, GEANT4, TIMES, Entry, added, published, shipped

TITLES = {
    "ds1-photons": "CaloChallenge data set 1, photons, 368 voxels",
    "ds1-pions": "CaloChallenge data set 1, pions, 533 voxels",
    "ds2": "CaloChallenge data set 2, electrons, 6,480 voxels",
    "ds3": "CaloChallenge data set 3, electrons, 40,500 voxels",
    "calogan-eplus": "CaloGAN detector, e$^+$ 1–100 GeV, 504 voxels",
}
SCORES = {
    AUC: "AUC, the larger of voxels and observables", "auc_low": "AUC on voxels", "auc_high": "AUC on observables",
    "auc_resnet": "AUC of the 3D ResNet", "fpd": "Fréchet physics distance × 1000",
    "kpd": "kernel physics distance × 1000",
}  # fmt: skip
SUFFIXES = (".png", ".svg", ".pdf", ".html")


@dataclass(frozen=True)
class Leaderboard:
    """Rows of the data sets chosen, which score and time they are drawn by, and whether these are known."""

    entries: tuple[Entry, ...]
    datasets: tuple[str, ...]
    score: str = AUC
    time: str = "cpu-1"

    def rows(self, dataset: str) -> list[Entry]:
        """Rows of one data set without Geant4, best score first."""
        own = [e for e in self.entries if e.dataset == dataset and e.name != GEANT4]
        return sorted(own, key=lambda e: (e.value(self.score) or (math.inf, 0))[0])

    def floors(self, dataset: str) -> list[Entry]:
        """Geant4 against Geant4: the published one, ours."""
        return [e for e in self.entries if e.dataset == dataset and e.name == GEANT4]

    def title(self, dataset: str) -> str:
        return TITLES.get(dataset, f"{dataset} (shipped sample)")

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the picture (.png, .svg, .pdf) or the page with picture and tables (.html)."""
        from . import leaderboard_plots

        path = require_writable(path, force)
        kind = path.suffix[1:]
        content = leaderboard_plots.page(self) if kind == "html" else leaderboard_plots.picture(self, kind)
        with io.new_file(path, force=force) as temporary:
            temporary.write_bytes(content)
        return path

    def print(self) -> None:
        """The rows as tables on standard output."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        console = Console(width=120)
        for dataset in self.datasets:
            table = Table(title=plain_text(self.title(dataset)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for k, name in enumerate(HEADS):
                table.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
            for entry in [*self.rows(dataset), *self.floors(dataset)]:
                style = "dim" if entry.name == GEANT4 else ("" if entry.published else "bold")
                table.add_row(*cells(entry), style=style)
            console.print(table)
        console.print(NOTE, style="dim", highlight=False)


HEADS = (
    "submission", "AUC\nlow", "AUC\nhigh", "AUC\nResNet", "FPD\n× 10³", "KPD\n× 10³", "CPU ms\nbatch 1", "CPU ms\n100",
    "GPU ms\nbatch 1", "GPU ms\n100", "para-\nmeters", "pub-\nlished",
)  # fmt: skip
NOTE = (
    "Published: Krause et al., 2410.21611; Geant4 rows are the floors of the scores. Times are per shower. Ours were "
    "judged by another classifier (whitened inputs) with another Geant4 sample of another size, and timed on another "
    "computer: compare orders of magnitude of the times, and scores with their own floor."
)


def cells(entry: Entry) -> list[str]:
    """The texts of a row below HEADS."""
    name = entry.name if entry.name != GEANT4 else f"{GEANT4}, the floor"
    out = [name]
    for what in ("auc_low", "auc_high", "auc_resnet", "fpd", "kpd", "cpu-1", "cpu-100", "gpu-1", "gpu-100"):
        value = entry.value(what)
        auc = what.startswith("auc")
        out.append("" if value is None else f"{value[0]:.3f}" if auc else three_digits(value[0]))
    return [*out, short(entry.parameters[1] or entry.parameters[0]), "yes" if entry.published else "no"]


def three_digits(number: float) -> str:
    """Three digits, thousands separated, at most three decimals: 0.793, 37.9, 15,700."""
    digits = min(3, 2 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{round(number, digits):,.{max(digits, 0)}f}"


def short(number: float) -> str:
    """A count with three digits: 521k, 18.8M, 3.84G."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.0f}" if number else ""


def plain_text(title: str) -> str:
    """A title without the mathematics of matplotlib."""
    return title.replace("$^+$", "⁺")


def leaderboard(
    dataset: str | None = None, *, score: str = AUC, time: str = "cpu-1", add: Sequence[str] = ()
) -> Leaderboard:
    """The rows of one data set, or of all.

    score: what stands on the vertical axis (SCORES), time: on the horizontal one (TIMES, device and batch). add: models
    beside them, each ``name:metrics.json`` or ``name:metrics.json:benchmark.json``; they need a data set to stand in.
    """
    entries = [*published(), *shipped()]
    known = tuple(dict.fromkeys([*TITLES, *(e.dataset for e in entries)]))
    for what, given, choices in (("score", score, tuple(SCORES)), ("time", time, TIMES)):
        if given not in choices:
            raise ValueError(f"got {what} {given!r}, expected one of {', '.join(choices)}; choose one of them")
    if dataset is not None and dataset not in known:
        raise ValueError(f"got data set {dataset!r}, expected one of {', '.join(known)}; choose one of them")
    if add and dataset is None:
        raise ValueError(f"got --add without a data set, expected one of {', '.join(known)}; name it first")
    entries += [added(text, str(dataset)) for text in add]
    return Leaderboard(tuple(entries), known if dataset is None else (dataset,), score, time)


def require_writable(path: str | Path, force: bool) -> Path:
    """The path, if a picture or page can be written there."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"got output {path}, expected a name that ends in {', '.join(SUFFIXES)}; change it")
    return io.require_absent(path, force)
