"""Figures of the report: drawn once, shown on the page as SVG or written for papers as PNG and PDF."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

from .energy import response_panels
from .judges import judge_panels
from .observables import observable_panels
from .profiles import correlations, profiles
from .showers import mean_showers, nearest_neighbours
from .style import PAGE_STYLE, PAPER_DPI, TICKS, Drawing, Image, paper_style, svg

if TYPE_CHECKING:
    from ..report import Report

SECTIONS = {
    "observables": observable_panels, "profiles": profiles, "layers": mean_showers, "correlations": correlations,
    "response": response_panels, "judges": judge_panels, "examples": nearest_neighbours,
}  # fmt: skip


def drawings(reports: "Sequence[Report]") -> Iterator[tuple[str, Drawing]]:
    """All figures of reports with one reference, with the section they belong to, one after the other."""
    for section, draw in SECTIONS.items():
        for drawing in draw(reports):
            yield section, drawing


def figures(reports: "Sequence[Report]") -> dict[str, list[Image]]:
    """All figures for the page, by section."""
    out: dict[str, list[Image]] = {section: [] for section in SECTIONS}
    with matplotlib.rc_context(PAGE_STYLE | TICKS):
        for section, drawing in drawings(reports):
            out[section].append(svg(drawing))
    return out


def write_figures(reports: "Sequence[Report]", folder: Path) -> list[Path]:
    """Every figure as PNG and PDF in the existing folder, in mplhep's style and with a legend."""
    written = []
    with matplotlib.rc_context(paper_style() | TICKS):
        for _, drawing in drawings(reports):
            axes = drawing.figure.axes[0]
            labelled = len(axes.get_legend_handles_labels()[1]) > 1
            if labelled and axes.get_legend() is None:
                axes.legend()
            for suffix in ("png", "pdf"):
                written.append(folder / f"{drawing.name}.{suffix}")
                drawing.figure.savefig(written[-1], dpi=PAPER_DPI, bbox_inches="tight", metadata=_UNDATED[suffix])
    return written


_UNDATED = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
