"""Full simulation: Geant4 in this process, through calzone (extra ``geant4``)."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Array, Geometry
from ..hits import voxelize
from ..showers import Incident, Showers
from .detectors import Detector

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
    """Geant4 simulator of a planar detector.

    cut: production cut [mm]. Deposits are assigned to voxels at the pre-step point. One instance works in one process
    (Geant4 cannot change its geometry afterwards); the same seed gives the same showers.
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
        return {
            "engine": f"Geant4 {calzone.GEANT4_VERSION} (calzone {calzone.VERSION})",
            "physics_list": " + ".join(filter(None, (self.had_model, f"EM {self.em_model}"))),
            "cut_mm": self.cut,
            "data_tables": _describe_tables(find_data()),
            "detector": self.detector.name,
            "scored": "all deposits of the sensitive slabs, at the pre-step point",
        }

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        """Showers of the given particles, by full simulation."""
        calzone = _import_engine()
        if self._engine is None:
            self._engine = self._build(calzone)
        self._engine.random = calzone.Random(seed=2 * seed)  # the engine ignores the lowest bit of its seed
        n = len(incident)
        event, position, value = self._run(calzone, incident)
        energy, overflow = voxelize(self.geometry, n, event, position, value)
        return Showers(self.geometry, incident, energy, overflow, self.provenance() | {"seed": seed})

    def _run(self, calzone: Any, incident: Incident) -> tuple[Array, Array, Array]:
        """Deposits of one run: event (M,), position (M, 3) [mm, z = 0 at the front face], value (M,) [MeV]."""
        t, p = incident.theta, incident.phi
        direction = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], axis=1)
        front = np.stack([incident.x, incident.y, np.full(len(t), -0.5 * self.detector.depth)], axis=1)
        # Start a little before the front face (1 mm along the direction), inside the vacuum of the world.
        start = (front - direction) / 10
        particles = calzone.particles(
            len(incident), pid=incident.pdg, energy=incident.energy, position=start, direction=direction
        )
        recorded = self._engine.run(particles).deposits
        deposits = [recorded[name] for name in sorted(recorded)]  # a fixed order: sums do not depend on the run
        none = np.zeros(0)
        lines = [d.line for d in deposits if len(d.line)]
        points = [d.point for d in deposits if len(d.point)]
        event = np.concatenate([none, *(d["event"] for d in lines), *(d["event"] for d in points)]).astype(np.int64)
        value = np.concatenate([none, *(d["value"] for d in lines), *(d["value"] for d in points)])
        place = np.concatenate([none.reshape(0, 3), *(d["start"] for d in lines), *(d["position"] for d in points)])
        return event, 10 * place + [0, 0, 0.5 * self.detector.depth], value

    def _build(self, calzone: Any) -> Any:
        find_data()
        width, depth = self.detector.width / 10, self.detector.depth / 10
        stack: dict[str, Any] = {"box": [width, width, depth], "material": "G4_Galactic"}
        z = -depth / 2
        for i in range(self.detector.n_repeats):
            for k, slab in enumerate(self.detector.slabs):
                thick = slab.thickness / 10
                volume: dict[str, Any] = {"box": [width, width, thick], "position": [0, 0, z + thick / 2]}
                volume |= {"material": slab.material} | ({"role": "record_deposits"} if slab.sensitive else {})
                stack[f"Slab{i}x{k}"] = volume
                z += thick
        world = {"box": [1.2 * width, 1.2 * width, 1.2 * depth], "material": "G4_Galactic", "Stack": stack}
        physics = calzone.Physics(self.em_model, default_cut=self.cut / 10, had_model=self.had_model)
        return calzone.Simulation({"World": world}, physics=physics, sample_deposits="detailed")


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
    return ("reduced set: " if reduced else "") + ", ".join(names)
