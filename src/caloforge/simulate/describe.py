"""Detector descriptions: a TOML file to a ``Detector``. Errors name the key and say what belongs there.

    name = "mine"                 width_mm = 400          world = "G4_AIR"
    [[material]]                  name, density_g_cm3, and atoms = {C = 9, H = 10} or mass_fractions = {...}
    [[section]]                   slabs = [{material, mm, read = false}, ...], repeat, name, width_mm
    [readout]                     frame, at_step, threshold_mev
    [[readout.layer]]             alpha and r_mm (polar) or x_mm and y_mm (cartesian); depth_mm or section; repeat
    [gun]                         particle, energy, spectrum, theta, phi, theta_x, theta_y, x, y, aim_mm
    [medium]                      x0_mm, moliere_mm, sampling_fraction, ... where known better than computed

Edges are a list, or {from, to, bins}.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Geometry, Layer, regular
from .detectors import Detector, Readout, Section, Slab
from .gun import gun
from .materials import Material, from_fractions

MEDIUM = {
    "x0_mm": "x0", "interaction_length_mm": "interaction_length", "moliere_mm": "moliere", "zeff": "zeff",
    "critical_mev": "critical", "sampling_fraction": "sampling_fraction",
}  # fmt: skip


class _Table:
    """A table of the file; every key must be asked for, and errors say where it is."""

    def __init__(self, data: Any, where: str, known: str):
        if not isinstance(data, Mapping):
            raise ValueError(f"got {data!r} for {where}, expected a table with {known}; correct it")
        self.data, self.where = data, where
        unknown = sorted(set(data) - set(known.split()))
        if unknown:
            raise ValueError(
                f"got unknown key {unknown[0]!r} in {where}, expected some of {', '.join(known.split())}; correct it"
            )

    def number(self, key: str, default: float | None = None) -> float:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(key, "a number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.data.get(key, default)
        return value if isinstance(value, str) else self.wrong(key, "text")

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key, default)
        return value if isinstance(value, bool) else self.wrong(key, "true or false")

    def count(self, key: str, default: int) -> int:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.wrong(key, "a whole number from 1 on")
        return int(value)

    def tables(self, key: str, known: str) -> list["_Table"]:
        value = self.data.get(key, [])
        if not isinstance(value, list):
            self.wrong(key, "a list of tables")
        return [_Table(item, f"{self.where} {key}[{i}]", known) for i, item in enumerate(value)]

    def table(self, key: str, known: str) -> "_Table":
        return _Table(self.data.get(key, {}), f"{self.where} [{key}]", known)

    def edges(self, key: str) -> tuple[float, ...]:
        value = self.data.get(key)
        if isinstance(value, Mapping):
            t = _Table(value, f"{self.where} {key}", "from to bins")
            return regular(t.number("from"), t.number("to"), t.count("bins", 0))
        if not isinstance(value, list) or not all(isinstance(v, int | float) for v in value):
            return tuple(self.wrong(key, "a list of edges, or {from, to, bins}"))
        return tuple(float(v) for v in value)

    def wrong(self, key: str, expected: str) -> Any:
        said = repr(self.data[key]) if key in self.data else "nothing"
        raise ValueError(f"got {said} for {key} in {self.where}, expected {expected}; correct it")


def read(path: str | Path) -> Detector:
    """The detector that a TOML file describes."""
    try:
        data = tomllib.loads(Path(path).read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"got detector {path}, expected a TOML file; no such file, check the name") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"got detector {path}, expected TOML; {error}, correct it") from None
    top = _Table(data, Path(path).name, "name about source width_mm world material section readout gun medium")
    name = top.text("name")
    sections = tuple(_section(t) for t in top.tables("section", "name slabs repeat width_mm"))
    if not sections:
        top.wrong("section", "at least one [[section]] of slabs")
    medium = top.table("medium", " ".join(MEDIUM))
    given = tuple((MEDIUM[key], medium.number(key)) for key in medium.data)
    particles = top.table("gun", "particle energy spectrum theta phi theta_x theta_y x y aim_mm")
    try:
        own = gun(**{k.removesuffix("_mm"): v for k, v in particles.data.items()}) if particles.data else None
    except TypeError:
        raise ValueError(f"got {particles.where} without particle or energy, expected both; add them") from None
    return Detector(
        name, sections, top.number("width_mm"), _readout(top, name, sections), top.text("world", "G4_Galactic"),
        tuple(_material(t) for t in top.tables("material", "name density_g_cm3 atoms mass_fractions")), given, own,
        top.text("about", ""), top.text("source", ""),
    )  # fmt: skip


def _section(t: _Table) -> Section:
    slabs = tuple(
        Slab(s.text("material"), s.number("mm"), s.flag("read", False)) for s in t.tables("slabs", "material mm read")
    )
    width = t.number("width_mm") if "width_mm" in t.data else None
    return Section(slabs, t.count("repeat", 1), t.text("name", ""), width)


def _material(t: _Table) -> Material:
    name, density = t.text("name"), t.number("density_g_cm3")
    if ("atoms" in t.data) == ("mass_fractions" in t.data):
        t.wrong("atoms", "a table of atoms or of mass_fractions, one of them")
    key = "atoms" if "atoms" in t.data else "mass_fractions"
    shares = {symbol: _Table(t.data[key], f"{t.where} {key}", " ".join(t.data[key])).number(symbol)
              for symbol in t.data[key]}  # fmt: skip
    if not name.isalnum() or not name[:1].isupper():
        t.wrong("name", "letters and digits with a capital first (Geant4 wants that)")
    return Material(name, density, tuple(shares.items())) if key == "atoms" else from_fractions(name, density, shares)


def _readout(top: _Table, name: str, sections: tuple[Section, ...]) -> Readout:
    t = top.table("readout", "layer frame at_step threshold_mev")
    fronts = np.cumsum([0.0, *(s.depth for s in sections)]).tolist()
    places = {s.name: (fronts[i], fronts[i + 1]) for i, s in enumerate(sections) if s.name}
    layers: list[Layer] = []
    scale: list[float] = []
    for entry in t.tables("layer", "alpha r_mm x_mm y_mm depth_mm section repeat scale number"):
        repeat = entry.count("repeat", 1)
        for i in range(repeat):
            layers.append(_layer(entry, places, i, len(layers)))
            scale.append(entry.number("scale", 1.0))
    if not layers:
        t.wrong("layer", "at least one [[readout.layer]]")
    return Readout(
        Geometry(name, tuple(layers)), t.text("frame", "detector"), t.text("at_step", "start"), tuple(scale),  # type: ignore[arg-type]
        t.number("threshold_mev", 0.0),
    )  # fmt: skip


def _layer(t: _Table, places: Mapping[str, tuple[float, float]], i: int, number: int) -> Layer:
    if "section" in t.data:
        if t.text("section") not in places:
            t.wrong("section", f"one of the named sections ({', '.join(places) or 'there are none'})")
        front, back = places[t.text("section")]
    else:
        depth = t.edges("depth_mm")
        if len(depth) != 2 or not depth[0] < depth[1]:
            t.wrong("depth_mm", "[front, back] in mm, rising")
        # Multiples of the thickness from the front, so that repeated layers meet exactly.
        thick = depth[1] - depth[0]
        front, back = (depth[0] + round(k * thick, 9) if k else depth[0] for k in (i, i + 1))
        if i == 0:
            back = depth[1]
    polar = "r_mm" in t.data
    if polar == ("x_mm" in t.data or "y_mm" in t.data):
        t.wrong("r_mm", "either r_mm and alpha, or x_mm and y_mm")
    if polar:
        first, second = regular(-np.pi, np.pi, t.count("alpha", 1)), t.edges("r_mm")
    else:
        first, second = t.edges("x_mm"), t.edges("y_mm")
    own = int(t.number("number")) + i if "number" in t.data else number
    return Layer("polar" if polar else "cartesian", first, second, (front, back), own)
