"""The plot of benchmarks/front.py, and the published numbers that stand beside ours.

One panel for each data set: AUC on voxels against ms per shower at batch 1. Down is closer to Geant4, left is faster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from caloforge import io
from caloforge.evaluate import leaderboard_labels as labels
from caloforge.evaluate import leaderboard_sources as sources
from caloforge.evaluate.leaderboard import three_digits
from caloforge.evaluate.leaderboard_plots import _front as pareto
from caloforge.evaluate.plots.style import CANDIDATES, FADED, PAGE_STYLE, REFERENCE
from caloforge.models import MODELS

Measured = tuple[float, float]  # value, error

DATASETS = {
    "calogan-eplus": "CaloGAN's calorimeter, e⁺ 1–100 GeV, 504 voxels",
    "calogan-gamma": "CaloGAN's calorimeter, γ 1–100 GeV, 504 voxels",
    "calogan-piplus": "CaloGAN's calorimeter, π⁺ 1–100 GeV, 504 voxels",
    "lhcb-eminus": "LHCb's calorimeter, oblique e⁻ 1–100 GeV, 900 cells",
    "ds1-gamma": "Like data set 1, γ 0.26–131 GeV, 368 voxels",
    "par04-eminus": "Par04, W/Si, e⁻ 1–100 GeV, 6,480 voxels",
    "jets": "Jet images, W and QCD, 25 × 25",
}
FAMILIES = {
    "flow_matching": "flow matching", "vae": "VAE", "gan": "GAN", "calogan": "CaloGAN", "lhcb_wgan": "LHCb WGAN",
    "lagan": "LAGAN", "calodream": "CaloDREAM", "caloflow": "CaloFlow",
    "caloflow_student": "CaloFlow student",
}  # fmt: skip
# Submissions to the CaloChallenge (data/leaderboard.csv) beside the sample of ours whose detector is alike.
CHALLENGE = {
    "ds1-gamma": ("ds1-photons", ("CaloINN", "CaloDiffusion", "CaloFlow teacher", "CaloFlow student",
                                  "CaloScore single-shot", "CaloVAE+INN", "BoloGAN")),
    "par04-eminus": ("ds2", ("CaloDREAM", "CaloDiffusion", "CaloINN", "conv. L2LFlows", "CaloScore single-shot",
                             "CaloVAE+INN", "MDMA")),
}  # fmt: skip
# In CaloGAN's calorimeter, from memory of the papers' tables: AUC on voxels of CaloGAN, of CaloFlow's teacher and
# student (Krause and Shih 2021, 2110.11377) and of CaloINN (Ernst et al. 2023, 2312.09290).
CALOGAN = {
    "calogan-eplus": ((1.000, 0.0), (0.847, 0.008), (0.785, 0.007), (0.525, 0.0)),
    "calogan-gamma": ((1.000, 0.0), (0.660, 0.006), (0.761, 0.014), (0.53, 0.0)),
    "calogan-piplus": ((1.000, 0.0), (0.632, 0.002), (0.729, 0.002), (0.66, 0.0)),
}
GREY, MARKERS = "#6e7781", "osD^vp"
TICKS = (0.5, 0.52, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0)
LOWEST, HIGHEST, ORIGIN = 0.47, 1.03, 0.4  # of the AUC axis, whose scale is log(AUC - ORIGIN)


@dataclass(frozen=True)
class Published:
    """A row of a paper. times: texts of the time at batch 1 and in large batches; ms: what the plot shows, if known,
    on a GPU or not; floors: texts; other: mesh or energies differ from ours."""

    name: str
    source: str
    auc_low: Measured
    auc_high: Measured | None = None
    fpd: Measured | None = None
    parameters: float = 0.0
    training: str = "–"
    times: tuple[str, str] = ("–", "–")
    ms: float | None = None
    gpu: bool = False
    floors: tuple[str, str, str] = ("", "", "")
    other: bool = False


def published(dataset: str) -> list[Published]:
    """The rows beside a data set of ours; FPD times 1000."""
    if dataset in CALOGAN:
        gan, teacher, student, inn = CALOGAN[dataset]
        flow = "2110.11377"
        return [
            Published("CaloGAN", f"1712.10321, judged in {flow}", gan, training="210 (GPU)", parameters=29726280,
                      times=("13.1", "2.03 (1024)"), ms=13.1),
            Published("CaloFlow teacher", flow, teacher, training="104 (GPU)", times=("–", "36.2 (GPU)"), ms=36.2,
                      gpu=True),
            Published("CaloFlow student", flow, student, training="104 + 480 (GPU)", times=("–", "0.08 (GPU)"),
                      ms=0.08, gpu=True),
            Published("CaloINN", "2312.09290", inn),
        ]  # fmt: skip
    name, chosen = CHALLENGE.get(dataset, ("", ()))
    entries = {e.name: e for e in sources.published() if e.dataset == name}
    out = []
    for entry in (entries[c] for c in chosen):
        auc, one, many = entry.values["auc_low"], entry.values["cpu-1"], entry.value("cpu-100")
        times = (three_digits(one[0]), f"{three_digits(many[0])} (100)" if many else "–")
        floors = [entries[sources.GEANT4].value(score) for score in ("auc_low", "auc_high", "fpd")]
        texts = [f" ({floor[0]:.{digits}f})" if floor else "" for floor, digits in zip(floors, (3, 3, 1), strict=True)]
        out.append(Published(entry.name, "2410.21611", auc, entry.value("auc_high"), entry.value("fpd"),
                             entry.parameters[1], times=times, ms=one[0], floors=(texts[0], texts[1], texts[2]),
                             other=True))  # fmt: skip
    return out


def names(dataset: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A short name for each model: its family, or where several have that, the model without the data set's name."""
    families = [r["family"] for r in models.values()]
    out = []
    for name, family in zip(models, families, strict=True):
        text = FAMILIES.get(family, family.replace("_", " "))
        rest = name.removeprefix(dataset).strip("-").replace("-", " ")
        out.append(text if families.count(family) == 1 or not rest else rest)
    return out


