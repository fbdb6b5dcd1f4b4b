"""The front of quality and time: every family judged on the same held-out showers, table and plot.

    python benchmarks/front.py                                # all shipped models, one after the other
    python benchmarks/front.py calogan-eplus-vae runs/mine    # these; the others keep their numbers
    python benchmarks/front.py --times                        # times again, on a quiet machine; scores stay
    python benchmarks/front.py --draw                         # table and plot again from the numbers at hand

Each model is a run folder or a shipped model. It makes showers of the particles of the test sample that belongs to its
training sample, which it never saw; the referee compares them with Geant4's (docs/metrics.md). Generation and referee
use seed 0. Times are those of ``caloforge benchmark``, the fastest of PyTorch, ONNX Runtime and the compiled C++ of
one-step students at each batch, beside Geant4 (Pythia 8 for jets) for the same particles on the same core. A run folder
has the name of its folder.

Numbers are kept in benchmarks/front.json, model by model, and scores on the cards of shipped models. Writes the section
"Front" of benchmarks/RESULTS.md and docs/front.png, or with --output FOLDER the three files there.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import front_plot
import numpy as np
import results
import torch
from front_bars import bars
from front_plot import DATASETS, Published, published
from gans import sample_of
from ship import compact
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import caloforge as cf
from caloforge import hub, io
from caloforge.benchmark import Row, benchmark, machine
from caloforge.evaluate import evaluate
from caloforge.evaluate.leaderboard import short, three_digits
from caloforge.evaluate.metrics_file import plain
from caloforge.fastsim import FastSim, read_card
from caloforge.showers import Incident

HERE = Path(__file__).parent
SEED = 0
BATCHES = (1, 1000)
SCORES = ("auc_low", "auc_high", "fpd")
ENGINES = {"pytorch": "torch", "onnxruntime": "ORT", "c++": "C++"}
HEADS = ("model", "family", "parameters", "training [min]", "AUC low", "AUC high", "FPD × 10³", "worst separation",
         "ms, batch 1", "ms, batch 1000", "× Geant4")  # fmt: skip
NOTE = """\
Value ± error (floor ± error); the floor is Geant4 against Geant4, two halves of the test sample, so at half its
statistics. Training: minutes of the card, on the machine that trained it, without that of a teacher. Parameters: those
that one generation touches. Times: one CPU thread, the whole chain from noise to MeV, with the fastest of PyTorch
(torch), ONNX Runtime (ORT) and, of one-step students, C++ compiled for that processor; × Geant4 at batch 1000.

Published rows in italics were judged by another classifier (inputs not whitened, docs/metrics.md), on other Geant4
showers and another computer: none of their numbers is comparable to a digit. CaloGAN, CaloFlow and CaloINN in
CaloGAN's calorimeter are from memory of the papers' tables, not checked again. "Other showers": mesh or energies
differ, too.

