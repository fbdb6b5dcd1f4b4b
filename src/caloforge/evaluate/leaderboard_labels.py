"""Names beside points, one after the other where they cover least; in pixels of a figure whose layout is final."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from ..geometry import Array
from .plots.style import INK

GREY, LINE = "#57606a", "#8c959f"
# Offsets of a label from its point [points], by preference: beside it, then above and below, then further away.
ANGLES = (0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240)
DISTANCES = (7, 13, 21, 31, 43, 57)
SIDES = {"left": 0.5, "right": -0.5, "bottom": 0.5, "top": -0.5, "center": 0.0}
WEIGHTS = {"label": 4.0, "point": 2.0, "outside": 60.0, "far": 0.012}


def write(axes: Any, points: Array, names: Sequence[str], own: Sequence[bool]) -> None:
    """Name each point (K, 2), in data coordinates; ``own`` ones bold and first, then from crowded places outwards."""
    places = axes.transData.transform(points)
    scale = axes.figure.dpi / 72
    taken = [_box(place, 6 * scale, 6 * scale) for place in places]
    labels = [text.get_window_extent() for text in axes.texts]
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    order = sorted(range(len(places)), key=lambda k: (not own[k], np.sort(apart[k])[:3].mean()))
    frame = axes.get_window_extent()
    for k in order:
        style = {"fontsize": 10, "fontweight": "bold", "color": INK} if own[k] else {"fontsize": 8.5, "color": GREY}
        text = axes.text(0.5, 0.5, names[k], transform=axes.transAxes, **style)
        size = text.get_window_extent().size
        text.remove()
        others = [box for i, box in enumerate(taken) if i != k]
        offset, box = _place(places[k], size, scale, others, labels, frame)
        labels.append(box)
        _write(axes, names[k], points[k], offset, style)


def _write(axes: Any, name: str, at: Any, offset: Any, style: dict[str, Any]) -> None:
    """A name at an offset [points] from its point, with a line to it where it stands apart, and a white rim."""
    arrow = None
    if np.hypot(*offset) > 1.6 * DISTANCES[0]:
        arrow = {"arrowstyle": "-", "color": LINE, "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
    horizontal, vertical = _alignment(offset)
    text = axes.annotate(name, at, offset, textcoords="offset points", ha=horizontal, va=vertical, zorder=6,
                         arrowprops=arrow, **style)  # fmt: skip
    text.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.8)])


def _alignment(offset: Any) -> tuple[str, str]:
    """Side of a text that faces its point."""
    x, y = offset
    horizontal = "center" if abs(x) < 0.2 * abs(y) else "left" if x > 0 else "right"
    return horizontal, "center" if abs(y) < 0.2 * abs(x) else "bottom" if y > 0 else "top"


def _box(centre: Any, half_width: float, half_height: float) -> Bbox:
    x, y = centre
    return Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)


def _overlap(box: Bbox, others: list[Bbox]) -> float:
    """Summed area that a box shares with others [pixels^2]."""
    if not others:
        return 0.0
    edges = np.array([o.extents for o in others])
    wide = np.minimum(box.x1, edges[:, 2]) - np.maximum(box.x0, edges[:, 0])
    high = np.minimum(box.y1, edges[:, 3]) - np.maximum(box.y0, edges[:, 1])
    return float((np.maximum(wide, 0) * np.maximum(high, 0)).sum())


def _place(
    place: Any, size: Any, scale: float, points: list[Bbox], labels: list[Bbox], frame: Bbox
) -> tuple[Any, Bbox]:
    """The offset [points] of the text that covers least, and the box it takes [pixels]."""
    area = float(size[0] * size[1])
    found: list[tuple[float, int, Any, Bbox]] = []
    for distance in DISTANCES:
        for rank, angle in enumerate(ANGLES):
            offset = distance * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
            horizontal, vertical = _alignment(offset)
            shift = np.array([SIDES[horizontal], SIDES[vertical]]) * size
            box = _box(place + scale * offset + shift, 0.5 * size[0] + scale, 0.5 * size[1])
            outside = 1 - _overlap(box, [frame]) / (box.width * box.height)
            cost = WEIGHTS["far"] * (distance + 0.3 * rank) + WEIGHTS["outside"] * outside
            cost += (WEIGHTS["label"] * _overlap(box, labels) + WEIGHTS["point"] * _overlap(box, points)) / area
            found.append((cost, len(found), offset, box))
    _, _, offset, box = min(found)
    return offset, box
