"""A picture of a detector: side view of the slabs, and the mesh that each kind of layer is read out with."""

from pathlib import Path

import numpy as np

from .. import io
from ..geometry import Layer
from .detectors import Detector

COLOURS = ("#4c566a", "#88c0d0", "#d08770", "#a3be8c", "#b48ead", "#ebcb8b", "#5e81ac")
SHOWN = 8  # meshes drawn; equal layers are drawn once


def draw(detector: Detector, path: str | Path, *, force: bool = False) -> None:
    """Write a PNG, PDF or SVG picture of the detector; ``force`` replaces an existing file."""
    path = Path(path)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"got picture {path}, expected a name ending in .png, .pdf or .svg; change it")
    io.require_absent(path, force)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    meshes = _distinct(detector.geometry.layers)
    shown = meshes[:SHOWN]
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1.6, 1)))
    _side_view(top.subplots(), detector)
    for axes, (numbers, layer) in zip(np.atleast_1d(bottom.subplots(1, len(shown))), shown, strict=True):
        _mesh(axes, numbers, layer)
    more = f" (first {SHOWN} of {len(meshes)} kinds)" if len(meshes) > SHOWN else ""
    bottom.suptitle(f"readout mesh, {detector.frame} frame: {detector.geometry.n_voxels:,} voxels{more}", fontsize=11)
    with io.new_file(path, force=force) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:])


def _side_view(axes, detector: Detector) -> None:  # type: ignore[no-untyped-def]
    colour: dict[str, str] = {}
    z = 0.0
    for section in detector.sections:
        half = (section.width or detector.width) / 2
        for _ in range(section.repeat):
            for slab in section.slabs:
                first = slab.material not in colour
                colour.setdefault(slab.material, COLOURS[len(colour) % len(COLOURS)])
                label = f"{slab.material}{' (read out)' if slab.sensitive else ''}" if first else None
                axes.fill_between([z, z + slab.thickness], -half, half, color=colour[slab.material], lw=0, label=label)
                z += slab.thickness
    depths = [layer.depth for layer in detector.geometry.layers if layer.depth is not None]
    edges = sorted({e for depth in depths for e in depth})
    if len(edges) <= 20:
        axes.vlines(edges, -detector.width / 2, detector.width / 2, color="#bf616a", lw=1.2, ls="--",
                    label="readout layers")  # fmt: skip
    gun = detector.gun
    if gun is not None:
        axes.annotate("", (0, 0), (-0.12 * detector.depth, 0), arrowprops={"arrowstyle": "-|>", "color": "#2e3440"})
    axes.set_xlim(-0.14 * detector.depth, 1.02 * detector.depth)
    axes.set_xlabel("depth z [mm]")
    axes.set_ylabel("x [mm]")
    m = detector.medium
    axes.set_title(
        f"{detector.name}: {_lengths(detector, 'x0'):.1f} $X_0$, {_lengths(detector, 'interaction_length'):.2f} "
        rf"$\lambda$; $X_0$ {m.x0:.1f} mm, $R_M$ {m.moliere:.1f} mm, sampling fraction {m.sampling_fraction:.3g}",
        fontsize=11,
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _mesh(axes, numbers: list[int], layer: Layer) -> None:  # type: ignore[no-untyped-def]
    if layer.kind == "polar":
        circle = np.linspace(layer.first[0], layer.first[-1], 181)
        for r in layer.second:
            axes.plot(r * np.cos(circle), r * np.sin(circle), color="#4c566a", lw=0.5)
        if layer.shape[0] > 1:
            for a in layer.first:
                ends = np.array([layer.second[0], layer.second[-1]])
                axes.plot(ends * np.cos(a), ends * np.sin(a), color="#4c566a", lw=0.5)
    else:
        axes.vlines(layer.first, layer.second[0], layer.second[-1], color="#4c566a", lw=0.5)
        axes.hlines(layer.second, layer.first[0], layer.first[-1], color="#4c566a", lw=0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("x [mm]", fontsize=8)
    axes.tick_params(labelsize=7)
    kind = "alpha x r" if layer.kind == "polar" else "x x y"
    named = f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {numbers[0]}..{numbers[-1]}"
    axes.set_title(f"{named}\n{layer.shape[0]} x {layer.shape[1]} ({kind})", fontsize=9)


def _distinct(layers: tuple[Layer, ...]) -> list[tuple[list[int], Layer]]:
    """Runs of layers with equal edges: their numbers, and the first of them."""
    out: list[tuple[list[int], Layer]] = []
    for i, layer in enumerate(layers):
        number = i if layer.number is None else layer.number
        if out and (out[-1][1].kind, out[-1][1].first, out[-1][1].second) == (layer.kind, layer.first, layer.second):
            out[-1][0].append(number)
        else:
            out.append(([number], layer))
    return out


def summary(detector: Detector) -> dict[str, str]:
    """What a detector is, as lines of text."""
    m = detector.medium
    stack = [
        f"{s.repeat} x ({' + '.join(f'{v.thickness:g} mm {v.material}' for v in s.slabs)})" for s in detector.sections
    ]
    read_out = sorted({v.material for s in detector.sections for v in s.slabs if v.sensitive})
    return {
        "detector": detector.name, "about": detector.about, "source": detector.source, "stack": ", ".join(stack),
        "read out": ", ".join(read_out),
        "depth": f"{detector.depth:g} mm = {_lengths(detector, 'x0'):.1f} X0 = "
                 f"{_lengths(detector, 'interaction_length'):.2f} lambda",
        "X0": f"{m.x0:.2f} mm", "lambda": f"{m.interaction_length:.0f} mm", "Moliere radius": f"{m.moliere:.1f} mm",
        "sampling fraction": f"{m.sampling_fraction:.3g}" + ("" if dict(detector.given).get("sampling_fraction")
                                                             else " (estimated from minimum ionisation)"),
        "gun": _gun_text(detector),
    }  # fmt: skip


def _lengths(d: Detector, name: str) -> float:
    """Depth of the detector in radiation or interaction lengths, slab by slab."""
    return float(
        sum(s.repeat * v.thickness / getattr(d.material(v.material), name) for s in d.sections for v in s.slabs)
    )


def _gun_text(detector: Detector) -> str:
    gun = detector.gun
    if gun is None:
        return "none: give --particle and --energy"
    from particle import Particle

    parts = [Particle.from_pdgid(gun.pdg).name, f"{gun.energy.low / 1e3:g}..{gun.energy.high / 1e3:g} GeV"]
    parts.append(gun.energy.kind.replace("_", "-"))
    for name in ("theta_x", "theta_y"):
        spread = getattr(gun, name)
        if spread is not None and spread.sigma is not None:
            parts.append(f"{name} normal, {np.degrees(spread.sigma):g} deg")
    if gun.x.low != gun.x.high:
        parts.append(f"x, y {gun.x.low:g}..{gun.x.high:g} mm at depth {gun.aim:g} mm")
    return ", ".join(parts)