![AUC against time](../docs/front.png)
"""
Record = dict[str, Any]  # of one model in front.json


def measure(name: str, n_test: int | None, repeats: int, engines: tuple[str, ...]) -> Record:
    """Scores, times and origin of one model, as plain data; times [ms per shower], training [s]."""
    folder = hub.model(name)
    fast = FastSim.load(folder)
    sample = sample_of(fast)
    if sample not in hub.SAMPLE_NAMES:
        raise ValueError(
            f"got a model trained on {fast.card.training['data']}, expected a shipped sample; train on one"
        )
    test = cf.read(hub.sample(sample), n_test)
    made = fast.simulate(test.incident, seed=SEED)
    report = evaluate(test, made, seed=SEED, repeats=repeats, candidate_name=name)
    worst = report.worst(1)[0]
    rows = timed(folder, test.incident, engines)
    if name in hub.MODEL_NAMES and not Path(name).exists() and n_test is None:
        judged = {"sample": sample, "n_test": len(test), "seed": SEED, "repeats": repeats}
        names = (*SCORES, "response/mean", "response/core_width")
        kept = {key: asdict(report.scores[key]) for key in names if key in report.scores}
        fresh = FastSim.load(folder).with_card(scores=fast.card.scores | judged | kept)
        compact(fresh).save(folder, half=True, helpers=False)
    return plain({
        "family": fast.card.family,
        "sample": sample, "n_test": len(test), "seed": SEED, "repeats": repeats,
        "parameters": n_used(fast, test.incident[:2]),
        "training_s": fast.card.training.get("seconds"),
        "scores": {key: asdict(report.scores[key]) for key in SCORES if key in report.scores},
        "worst": {"name": worst} | asdict(report.scores[f"separation/{worst}"]),
    } | times(rows))  # fmt: skip


def measure_times(name: str, record: Record, engines: tuple[str, ...]) -> Record:
    """The record with times measured again."""
    return plain(record | times(timed(hub.model(name), io.read_incident(hub.sample(record["sample"])), engines)))


def times(rows: list[Row]) -> Record:
    return {
        "times": {str(batch): fastest(rows, batch) for batch in BATCHES},
        "onnx_ms": {str(r.batch): r.ms_per_shower for r in rows if r.engine == "onnxruntime"},
        "geant4_ms": rows[0].geant4_ms_per_shower, "geant4_source": rows[0].geant4_source,
        "machine": machine()["processor"], "caloforge": cf.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def timed(folder: Path, incident: Incident, engines: tuple[str, ...]) -> list[Row]:
    try:
        return benchmark([folder], incident, batches=BATCHES, engines=engines)
    except Exception as error:
        print(f"{folder.name}: timed without ONNX Runtime, {one_line(error)}", file=sys.stderr)
        return benchmark([folder], incident, batches=BATCHES, engines=("pytorch", "c++"))


def fastest(rows: list[Row], batch: int) -> Record:
    row = min((r for r in rows if r.batch == batch), key=lambda r: r.ms_per_shower)
    return {"ms": row.ms_per_shower, "spread": row.ms_spread, "engine": row.engine}


class Touched(TorchFunctionMode):
    """Collects the parameters that go into any operation of torch inside a ``with``."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[int, nn.Parameter] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # .device and the like
            self.parameters |= {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, nn.Parameter)}
        return func(*args, **(kwargs or {}))


def n_used(fast: FastSim, incident: Incident) -> int:
    """Number of parameters that the generation of showers needs: no critic, no encoder of a VAE."""
    with Touched() as touched:
        fast.block(incident, seed=SEED, index=0)
    return sum(p.numel() for p in touched.parameters.values())


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def load(path: Path) -> dict[str, Record]:
    return dict(json.loads(path.read_text(encoding="utf-8"))["models"]) if path.exists() else {}


