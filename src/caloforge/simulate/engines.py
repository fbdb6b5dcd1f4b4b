"""Simulators by name, as the command line and worker processes make them."""

from pathlib import Path

from . import Simulator
from .detectors import find

ENGINES = ("geant4", "parametric")


def make(engine: str, detector: str, card: Path | None = None) -> Simulator:
    """The simulator ``engine`` of the detector with this name or description; card: constants of the parametric one."""
    if engine == "geant4":
        from .geant4 import Geant4

        if card is not None:
            raise ValueError(f"got card {card} with engine geant4, expected engine parametric; leave the card away")
        return Geant4(find(detector))
    if engine == "parametric":
        from .parametric import Parametric

        return Parametric(find(detector)) if card is None else Parametric.load(card, find(detector))
    raise ValueError(f"got engine {engine!r}, expected one of {', '.join(ENGINES)}; choose one")
