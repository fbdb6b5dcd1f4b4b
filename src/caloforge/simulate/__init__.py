"""Simulators, and the production of samples with them.

A simulator turns incident particles into showers; full simulation (Geant4), the parametric oracle and every trained
model (FastSim) share this protocol and are interchangeable. A sample is made in chunks whose seeds derive from
(seed, chunk): the result does not depend on the number of workers or on interruptions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import io
from .._callable import callable_module
from .._version import __version__
from ..geometry import Geometry
from ..showers import Incident, Showers
from .cluster import ClusterConfig, choose_cluster
from .gun import Gun
from .production import Plan, produce_blocks

CHUNK = 25  # Geant4 keeps 120 B per deposit: 100 showers of 1-100 GeV peak at several GB


class Simulator(Protocol):
    """Anything that makes showers of given incident particles; the same seed gives the same showers."""

    @property
    def geometry(self) -> Geometry: ...

    def provenance(self) -> dict[str, Any]: ...

    def simulate(self, incident: Incident, *, seed: int) -> Showers: ...


def _chunk(simulator: Simulator, gun: Gun, n: int, seed: int, index: int) -> Showers:
    """Chunk ``index`` of a sample of n showers: its particles and its engine seed come from (seed, index)."""
    size = min(CHUNK, n - index * CHUNK)
    particles, engine = np.random.SeedSequence(seed, spawn_key=(index,)).spawn(2)
    engine_seed = int(engine.generate_state(1, np.uint32)[0] >> 1)
    return simulator.simulate(gun.sample(size, particles), seed=engine_seed)


def _provenance(simulator: Simulator, gun: Gun, seed: int, command: str) -> dict[str, Any]:
    return simulator.provenance() | {
        "gun": gun.describe(), "seed": seed, "caloforge": __version__, "command": command,
    }  # fmt: skip


def simulate(simulator: Simulator, gun: Gun, *, n: int, seed: int) -> Showers:
    """n showers in memory, made in this process."""
    if n < 1:
        raise ValueError(f"got n={n} showers, expected at least 1; raise it")
    parts = [_chunk(simulator, gun, n, seed, i) for i in range(-(-n // CHUNK))]
    showers = Showers.concat(parts)
    return Showers(
        showers.geometry, showers.incident, showers.energy, showers.overflow, _provenance(simulator, gun, seed, "")
    )


def produce(
    factory: Callable[[], Simulator], gun: Gun, path: str | Path, *, n: int, seed: int, workers: int = 1,
    cluster: ClusterConfig | str | Path | None = None, shard: tuple[int, int] | None = None, force: bool = False,
    command: str = "", progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Make n showers and write them to ``path``, with ``workers`` processes or those of a cluster (or its TOML file).

    factory: picklable function that makes the simulator in each process. shard: make part i of N only, see ``merge``.
    Finished chunks are kept in ``path.parts``: the same call continues an interrupted production and gives the same
    file as an uninterrupted one. progress: called with (showers done, showers in all).
    """
    if n < 1:
        raise ValueError(f"got n={n} showers, expected at least 1; raise it")
    chosen = choose_cluster(workers, cluster)
    io.require_absent(path, force)
    simulator = factory()
    provenance = _provenance(simulator, gun, seed, command)
    plan = Plan(factory, _chunk, lambda k: (gun, n, seed, k), n, CHUNK, simulator.geometry, provenance)
    produce_blocks(plan, path, chosen, shard=shard, force=force, progress=progress)


callable_module(__name__)
