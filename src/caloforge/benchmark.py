"""Speed: ms per shower at several batch sizes on one CPU thread, beside Geant4 for the same particles on the same core.

Every model and engine is timed in a process of its own. A call is timed whole: drawing the noise, building the inputs,
the networks, and the way back to MeV (the protocol of CaloClouds, Buhmann et al. 2023, 2309.05704: repeated batches on
one thread). Peak memory is the resident set of that process. The CaloChallenge (Krause et al. 2024, 2410.21611) quotes
batches of 1, 100 and 10,000 (``CHALLENGE_BATCHES``). Jet images stand beside Pythia 8 instead of Geant4.
"""

import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ._callable import callable_module
from .geometry import Array
from .showers import Incident

# CPU time of Geant4 11.4 per GeV of an electron or photon, as ``benchmark`` measured it on
# one core of an AMD EPYC beside other work.
RECORDED_MS_PER_GEV = {"calogan": 15.0, "lhcb": 17.0}
BATCHES = (1, 1000)
ENGINES = ("pytorch", "onnxruntime", "c++")
CHALLENGE_BATCHES = (1, 100, 10_000)


@dataclass(frozen=True)
class Row:
    """One timing. ms_per_shower: median over repeats; geant4_source: 'measured' in this run, 'recorded',
    or why it is nan."""

    model: str
    engine: str
    batch: int
    threads: int
    ms_per_shower: float
    ms_spread: float
    peak_mb: float
    load_s: float
    geant4_ms_per_shower: float
    geant4_source: str
    speedup: float


def benchmark(
    models: Sequence[str | Path],
    incident: Incident,
    *,
    engines: Sequence[str] = ENGINES,
    batches: Sequence[int] | None = None,
    n_geant4: int = 20,
    seconds: float = 3.0,
    progress: Callable[..., None] | None = None,
) -> list[Row]:
    """Time each model folder on each engine with the given incident particles; "c++" where a model can be compiled.

    batches: showers per call, (1, 1000) by default. n_geant4: particles that Geant4 simulates to compare; without
    its data a recorded cost per GeV is used, where there is one. seconds: time spent on each timing.
    """  # fmt: skip
    from .fastsim import read_card

    batches = BATCHES if batches is None else batches
    if n_geant4 < 0:
        raise ValueError(f"got n_geant4 = {n_geant4}, expected at least 0, none; raise it")
    if not batches or min(batches) < 1:
        raise ValueError(f"got batches {tuple(batches)}, expected numbers of showers of at least 1; give some")
    cards = [read_card(folder)[0] for folder in models]
    jobs = [
        (str(folder), engine, card) for folder, card in zip(models, cards, strict=True) for engine in engines
        if engine != "c++" or _compiles(card)
    ]  # fmt: skip
    report = progress or (lambda *_: None)
    report(0, len(jobs) + 1, "Geant4")
    geant4: dict[str, tuple[float, str]] = {}
    for card in cards:
        if card.geometry.digest() not in geant4:
            geant4[card.geometry.digest()] = _geant4_cost(card.geometry.name, incident, n_geant4)
    rows = []
    for k, (folder, engine, card) in enumerate(jobs):
        report(k + 1, len(jobs) + 1, f"{Path(folder).name} {engine}")
        reference, source = geant4[card.geometry.digest()]
        try:
            timings = _in_process(_time_model, folder, engine, incident, tuple(batches), seconds)
        except ValueError as error:  # a compiler that does not know C++17: the other engines can be timed
            if engine != "c++":
                raise
            warnings.warn(f"{Path(folder).name} is not timed as C++: {error}", stacklevel=2)
            continue
        for timing in timings:
            ratio = reference / timing["ms_per_shower"]
            rows.append(Row(Path(folder).name, engine, threads=1, geant4_ms_per_shower=reference,
                            geant4_source=source, speedup=ratio, **timing))  # fmt: skip
    report(len(jobs) + 1, len(jobs) + 1, "")
    return rows


def write_json(rows: Sequence[Row], path: str | Path) -> None:
    """benchmark.json: {"machine": ..., "rows": [...]}."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))
    temporary.replace(path)


def machine() -> dict[str, Any]:
    """Processor and versions, as far as the system tells them."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = lines[0] if lines else name
    return {"processor": name, "python": platform.python_version(), "system": platform.system()}


