"""Materials: what they are made of, and the constants of electromagnetic and hadronic showers that follow from it.

A material is a NIST name of Geant4 (``G4_Pb``) or a composition of one's own. X0 is the radiation length, lambda the
nuclear interaction length, E_c the critical energy, R_M = 21.2 MeV X0/E_c the Moliere radius.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SYMBOLS = (  # noqa: SIM905 (a list of 92 strings is harder to read)
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U"
).split()
MASSES = np.array([  # standard atomic weights [g/mol], Z = 1..92
    1.008, 4.0026, 6.94, 9.0122, 10.81, 12.011, 14.007, 15.999, 18.998, 20.18, 22.99, 24.305, 26.982, 28.085, 30.974,
    32.06, 35.45, 39.948, 39.098, 40.078, 44.956, 47.867, 50.942, 51.996, 54.938, 55.845, 58.933, 58.693, 63.546,
    65.38, 69.723, 72.63, 74.922, 78.971, 79.904, 83.798, 85.468, 87.62, 88.906, 91.224, 92.906, 95.95, 97.0, 101.07,
    102.91, 106.42, 107.87, 112.41, 114.82, 118.71, 121.76, 127.6, 126.9, 131.29, 132.91, 137.33, 138.91, 140.12,
    140.91, 144.24, 145.0, 150.36, 151.96, 157.25, 158.93, 162.5, 164.93, 167.26, 168.93, 173.05, 174.97, 178.49,
    180.95, 183.84, 186.21, 190.23, 192.22, 195.08, 196.97, 200.59, 204.38, 207.2, 208.98, 209.0, 210.0, 222.0, 223.0,
    226.0, 227.0, 232.04, 231.04, 238.03,
])  # fmt: skip

# The NIST materials that detectors are made of: density [g/cm3] and atoms per formula unit. Others are asked of Geant4.
NIST: dict[str, tuple[float, dict[str, float]]] = {
    "G4_Galactic": (1e-25, {"H": 1}), "G4_AIR": (1.20479e-3, {"N": 0.784, "O": 0.2107, "Ar": 0.0047}),
    "G4_Pb": (11.35, {"Pb": 1}), "G4_W": (19.3, {"W": 1}), "G4_Cu": (8.96, {"Cu": 1}), "G4_Fe": (7.874, {"Fe": 1}),
    "G4_Al": (2.699, {"Al": 1}), "G4_Si": (2.33, {"Si": 1}), "G4_lAr": (1.396, {"Ar": 1}), "G4_C": (2.0, {"C": 1}),
    "G4_Ti": (4.54, {"Ti": 1}), "G4_U": (18.95, {"U": 1}), "G4_lKr": (2.418, {"Kr": 1}), "G4_lXe": (2.953, {"Xe": 1}),
    "G4_PLASTIC_SC_VINYLTOLUENE": (1.032, {"C": 9, "H": 10}), "G4_POLYSTYRENE": (1.06, {"C": 1, "H": 1}),
    "G4_WATER": (1.0, {"H": 2, "O": 1}), "G4_PbWO4": (8.28, {"Pb": 1, "W": 1, "O": 4}),
    "G4_BGO": (7.13, {"Bi": 4, "Ge": 3, "O": 12}), "G4_CESIUM_IODIDE": (4.51, {"Cs": 1, "I": 1}),
}  # fmt: skip


@dataclass(frozen=True)
class Material:
    """density [g/cm3]; atoms: number of atoms of each element (symbol) in a formula unit."""

    name: str
    density: float
    atoms: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if not 0 < self.density < 100:
            raise ValueError(f"got density {self.density:g} g/cm3 of {self.name}, expected 0..100; correct it")
        for symbol, count in self.atoms:
            if symbol not in SYMBOLS:
                raise ValueError(f"got element {symbol!r} in {self.name}, expected a symbol (H..U); correct it")
            if not count > 0:
                raise ValueError(f"got {count:g} atoms of {symbol} in {self.name}, expected above 0; leave it away")
        if not self.atoms:
            raise ValueError(f"got material {self.name} without elements, expected at least one; add its composition")

    @cached_property
    def _elements(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Z, A and share of the mass of each element."""
        z = np.array([SYMBOLS.index(symbol) + 1 for symbol, _ in self.atoms])
        mass = np.array([count for _, count in self.atoms]) * MASSES[z - 1]
        return z, MASSES[z - 1], mass / mass.sum()

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the mass of each element."""
        return dict(zip((symbol for symbol, _ in self.atoms), self._elements[2].tolist(), strict=True))

    @property
    def z(self) -> float:
        """Atomic number, mean over mass."""
        z, _, share = self._elements
        return float(share @ z)

    @property
    def x0(self) -> float:
        """Radiation length [mm]; Y.-S. Tsai, Rev. Mod. Phys. 46 (1974) 815, as in the Review of Particle Physics."""
        z, a, share = self._elements
        light = {1: (5.31, 6.144), 2: (4.79, 5.621), 3: (4.74, 5.805), 4: (4.71, 5.924)}
        l1 = np.where(z > 4, np.log(184.15 * z ** (-1 / 3)), [light.get(v, (0.0, 0.0))[0] for v in z.tolist()])
        l2 = np.where(z > 4, np.log(1194 * z ** (-2 / 3)), [light.get(v, (0.0, 0.0))[1] for v in z.tolist()])
        c = (z / 137.036) ** 2
        f = c * (1 / (1 + c) + 0.20206 - 0.0369 * c + 0.0083 * c**2 - 0.002 * c**3)  # Coulomb correction
        inverse = (z**2 * (l1 - f) + z * l2) / (716.408 * a)  # [cm2/g]
        return float(10 / (share @ inverse) / self.density)

    @property
    def interaction_length(self) -> float:
        """Nuclear interaction length [mm], from 37.8 A^0.312 g/cm2 for each element (within 3 % above carbon)."""
        _, a, share = self._elements
        return float(10 / (share @ (1 / (37.8 * a**0.312))) / self.density)

    @property
    def critical(self) -> float:
        """Critical energy [MeV]: 610 MeV/(Z + 1.24) of solids and liquids (Review of Particle Physics)."""
        z, a, share = self._elements
        loss = share * z / a  # elements contribute to ionisation as their electrons
        return float(610 / ((loss @ z) / loss.sum() + 1.24))

    @property
    def min_ionization(self) -> float:
        """Energy loss of a minimum-ionising particle [MeV/mm]: Bethe at beta gamma = 3.5, I = 16 Z^0.9 eV."""
        z, a, share = self._elements
        bg2 = 3.5**2
        beta2 = bg2 / (1 + bg2)
        log = np.log(2 * 0.511e6 * bg2 / (16 * z**0.9))
        return float(share @ (0.3071 * z / a / beta2 * (log - beta2)) * self.density / 10)


def nist(name: str) -> Material:
    """The NIST material of Geant4 with this name."""
    if name in NIST:
        density, atoms = NIST[name]
        return Material(name, density, tuple(atoms.items()))
    try:
        import calzone
    except ImportError:
        found = None
    else:
        found = calzone.describe(material=name)
    if found is None:
        raise ValueError(
            f"got material {name!r}, expected a NIST name of Geant4 such as {', '.join(list(NIST)[2:8])}, or a "
            "[[material]] of your own; correct the name or add its composition"
        )
    return Material(name, found.density, _atoms(dict(found.composition)))


def from_fractions(name: str, density: float, fractions: Mapping[str, float]) -> Material:
    """A material from the shares of its mass."""
    return Material(name, density, _atoms(fractions))


def _atoms(fractions: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    known = {symbol: MASSES[SYMBOLS.index(symbol)] if symbol in SYMBOLS else 1.0 for symbol in fractions}
    return tuple((symbol, share / float(known[symbol])) for symbol, share in fractions.items())
