"""Turn a run folder into a shipped model: half precision, judged on the shipped test sample, scores on its card.

    python benchmarks/ship.py runs/calogan-eplus calogan-eplus
    python benchmarks/ship.py runs/calogan-eplus-vae calogan-eplus-vae
    python benchmarks/ship.py --plain runs/jets-gan jets-gan    # without judging: gans.py judges and writes the scores
    python benchmarks/ship.py --results        # times the shipped e+ models and writes benchmarks/RESULTS.md

The test sample is never trained on; generation and evaluation use seed 0.
"""

import sys
from dataclasses import asdict
from typing import Any

from results import put_section

import caloforge as cf
from caloforge import hub, io
from caloforge.benchmark import benchmark, machine, write_json
from caloforge.evaluate import evaluate
from caloforge.fastsim import FastSim, read_card

TEST = "calogan-eplus-test"
KEPT = ("auc_low", "auc_high", "jsd_low", "jsd_high", "response/mean", "response/width", "response/core_width")


def compact(fast: FastSim) -> FastSim:
    """The model with its regressions of the voxels as float16, only to be saved: a model may have 8 MB."""
    decorrelate = getattr(fast.transform, "decorrelate", None)
    if decorrelate is not None:
        decorrelate.slopes, decorrelate.widths = decorrelate.slopes.half(), decorrelate.widths.half()
    return fast


def plain(run: str, name: str) -> None:
    """Save the run's model as float16 without what only training needs."""
    compact(FastSim.load(run)).save(hub.DATA / "models" / name, half=True, helpers=False)


def ship(run: str, name: str) -> None:
    """Save the run's model as float16, judge what was saved, and write its scores on the card."""
    folder = hub.DATA / "models" / name
    plain(run, name)
    fast = FastSim.load(folder)
    sample = str(fast.card.training["data"]).replace("-train", "-test")
    test = io.read(hub.sample(sample))
    report = evaluate(test, fast.simulate(test.incident, seed=0), seed=0, repeats=5, candidate_name=name)
    worst = sorted((k for k in report.scores if k.startswith("separation/")), key=lambda k: -report.scores[k].excess)[
        :5
    ]
    kept = [*KEPT, *(k for k in report.scores if k.startswith("occupancy/")), *worst]
    scores: dict[str, Any] = {k: asdict(report.scores[k]) for k in kept}
    compact(fast.with_card(scores={"sample": sample, "n_test": len(test), "seed": 0, "repeats": 5} | scores)).save(
        folder, half=True, helpers=False
    )


def results() -> None:
    """Time every shipped model and write RESULTS.md from the timings and the cards."""
    names = [n for n in hub.MODEL_NAMES if read_card(hub.model(n))[0].scores.get("sample") == TEST]
    rows = benchmark([hub.model(n) for n in names], io.read_incident(hub.sample(TEST)), n_geant4=40, seconds=5.0)
    write_json(rows, hub.DATA / "timings.json")  # for the leaderboard
    lines = [
        f"With caloforge {cf.__version__} on one core of:",
        f"{machine()['processor']}. Sample: Geant4 e+, 1-100 GeV uniform, CaloGAN Pb/LAr, 504 voxels; quality on",
        f"`{TEST}`, which no model was trained on. Every value stands beside its Geant4-vs-Geant4 floor (two halves of",
        "the reference, so at half its statistics). The classifier sees whitened inputs (docs/metrics.md): it is more",
        "sensitive than the one of the published values.",
        "",
    ]
    for name in names:
        lines += _quality(name)
    lines += [
        "### Speed, one CPU thread, whole chain",
        "",
        "| model | engine | batch | ms/shower | Geant4 ms/shower | x Geant4 | peak MB | load s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.model} | {r.engine} | {r.batch} | {r.ms_per_shower:.4f} ± {r.ms_spread:.4f} | "
            f"{r.geant4_ms_per_shower:.0f} ({r.geant4_source}) | {r.speedup:,.0f} | {r.peak_mb:.0f} | {r.load_s:.2f} |"
        )
    lines += [
        "",
        "Published for the same detector, with another Geant4 version and classifier:",
    ]
    lines += [
        "low-level AUC of CaloGAN 1.000, of the CaloFlow teacher 0.85, with normalised voxels 0.79 (Krause and Shih",
        "2021, 2106.05285).",
        "",
    ]
    put_section("Models", "\n".join(lines), "python benchmarks/ship.py --results")


def _quality(name: str) -> list[str]:
    card = read_card(hub.model(name))[0]
    training, scores = card.training, card.scores
    lines = [
        f"### {name}",
        "",
        f"{card.family}, trained on {training['n_showers']:,} showers in {training['seconds'] / 60:.0f} min on CPU.",
        "",
        "| score | value | floor |",
        "|---|---:|---:|",
    ]
    for key, s in scores.items():
        if isinstance(s, dict):
            lines.append(f"| {key} | {s['value']:.4f} ± {s['error']:.4f} | {s['floor']:.4f} ± {s['floor_error']:.4f} |")
    return [*lines, ""]


if __name__ == "__main__":
    if sys.argv[1:] == ["--results"]:
        results()
    elif len(sys.argv) == 4 and sys.argv[1] == "--plain":
        plain(*sys.argv[2:])
    elif len(sys.argv) == 3:
        ship(*sys.argv[1:])
    else:
        sys.exit(__doc__)
