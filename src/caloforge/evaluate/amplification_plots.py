"""Figures of the amplification experiment: N_eq/N_train against the number of boxes, and what backs it up."""

from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from . import amplification as amp
from .amplification_result import Amplification, Point
from .plots.style import CANDIDATES, FADED, INK, PAGE_STYLE, REFERENCE

LABELS = {
    "sample": "training sample itself", "bootstrap": "bootstrap (negative control)", "fit": "fit of the right function",
    "kde": "Gaussian kernels", "network": "flow matching network",
}  # fmt: skip
COLOURS = {
    "sample": FADED, "bootstrap": REFERENCE, "fit": CANDIDATES[2], "kde": CANDIDATES[1], "network": CANDIDATES[0],
}  # fmt: skip
MARKERS = {"sample": "s", "bootstrap": "D", "fit": "^", "kde": "o", "network": "*"}
JOINT_COLOUR = CANDIDATES[0]
SHADE = "#eef1f4"  # where N_eq < N_train


def png(result: Amplification) -> bytes:
    """The figure of a result as PNG."""
    with matplotlib.rc_context(PAGE_STYLE):
        figure = toys(result) if result.kind == "toys" else showers(result)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def toys(result: Amplification) -> Figure:
    """Above N_eq/N_train against boxes, below MSE against generated points, a column per toy."""
    subjects = result.subjects
    figure = Figure(figsize=(4.3 * len(subjects), 7.6), layout="constrained")
    axes = figure.subplots(2, len(subjects), squeeze=False)
    for column, subject in enumerate(subjects):
        _gain(axes[0, column], result, subject)
        _mse(axes[1, column], result, subject)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9.5)
    _title(figure, "How many points of the truth is a generated sample worth?")
    return figure


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


def _style(name: str) -> dict[str, Any]:
    size = {"network": 9, "sample": 7, "bootstrap": 4}.get(name, 5)
    return {"color": COLOURS[name], "marker": MARKERS[name], "ms": size, "mfc": "none" if name == "sample" else None}


def _below_one(axes: Any) -> None:
    """The line N_eq = N_train, with the losing side shaded."""
    axes.axhspan(1e-9, 1, color=SHADE, lw=0, zorder=0)
    axes.axhline(1, color=INK, lw=0.9, zorder=1)


def _note(axes: Any, x: float, y: float, text: str, colour: str, up: bool) -> None:
    """Words at the right end of a horizontal line, clear of the markers on it."""
    axes.annotate(text, (x, y), (0, 6 if up else -6), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                  fontsize=8.5, color=colour, ha="right", va="bottom" if up else "top")  # fmt: skip


def _limits(values: list[float], least: float, most: float) -> tuple[float, float]:
    """Logarithmic limits around the finite values that show [least, most] at least."""
    finite = [v for v in values if np.isfinite(v) and v > 0]
    return min([least, *(0.8 * v for v in finite)]), max([most, *(1.3 * v for v in finite)])


def _gain(axes: Any, result: Amplification, subject: str) -> None:
    _below_one(axes)
    seen: list[float] = []
    for name in result.contestants:
        points = result.select(subject, name)
        x, y, error = ([getattr(p, key) for p in points] for key in ("n_quantiles", "gain", "gain_error"))
        axes.errorbar(x, y, error, label=LABELS[name], lw=1.5, zorder=3, **_style(name))
        seen += y
    n_train = result.settings["n_train"][subject]
    axes.set_title(f"{subject}, {n_train} training points", loc="left", fontweight="bold")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*_limits(seen, 0.4, 4))
    _note(axes, 0.98, 1, "$N_{eq} = N_{train}$", INK, up=False)
    axes.set_xlabel("boxes of equal probability $N_q$")
    axes.set_ylabel("$N_{eq}/N_{train}$")


def _mse(axes: Any, result: Amplification, subject: str) -> None:
    """MSE(N_gen) for the finest boxes but one, with the law of a truth sample of that size."""
    sizes = sorted({p.n_quantiles for p in result.points if p.subject == subject})
    n_quantiles = sizes[-2] if len(sizes) > 1 else sizes[-1]
    n_train, most = result.settings["n_train"][subject], max(result.settings["n_gen"][subject])
    line = np.geomspace(0.5 * n_train, 2 * most, 60)
    law = np.array([amp.expected_mse(n, n_quantiles) for n in line])
    axes.plot(line, law, color=INK, lw=0.9, ls="--")
    axes.text(line[38], law[38], "N points of the truth  ", fontsize=8.5, color=INK, ha="right", va="top")
    level = amp.expected_mse(n_train, n_quantiles)
    axes.axhline(level, color=FADED, lw=0.9)
    _note(axes, 0.98, level, f"{n_train} training points", FADED, up=True)
    for curve in result.curves:
        if curve.subject == subject and curve.n_quantiles == n_quantiles:
            style = _style(curve.contestant)
            axes.errorbar(curve.n, curve.value, curve.error, ls="none", zorder=3, **style)
            if len(curve.n) > 1:
                point = next(p for p in result.select(subject, curve.contestant) if p.n_quantiles == n_quantiles)
                slope = (curve.value[0] - point.mse) * curve.n[0]
                axes.plot(line, point.mse + slope / line, color=style["color"], lw=1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"{n_quantiles} boxes", loc="left")
    axes.set_xlabel("generated points $N_{gen}$")
    axes.set_ylabel("mean squared error of the shares")


