"""The steps behind the verbs that join several parts: generate, evaluate, show, demo; training is in ``runs``."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import hub, io
from .datasets import open_showers
from .progress import bar
from .runs import sha256, train
from .showers import FIELDS, Incident, Showers

if TYPE_CHECKING:
    from .benchmark import Row
    from .evaluate import Report
    from .evaluate.reweight import Level, Method
    from .fastsim import FastSim
    from .simulate.parametric import Parametric

HEADLINES = (
    "auc_low", "auc_low_normed", "auc_high", "auc_resnet", "jsd_low", "jsd_high", "fpd", "kpd", "precision", "recall",
    "response/mean", "response/width", "response/core_width",
)  # fmt: skip


def incident_of(path: str) -> Incident:
    """Incident particles of a file of showers or a shipped sample."""
    file = hub.sample(path)
    try:
        return io.read_incident(file)
    except ValueError:
        return open_showers(file).incident  # another layout, or an error that says what is wrong


def generate(
    fast: "FastSim", incident: Incident, output: Path, *, seed: int, command: str, force: bool = False,
    model: Path | None = None, workers: int = 1, cluster: Path | None = None, shard: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Showers of the particles, or of shard (i, N) of them, written block by block.

    With one worker they are made here; else by ``workers`` processes or those of the cluster in a TOML file, which load
    the model folder ``model`` themselves.
    """
    from .fastsim import CHUNK, read_card
    from .simulate.cluster import choose_cluster
    from .simulate.production import Plan, make_here, produce_blocks

    chosen, here = choose_cluster(workers, cluster), workers == 1 and cluster is None
    if model is None and not here:
        raise ValueError("got several workers without a model folder, expected one that they can load; save the model")
    fast.check(incident)
    folder = model or Path()
    weights = read_card(folder)[1] if model else ""
    plan = Plan(
        partial(_load_model, folder, weights), _generate_block,
        lambda k: (incident[k * CHUNK : (k + 1) * CHUNK], seed, k), len(incident), CHUNK, fast.geometry,
        fast.provenance() | {"seed": seed, "command": command, "model_training": fast.card.training},
        {"weights_sha256": weights, "incident_sha256": _digest(incident)},
    )  # fmt: skip
    with bar(f"generate {fast.card.family}") as update:
        if here:
            make_here(plan, fast, output, shard=shard, force=force, progress=update)
        else:
            produce_blocks(plan, output, chosen, shard=shard, force=force, progress=update)


def _load_model(folder: Path, weights: str) -> "FastSim":
    """The model as a worker process loads it, for one thread."""
    import torch

    from .fastsim import FastSim, read_card

    if read_card(folder)[1] != weights:
        raise ValueError(f"got {folder}, whose weights changed meanwhile, expected the same; generate again")
    torch.set_num_threads(1)
    return FastSim.load(folder)


def _generate_block(fast: "FastSim", incident: Incident, seed: int, index: int) -> Showers:
    return fast.block(incident, seed=seed, index=index)


def _digest(incident: Incident) -> str:
    columns = [np.ascontiguousarray(getattr(incident, name)).tobytes() for name in FIELDS]
    return hashlib.sha256(b"".join(columns)).hexdigest()


def evaluate(reference: str, candidates: Sequence[str], output: Path, *, force: bool = False, figures: bool = False,
             binning: Path | None = None, detector: str | None = None, training: str | None = None,
             held_out: Sequence[tuple[float, float]] = (), **settings: Any) -> "list[Report]":  # fmt: skip
    """Judge the showers of each candidate file against those of the reference, and write one report of all.

    training: file of the showers that the candidates' models were trained on; held_out: ranges of energy [MeV] that
    training left out; settings: those of ``evaluate.evaluate``.
    """
    from .evaluate import beyond
    from .evaluate import evaluate as judge
    from .evaluate.checks import require_other
    from .evaluate.interpolation import require_windows
    from .evaluate.page import require_free, save_all

    require_free(output, force)
    if not candidates:
        raise ValueError("got no candidate, expected at least one file of showers; add it")
    files = [hub.sample(name) for name in candidates]
    twice = [file for k, file in enumerate(files) if file.absolute() in [other.absolute() for other in files[:k]]]
    if twice:
        raise ValueError(f"got candidate {twice[0]} twice, expected different ones; leave one away")
    # All is read and compared before the first classifier is trained.
    truth, *made = (open_showers(f, binning=binning, detector=detector) for f in (hub.sample(reference), *files))
    seen = None if training is None else open_showers(hub.sample(training), binning=binning, detector=detector)
    for showers, what in [*((s, "candidate showers") for s in made), *([(seen, "training showers")] if seen else [])]:
        truth.geometry.require_same(showers.geometry, what)
    if seen is not None:
        require_other(truth, seen)
    for showers in made if held_out else []:
        require_windows(truth, showers, held_out)
    reports = []
    for file, showers in zip(files, made, strict=True):
        name = file.stem if [f.stem for f in files].count(file.stem) == 1 else str(file)
        with bar(f"evaluate {name}", "%") as update:

            def progress(part: float, note: str, update: Any = update) -> None:
                update(round(100 * part), 100, note)

            reports.append(judge(truth, showers, candidate_name=name, progress=progress, **settings))
    seed = int(settings.get("seed", 0))
    if seen is not None:
        reports = [beyond.with_memorisation(report, seen, seed=seed) for report in reports]
    if held_out:
        reports = [beyond.with_interpolation(report, held_out, seed=seed) for report in reports]
    few = {k: v for k in ("repeats", "epochs") if (v := settings.get(k)) is not None}
    reports = beyond.with_log_posteriors(reports, seed=seed, **few)
    save_all(reports, output, force=force, figures=figures)
    return reports