def merge(path: Path, name: str, record: Record) -> dict[str, Record]:
    """Put a model's numbers into the file beside those of the others; all of them, sorted by sample and name."""
    models = load(path) | {name: record}
    models = dict(sorted(models.items(), key=lambda item: (item[1]["sample"], item[0])))
    with io.new_file(path, force=True) as temporary:
        temporary.write_text(json.dumps({"models": models}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return models


def by_dataset(models: Mapping[str, Record]) -> dict[str, dict[str, Record]]:
    """Models of each data set, best AUC on voxels first; data sets in the order of DATASETS, unknown ones last."""
    found = {record["sample"].removesuffix("-test") for record in models.values()}
    order = [*(d for d in DATASETS if d in found), *sorted(found - set(DATASETS))]
    rows = sorted(models.items(), key=lambda item: item[1]["scores"]["auc_low"]["value"])
    return {d: {name: r for name, r in rows if r["sample"].removesuffix("-test") == d} for d in order}


def section(models: Mapping[str, Record]) -> str:
    """The text of the section: one table for each data set."""
    parts = [NOTE.strip()]
    for dataset, own in by_dataset(models).items():
        truth = "Pythia" if dataset == "jets" else "Geant4"
        lines = [f"### {DATASETS.get(dataset, dataset)}", ""]
        lines += [f"| {' | '.join(HEADS).replace('Geant4', truth)} |", "|---|---|" + "---:|" * (len(HEADS) - 2)]
        lines += [f"| {' | '.join(cells(name, record))} |" for name, record in own.items()]
        lines += [f"| {' | '.join(published_cells(row))} |" for row in published(dataset)]
        parts.append("\n".join([*lines, "", *(conditions(own, truth))]))
    return "\n\n".join(filter(None, [*parts, bars(models)]))


def cells(name: str, record: Record) -> list[str]:
    """The texts of a model of ours below HEADS."""
    scores, worst, times = record["scores"], record["worst"], record["times"]
    seconds, geant4 = record["training_s"], record["geant4_ms"]
    speed = [f"{three_digits(times[str(b)]['ms'])} ({ENGINES[times[str(b)]['engine']]})" for b in BATCHES]
    ratio = "–" if geant4 is None else f"{geant4 / times['1000']['ms']:,.0f}"
    return [
        name, record["family"], f"{record['parameters']:,}", "–" if seconds is None else f"{seconds / 60:.1f}",
        scored(scores["auc_low"]), scored(scores["auc_high"]),
        scored(scores["fpd"], 1000, 1) if "fpd" in scores else "–",
        f"{worst['name']} {scored(worst)}", *speed, ratio,
    ]  # fmt: skip


def scored(score: Mapping[str, float | None], factor: float = 1, digits: int = 3) -> str:
    value, error, floor, floor_error = (
        "–" if score[key] is None else f"{factor * score[key]:.{digits}f}"
        for key in ("value", "error", "floor", "floor_error")
    )
    return f"{value} ± {error} ({floor} ± {floor_error})"


def published_cells(row: Published) -> list[str]:
    texts = [
        "–" if value is None else f"{value[0]:.{digits}f}" + (f" ± {value[1]:.{digits}f}" if value[1] else "") + floor
        for value, floor, digits in zip((row.auc_low, row.auc_high, row.fpd), row.floors, (3, 3, 1), strict=True)
    ]
    other = "published, other showers" if row.other else "published"
    name = f"*{row.name}* ({other}, {row.source})"
    return [name, "", short(row.parameters) or "–", row.training, *texts, "–", *row.times, "–"]


def conditions(own: Mapping[str, Record], truth: str) -> list[str]:
    """Under what the rows were measured, models of the same conditions in one line."""
    groups: dict[str, list[str]] = {}
    costs: dict[str, list[float]] = {}
    for name, r in own.items():
        text = (f"{r['n_test']:,} showers of `{r['sample']}`, seed {r['seed']}, classifiers trained {r['repeats']} x, "
                f"{r['machine']}, {r['date']}, {truth}'s time {r['geant4_source']}")  # fmt: skip
        groups.setdefault(text, []).append(name)
        costs.setdefault(text, []).append(np.nan if r["geant4_ms"] is None else r["geant4_ms"])
    return [f"{', '.join(names)}: {text} ({spread(costs[text])})." for text, names in groups.items()]


def spread(numbers: list[float]) -> str:
    if not np.isfinite(numbers).any():
        return "unknown"
    low, high = (f"{limit:.0f}" for limit in (np.nanmin(numbers), np.nanmax(numbers)))
    return f"{low} ms" if low == high else f"{low}–{high} ms"


def judgeable() -> list[str]:
    """Shipped models whose training sample has a test sample."""
    stems = {n: Path(str(read_card(hub.model(n))[0].training.get("data"))).stem for n in hub.MODEL_NAMES}
    return [n for n, stem in stems.items() if stem.replace("-train", "-test") in hub.SAMPLE_NAMES]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="run folders or names of shipped models")
    parser.add_argument("--test", type=int, help="first N showers of the test sample instead of all")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each classifier")
    parser.add_argument("--threads", type=int, default=1, help="threads of generation and referee; times are on one")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="that are timed")
    parser.add_argument("--times", action="store_true", help="only times, beside the scores at hand")
    parser.add_argument("--draw", action="store_true", help="only table and plot, from the numbers at hand")
    parser.add_argument("--output", type=Path, help="folder for front.json, RESULTS.md and front.png")
    args = parser.parse_args(arguments)
    numbers, picture = HERE / "front.json", HERE.parent / "docs" / "front.png"
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        numbers, picture = args.output / "front.json", args.output / "front.png"
        results.RESULTS = args.output / "RESULTS.md"
    torch.set_num_threads(args.threads)
    failed = 0
    known = load(numbers) if args.times else {}
    for name in [] if args.draw else args.models or list(known) or judgeable():
        try:
            engines = tuple(args.engines)
            record = (
                measure_times(name, known[name], engines) if args.times
                else measure(name, args.test, args.repeats, engines)
            )  # fmt: skip
        except Exception as error:  # one model that fails does not stop the others
            print(f"{name}: left out, {one_line(error)}", file=sys.stderr, flush=True)
            failed += 1
            continue
        merge(numbers, Path(name).name, record)
        print(" | ".join(cells(Path(name).name, record)), flush=True)
    models = load(numbers)
    if models:
        results.put_section("Front", section(models), "python benchmarks/front.py")
        front_plot.save(front_plot.draw(by_dataset(models)), picture)
    return 1 if failed or not models else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
