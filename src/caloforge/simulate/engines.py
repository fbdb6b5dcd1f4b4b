"""Simulators by name, as the command line and worker processes make them."""

from . import Simulator
from .detectors import find

ENGINES = ("geant4", "parametric")


def make(engine: str, detector: str) -> Simulator:
    """The simulator ``engine`` of the detector called ``detector``."""
    if engine == "geant4":
        from .geant4 import Geant4

        return Geant4(find(detector))
    if engine == "parametric":
        from .parametric import Parametric

        return Parametric(find(detector))
    raise ValueError(f"got engine {engine!r}, expected one of {', '.join(ENGINES)}; choose one")