def front(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the models that no other one beats in both AUC on voxels and time at batch 1, by rising time."""
    points = {(r["times"]["1"]["ms"], r["scores"]["auc_low"]["value"]): name for name, r in models.items()}
    return [points[point] for point in pareto(list(points))]


def draw(panels: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """One panel for each data set with models, those of jets left out; panels: data set -> model -> its numbers."""
    panels = {d: models for d, models in panels.items() if models and d != "jets"}
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    with matplotlib.rc_context(PAGE_STYLE | {"font.size": 10}):
        figure = Figure(figsize=(6.8 * columns + 0.4, 5.7 * rows + 0.7), layout=ConstrainedLayoutEngine(h_pad=0.1))
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (dataset, models) in zip(axes, panels.items(), strict=False):
            _panel(ax, dataset, models)
        _key(figure)
        figure.draw_without_rendering()  # the layout has to be final before labels are placed in pixels
        figure.set_layout_engine("none")
        for ax, (dataset, models) in zip(axes, panels.items(), strict=False):
            _label(ax, dataset, models)
    return figure


def save(figure: Figure, path: Path) -> None:
    with io.new_file(path, force=True) as temporary:
        figure.savefig(temporary, format="png", dpi=100, facecolor="white")


def _panel(axes: Any, dataset: str, models: Mapping[str, Mapping[str, Any]]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*_limits(dataset, models))
    axes.set_yscale("function", functions=(_stretched, lambda y: np.exp(y) + ORIGIN))
    lowest = min(LOWEST, *(r["scores"]["auc_low"]["value"] - 0.01 for r in models.values()))
    axes.set_ylim(max(lowest, ORIGIN + 0.01), HIGHEST)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(True, which="major", color="#e6eaee", lw=0.7, zorder=-4)
    axes.set_title(DATASETS.get(dataset, dataset), loc="left", fontweight="bold", fontsize=11)
    axes.set(xlabel="time per shower, batch 1, one CPU thread [ms]", ylabel="AUC on voxels (stretched towards 0.5)")
    floor = [[r["scores"]["auc_low"][key] for r in models.values()] for key in ("floor", "floor_error")]
    middle, error = np.median(floor[0]), np.median(floor[1])
    axes.axhspan(middle - error, middle + error, color=REFERENCE, alpha=0.18, lw=0, zorder=1)
    geant4 = _geant4(models)
    if geant4:
        axes.axvline(geant4, color=REFERENCE, lw=1.4, zorder=1)
        text = f"Geant4, {three_digits(geant4)} ms"
        axes.annotate(text, (geant4, 0), (-4, 4), axes.get_xaxis_transform(), "offset points", ha="right", va="bottom",
                      fontsize=8.5, color=REFERENCE)  # fmt: skip
    best = [(models[n]["times"]["1"]["ms"], models[n]["scores"]["auc_low"]["value"]) for n in front(models)]
    line = [(best[0][0], HIGHEST), *best, (axes.get_xlim()[1], best[-1][1])]
    axes.step(*zip(*line, strict=True), where="post", color=FADED, lw=1.1, ls=(0, (4, 2)), zorder=2)
    for record in models.values():
        score, time = record["scores"]["auc_low"], record["times"]["1"]
        spread = [[min(time["spread"], 0.8 * time["ms"])], [time["spread"]]]  # the axis has no place for zero
        axes.errorbar(time["ms"], score["value"], score["error"], spread, elinewidth=0.9, ms=10, mec="white",
                      mew=0.8, zorder=5, ls="", **_style(record["family"]))  # fmt: skip
    for row in published(dataset):
        axes.plot(_where(axes, row), row.auc_low[0], _symbol(row), mfc="white", mec=GREY, mew=1.2, ms=7, zorder=3)


def _stretched(auc: Any) -> Any:
    return np.log(np.maximum(np.asarray(auc, float) - ORIGIN, 1e-3))


def _limits(dataset: str, models: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """Range of the times of a panel, with room for the names."""
    times = [r["times"]["1"]["ms"] for r in models.values()] + [row.ms for row in published(dataset) if row.ms]
    times += [_geant4(models) or times[0]]
    unknown = any(row.ms is None for row in published(dataset))
    return 0.3 * min(times), (25 if unknown else 4) * max(times)


def _geant4(models: Mapping[str, Mapping[str, Any]]) -> float | None:
    known = [r["geant4_ms"] for r in models.values() if r["geant4_ms"] is not None]
    return float(np.median(known)) if known else None


def _style(family: str) -> dict[str, str]:
    number = list(MODELS).index(family) if family in MODELS else len(MODELS)
    return {"color": CANDIDATES[number % len(CANDIDATES)], "marker": MARKERS[(number // 6 + number) % len(MARKERS)]}


def _symbol(row: Published) -> str:
    return "<" if row.ms is None else "s" if row.gpu else "o"


def _where(axes: Any, row: Published) -> float:
    """Time of a published row; at the right edge where none is known."""
    return row.ms or float(axes.get_xlim()[1] * 0.8)


def _label(axes: Any, dataset: str, models: Mapping[str, Mapping[str, Any]]) -> None:
    rows = published(dataset)
    points = [(r["times"]["1"]["ms"], r["scores"]["auc_low"]["value"]) for r in models.values()]
    points += [(_where(axes, row), row.auc_low[0]) for row in rows]
    texts: Sequence[str] = [*names(dataset, models), *(row.name for row in rows)]
    labels.write(axes, np.array(points), texts, [True] * len(models) + [False] * len(rows))


def _key(figure: Figure) -> None:
    hollow = {"ls": "", "mfc": "white", "mec": GREY, "mew": 1.2, "ms": 7}
    handles = [
        Line2D([], [], ls="", marker="o", color=CANDIDATES[0], mec="white", ms=9, label="caloforge, by family"),
        Line2D([], [], color=FADED, lw=1.1, ls=(0, (4, 2)), label="best trade-off of ours"),
        Line2D([], [], color=REFERENCE, lw=1.4, label="time of Geant4"),
        Patch(color=REFERENCE, alpha=0.18, lw=0, label="Geant4 against Geant4"),
        Line2D([], [], marker="o", label="published: other showers, classifier and CPU", **hollow),
        Line2D([], [], marker="s", label="published: time on a GPU, large batch", **hollow),
        Line2D([], [], marker="<", label="published: time unknown", **hollow),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=7 if figure.get_figwidth() > 17 else 2, fontsize=9)