def showers(result: Amplification) -> Figure:
    """Left N_eq/N_train against boxes per observable, right the calibration line with truth subsets."""
    from .amplification_showers import BOOTSTRAP, GENERATED, JOINT

    figure = Figure(figsize=(12.4, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _below_one(left)
    single = [subject for subject in result.subjects if subject != JOINT]
    scale = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, max(len(single), 1)))
    colours: dict[str, Any] = dict(zip(single, scale, strict=False)) | {JOINT: JOINT_COLOUR}
    seen: list[float] = []
    for subject in result.subjects:
        style = {"marker": "*", "ms": 9, "lw": 2.2} if subject == JOINT else {"marker": "o", "ms": 4, "lw": 1.2}
        seen += _observable(
            left, result.select(subject, GENERATED), label=subject, color=colours[subject], zorder=3, **style
        )
        control = result.select(subject, BOOTSTRAP)
        label = "bootstrap control of each" if subject == result.subjects[-1] else None
        x, y = [p.n_quantiles for p in control], [p.gain for p in control]
        left.plot(x, y, "D", color=REFERENCE, ms=4, mfc="none", label=label)
        seen += y
    left.set_xscale("log")
    left.set_yscale("log")
    low, high = _limits(seen, 0.3, 3)
    left.set_ylim(low, high * (high / low) ** 0.25)  # room for the legend
    left.set_xlabel("boxes $N_q$")
    left.set_ylabel("$N_{eq}/N_{train}$ (arrows: lower limits, 95 %)")
    facts = result.settings
    sizes = f"{facts['n_train']:,} training, {facts['n_generated']:,} generated, {facts['n_truth']:,} truth showers"
    left.set_title(sizes, loc="left")
    left.legend(fontsize=8, ncols=3, loc="upper left")
    _calibration(right, result, colours)
    _title(figure, "How many truth showers is the generated sample worth?")
    return figure


def _observable(axes: Any, points: list[Point], **style: Any) -> list[float]:
    """One line of measured points, and arrows at the lower limits of the others; returns what was drawn."""
    known = [p for p in points if np.isfinite(p.n_eq)]
    x, y, error = ([getattr(p, key) for p in known] for key in ("n_quantiles", "gain", "gain_error"))
    axes.errorbar(x, y, error, **style)
    limits = [(p.n_quantiles, p.n_eq_limit / p.n_train) for p in points if not np.isfinite(p.n_eq)]
    for at, limit in limits:
        arrow = {"arrowstyle": "-|>", "color": style["color"], "lw": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (at, 1.5 * limit), (at, limit), arrowprops=arrow, zorder=3)
    return y + [1.5 * limit for _, limit in limits]


def _calibration(axes: Any, result: Amplification, colours: dict[str, Any]) -> None:
    """N_eq against N for truth subsets: every observable at its middle number of boxes."""
    sizes = np.array(sorted({n for curve in result.curves for n in curve.n}), dtype=float)
    line = np.array([0.7 * sizes[0], 1.4 * sizes[-1]])
    axes.plot(line, line, color=INK, lw=0.9, ls="--")
    axes.annotate("$N_{eq} = N$", line[[0, 0]], (8, -2), textcoords="offset points", fontsize=8.5, va="top", color=INK)
    for number, subject in enumerate(result.subjects):
        curves = [curve for curve in result.curves if curve.subject == subject]
        curve = curves[len(curves) // 2]
        shift = 1 + 0.012 * (number - 0.5 * len(result.subjects))
        x = np.array(curve.n) * shift
        axes.errorbar(x, curve.value, curve.error, fmt="o", ms=4, lw=1, color=colours[subject])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5 * line[0], 2 * line[1])
    axes.set_title("Calibration: subsets of the truth, coloured by observable", loc="left")
    axes.set_xlabel("truth showers N")
    axes.set_ylabel("$N_{eq}$ measured")