def _in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Result of ``work`` in a fresh process with one thread, pinned to one core where the system can."""
    saved = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(saved, "1"))
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _pin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _time_model(
    folder: str, engine: str, incident: Incident, batches: tuple[int, ...], seconds: float
) -> list[dict[str, float]]:
    _pin()
    call, load_s = _loaded(folder, engine)
    rows = []
    for batch in batches:
        times = _repeat(call, incident, batch, seconds)
        spread = float(np.subtract(*np.percentile(times, [84, 16])) / 2)
        rows.append({
            "batch": batch, "ms_per_shower": float(np.median(times)), "ms_spread": spread,
            "peak_mb": _peak_mb(), "load_s": load_s,
        })  # fmt: skip
    return rows


def _loaded(folder: str, engine: str) -> tuple[Callable[[Incident, np.random.Generator], Array], float]:
    """A function (particles, random) -> voxel energies on the engine, and the seconds it takes to load."""
    import torch

    torch.set_num_threads(1)
    from .fastsim import FastSim

    began = time.perf_counter()
    fast = FastSim.load(folder)
    n_noise = fast.n_noise
    if engine == "pytorch":
        load_s = time.perf_counter() - began

        def call(incident: Incident, rng: np.random.Generator) -> Array:
            z = torch.from_numpy(rng.standard_normal((len(incident), n_noise), dtype=np.float32))
            particles = [torch.tensor(getattr(incident, name), dtype=torch.float32) for name in fast.inputs]
            with torch.inference_mode():
                return np.asarray(fast(z, *particles))

        return call, load_s
    if engine == "c++":
        from .export.cpp import Compiled

        began = time.perf_counter()
        compiled = Compiled(fast)
        load_s = time.perf_counter() - began

        def call_compiled(incident: Incident, rng: np.random.Generator) -> Array:
            seed = int(rng.integers(1 << 62))  # it draws its noise itself
            return compiled.seeded([getattr(incident, name) for name in fast.inputs], seed)

        return call_compiled, load_s
    from .export import export, run, session

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.onnx"
        export(fast, path)
        began = time.perf_counter()
        graph = session(str(path))
        load_s = time.perf_counter() - began

    def call_onnx(incident: Incident, rng: np.random.Generator) -> Array:
        z = rng.standard_normal((len(incident), n_noise), dtype=np.float32)
        return run(graph, z, [getattr(incident, name) for name in fast.inputs])

    return call_onnx, load_s


def _compiles(card: Any) -> bool:
    """Whether a model of this card can be compiled here."""
    from .export.cpp import compiler, not_compilable

    try:
        compiler()
    except FileNotFoundError:
        return False
    return not not_compilable(card)


def _repeat(call: Callable[[Incident, np.random.Generator], Array], incident: Incident, batch: int,
            seconds: float) -> list[float]:  # fmt: skip
    """ms per shower of repeated calls with ``batch`` particles drawn from ``incident``."""
    rng = np.random.default_rng(0)
    parts = [incident[rng.integers(0, len(incident), batch)] for _ in range(50)]
    times: list[float] = []
    for part in parts[: 50 if batch == 1 else 2]:  # warm-up
        call(part, rng)
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < seconds and len(times) < 10_000):
        start = time.perf_counter()
        call(parts[len(times) % len(parts)], rng)
        times.append((time.perf_counter() - start) * 1e3 / batch)
    return times


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also remembers the process this one was forked from
        peak = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if peak:
            return int(peak[0]) / 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _geant4_cost(detector: str, incident: Incident, n: int) -> tuple[float, str]:
    """CPU ms per shower of Geant4 for particles like these, and whether it was measured here; of Pythia for jets."""
    if detector == "jets":
        return _pythia_cost(n)
    from .simulate.detectors import DETECTORS
    from .simulate.geant4 import find_data

    order = np.argsort(incident.energy, kind="stable")
    chosen = incident[order[np.linspace(0, len(incident) - 1, min(n, len(incident))).round().astype(int)]]
    try:
        find_data()
        if n < 1 or detector not in DETECTORS:
            raise FileNotFoundError
        return _in_process(_time_geant4, detector, chosen), "measured"
    except FileNotFoundError:
        return _recorded_cost(detector, incident)


def _recorded_cost(detector: str, incident: Incident) -> tuple[float, str]:
    if detector not in RECORDED_MS_PER_GEV or not np.isin(incident.pdg, (11, -11, 22)).all():
        return float("nan"), "unknown"
    return RECORDED_MS_PER_GEV[detector] * float(incident.energy.mean()) / 1e3, "recorded"


def _pythia_cost(n: int) -> tuple[float, str]:
    if n < 1:
        return float("nan"), "not asked for"
    try:
        return _in_process(_time_pythia, n), "measured"
    except FileNotFoundError:
        return float("nan"), "not installed"


def _time_pythia(n: int) -> float:
    """CPU ms per selected jet, half of them W bosons and half QCD, without the start of Pythia."""
    _pin()
    from .simulate.jets import CLASSES, JetConfig, Jets

    jets, cost = Jets(JetConfig()), []
    for pdg in CLASSES.values():
        batches, made = jets.batches(pdg, seed=1), 0
        next(batches)
        began = time.process_time()
        while made < n:
            made += len(next(batches))
        cost.append((time.process_time() - began) * 1e3 / made)
    return sum(cost) / len(cost)


def _time_geant4(detector: str, incident: Incident) -> float:
    _pin()
    from .simulate.detectors import find
    from .simulate.geant4 import Geant4

    simulator = Geant4(find(detector))
    simulator.simulate(incident[:1], seed=0)  # builds the geometry and the tables
    began = time.process_time()
    simulator.simulate(incident, seed=1)
    return (time.process_time() - began) * 1e3 / len(incident)


callable_module(__name__)
