"""The parametric simulator against Geant4: textbook constants and tuned ones, judged by the referee and timed.

    python benchmarks/parametric.py                                          # calogan-eplus-test, card calogan-eplus
    python benchmarks/parametric.py lhcb-eminus-test --card lhcb-eminus [--detector lhcb] [-n 2000] [--repeats 3]

Prints markdown tables and writes them into benchmarks/RESULTS.md (one section per sample). The sample must not be the
one that the card was tuned to. Times are those of one process on one core, whole chain from particles to MeV.
"""

import argparse
import hashlib
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from results import put_section

import caloforge as cf
from caloforge import hub
from caloforge.benchmark import machine
from caloforge.evaluate import Report, evaluate
from caloforge.evaluate.observables import observables
from caloforge.showers import Incident, Showers
from caloforge.simulate.detectors import find
from caloforge.simulate.parametric import Parametric
from caloforge.simulate.tuning import card_file, read_card

DEFAULT = "calogan-eplus-test"
BATCHES = (1, 1000)
HEADLINES = ("auc_low", "auc_high", "response/mean", "response/core_width")
N_WORST = 8
MOST_LAYERS = 5


def judged(reference: Showers, models: dict[str, Parametric], repeats: int) -> dict[str, Report]:
    """A report per model, for showers of the reference's particles."""
    out = {}
    for name, model in models.items():
        candidate = model.simulate(reference.incident, seed=0)
        out[name] = evaluate(reference, candidate, seed=0, repeats=repeats, candidate_name=f"parametric, {name}")
    return out


def scores(reports: dict[str, Report]) -> list[str]:
    """Table of the headline scores, the occupancies and the worst separations of the last report."""
    last = list(reports.values())[-1].scores
    worst = sorted((k for k in last if k.startswith("separation/")), key=lambda k: -last[k].value)[:N_WORST]
    occupancy = chosen([k for k in last if k.startswith("occupancy/")])
    lines = [f"| score | {' | '.join(reports)} | floor |", "|---|" + "---:|" * (len(reports) + 1)]
    for key in [*(k for k in HEADLINES if k in last), *occupancy, *worst]:
        values = " | ".join(f"{r.scores[key].value:.4f} ± {r.scores[key].error:.4f}" for r in reports.values())
        lines.append(f"| {key} | {values} | {last[key].floor:.4f} ± {last[key].floor_error:.4f} |")
    return lines


def means(reference: Showers, models: dict[str, Parametric]) -> list[str]:
    """Table of mean and spread of occupancies, widths and shares of layers, Geant4 beside the models."""
    samples = {"Geant4": reference} | {k: m.simulate(reference.incident, seed=1) for k, m in models.items()}
    values = {name: observables(sample) for name, sample in samples.items()}
    known = values["Geant4"]
    lines = [f"| observable | {' | '.join(values)} |", "|---|" + "---:|" * len(values)]
    for start in ("response", "fraction_", "occupied_", "lateral_width_", "width_y_", "width_r_"):
        for key in chosen([k for k in known if k.startswith(start)]):
            cells = " | ".join(f"{v[key].mean():.4g} ± {v[key].std():.3g}" for v in values.values())
            lines.append(f"| {key} | {cells} |")
    return lines


def chosen(keys: list[str]) -> list[str]:
    """At most MOST_LAYERS of the keys, evenly spread."""
    if len(keys) <= MOST_LAYERS:
        return keys
    return [keys[i] for i in np.linspace(0, len(keys) - 1, MOST_LAYERS).round().astype(int)]


def timed(model: Parametric, incident: Incident, seconds: float = 5.0) -> list[tuple[int, float, float]]:
    """Batch, ms per shower (median of repeated calls) and half the width of its central 68 %."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    rows = []
    for batch in BATCHES:
        parts = [incident[rng.integers(0, len(incident), batch)] for _ in range(20)]
        model.simulate(parts[0], seed=0)  # builds the tables
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - began < seconds and len(times) < 2000):
            start = time.perf_counter()
            model.simulate(parts[len(times) % 20], seed=len(times))
            times.append((time.perf_counter() - start) * 1e3 / batch)
        low, middle, high = np.percentile(times, [16, 50, 84])
        rows.append((batch, float(middle), float(high - low) / 2))
    return rows


def speeds(models: dict[str, Parametric], incident: Incident) -> list[str]:
    """Table of the timings, each model in a process of its own with one thread."""
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    lines = ["| constants | batch | ms/shower |", "|---|---:|---:|"]
    for name, model in models.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows = pool.submit(timed, model, incident).result()
        lines += [f"| {name} | {batch} | {middle:.4f} ± {half:.4f} |" for batch, middle, half in rows]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", nargs="?", default=DEFAULT)
    parser.add_argument("--card", default="calogan-eplus")
    parser.add_argument("--detector")
    parser.add_argument("-n", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    card = read_card(a.card)
    origin, file = card["tuned"], hub.sample(a.sample)
    if origin.get("sample_sha256") == hashlib.sha256(file.read_bytes()).hexdigest():
        sys.exit(f"got {a.sample}, which the card was tuned to, expected another sample; judge it with a test sample")
    detector = find(a.detector or card["detector"])
    models = {"textbook": Parametric(detector), "tuned": Parametric.load(a.card, detector)}
    reference = cf.open_showers(file)[: a.n]
    energy = reference.incident.energy / 1e3
    body = [
        f"With caloforge {cf.__version__} on one core of: {machine()['processor']}.",
        f"{len(reference):,} Geant4 showers of `{file.stem}` ({energy.min():.3g}..{energy.max():.3g} GeV, mean "
        f"{energy.mean():.3g} GeV; {detector.name}, {reference.geometry.n_voxels:,} voxels).",
        f"Card `{card_file(a.card).name}`, tuned to {origin['n_showers']:,} other showers "
        f"(`{origin.get('sample', '?')}`, seed {origin['seed']}) in {origin['seconds']} s:",
        f"misfit {origin['misfit_tuned']:.2f} (textbook {origin['misfit_textbook']:.2f}; 1 is perfect).",
        "",
        *scores(judged(reference, models, a.repeats)),
        "",
        "Means and spreads over all showers:",
        "",
        *means(reference, models),
        "",
        *speeds(models, reference.incident),
    ]
    command = " ".join(["python benchmarks/parametric.py", *sys.argv[1:]])
    title = "Parametric simulation against Geant4" + ("" if a.sample == DEFAULT else f": {file.stem}")
    put_section(title, "\n".join(body), command)
    print("\n".join(body))


if __name__ == "__main__":
    main()
