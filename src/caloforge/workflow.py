"""The steps behind the verbs that join several parts: train, generate, evaluate, show, demo."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hub, io
from .datasets import open_showers
from .progress import bar
from .showers import Incident

if TYPE_CHECKING:
    from .benchmark import Row
    from .config import Recipe
    from .evaluate import Report
    from .fastsim import FastSim

HEADLINES = ("auc_low", "auc_high", "jsd_low", "jsd_high", "response/mean", "response/width", "response/core_width")


def incident_of(path: str) -> Incident:
    """Incident particles of a file of showers or a shipped sample."""
    file = hub.sample(path)
    try:
        return io.read_incident(file)
    except ValueError:
        return open_showers(file).incident  # another layout, or an error that says what is wrong


def train(data: str, output: Path, *, recipe: Path | None = None, steps: int | None = None, seed: int | None = None,
          resume: bool = False, force: bool = False) -> "FastSim":  # fmt: skip
    """Train the recipe's model on the showers in ``data``; ``output`` becomes a run folder."""
    from .config import Recipe, dump_recipe, load_recipe
    from .fastsim import FastSim
    from .simulate.gun import Gun
    from .train import fit, require_trainable

    chosen = load_recipe(recipe) if recipe else Recipe()
    settings = chosen.train
    settings = replace(settings, steps=settings.steps if steps is None else steps)
    chosen = replace(chosen, train=replace(settings, seed=settings.seed if seed is None else seed))
    file = hub.sample(data)
    showers = open_showers(file)
    gun = showers.provenance.get("gun")  # the range a sample was made for is wider than what it happens to hold
    valid = Gun.from_description(gun) if gun else showers.incident
    fast = FastSim.create(
        showers.geometry, chosen.model, valid=valid, preprocess=chosen.preprocess, seed=chosen.train.seed
    )
    require_trainable(fast, showers, chosen.train)
    _prepare_folder(output, chosen, resume, force)
    (output / "recipe.toml").write_text(dump_recipe(chosen))
    began = time.monotonic()
    with bar(f"train {fast.card.family}", "steps") as update:
        fit(fast, showers, chosen.train, folder=output, resume=resume, progress=update)
    training = {
        "recipe": chosen.to_dict(), "data": Path(data).name, "data_sha256": _sha256(file), "n_showers": len(showers),
        "data_provenance": dict(showers.provenance), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    fast = fast.with_card(training=training)
    fast.save(output)
    return fast


def _prepare_folder(output: Path, recipe: "Recipe", resume: bool, force: bool) -> None:
    """An empty output folder, or the run of the same recipe to resume."""
    from .config import load_recipe

    if resume:
        if not (output / "last.pt").exists():
            raise FileNotFoundError(
                f"got --resume, expected a run with {output / 'last.pt'}; train without --resume first"
            )
        if load_recipe(output / "recipe.toml") != recipe:
            raise ValueError(
                f"got another recipe to resume than {output / 'recipe.toml'}, expected the same; give the same "
                "command or start a new run"
            )
        return
    io.require_absent(output, force)
    if output.is_dir() and not (output / "recipe.toml").exists() and any(output.iterdir()):
        raise FileExistsError(f"got output {output}, a folder that is no run, expected a new name; choose another")
    if output.is_dir():
        shutil.rmtree(output)
    elif output.exists():
        output.unlink()
    output.mkdir()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def generate(
    fast: "FastSim", incident: Incident, output: Path, *, seed: int, command: str, force: bool = False
) -> None:
    """Showers of the particles, written part by part."""
    provenance = fast.provenance() | {"seed": seed, "command": command, "model_training": fast.card.training}
    done = 0
    with bar(f"generate {fast.card.family}") as update:
        fast.check(incident)
        with io.Writer(output, fast.geometry, provenance, force=force) as file:
            for part in fast.stream(incident, seed=seed):
                file.append(part)
                done += len(part)
                update(done, len(incident))


def evaluate(reference: str, candidate: str, output: Path, *, seed: int, repeats: int, force: bool) -> "Report":
    """Judge the showers in one file against those in another and write the report."""
    from .evaluate import evaluate as judge

    if not force and output.exists():
        raise FileExistsError(f"got output {output}, which exists, expected a new name; choose another or give --force")
    files = hub.sample(reference), hub.sample(candidate)
    showers = [open_showers(f) for f in files]
    with bar("evaluate", "%") as update:
        report = judge(
            *showers, seed=seed, repeats=repeats, candidate_name=files[1].stem,
            progress=lambda part, note: update(round(100 * part), 100, note),
        )  # fmt: skip
    report.save(output, force=force)
    return report


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

    known = {"report.html", "metrics.json", "benchmark.json", "model"}
    if output.exists() and not (output.is_dir() and {p.name for p in output.iterdir()} <= known):
        raise FileExistsError(
            f"got output {output}, which is no earlier demo report, expected a new name; choose another"
        )
    test = io.read(hub.sample("calogan-eplus-test"))
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".demo-") as folder:
        work = Path(folder) / "demo-report"
        model = hub.model("calogan-eplus")
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
        return {"engines": ("pytorch",), "seconds": 2.0}
    return {"seconds": 2.0}
