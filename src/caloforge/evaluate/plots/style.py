"""How figures look: one drawing code, two styles. On the page SVG that follows its colours, in papers mplhep's.

Matplotlib figures are built without pyplot, so no global figure or style is touched.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...geometry import Array

# Each colour is a variable of the page's style sheet too, where dark mode has another value for it.
INK, FADED, PAPER, REFERENCE, REFERENCE_FILL = "#1d2733", "#5c6876", "#fefefe", "#48617c", "#bccad8"
CANDIDATES = ("#d55e01", "#0072b3", "#009e74", "#b0478f", "#7a5c00", "#5b4bb5")  # told apart by colour-blind people
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (7, 1.5, 1.5, 1.5)))
MARKERS = "osD^vP"
VARIABLES = {INK: "ink", FADED: "faded", PAPER: "card", REFERENCE: "reference", REFERENCE_FILL: "reference-fill"} | {
    colour: f"c{number + 1}" for number, colour in enumerate(CANDIDATES)
}
ENERGIES, DIFFERENCES = "viridis", "RdBu_r"
PAGE_STYLE: dict[Any, Any] = {
    "font.size": 9, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": FADED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": FADED, "ytick.color": FADED,
    "axes.titlesize": 10, "legend.frameon": False, "legend.fontsize": 8, "figure.facecolor": "none",
    "axes.facecolor": "none", "savefig.facecolor": "none", "svg.fonttype": "none", "svg.hashsalt": "caloforge",
}  # fmt: skip
TICKS: dict[Any, Any] = {"axes.formatter.limits": (-3, 4), "axes.formatter.useoffset": False}
DPI = 130  # of the images inside a figure on the page
PAPER_DPI = 300
_ROUND = re.compile(r"(\d\.\d\d)\d+")


@dataclass(frozen=True)
class Drawing:
    """One figure. name: of its file; caption: below it; alt: what it shows, in words; candidate: whose, from 1, or 0
    for all."""

    name: str
    figure: Figure
    caption: str
    alt: str
    candidate: int = 0


@dataclass(frozen=True)
class Image:
    """One figure on the page: svg markup, and the texts of its Drawing."""

    svg: str
    name: str
    caption: str
    alt: str
    candidate: int


def paper_style() -> dict[Any, Any]:
    """mplhep's ROOT style, its sizes brought from figures of 10 inches to ours, which fit a column."""
    import mplhep

    style: Mapping[str, Any] = mplhep.style.ROOT
    scale = 9 / style["font.size"]
    sized = re.compile(r"font\.size|.*\.(linewidth|size|pad|width)$")
    out = {key: scale * value if sized.fullmatch(key) else value for key, value in style.items()}
    del out["figure.figsize"]
    return out | {"font.family": [*style["font.sans-serif"][:1], "DejaVu Sans"],  # the second has what the first lacks
                  "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 7, "axes.titlesize": 9,
                  "lines.linewidth": 1.0, "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.minor.width": 0.5,
                  "ytick.minor.width": 0.5, "figure.facecolor": "white", "axes.facecolor": "white",
                  "savefig.facecolor": "white"}  # fmt: skip


def candidate_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the lines of candidate ``number``, from 0; gid: what the page hides it by."""
    return {
        "color": CANDIDATES[number % len(CANDIDATES)],
        "linestyle": DASHES[number % len(DASHES)],
        "gid": f"candidate-{number + 1}",
    }


def bars(axes: Any, x: Array, low: Array, high: Array, number: int, **style: Any) -> None:
    """Vertical error bars of candidate ``number``, or of the reference for -1, as one line with gaps."""
    gap = np.full(len(x), np.nan)
    points = [np.stack(columns, axis=1).ravel() for columns in ((x, x, gap), (low, high, gap))]
    own = {"color": REFERENCE} if number < 0 else candidate_style(number) | {"linestyle": "-"}
    axes.plot(*points, **({"lw": 0.8} | own | style))


def svg(drawing: Drawing) -> Image:
    """The figure as markup for the page: no fixed size, colours as variables, names of its own, two decimals."""
    buffer = BytesIO()
    metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
    drawing.figure.savefig(buffer, format="svg", dpi=DPI, metadata=metadata)
    text = buffer.getvalue().decode("utf-8")
    box = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {box[0] if box else ""} aria-hidden="true" focusable="false">'
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"\s*<(metadata|defs)>\s*(<rdf:RDF.*?|<style.*?)</\1>|<!--.*?-->", "", body, flags=re.S)
    body = _own_names(body, f"f{zlib.crc32(drawing.name.encode()):x}")
    body = re.sub(r' (?:d|x|y|width|height|transform|points)="[^"]*"', _shorter, body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = body.replace("'DejaVu Sans'", "var(--figure-font)").replace("DejaVu Sans", "var(--figure-font)")
    body = re.sub(r">\s+<", "><", body).replace("xlink:href", "href")
    body = _without_bare_groups(re.sub(r'<path d="[^"]*" style="fill: none"/>', "", body))
    return Image(head + body.strip(), drawing.name, drawing.caption, drawing.alt, drawing.candidate)


def _own_names(body: str, prefix: str) -> str:
    """Candidates as classes; ids that something refers to with a prefix, so that a page can hold many figures."""
    body = re.sub(r' id="candidate-(\d+)"', r' class="of-\1"', body)
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    short = {name: f"{prefix}-{number}" for number, name in enumerate(used)}
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{short[m[1]]}"' if m[1] in short else "", body)
    return re.sub(r'(url\(#|href="#)([^")]+)', lambda m: m[1] + short[m[2]], body)


def _without_bare_groups(body: str) -> str:
    """Groups without attributes mean nothing: taken out, what is in them stays."""
    kept: list[bool] = []

    def tag(match: re.Match[str]) -> str:
        if match[0] == "</g>":
            return match[0] if kept.pop() else ""
        kept.append(match[0] != "<g>")
        return match[0] if kept[-1] else ""

    return re.sub(r"<g(?: [^>]*)?>|</g>", tag, re.sub(r"<g[^>]*/>", "", body))


def _shorter(attribute: re.Match[str]) -> str:
    """Numbers of an attribute with two decimals, line breaks of paths taken out."""
    text = re.sub(r"\s*\n\s*", "", attribute[0].rstrip('"').rstrip()) + '"'
    return _ROUND.sub(r"\1", re.sub(r"([MLCQz]) ", r"\1", text))


def log_norm(images: Sequence[Array]) -> LogNorm:
    """A logarithmic colour scale over the positive values of all images, one to five decades."""
    positive = np.concatenate([image[image > 0].ravel() for image in images])
    if len(positive) == 0:
        return LogNorm(1e-3, 1.0)
    high = float(positive.max())
    return LogNorm(np.clip(positive.min(), 1e-5 * high, 0.1 * high) * 0.999, high * 1.001)


def energy_axis(axes: Any, edges: Array) -> None:
    """A logarithmic x axis where the bins call for one, with plain numbers at the decades."""
    if edges[0] > 0 and edges[-1] > 30 * edges[0] and _is_log_spaced(edges):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _is_log_spaced(edges: Array) -> bool:
    return bool(np.std(np.diff(np.log(edges))) < np.std(np.diff(edges)) / np.mean(edges))


def colours(n: int, start: float = 0.0) -> list[str]:
    """n colours of the scale of energies as #rrggbb, from low to high; start: share of the dark end to leave out."""
    return [to_hex(matplotlib.colormaps[ENERGIES](start + (1 - start) * i / (n - 1))) for i in range(n)]
