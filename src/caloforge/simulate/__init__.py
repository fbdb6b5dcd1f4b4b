"""Simulators, and the production of samples with them.

A simulator turns incident particles into showers; full simulation (Geant4), the parametric oracle and every trained
model (FastSim) share this protocol and are interchangeable. A sample is made in chunks whose seeds derive from
(seed, chunk): the result does not depend on the number of workers or on interruptions.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import io
from .._callable import callable_module
from .._version import __version__
from ..geometry import Geometry
from ..showers import Incident, Showers
from .gun import Gun

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


_worker: Simulator | None = None


def _start_worker(factory: Callable[[], Simulator]) -> None:
    global _worker  # one engine per process: Geant4 cannot be built twice
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which lets running chunks finish
    _worker = factory()


def _work(folder: str, gun: Gun, n: int, seed: int, index: int) -> int:
    assert _worker is not None
    part = Path(folder) / f"chunk-{index:06d}.h5"
    io.write(_chunk(_worker, gun, n, seed, index), part, force=True)
    return index


def produce(
    factory: Callable[[], Simulator], gun: Gun, path: str | Path, *, n: int, seed: int, workers: int = 1,
    force: bool = False, command: str = "", progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Make n showers and write them to ``path``, with ``workers`` processes.

    factory: picklable function that makes the simulator in each process. Finished chunks are kept in ``path.parts``:
    the same call continues an interrupted production and gives the same file as an uninterrupted one.
    progress: called with (showers done, n).
    """
    if n < 1 or workers < 1:
        raise ValueError(f"got n={n} showers and {workers} workers, expected at least 1 of each; raise them")
    path = io.require_absent(path, force)
    simulator = factory()
    provenance = _provenance(simulator, gun, seed, command)
    folder = path.with_name(path.name + ".parts")
    todo = _unfinished(folder, provenance, n)
    n_chunks = -(-n // CHUNK)
    report = progress or (lambda done, total: None)
    report(min(n, (n_chunks - len(todo)) * CHUNK), n)
    done = n_chunks - len(todo)
    for _ in _run_chunks(factory, folder, gun, n, seed, todo, workers):
        done += 1
        report(min(n, done * CHUNK), n)
    with io.Writer(path, simulator.geometry, provenance, force=force) as file:
        for index in range(n_chunks):
            file.append(io.read(folder / f"chunk-{index:06d}.h5"))
    for part in folder.iterdir():
        part.unlink()
    folder.rmdir()


def _unfinished(folder: Path, provenance: Mapping[str, Any], n: int) -> list[int]:
    """Chunks still to be made; the folder is created with a description of the run, or must hold the same one."""
    description = json.dumps({**provenance, "n": n, "chunk": CHUNK}, sort_keys=True, indent=1)
    described = folder / "run.json"
    if described.exists():
        if described.read_text() != description:
            raise ValueError(f"got {folder} of another command, expected the same one; finish that one or delete it")
    else:
        folder.mkdir(exist_ok=True)
        temporary = folder / f"run.json.{os.getpid()}.tmp"
        temporary.write_text(description)
        temporary.replace(described)
    return [i for i in range(-(-n // CHUNK)) if not (folder / f"chunk-{i:06d}.h5").exists()]


def _run_chunks(factory: Callable[[], Simulator], folder: Path, gun: Gun, n: int, seed: int, todo: list[int],
                workers: int) -> Iterator[int]:  # fmt: skip
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(factory,)) as pool:
        futures = [pool.submit(_work, str(folder), gun, n, seed, index) for index in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


callable_module(__name__)
