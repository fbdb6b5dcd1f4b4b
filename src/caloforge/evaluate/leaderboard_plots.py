"""The picture of the leaderboard: quality against time, one panel per data set, and the page around it.

Published submissions are open grey circles, our models filled and coloured. Down is closer to Geant4, left is faster.
"""

import base64
import textwrap
from importlib.resources import files
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from . import leaderboard as board
from . import leaderboard_labels as labels
from .leaderboard_sources import Entry, Measured
from .plots.style import CANDIDATES, FADED, PAGE_STYLE, REFERENCE

TEMPLATE = "leaderboard.html.j2"
GREY = "#8c959f"
GLOW = LinearSegmentedColormap.from_list("glow", ["#ffffff", "#e3f1ea"])
N_COLUMNS = 2


def picture(table: board.Leaderboard, kind: str) -> bytes:
    """The figure as png, svg or pdf."""
    with matplotlib.rc_context(PAGE_STYLE | {"font.size": 10}):
        figure = draw(table)
        buffer = BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(buffer, format=kind, dpi=150, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def page(table: board.Leaderboard) -> bytes:
    """One HTML page that needs no other file: the picture, and the numbers below it."""
    import jinja2

    source = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"text": board.plain_text}
    image = base64.b64encode(picture(table, "png")).decode("ascii")
    text = environment.from_string(source).render(
        table=table, image=image, heads=[h.replace("-\n", "").replace("\n", " ") for h in board.HEADS],
        cells=board.cells, note=board.NOTE, score=board.SCORES[table.score], time=time_label(table.time),
    )  # fmt: skip
    return text.encode("utf-8")


def time_label(time: str) -> str:
    device, _, batch = time.partition("-")
    return f"{device.upper()} time per shower in batches of {int(batch):,} [ms]"


def draw(table: board.Leaderboard) -> Figure:
    """All panels, with the key below."""
    n = len(table.datasets)
    columns = min(n, N_COLUMNS)
    rows = -(-n // columns)
    width, height = (8.6, 6.4) if n == 1 else (7.4 * columns, 5.6 * rows)
    figure = Figure(figsize=(width, height + 0.9), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12))
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[n:]:
        panel.set_axis_off()
        _explain(panel)
    limits = _time_limits(table)
    for panel, dataset in zip(panels, table.datasets, strict=False):
        _frame(panel, table, dataset, limits)
        _points(panel, table, dataset)
    _key(figure)
    title = "Fast calorimeter simulation: closer to Geant4 is down, faster is left"
    figure.suptitle(title, x=0.012, ha="left", fontsize=15 if n > 1 else 13, fontweight="bold")
    figure.draw_without_rendering()  # the layout has to be final before labels are placed in pixels
    figure.set_layout_engine("none")
    for panel, dataset in zip(panels, table.datasets, strict=False):
        _names(panel, _drawn(table, dataset))
    return figure


def _explain(axes: Any) -> None:
    """What the numbers mean, in a cell of the grid that has no data set."""
    paragraphs = (
        "AUC: how well a network tells simulated showers from Geant4 showers. 0.5 is perfect, 1 is always told apart.",
        "Circles are the submissions to the CaloChallenge, from the tables of its final paper: one classifier, one "
        "computer. The two Geant4 files of data set 1, pions, differ: its floor is 0.61.",
        "Stars are the models that come with caloforge. Their Geant4 sample, its size, the classifier (with whitened "
        "inputs) and the computer are others: compare orders of magnitude of the time, and AUCs with their own floor.",
    )
    text = "\n\n".join(textwrap.fill(paragraph, 62) for paragraph in paragraphs)
    axes.text(0.08, 0.92, text, transform=axes.transAxes, va="top", fontsize=11.5, color=FADED, linespacing=1.35)


def _time_limits(table: board.Leaderboard) -> tuple[float, float]:
    """One range of times for all panels, so that they can be compared."""
    chosen = [e for e in table.entries if e.dataset in table.datasets]
    times = [value[0] for e in chosen if (value := e.value(table.time))] or [1.0]
    return 0.35 * min(times), 3.5 * max(times)


def _drawn(table: board.Leaderboard, dataset: str) -> list[tuple[Entry, Measured, Measured]]:
    """Rows that have both a time and a score."""
    rows = [(e, e.value(table.time), e.value(table.score)) for e in table.rows(dataset)]
    return [(e, time, score) for e, time, score in rows if time and score and (score[0] > 0 or table.score != "fpd")]


