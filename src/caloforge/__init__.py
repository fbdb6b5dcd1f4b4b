"""caloforge: from Geant4 showers to a trained, judged and exported fast calorimeter simulation.

    detector = cf.detectors.calogan()
    gun = cf.Gun(pdg=-11, energy=cf.uniform(1e3, 1e5))
    truth = cf.simulate(cf.Geant4(detector), gun, n=1000, seed=1)

Names are imported on first use: ``import caloforge`` loads neither torch nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .benchmark import benchmark as benchmark
    from .evaluate import evaluate as evaluate
    from .export import export as export
    from .simulate import simulate as simulate

_WHERE = {
    "Geometry": "geometry", "Layer": "geometry", "Incident": "showers", "Showers": "showers",
    "Gun": "simulate.gun", "uniform": "simulate.gun", "log_uniform": "simulate.gun", "fixed": "simulate.gun",
    "Detector": "simulate.detectors", "Geant4": "simulate.geant4", "Parametric": "simulate.parametric",
    "produce": "simulate", "read": "io", "write": "io", "stream": "io", "open_showers": "datasets",
    "convert": "datasets.convert",
    "FastSim": "fastsim", "TrainConfig": "train", "fit": "train", "PreprocessConfig": "preprocess",
    "FlowMatchingConfig": "models.flow_matching", "VAEConfig": "models.vae", "Report": "evaluate",
    "amplify_showers": "evaluate.amplification_showers", "amplify_toys": "evaluate.amplification_toys",
    "amplify_trainings": "evaluate.amplification_showers", "leaderboard": "evaluate.leaderboard",
}  # fmt: skip
_MODULES = {"detectors": "simulate.detectors", "models": "models", "datasets": "datasets", "hub": "hub"}
_VERBS = ("simulate", "evaluate", "export", "benchmark")  # modules that are called like the function in them

__all__ = ["__version__", *_WHERE, *_MODULES, *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    elif name in _MODULES or name in _VERBS:
        value = import_module(f".{_MODULES.get(name, name)}", __name__)
    else:
        raise AttributeError(f"module 'caloforge' has no attribute {name!r}")
    globals()[name] = value
    return value
