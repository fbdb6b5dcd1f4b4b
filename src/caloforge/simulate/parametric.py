"""Parametric simulation of electromagnetic showers: gamma profiles in depth, two components in radius, drawn as spots.

After G. Grindhammer, S. Peters, "The parameterized simulation of electromagnetic showers in homogeneous and sampling
calorimeters", hep-ex/0001020 (GFLASH). A physics model without training: an oracle for tests, a baseline, and, tuned to
a detector with a small Geant4 sample (``tune``), the fast simulation that experiments have used before learned ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Array, Geometry
from ..hits import to_detector_frame, voxelize
from ..showers import Incident, Showers
from . import tuning as cards
from .detectors import Detector, find
from .profiles import Stack, sampling_spread
from .rings import Rings, aligned
from .spots import Spots, equal_spots, spot_count, unequal_spots
from .tuning import Tuning

BLOCK = 1 << 16  # spots drawn at once: the arrays stay in the processor's cache
VOXELS = 1 << 20  # voxels drawn at once
TEXTBOOK = Tuning()


@dataclass(frozen=True)
class Parametric:
    """Simulator of e-, e+ and photon showers in any layered geometry with depths; the medium is taken as uniform.

    detector: its x0, moliere, zeff, critical and sampling_fraction describe the medium, its slabs say whether the
    sampling corrections apply (some slab is not sensitive), its readout is the mesh.
    stochastic: relative spread of the deposited energy at 1 GeV, falls with 1/sqrt(E); None takes ``sampling_spread``.
    spots: number of energy deposits of a shower of 1 GeV divided by ln Z; it rises with E^0.876 (93 in the paper).
    tuning: constants of the detector, by default the textbook's; origin: how they were found.

    Approximate: equal spots follow the energy profile (the paper gives spots a profile of their own); a photon converts
    after 9/7 X0 on average and the pair shares its energy uniformly; the radial function ends at eight Moliere radii;
    below 7.4 critical energies the shape does not change with energy. Energy that leaves through the back or the sides
    of the detector is lost; hadron showers are not described.
    """

    detector: Detector
    stochastic: float | None = None
    spots: float = 93.0
    tuning: Tuning = TEXTBOOK
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for number, layer in enumerate(self.geometry.layers):
            if layer.depth is None:
                raise ValueError(
                    f"got geometry {self.geometry.name!r} whose layer {number} has no depth, expected (front, back) in "
                    "mm for every layer; add them"
                )
        if not (self.spread >= 0 and self.spots > 0):
            raise ValueError(
                f"got stochastic={self.spread:g} and spots={self.spots:g}, expected a spread >= 0 and a number of "
                "spots > 0; correct them"
            )
        if len(self.tuning.layers) not in (0, self.geometry.n_layers):
            raise ValueError(
                f"got {len(self.tuning.layers)} factors of layers, expected {self.geometry.n_layers}, one per layer, "
                "or none"
            )
        _ = self.stack  # its errors belong here, not into a production

    @staticmethod
    def load(card: str | Path, detector: Detector | None = None) -> "Parametric":
        """The simulator of a card; ``detector``: the one that the card must be of, where it is not found by name."""
        data = cards.read_card(card)
        detector = find(data["detector"]) if detector is None else detector
        cards.require_detector(data, detector, card)
        constants = dict(data["constants"])
        stochastic, spots = constants.pop("stochastic"), constants.pop("spots")
        return Parametric(detector, stochastic, spots, Tuning(**constants), data["tuned"])

    def save(self, card: str | Path, *, force: bool = False) -> None:
        """Write the constants and their origin to a JSON file; ``force`` replaces an existing one."""
        cards.write_card(card, self.detector, self.constants(), self.origin, force=force)

    @property
    def geometry(self) -> Geometry:
        return self.detector.geometry

    @property
    def spread(self) -> float:
        """Relative spread of the deposited energy at 1 GeV."""
        return sampling_spread(self.detector) if self.stochastic is None else self.stochastic

    @cached_property
    def stack(self) -> Stack:
        """The medium."""
        return Stack.of(self.detector)

    @cached_property
    def _rings(self) -> Rings:
        return Rings(self.detector, self.stack, self.spread, self.tuning)

    def constants(self) -> dict[str, Any]:
        """All constants as plain data."""
        return cards.constants(self.spread, self.spots, self.tuning)

    def provenance(self) -> dict[str, Any]:
        """What every file made with this simulator records."""
        medium = {name: getattr(self.detector, name) for name in ("x0", "moliere", "zeff", "critical")}
        medium["sampling_fraction"] = self.detector.sampling_fraction
        more = {"constants": self.constants(), "tuned": dict(self.origin)} if self.tuning != TEXTBOOK else {}
        return {
            "engine": "parametric (Grindhammer and Peters, hep-ex/0001020)",
            "detector": self.detector.name,
            "medium": medium | {"stochastic": self.spread, "spots": self.spots},
        } | more

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        """Showers of the given particles; the same seed gives the same showers."""
        rng = np.random.default_rng(seed)
        return self.draw(incident, rng, rng, self.provenance() | {"seed": seed})

    def draw(self, incident: Incident, rng: np.random.Generator, spot_rng: np.random.Generator,
             provenance: Mapping[str, Any]) -> Showers:  # fmt: skip
        """Showers with one source of random numbers for what is one number per shower, and another for the spots: then
        the first stay the same when constants of the second change."""
        from .geant4 import read_out

        require_known(incident)
        n = len(incident)
        energy = np.zeros((n, self.geometry.n_voxels), dtype=np.float32)
        overflow = np.zeros((n, self.geometry.n_layers), dtype=np.float32)
        for part in self._parts(incident):
            energy[part], overflow[part] = self._energies(incident[part], rng, spot_rng)
        c = self.tuning
        if c.layers:
            factor = np.array(c.layers, dtype=np.float32)
            energy, overflow = energy * factor[self.geometry.layer_index], overflow * factor
        if c.noise:
            energy += np.float32(c.noise) * spot_rng.standard_normal(energy.shape, dtype=np.float32)
        if c.noise or c.threshold:
            energy[energy < max(c.threshold, 0.0)] = 0
        return read_out(self.detector.readout, incident, energy, overflow, provenance)

    def _parts(self, incident: Incident) -> list[slice]:
        """Showers that are drawn at once."""
        n = len(incident)
        if self.tuning.spot_energy is not None and aligned(self.detector, incident):
            size = max(1, VOXELS // self.geometry.n_voxels)
            return [slice(start, min(start + size, n)) for start in range(0, n, size)]
        pending = spot_count(self.stack, self.spots, incident.energy).cumsum()
        parts, start = [], 0
        while start < n:
            stop = max(start + 1, int(np.searchsorted(pending, BLOCK + (pending[start - 1] if start else 0))))
            parts.append(slice(start, stop))
            start = stop
        return parts

    def _energies(self, incident: Incident, rng: np.random.Generator,
                  spot_rng: np.random.Generator) -> tuple[Array, Array]:  # fmt: skip
        """Energies of the voxels (n, V) and beside the mesh (n, L) [MeV]."""
        c, d = self.tuning, self.detector
        if c.spot_energy is None:
            spots = equal_spots(self.stack, self.spread, c, incident, self.spots, rng)
        elif aligned(d, incident):
            return self._rings.draw(incident, rng, spot_rng)
        else:
            length = d.depth / d.x0 / max(float(np.cos(incident.theta).min()), 0.1)
            spots = unequal_spots(self.stack, self.spread, c, incident, length, rng, spot_rng)
        return voxelize(self.geometry, len(incident), *_placed(d, incident, spots))


def require_known(incident: Incident) -> None:
    """Raise ValueError for particles that make no electromagnetic shower."""
    if not np.isin(incident.pdg, (11, -11, 22)).all():
        odd = incident.pdg[~np.isin(incident.pdg, (11, -11, 22))][0]
        raise ValueError(f"got particle {odd}, expected e- (11), e+ (-11) or a photon (22); use Geant4 for others")


def _placed(d: Detector, incident: Incident, s: Spots) -> tuple[Array, Array, Array]:
    """Spots inside the detector: shower (M,), position (M, 3) [mm] in the frame of the mesh, energy (M,) [MeV]."""
    position = np.stack([s.a, s.b, s.depth])
    if d.frame == "detector" and any(getattr(incident, name).any() for name in ("theta", "phi", "x", "y")):
        position = to_detector_frame(incident, s.event, position.T).T
    x, y, z = position
    half = d.width / 2
    keep = np.flatnonzero((z >= 0) & (z <= d.depth) & (np.abs(x) <= half) & (np.abs(y) <= half))
    return s.event[keep], position[:, keep].T, s.value[keep]