def _frame(axes: Any, table: board.Leaderboard, dataset: str, limits: tuple[float, float]) -> None:
    """Axes, the glow towards the good corner, and what Geant4 itself reaches."""
    is_auc = table.score.startswith("auc")
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    if is_auc:
        axes.set_ylim(0.45, 1.03)
    elif table.score == "fpd":
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=0.1)
    if not is_auc:
        values = [e.value(table.score) for e in table.entries if e.dataset == dataset]
        found = [v[0] for v in values if v] or [0.1, 100.0]
        low, high = min(found), max(found)
        axes.set_ylim(0.4 * low if low > 0 else low - 0.1, 3 * max(high, 0.1))
    corner = np.add.outer(np.linspace(0, 1, 64), np.linspace(1, 0, 64)) / 2
    axes.imshow(corner**2, extent=(0, 1, 0, 1), transform=axes.transAxes, aspect="auto", cmap=GLOW, zorder=-5,
                interpolation="bicubic", vmin=0, vmax=0.8)  # fmt: skip
    axes.grid(True, which="major", color="#e6eaee", lw=0.7, zorder=-4)
    axes.set_title(table.title(dataset), loc="left", fontweight="bold", fontsize=11)
    axes.set_xlabel(time_label(table.time))
    axes.set_ylabel(board.SCORES[table.score])
    for geant4 in table.floors(dataset):
        _geant4(axes, geant4, table)


def _geant4(axes: Any, geant4: Entry, table: board.Leaderboard) -> None:
    """The floor as a line across, and the time of Geant4 as one upwards, where they are known."""
    colour = REFERENCE
    floor, time = geant4.value(table.score), geant4.value(table.time)
    if floor:
        axes.axhspan(floor[0] - floor[1], floor[0] + floor[1], color=colour, alpha=0.18, lw=0, zorder=1)
        axes.axhline(floor[0], color=colour, lw=1.3, zorder=1)
        whose = "" if geant4.published else ", our sample"
        text = f"Geant4 against Geant4{whose} {board.three_digits(floor[0])}"
        axes.annotate(text, (1, floor[0]), (-4, -4), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                      fontsize=8.5, color=colour, ha="right", va="top")  # fmt: skip
    if time:
        axes.axvline(time[0], color=colour, lw=1.3, zorder=1)
        axes.annotate(f"Geant4, {board.three_digits(time[0])} ms", (time[0], 1), (-4, -4), rotation=90, fontsize=8.5,
                      xycoords=axes.get_xaxis_transform(), textcoords="offset points", color=colour, ha="right",
                      va="top")  # fmt: skip


def _points(axes: Any, table: board.Leaderboard, dataset: str) -> None:
    drawn = _drawn(table, dataset)
    front = _front([(time[0], score[0]) for e, time, score in drawn if e.published])
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=GREY, lw=1, ls=(0, (4, 3)), alpha=0.7, zorder=1.5)
    number = 0
    for entry, time, score in drawn:
        if entry.published:
            style = {"color": GREY, "mfc": "white", "mec": "#6e7781", "mew": 1.2, "ms": 7, "marker": "o", "zorder": 3}
        else:
            colour = CANDIDATES[number % len(CANDIDATES)]
            style = {"color": colour, "mec": "white", "mew": 0.8, "ms": 15, "marker": "*", "zorder": 5}
            number += 1
        axes.errorbar(time[0], score[0], score[1], time[1], elinewidth=0.9, **style)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one beats in both time and score, by rising time."""
    out: list[tuple[float, float]] = []
    for time, score in sorted(points):
        if not out or score < out[-1][1]:
            out.append((time, score))
    return out


def _key(figure: Figure) -> None:
    """What the symbols mean and what may not be compared."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", mfc="white", mec="#6e7781", mew=1.2, ms=7, label="published (2410.21611)"),
        Line2D([], [], ls="", marker="*", color=CANDIDATES[0], mec="white", ms=15,
               label="caloforge: another Geant4 sample, classifier and CPU"),
        Line2D([], [], color=GREY, lw=1, ls=(0, (4, 3)), label="best published trade-off"),
        Line2D([], [], color=REFERENCE, lw=1.3, label="Geant4 itself"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=4 if figure.get_figwidth() > 10 else 2, fontsize=9)


def _names(axes: Any, drawn: list[tuple[Entry, Measured, Measured]]) -> None:
    points = np.array([(time[0], score[0]) for _, time, score in drawn])
    if len(points):
        labels.write(axes, points, [e.name for e, _, _ in drawn], [not e.published for e, _, _ in drawn])
    else:
        axes.text(0.5, 0.5, "no model has both numbers", transform=axes.transAxes, ha="center", color=FADED)
