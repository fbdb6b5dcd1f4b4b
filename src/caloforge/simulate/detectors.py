"""Detectors that Geant4 can build: a stack of slabs along z, and the mesh it is read out with.

z runs along the depth; z = 0 is the front face, x = y = 0 the beam spot. Lengths in mm.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..geometry import Geometry, Layer, regular


@dataclass(frozen=True)
class Slab:
    """One plate: a Geant4 material name (NIST ``G4_...``), its thickness [mm], and whether its deposits count."""

    material: str
    thickness: float
    sensitive: bool = True


@dataclass(frozen=True)
class Detector:
    """A planar sampling calorimeter: ``slabs`` repeated ``n_repeats`` times, ``width`` mm wide in x and y.

    x0: radiation length, moliere: Moliere radius of the stack [mm], zeff: effective Z, critical: critical energy
    [MeV]; sampling fraction is the deposited over incident energy. They feed the parametric simulator.
    """

    name: str
    slabs: tuple[Slab, ...]
    n_repeats: int
    width: float
    geometry: Geometry
    x0: float
    moliere: float
    zeff: float
    critical: float
    sampling_fraction: float = 1.0

    @property
    def depth(self) -> float:
        """Total thickness [mm]."""
        return self.n_repeats * sum(slab.thickness for slab in self.slabs)


def calogan_geometry() -> Geometry:
    """Read-out of the CaloGAN detector: 3x96 + 12x12 + 12x6 cells over 480 x 480 mm (Paganini et al., 1712.10321)."""
    depths = ((0.0, 90.0), (90.0, 437.0), (437.0, 480.0))
    shapes = ((3, 96), (12, 12), (12, 6))
    layers = [
        Layer("cartesian", regular(-240, 240, nx), regular(-240, 240, ny), depth, number)
        for number, ((nx, ny), depth) in enumerate(zip(shapes, depths, strict=True))
    ]
    return Geometry("calogan", tuple(layers))


def calogan() -> Detector:
    """Pb/LAr calorimeter of CaloGAN: 80 x (2 mm lead + 4 mm liquid argon), all deposits counted (1712.10321 sec. 2)."""
    # Mixture of Pb (X0 5.612 mm, E_c 7.43 MeV) and LAr (140 mm, 32.84 MeV) after hep-ex/0001020: X0 and E_c by
    # shares of radiation lengths (0.926, 0.074), Z by shares of mass (0.803, 0.197), Moliere radius 21.2 MeV X0/E_c.
    return Detector(
        "calogan", (Slab("G4_Pb", 2.0), Slab("G4_lAr", 4.0)), 80, 1000.0, calogan_geometry(),
        x0=15.59, moliere=35.5, zeff=69.4, critical=9.32, sampling_fraction=0.994,
    )  # fmt: skip


DETECTORS: dict[str, Callable[[], Detector]] = {"calogan": calogan}


def find(name: str) -> Detector:
    """The detector with this name; ValueError names the known ones."""
    if name not in DETECTORS:
        raise ValueError(f"got detector {name!r}, expected one of {', '.join(DETECTORS)}; choose one of them")
    return DETECTORS[name]()
