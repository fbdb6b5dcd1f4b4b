"""Full simulation: Geant4 in this process, through calzone (extra ``geant4``)."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Array, Geometry
from ..hits import BLOCK, Hits, to_shower_frame, voxelize_parts
from ..showers import Incident, Showers
from .detectors import Detector, Readout
from .gun import Gun

ENERGY_RANGE = (1.0, 1e7)  # [MeV] where FTFP_BERT and the standard electromagnetic physics are used
REDUCED = "reduced set (reduced neutron data, no nuclear levels): "
LEPTONIC = (11, -11, 22, 13, -13)
HADRONS = (211, -211, 111, 321, -321, 130, 310, 2212, -2212, 2112, -2112)

_REMEDIES = (
    "set GEANT4_DATA_DIR to a Geant4 data directory (the folder that holds G4EMLOW...), "
    "or run 'python -m calzone download' once"
)


def find_data() -> Path:
    """Folder of the Geant4 data tables: GEANT4_DATA_DIR, else the engine's own download; FileNotFoundError if none."""
    given = os.environ.get("GEANT4_DATA_DIR")
    own = Path.home() / ".local/share/calzone/data"
    folder = Path(given) if given else own
    if not folder.is_dir() or not any(folder.glob("G4EMLOW*")):
        where = f"GEANT4_DATA_DIR={given}" if given else f"{own}"
        raise FileNotFoundError(f"got no Geant4 data tables in {where}, expected a folder with G4EMLOW*; {_REMEDIES}")
    return folder


class Geant4:
    """Geant4 simulator of a detector.

    cut: production cut [mm]. Hadronic physics is on for electrons and photons too: without it what photo- and
    electro-nuclear reactions set free would leave without a deposit. One instance works in one process (Geant4 cannot
    change its geometry afterwards); the same seed gives the same showers.
    """

    def __init__(self, detector: Detector, *, cut: float = 0.7, em_model: str = "standard",
                 had_model: str | None = "FTFP_BERT") -> None:  # fmt: skip
        self.detector, self.cut, self.em_model, self.had_model = detector, cut, em_model, had_model
        self._engine: Any = None

    @property
    def geometry(self) -> Geometry:
        return self.detector.geometry

    def provenance(self) -> dict[str, Any]:
        """What every file made with this simulator records."""
        calzone = _import_engine()
        readout = self.detector.readout
        point = "pre-step" if readout.at_step == "start" else "post-step"
        more: dict[str, Any] = {"frame": readout.frame} if readout.frame != "detector" else {}
        more |= {"layer_scale": list(readout.scale)} if set(readout.scale) != {1.0} else {}
        more |= {"threshold_mev": readout.threshold} if readout.threshold else {}
        return {
            "engine": f"Geant4 {calzone.GEANT4_VERSION} (calzone {calzone.VERSION})",
            "physics_list": " + ".join(filter(None, (self.had_model, f"EM {self.em_model}"))),
            "cut_mm": self.cut,
            "data_tables": _describe_tables(find_data()),
            "detector": self.detector.name,
            "detector_digest": hashlib.sha256(repr(self.detector).encode()).hexdigest()[:16],  # an edited TOML shows
            "scored": f"all deposits of the sensitive slabs, at the {point} point",
        } | more  # fmt: skip

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        """Showers of the given particles, by full simulation."""
        return self.fill(incident, [self.detector.readout], seed=seed)[0]

    def fill(self, incident: Incident, readouts: Sequence[Readout], *, seed: int) -> list[Showers]:
        """Showers of one run of Geant4, read out with several meshes."""
        deposits = self._run(incident, seed)
        provenance = self.provenance() | {"seed": seed}
        return [deposits.showers(incident, readout, provenance) for readout in readouts]

    def hits(self, incident: Incident, *, seed: int) -> Hits:
        """The deposits themselves, where the readout puts them. 8,400 per GeV where all materials are sensitive."""
        d = self._run(incident, seed)
        none = np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros(0)
        columns = zip(none, *d.parts(self.detector.readout.at_step), strict=True)
        event, place, value = (np.concatenate(column) for column in columns)
        order = np.argsort(event, kind="stable")
        return Hits(
            incident, event[order], place[order], value[order], d.time()[order], self.provenance() | {"seed": seed}
        )

    def _run(self, incident: Incident, seed: int) -> "_Deposits":
        _require_possible(incident, self.had_model)
        calzone = _import_engine()
        if self._engine is None:
            self._engine = self._build(calzone)
        self._engine.random = calzone.Random(seed=2 * seed)  # the engine ignores the lowest bit of its seed
        t, p = incident.theta, incident.phi
        direction = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], axis=1)
        front = np.stack([incident.x, incident.y, np.full(len(t), -0.5 * self.detector.depth)], axis=1)
        # Start a little before the front face (1 mm along the direction), inside the world.
        start = (front - direction) / 10
        particles = calzone.particles(
            len(incident), pid=incident.pdg, energy=incident.energy, position=start, direction=direction
        )
        return _Deposits(self._engine.run(particles).deposits, self.detector.depth)

    def _build(self, calzone: Any) -> Any:
        find_data()
        d = self.detector
        width, depth = d.width / 10, d.depth / 10
        stack: dict[str, Any] = {"box": [width, width, depth], "material": d.world}
        z = -depth / 2
        number = 0
        for section in d.sections:
            side = (section.width or d.width) / 10
            for _ in range(section.repeat):
                for k, slab in enumerate(section.slabs):
                    thick = slab.thickness / 10
                    volume: dict[str, Any] = {"box": [side, side, thick], "position": [0, 0, z + thick / 2]}
                    volume |= {"material": slab.material} | ({"role": "record_deposits"} if slab.sensitive else {})
                    stack[f"Slab{number}x{k}"] = volume
                    z += thick
                number += 1
        world = {"box": [1.2 * width, 1.2 * width, 1.2 * depth], "material": d.world, "Stack": stack}
        geometry: dict[str, Any] = {"World": world}
        if d.materials:
            geometry["materials"] = {
                "mixtures": {m.name: {"density": m.density, "composition": m.fractions} for m in d.materials}
            }
        physics = calzone.Physics(self.em_model, default_cut=self.cut / 10, had_model=self.had_model)
        return calzone.Simulation(geometry, physics=physics, sample_deposits="detailed")


