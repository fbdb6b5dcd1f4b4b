"""Detectors that Geant4 can build: sections of slabs along z, and the mesh that their deposits are read out with.

z runs along the depth; z = 0 is the front face, x = y = 0 the beam spot. Lengths in mm. The detectors of the package
are TOML descriptions in ``caloforge/data/detectors``; a file of one's own is read the same way (``describe``).
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..geometry import Geometry, Layer
from ..hits import Frame
from .gun import Gun
from .materials import Material, nist

FOLDER = Path(__file__).parent.parent / "data" / "detectors"


@dataclass(frozen=True)
class Slab:
    """One plate: a material (NIST name ``G4_...`` or one of the detector's own), its thickness [mm], and whether its
    deposits count."""

    material: str
    thickness: float
    sensitive: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.thickness < np.inf:
            raise ValueError(f"got a slab of {self.thickness:g} mm {self.material}, expected above 0; correct it")


@dataclass(frozen=True)
class Section:
    """``slabs``, ``repeat`` times, ``width`` mm wide in x and y (None: as wide as the detector)."""

    slabs: tuple[Slab, ...]
    repeat: int = 1
    name: str = ""
    width: float | None = None

    def __post_init__(self) -> None:
        if not self.slabs or self.repeat < 1:
            raise ValueError(
                f"got section {self.name!r} of {len(self.slabs)} slabs {self.repeat} times, expected at least 1 of "
                "each; add slabs or leave the section away"
            )
        if self.width is not None and not 0 < self.width < np.inf:
            raise ValueError(f"got section {self.name!r} of width {self.width:g} mm, expected above 0; correct it")

    @property
    def depth(self) -> float:
        """Thickness [mm]."""
        return self.repeat * sum(slab.thickness for slab in self.slabs)


@dataclass(frozen=True)
class Readout:
    """The mesh and what is filled into it.

    frame: the mesh lies in the detector's coordinates, or around the axis of each shower (``hits``); at_step: a deposit
    is put where its step begins ("start") or ends ("end"); scale: factor on the energies of each layer, (L,), such as
    an inverse sampling fraction; threshold: voxels with less [MeV, before the factor] count as overflow.
    """

    geometry: Geometry
    frame: Frame = "detector"
    at_step: str = "start"
    scale: tuple[float, ...] = ()
    threshold: float = 0.0

    def __post_init__(self) -> None:
        scale = tuple(self.scale) or (1.0,) * self.geometry.n_layers
        object.__setattr__(self, "scale", scale)
        if len(scale) != self.geometry.n_layers or not all(0 < s < np.inf for s in scale):
            raise ValueError(f"got scale {scale}, expected {self.geometry.n_layers} factors above 0, one per layer")
        if self.frame not in ("detector", "shower") or self.at_step not in ("start", "end"):
            raise ValueError(
                f"got frame {self.frame!r} and at_step {self.at_step!r}, expected detector or shower, and start or end"
            )
        if not 0 <= self.threshold < np.inf:
            raise ValueError(f"got threshold {self.threshold:g} MeV, expected 0 or more; correct it")


@dataclass(frozen=True)
class Medium:
    """The stack as one uniform medium: radiation and interaction length, Moliere radius [mm], effective Z, critical
    energy [MeV], and the fraction of the incident energy that is deposited in the sensitive slabs."""

    x0: float
    interaction_length: float
    moliere: float
    zeff: float
    critical: float
    sampling_fraction: float


@dataclass(frozen=True)
class Detector:
    """A planar calorimeter: sections one behind the other, in a box of ``world`` material.

    given: constants of the medium that are known better than ``medium`` computes them, by name; gun: the particles
    that samples of this detector are made with; materials: those of its own.
    """

    name: str
    sections: tuple[Section, ...]
    width: float
    readout: Readout
    world: str = "G4_Galactic"
    materials: tuple[Material, ...] = ()
    given: tuple[tuple[str, float], ...] = ()
    gun: Gun | None = None
    about: str = ""
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.width < np.inf:
            raise ValueError(f"got detector {self.name!r} of width {self.width:g} mm, expected above 0; correct it")
        for name in {self.world, *(slab.material for section in self.sections for slab in section.slabs)}:
            self.material(name)
        _require_covered(self)

    def material(self, name: str) -> Material:
        """The material of this name: the detector's own, or a NIST one."""
        own = {m.name: m for m in self.materials}
        return own[name] if name in own else nist(name)

    @property
    def depth(self) -> float:
        """Total thickness [mm]."""
        return sum(section.depth for section in self.sections)

    @property
    def fronts(self) -> tuple[float, ...]:
        """Depth at which each section begins [mm]."""
        return tuple(np.cumsum([0.0, *(s.depth for s in self.sections[:-1])]).tolist())

    @property
    def geometry(self) -> Geometry:
        return self.readout.geometry

    @property
    def frame(self) -> Frame:
        return self.readout.frame

    @property
    def layer_scale(self) -> tuple[float, ...]:
        """Factor on the energies of each readout layer."""
        return self.readout.scale

    @property
    def slabs(self) -> tuple[Slab, ...]:
        """One period of the section with most radiation lengths: what showers mostly develop in."""
        return max(self.sections, key=lambda s: s.repeat * sum(v.thickness / self.material(v.material).x0
                                                               for v in s.slabs)).slabs  # fmt: skip

    @cached_property
    def medium(self) -> Medium:
        """Constants of one period after G. Grindhammer, S. Peters, hep-ex/0001020: X0, E_c and Moliere radius by shares
        of radiation lengths, Z by shares of mass; the sampling fraction from minimum ionisation times
        1/(1 + 0.007 (Z_passive - Z_active)). Values ``given`` replace these."""
        thick = np.array([slab.thickness for slab in self.slabs])
        made = [self.material(slab.material) for slab in self.slabs]
        lengths = thick / [m.x0 for m in made]
        x0 = thick.sum() / lengths.sum()
        mass = thick * [m.density for m in made]
        critical = lengths @ [m.critical for m in made] / lengths.sum()
        loss = thick * [m.min_ionization for m in made]
        active = np.array([slab.sensitive for slab in self.slabs])
        charge = [mass[k] @ np.array([m.z for m in made])[k] / max(mass[k].sum(), 1e-9) for k in (~active, active)]
        e_mip = 1 / (1 + 0.007 * (charge[0] - charge[1])) if not active.all() else 1.0
        fraction = e_mip * loss[active].sum() / (e_mip * loss[active].sum() + loss[~active].sum())
        values = {
            "x0": x0, "interaction_length": thick.sum() / (thick / [m.interaction_length for m in made]).sum(),
            "moliere": 21.2 * x0 / critical, "zeff": mass @ [m.z for m in made] / mass.sum(), "critical": critical,
            "sampling_fraction": fraction,
        }  # fmt: skip
        return Medium(**{name: float(value) for name, value in (values | dict(self.given)).items()})

    @property
    def x0(self) -> float:
        return self.medium.x0

    @property
    def moliere(self) -> float:
        return self.medium.moliere

    @property
    def zeff(self) -> float:
        return self.medium.zeff

    @property
    def critical(self) -> float:
        return self.medium.critical

    @property
    def sampling_fraction(self) -> float:
        return self.medium.sampling_fraction


def _require_covered(d: Detector) -> None:
    """Every layer of the mesh must touch the detector, and every sensitive slab must lie in some layer."""
    depths = []
    for number, layer in enumerate(d.geometry.layers):
        if layer.depth is None:
            raise ValueError(
                f"got layer {number} of {d.geometry.name!r} without depth, expected (front, back) in mm; add it"
            )
        front, back = layer.depth
        if front < -1e-6 or front > d.depth - 1e-6 or (d.frame == "detector" and back > d.depth + 1e-6):
            raise ValueError(
                f"got layer {number} of {d.geometry.name!r} at {front:g}..{back:g} mm, expected a depth inside the "
                f"detector (0..{d.depth:g} mm); correct it"
            )
        if _reach(layer) > d.width * (0.5 if layer.kind == "cartesian" else 2**-0.5) + 1e-6 and not _wide(d):
            raise ValueError(
                f"got layer {number} of {d.geometry.name!r} that reaches {_reach(layer):g} mm from the axis, expected "
                f"a mesh inside the detector of width {d.width:g} mm; correct it"
            )
        depths.append((front, back))
    if any(b[0] < a[1] - 1e-6 for a, b in pairwise(depths)):
        raise ValueError(
            f"got layers of {d.geometry.name!r} that overlap or are not in order of depth, expected one behind the "
            "other; sort them or correct the depths"
        )
    for section, front in zip(d.sections, d.fronts, strict=True):
        if any(s.sensitive for s in section.slabs) and not _covers(depths, front, front + section.depth):
            raise ValueError(
                f"got a readout without layers for all of {front:g}..{front + section.depth:g} mm (section "
                f"{section.name!r}, sensitive), expected layers that cover it; add one or set read = false"
            )


def _wide(d: Detector) -> bool:
    return any(section.width is not None for section in d.sections)


def _reach(layer: Layer) -> float:
    """Distance of the outer edge from the axis [mm]."""
    return layer.second[-1] if layer.kind == "polar" else max(-layer.first[0], layer.first[-1], -layer.second[0],
                                                              layer.second[-1])  # fmt: skip


def _covers(depths: list[tuple[float, float]], front: float, back: float) -> bool:
    for a, b in depths:
        if a - 1e-6 <= front < b:
            front = b
    return front >= back - 1e-6


def names() -> list[str]:
    """Detectors of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@lru_cache(maxsize=64)
def _built_in(name: str) -> Detector:
    from .describe import read

    return read(FOLDER / f"{name}.toml")


def find(name: str) -> Detector:
    """The detector of this name, or described in the TOML file of this name; ValueError names the known ones."""
    from .describe import read

    if name in names():
        return _built_in(name)
    if name.endswith(".toml"):
        return read(name)
    raise ValueError(
        f"got detector {name!r}, expected one of {', '.join(names())}, or a TOML description; choose one of them"
    )


def calogan() -> Detector:
    """Pb/LAr calorimeter of CaloGAN: 80 x (2 mm lead + 4 mm liquid argon), all deposits counted (1712.10321 sec. 2)."""
    return find("calogan")


def calogan_geometry() -> Geometry:
    """Read-out of the CaloGAN detector: 3x96 + 12x12 + 12x6 cells over 480 x 480 mm (Paganini et al., 1712.10321)."""
    return find("calogan").geometry


DETECTORS = {name: partial(find, name) for name in names()}