def reweight(reference: str, candidate: str, output: Path, *, method: "Method", level: "Level", cap: float, seed: int,
             force: bool) -> str:  # fmt: skip
    """Weigh the showers of one file by those of another and write them; says what came of it."""
    from .evaluate.reweight import reweight as weigh

    io.require_absent(output, force)
    showers = [open_showers(hub.sample(path)) for path in (reference, candidate)]
    with bar("reweight", "%") as update:
        result = weigh(
            *showers, method=method, level=level, cap=cap, seed=seed,
            progress=lambda part, note: update(round(100 * part), 100, note),
        )  # fmt: skip
    io.write(result.showers, output, weight=result.weight, force=force)
    what = "showers with weights" if result.weight is not None else f"of {len(showers[1])} showers accepted"
    return "\n".join([
        f"AUC of a fresh classifier ({level}): before {_pair(*result.auc_before)}, after {_pair(*result.auc_after)}",
        f"effective sample size, share of N: {_pair(*result.ess)}; weights above {cap:g}: {100 * result.capped:.2g} %",
        f"rejection keeps {100 * result.efficiency:.1f} %",
        f"{output}: {len(result.showers)} {what}",
    ])  # fmt: skip


def tune(data: str, output: Path, *, detector: str | None = None, seed: int = 0, force: bool = False) -> "Parametric":
    """Tune the parametric simulator to the showers in ``data`` and write its card."""
    from .simulate.detectors import find
    from .simulate.tune import tune as fit

    io.require_absent(output, force)
    file = hub.sample(data)
    showers = open_showers(file)
    name = detector or showers.provenance.get("detector")
    if name is None:
        raise ValueError(f"got {data}, which does not name its detector, expected --detector NAME; give it")
    with bar("tune", "steps") as update:
        model = fit(showers, find(str(name)), seed=seed, progress=update)
    sample = {"sample": Path(data).name, "sample_sha256": sha256(file)}
    model = replace(model, origin=sample | dict(model.origin))
    model.save(output, force=force)
    return model


def summary(report: "Report") -> str:
    """The headline scores as a table, each beside its floor."""
    lines = [f"{'score':<20}{'value':>20}{'Geant4-vs-Geant4 floor':>28}"]
    names = [n for n in HEADLINES if n in report.scores] + sorted(
        n for n in report.scores if n.startswith("occupancy/")
    )
    for name in names:
        s = report.scores[name]
        lines.append(f"{name:<20}{_pair(s.value, s.error):>20}{_pair(s.floor, s.floor_error):>28}")
    worst = [n for n in sorted(report.scores, key=lambda n: -report.scores[n].value) if n.startswith("separation/")][:3]
    lines.append("worst separations: " + ", ".join(f"{n[11:]} {report.scores[n].value:.4f}" for n in worst))
    return "\n".join(lines)


def _pair(value: float, error: float) -> str:
    return f"{value:.4f} ± {error:.4f}"