class _Deposits:
    """Deposits of one run: steps (lines) slab by slab, then those at rest (points), in a fixed order of the slabs, so
    that sums do not depend on the run."""

    def __init__(self, recorded: Any, depth: float) -> None:
        deposits = [recorded[name] for name in sorted(recorded)]
        self.lines = [d.line for d in deposits if len(d.line)]
        self.points = [d.point for d in deposits if len(d.point)]
        self.depth = depth

    def parts(self, at_step: str) -> Iterator[tuple[Array, Array, Array]]:
        """Shower (M,), place where the step starts or ends (M, 3) [mm, z = 0 at the front face], energy (M,) [MeV]."""
        for kind, name in ((self.lines, at_step), (self.points, "position")):
            for d in kind:
                for block in (d[i : i + BLOCK] for i in range(0, len(d), BLOCK)):
                    place = 10 * block[name].T
                    place[2] += 0.5 * self.depth
                    yield block["event"].astype(np.int64), place.T, np.ascontiguousarray(block["value"])

    def time(self) -> Array:
        """Time at the start of the step, (M,) [ns], in the order of ``parts``."""
        parts = [*(d["time"][:, 0] for d in self.lines), *(d["time"] for d in self.points)]
        return 1e9 * np.concatenate([np.zeros(0), *parts])

    def showers(self, incident: Incident, readout: Readout, provenance: Mapping[str, Any]) -> Showers:
        parts = self.parts(readout.at_step)
        if readout.frame == "shower":
            parts = ((event, to_shower_frame(incident, event, place), value) for event, place, value in parts)
        energy, overflow = voxelize_parts(readout.geometry, len(incident), parts)
        return read_out(readout, incident, energy, overflow, provenance)


def read_out(readout: Readout, incident: Incident, energy: Array, overflow: Array,
             provenance: Mapping[str, Any]) -> Showers:  # fmt: skip
    """Showers of summed energies (N, V) and overflow (N, L) [MeV]: threshold, then the factor of each layer."""
    geometry = readout.geometry
    if readout.threshold:
        low = np.where(energy < readout.threshold, energy, 0)
        overflow = overflow + np.add.reduceat(low, geometry.offsets[:-1], axis=1)
        energy = energy - low
    scale = np.array(readout.scale)
    return Showers(geometry, incident, energy * scale[geometry.layer_index], overflow * scale, provenance)


def require_gun(gun: Gun, detector: Detector, had_model: str | None = "FTFP_BERT") -> None:
    """Raise ValueError unless Geant4 can simulate the gun's particles and all of them enter the detector's front."""
    _require_possible(Incident(np.array([gun.energy.low, gun.energy.high]), pdg=np.full(2, gun.pdg)), had_model)
    half = (detector.sections[0].width or detector.width) / 2
    for name in ("x", "y"):
        low, high = gun.limits()[name]
        if max(-low, high) > half:
            raise ValueError(
                f"got particles at {name} = {low:g}..{high:g} mm, expected them on the front face of "
                f"{detector.name} (-{half:g}..{half:g} mm); narrow the range"
            )


def _require_possible(incident: Incident, had_model: str | None) -> None:
    known = LEPTONIC if had_model is None else LEPTONIC + HADRONS
    odd = sorted(set(np.unique(incident.pdg).tolist()) - set(known))
    if odd:
        physics = had_model or "electromagnetic physics only"
        raise ValueError(
            f"got particle {odd[0]}, expected one that {physics} transports here: "
            f"{', '.join(str(p) for p in known)} (PDG); choose one of them"
        )
    low, high = ENERGY_RANGE
    if len(incident) and not (low <= incident.energy.min() and incident.energy.max() <= high):
        raise ValueError(
            f"got kinetic energies {incident.energy.min():g}..{incident.energy.max():g} MeV, expected "
            "1 MeV..10 TeV; change the range"
        )


def _import_engine() -> Any:
    try:
        import calzone
    except ImportError:
        raise FileNotFoundError(
            "got no Geant4 engine, expected the package calzone; install it with: pip install 'caloforge[geant4]'"
        ) from None
    return calzone


def _describe_tables(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    note = folder / "README.md"
    reduced = note.is_file() and "reduced" in note.read_text(errors="replace")
    return (REDUCED if reduced else "") + ", ".join(names)
