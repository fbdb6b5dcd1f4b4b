"""Cost of Geant4 production: scoring against nothing scored, one worker against two, memory over many showers.

    python benchmarks/production.py [calogan lhcb ...] [-n 40]

Prints a table and writes it into benchmarks/RESULTS.md (section "Production"). Times of scoring are CPU seconds of a
process of its own, in turns; the machine should be idle for the workers.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from results import put_section

from caloforge.showers import Incident
from caloforge.simulate import produce
from caloforge.simulate.detectors import Detector, find
from caloforge.simulate.engines import make
from caloforge.simulate.geant4 import Geant4
from caloforge.simulate.gun import Gun, fixed

ROUNDS = 3


def particles(detector: Detector, n: int) -> Incident:
    """n particles of the detector's gun between 1 and 100 GeV, evenly spread in its spectrum."""
    gun = detector.gun
    assert gun is not None
    many = gun.sample(50 * n, 1)
    many = many[(many.energy >= 1e3) & (many.energy <= 1e5)]
    return many[np.argsort(many.energy)[np.linspace(0, len(many) - 1, n).astype(int)]]


def cost(name: str, scored: bool, n: int, queue: "multiprocessing.Queue[float]") -> None:
    """CPU seconds per shower, in a process of its own."""
    detector = find(name)
    if not scored:
        sections = tuple(
            replace(s, slabs=tuple(replace(v, sensitive=False) for v in s.slabs)) for s in detector.sections
        )
        detector = replace(detector, sections=sections)
    simulator, incident = Geant4(detector), particles(detector, n)
    simulator.simulate(incident[:1], seed=1)  # builds the geometry and the tables
    began = time.process_time()
    for start in range(0, n, 20):
        simulator.simulate(incident[start : start + 20], seed=2 + start)
    queue.put((time.process_time() - began) / n)


def in_process(function, *arguments):  # type: ignore[no-untyped-def]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=function, args=(*arguments, queue))
    process.start()
    value = queue.get()
    process.join()
    return value


def workers(name: str, n: int, count: int) -> float:
    """Wall seconds of one production."""
    gun = find(name).gun
    assert gun is not None
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        produce(partial(make, "geant4", name), replace(gun, energy=fixed(1e4)), Path(folder) / "a.h5", n=n, seed=1,
                workers=count)  # fmt: skip
        return time.monotonic() - began


def memory(n: int, queue: "multiprocessing.Queue[list[float]]") -> None:
    """Peak memory [MB] after each tenth of n showers of 50 MeV in 2,000ths of the production's chunks."""
    simulator, peaks = Geant4(find("calogan")), []
    for i in range(n // 25):
        simulator.simulate(Gun(-11, fixed(50.0)).sample(25, i), seed=i)
        if (i + 1) % max(1, n // 250) == 0:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    queue.put(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detectors", nargs="*", default=["calogan", "lhcb", "par04-siw-coarse"])
    parser.add_argument("-n", type=int, default=40)
    parser.add_argument("--memory", type=int, default=20_000)
    options = parser.parse_args()
    lines = ["| detector | ms/shower, nothing scored | scored and read out | ratio |", "|---|---|---|---|"]
    for name in options.detectors:
        pairs = [[1e3 * in_process(cost, name, s, options.n) for s in (False, True)] for _ in range(ROUNDS)]
        none, full = np.median(pairs, axis=0)
        ratio = np.array([b / a for a, b in pairs])
        lines.append(f"| {name} | {none:.0f} | {full:.0f} | {np.median(ratio):.3f} ± {ratio.std() / ROUNDS**0.5:.3f} |")
        print(lines[-1], flush=True)
    first, twice = 120, 240
    one, more = (workers("calogan", first, 1), workers("calogan", twice, 1))
    two, more2 = (workers("calogan", 2 * first, 2), workers("calogan", 2 * twice, 2))
    # Differences of two lengths: starting the engine (about 3 s each) is left out.
    gain = 2 * (more - one) / (more2 - two)
    lines += ["", f"Two workers against one (calogan, 10 GeV, {twice - first} showers more each): {gain:.2f} x "
              f"({(more - one) / (twice - first) * 1e3:.0f} ms/shower with one; {os.cpu_count()} cores)."]  # fmt: skip
    peaks = in_process(memory, options.memory)
    lines += ["", f"Peak memory of one worker after each tenth of {options.memory:,} showers: "
              + ", ".join(f"{p:.0f}" for p in peaks) + " MB."]  # fmt: skip
    put_section("Production", "\n".join(lines), "python benchmarks/production.py")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