def print_benchmark(rows: "Sequence[Row]") -> None:
    """The timings as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="one CPU thread, whole chain")
    heads = ("model", "engine", "batch", "ms/shower", "Geant4 ms/shower", "x Geant4", "peak MB", "load s")
    for k, name in enumerate(heads):
        table.add_column(name, justify="left" if k < 2 else "right", overflow="fold")
    for r in rows:
        geant4 = f"{r.geant4_ms_per_shower:.0f} ({r.geant4_source})"
        table.add_row(
            r.model, r.engine, str(r.batch), f"{r.ms_per_shower:.4f} ± {r.ms_spread:.4f}", geant4, f"{r.speedup:,.0f}",
            f"{r.peak_mb:.0f}", f"{r.load_s:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)


def show(path: str, output: Path | None = None, *, force: bool = False) -> None:
    """Print what a file, a model folder, an ONNX graph or a detector is; a detector is also drawn to ``output``."""
    from .simulate.detectors import find, names

    sample, model = hub.sample(path), hub.model(path)
    if (path in names() and not Path(path).exists()) or path.endswith(".toml"):
        from .simulate.draw import draw, summary

        detector = find(path)
        _print({**summary(detector), **_mesh(detector.geometry.to_dict())})
        if output is not None:
            draw(detector, output, force=force)
            print(f"picture: {output}")
    elif output is not None:
        raise ValueError(f"got --output for {path}, expected it with a detector only; leave it away")
    elif model.is_dir():
        from .fastsim import read_card

        _print_card(read_card(model)[0].to_dict())
    elif path.endswith(".onnx"):
        from .export import read_metadata

        _print_card(json.loads(read_metadata(path).get("caloforge_card", "{}")))
    else:
        _show_sample(sample)


def _show_sample(path: Path) -> None:
    showers = open_showers(path)
    if not len(showers):
        _print({"showers": 0, **_mesh(showers.geometry.to_dict()), **showers.provenance})
        return
    energy, ratio = showers.incident.energy / 1e3, showers.total / showers.incident.energy
    _print({
        "showers": len(showers), **_mesh(showers.geometry.to_dict()),
        "incident energy": f"{energy.min():.3g}..{energy.max():.3g} GeV",
        "PDG": ", ".join(str(p) for p in sorted(set(showers.incident.pdg.tolist()))),
        "E_tot/E": f"mean {ratio.mean():.4f}, spread {ratio.std():.4f}", **showers.provenance,
    })  # fmt: skip


def _print_card(card: dict[str, Any]) -> None:
    if not card:
        raise ValueError(
            "got an ONNX file without a caloforge card, expected one exported by caloforge; export it again"
        )
    training = card.pop("training")
    short = {k: training[k] for k in ("data", "n_showers", "seconds") if k in training}
    _print({**{k: v for k, v in card.items() if k not in ("geometry", "scores")}, **_mesh(card["geometry"]),
            "training": short, **{f"score {k}": v for k, v in card["scores"].items()}})  # fmt: skip


def _mesh(geometry: dict[str, Any]) -> dict[str, str]:
    shapes = [f"{len(v['first']) - 1}x{len(v['second']) - 1}" for v in geometry["layers"]]
    shown = shapes if len(shapes) <= 8 else [*shapes[:4], "...", shapes[-1]]
    return {
        "geometry": f"{geometry['name']}, {len(shapes)} {geometry['layers'][0]['kind']} layers: {' + '.join(shown)}"
    }


def _print(values: dict[str, Any]) -> None:
    width = max(len(key) for key in values)
    for key, value in values.items():
        print(f"{key:<{width}}  {value}")


def demo(output: Path, *, train_first: bool, seed: int) -> None:
    """Generate, judge and time the shipped model (or one trained now) on the shipped Geant4 test sample."""
    from .benchmark import benchmark, write_json
    from .evaluate import evaluate as judge
    from .fastsim import FastSim

    needed = {"report.html", "metrics.json", "benchmark.json"}
    found = {p.name for p in output.iterdir()} if output.is_dir() else set()
    if output.exists() and not (
        output.is_dir() and (not found or needed <= found <= needed | {"metrics.csv", "model"})
    ):
        raise FileExistsError(
            f"got output {output}, which is no earlier demo report, expected a new name; choose another"
        )
    test = io.read(hub.sample("calogan-eplus-test"))
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".demo-") as folder:
        work = Path(folder) / "demo-report"
        model = hub.model("calogan-eplus-one-step")
        if train_first:
            fast = train("calogan-eplus-train", Path(folder) / "model", recipe=hub.DATA / "recipes" / "demo.toml")
            model = Path(folder) / "model"
        else:
            fast = FastSim.load(model)
        print(f"generating {len(test)} showers with {fast.card.family}, judging them against Geant4 ...", flush=True)
        candidate = fast.simulate(test.incident, seed=seed)
        with bar("evaluate", "%") as update:
            report = judge(
                test, candidate, seed=seed, candidate_name=fast.card.family,
                progress=lambda part, note: update(round(100 * part), 100, note),
            )  # fmt: skip
        report.save(work)
        models = [model] if train_first else [model, hub.model("calogan-eplus-vae")]
        with bar("benchmark", "timings") as update:
            rows = benchmark(models, test.incident, progress=update, **_speed_options())
        write_json(rows, work / "benchmark.json")
        if train_first:
            (Path(folder) / "model" / "last.pt").unlink()
            (Path(folder) / "model").rename(work / "model")
        if output.exists():
            shutil.rmtree(output)
        work.rename(output)
    print(summary(report))
    print_benchmark(rows)
    print(f"report: {(output / 'report.html').absolute()}")


def _speed_options() -> dict[str, Any]:
    """Engines that are installed: ONNX Runtime is an extra."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return {"engines": ("pytorch", "c++"), "seconds": 2.0}
    return {"seconds": 2.0}
