"""The command line: eight verbs and small tools, each one public function with the same argument names."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from .simulate import Simulator
    from .simulate.jets import Rotation

Output = Annotated[Path, arg(aliases=["-o"], metavar="PATH")]
Count = Annotated[int, arg(aliases=["-n"])]
Text = Annotated[str | None, arg(metavar="TEXT")]
Layout = Literal["caloforge", "calogan", "calochallenge", "lhcb", "lemurs", "showerdata", "par04-root"]
Cluster = Annotated[Path | None, arg(metavar="TOML", help="processes of a batch system instead: docs/clusters.md")]
Shard = Annotated[str | None, arg(metavar="I/N", help="only part I of N, to be merged with the others")]
Model = Annotated[str, arg(metavar="MODEL", help="model folder, or the name of a shipped model (calogan-eplus)")]


def simulate(
    detector: Positional[str],
    /,
    output: Output,
    n: Count,
    energy: Annotated[str | None, arg(metavar="RANGE")] = None,
    particle: Text = None,
    spectrum: Text = None,
    theta: Text = None,
    phi: Text = None,
    theta_x: Text = None,
    theta_y: Text = None,
    x: Text = None,
    y: Text = None,
    engine: Literal["geant4", "parametric"] = "geant4",
    card: Path | None = None,
    rotation: Literal["constituents", "spline"] = "constituents",
    seed: int = 0,
    workers: int = 1,
    cluster: Cluster = None,
    shard: Shard = None,
    force: bool = False,
) -> None:
    """Make showers of a detector by full simulation (Geant4) or the parametric simulator; or jet images (Pythia 8).

    What is not said about the particles is taken from the detector's own gun (``caloforge show DETECTOR``).

    Args:
        detector: name of a detector (calogan, lhcb, par04-siw, ...), or a TOML file that describes one; or "jets":
            images of boosted W bosons and QCD jets (--particle W or QCD for one of them).
        output: HDF5 file to write.
        n: number of showers.
        energy: kinetic energy with unit: 50GeV, 1..100GeV, or a list 256,512,1024MeV.
        particle: name (e+, gamma, pi+) or PDG number.
        spectrum: uniform, log-uniform or power:INDEX, of a range of energies.
        theta: angle from the depth axis: 5deg, 0..20deg, or 0+-20deg (normal).
        phi: azimuth of the direction, the same way.
        theta_x: angle in the plane xz, instead of theta and phi.
        theta_y: angle in the plane yz.
        x: position on the front face, or where the detector's gun aims: 5mm, -5..5mm, 0+-3mm.
        y: the same.
        engine: what simulates.
        card: constants of the parametric simulator, as ``caloforge tune`` writes them; without it the textbook's.
        rotation: of jet images: the constituents before they fill pixels, or the image by a spline as in LAGAN's paper.
        seed: the same seed gives the same showers, whatever the number of workers.
        workers: processes on this machine.
        force: replace an existing file.
    """
    from .progress import bar
    from .simulate import produce
    from .simulate.detectors import find
    from .simulate.gun import adapted
    from .simulate.shards import parse_shard

    said = {
        "particle": particle, "energy": energy, "spectrum": spectrum, "theta": theta, "phi": phi, "theta_x": theta_x,
        "theta_y": theta_y, "x": x, "y": y,
    }  # fmt: skip
    if detector == "jets" and not Path(detector).exists():
        odd = [key for key, text in said.items() if text is not None and key != "particle"]
        if odd or engine != "geant4" or card is not None:
            raise ValueError(
                f"got --{odd[0].replace('_', '-') if odd else 'engine or --card'} for jets, expected --particle and "
                "--rotation only; leave it away"
            )
        part = parse_shard(shard)
        _jets(output, n, particle, rotation, seed=seed, workers=workers, cluster=cluster, shard=part, force=force)
        return
    gun = adapted(find(detector).gun, **said)
    if engine == "geant4":
        from .simulate.geant4 import require_gun

        require_gun(gun, find(detector))
    options = [word for key, text in said.items() if text is not None for word in _option(key, text)]
    tuned = [] if card is None else ["--card", str(card)]
    words = ["caloforge", "simulate", detector, *options, "--engine", engine, *tuned, "-n", str(n), "--seed", str(seed)]
    command = shlex.join(words)
    with bar(f"{engine} {detector} {gun.pdg}") as update:
        produce(
            _factory(engine, detector, card), gun, output, n=n, seed=seed, workers=workers, cluster=cluster,
            shard=parse_shard(shard), force=force, command=command, progress=update,
        )  # fmt: skip
    print(f"{output}: {f'shard {shard} of {n}' if shard else n} showers")


def _jets(
    output: Path, n: int, particle: str | None, rotation: "Rotation", *, seed: int, workers: int, cluster: Path | None,
    shard: tuple[int, int] | None, force: bool,
) -> None:  # fmt: skip
    from .progress import bar
    from .simulate.jets import CLASSES, JetConfig, produce_jets

    if particle is not None and particle not in CLASSES:
        raise ValueError(
            f"got --particle {particle} for jets, expected {' or '.join(CLASSES)}; choose one or leave it away"
        )
    chosen: Any = tuple(CLASSES) if particle is None else (particle,)
    config = JetConfig(classes=chosen, rotation=rotation)
    words = ["caloforge", "simulate", "jets", *(_option("particle", particle) if particle else ())]
    words += ["--rotation", rotation, "-n", str(n), "--seed", str(seed)]
    with bar("Pythia 8 jets") as update:
        produce_jets(
            output, config, n=n, seed=seed, workers=workers, cluster=cluster, shard=shard, force=force,
            command=shlex.join(words), progress=update,
        )  # fmt: skip
    print(f"{output}: {f'shard {shard[0]}/{shard[1]} of {n}' if shard else n} jets")


def train(
    data: Positional[str],
    /,
    output: Output,
    recipe: Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    threads: int = 0,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train a model on showers and write a run folder, which is a model folder.

    Args:
        data: HDF5 file of showers (caloforge or CaloGAN layout), or the name of a shipped sample.
        output: run folder to write.
        recipe: TOML file with [model], [preprocess] and [train]; without it the default of any detector: a teacher and
            its one-step student, judged on showers held out, and the better one (docs/choose-a-model.md).
        steps: number of steps instead of the recipe's.
        seed: seed instead of the recipe's.
        threads: CPU threads, 0 for OMP_NUM_THREADS or all cores.
        resume: continue an interrupted run of a recipe in the output folder.
        force: replace an existing run folder.
    """
    from . import runs

    _threads(threads)
    runs.train(data, output, recipe=recipe, steps=steps, seed=seed, resume=resume, force=force)
    print(f"{output}: trained model")


def distill(
    teacher: Positional[Model],
    data: Positional[str | None] = None,
    /,
    *,
    output: Output,
    recipe: Path | None = None,
    pairs: int = 60_000,
    steps: int | None = None,
    seed: int | None = None,
    threads: int = 0,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train a small student that does in one step what a teacher does; a run folder, which is a model folder.

    Args:
        teacher: model folder or shipped model on Gaussianised features (copula, flow_matching), or of family caloflow.
        data: showers to match, a file or a shipped sample; without it the teacher's, if that is shipped.
        output: run folder to write.
        recipe: TOML file with [model] of family one_step, mean_flow for a teacher of flow matching, or
            caloflow_student for CaloFlow's, and [train]; without it the default's for this detector.
        pairs: pairs of noise and teacher output for the regression of one_step.
        steps: number of steps instead of the recipe's.
        seed: seed instead of the recipe's.
        threads: CPU threads, 0 for OMP_NUM_THREADS or all cores.
        resume: continue an interrupted run in the output folder.
        force: replace an existing run folder.
    """
    from . import runs

    _threads(threads)
    runs.distill(
        teacher, data, output, recipe=recipe, n_pairs=pairs, steps=steps, seed=seed, resume=resume, force=force
    )
    print(f"{output}: trained student")


def generate(
    model: Positional[Model],
    /,
    output: Output,
    like: str | None = None,
    energy: Annotated[str | None, arg(metavar="RANGE")] = None,
    particle: Text = None,
    n: Annotated[int | None, arg(aliases=["-n"])] = None,
    spectrum: Literal["uniform", "log-uniform"] = "uniform",
    seed: int = 0,
    threads: int = 0,
    workers: int = 1,
    cluster: Cluster = None,
    shard: Shard = None,
    force: bool = False,
) -> None:
    """Generate showers with a model, streamed to disk in constant memory.

    Args:
        output: HDF5 file to write.
        like: take the incident particles of this file of showers.
        energy: or draw their kinetic energy from this range with unit, at normal incidence on the centre.
        particle: with --energy, name or PDG number; by default the first that the model was made for.
        n: number of showers; with --like the first n of the file.
        spectrum: distribution of the energy.
        seed: the same seed gives the same showers.
        threads: CPU threads, 0 for OMP_NUM_THREADS or all cores; several workers have one each.
        workers: processes on this machine.
        force: replace an existing file.
    """
    from . import hub, workflow
    from .fastsim import FastSim
    from .simulate.gun import adapted
    from .simulate.shards import parse_shard

    if threads and (workers > 1 or cluster):
        raise ValueError("got --threads with several workers, which have one each, expected one option; leave one out")
    _threads(threads)
    if (like is None) == (energy is None):
        raise ValueError(
            "got both or none of --like and --energy, expected one of them; give the incident particles once"
        )
    if like is not None and particle is not None:
        raise ValueError("got --particle with --like, which brings the particles, expected one of them; leave one out")
    if n is not None and n < 1:
        raise ValueError(f"got -n {n}, expected at least 1 shower; raise it")
    fast = FastSim.load(hub.model(model))
    if like is not None:
        incident = workflow.incident_of(like)[: n or None]
        if n is not None and len(incident) < n:
            raise ValueError(f"got -n {n} with {like} of {len(incident)} showers, expected at most as many; lower it")
        first = [] if n is None else ["-n", str(n)]
        command = ["caloforge", "generate", model, "--like", like, *first, "--seed", str(seed)]
    else:
        if n is None:
            raise ValueError("got --energy without -n, expected the number of showers; add -n N")
        kind = particle or str(fast.card.pdg[0])
        incident = adapted(None, particle=kind, energy=energy, spectrum=spectrum).sample(n, seed)
        chosen = _option("particle", particle) if particle else ()
        command = ["caloforge", "generate", model, "--energy", str(energy), *chosen, "-n", str(n)]
        command += ["--spectrum", spectrum, "--seed", str(seed)]
    workflow.generate(
        fast, incident, output, seed=seed, command=shlex.join(command), force=force, model=hub.model(model).absolute(),
        workers=workers, cluster=cluster, shard=parse_shard(shard),
    )  # fmt: skip
    print(f"{output}: {f'shard {shard} of {len(incident)}' if shard else len(incident)} showers")


def merge(files: Positional[list[str]], /, output: Output, force: bool = False) -> None:
    """Join the shards of a sample into the file that the same command without --shard writes.

    Args:
        files: HDF5 files of all shards, in any order.
        output: HDF5 file to write.
        force: replace an existing file.
    """
    from .progress import bar
    from .simulate.shards import merge as join

    with bar("merge") as update:
        n = join(files, output, force=force, progress=update)
    print(f"{output}: {n} showers")


def evaluate(
    reference: Positional[str],
    candidates: Positional[list[str]],
    /,
    output: Output,
    profile: Literal["standard", "calochallenge"] = "standard",
    levels: Annotated[tuple[str, ...], arg(metavar="LEVEL ...")] = (),
    repeats: int | None = None,
    epochs: int | None = None,
    binning: Path | None = None,
    detector: Text = None,
    minimum: Text = None,
    training: Text = None,
    held_out: Annotated[tuple[str, ...], arg(metavar="RANGE ...")] = (),
    learning_curve: bool = False,
    seed: int = 0,
    threads: int = 0,
    figures: bool = False,
    force: bool = False,
) -> None:
    """Judge candidate showers against reference (Geant4) showers: report.html, metrics.json and metrics.csv.

    Args:
        reference: file of reference showers, or the name of a shipped sample.
        candidates: files of candidate showers, judged one by one and shown together.
        output: folder to write.
        profile: standard for any detector and daily use; calochallenge for the conventions of that paper (hours).
        levels: classifiers to train, by default low high; challenge: low low-normed high, and resnet if asked.
        repeats: trainings of each classifier, by default 3 (challenge: 10).
        epochs: of each training, by default 30 (challenge: 50).
        binning: XML file of CaloChallenge showers.
        detector: name or TOML file, where a file of showers does not know its mesh.
        minimum: least voxel energy of the challenge profile, with unit, for meshes that are not the CaloChallenge's.
        training: showers that the candidates' models were trained on: are they copied?
        held_out: energies that training left out, such as 20..30GeV: are the candidates worse there?
        learning_curve: AUC against the number of training showers too: does it still rise?
        seed: seed of splits, classifiers and bootstrap.
        threads: CPU threads, 0 for OMP_NUM_THREADS or all cores.
        figures: write every figure for papers too, as PNG and PDF.
        force: replace an existing folder.
    """
    from . import units, workflow

    _threads(threads)
    reports = workflow.evaluate(
        reference, candidates, output, profile=profile, levels=levels or None, repeats=repeats, epochs=epochs,
        binning=binning, detector=detector, minimum=units.parse_energy(minimum)[0] if minimum else None, seed=seed,
        training=training, held_out=[units.parse_energy(text) for text in held_out],
        learning_curve=learning_curve, force=force, figures=figures,
    )  # fmt: skip
    for report in reports:
        if len(reports) > 1:
            print(f"\n{report.name}")
        print(workflow.summary(report))
    print(f"report: {output / 'report.html'}")


def benchmark(
    models: Positional[list[str]],
    /,
    output: Annotated[Path | None, arg(aliases=["-o"])] = None,
    like: str = "calogan-eplus-test",
    batches: Annotated[tuple[int, ...], arg(metavar="N ...")] = (1, 1000),
    n_geant4: int = 20,
    seconds: float = 3.0,
    force: bool = False,
) -> None:
    """Time models at several batch sizes on one thread, with PyTorch and ONNX Runtime, beside Geant4 on the same core.

    Args:
        models: model folders, or names of shipped models.
        output: JSON file to write.
        like: take the incident particles of this file of showers.
        batches: showers per call; the CaloChallenge quotes 1 100 10000.
        n_geant4: showers that Geant4 simulates for the comparison.
        seconds: time for each measurement.
        force: replace an existing file.
    """
    from . import hub, io, workflow
    from .benchmark import benchmark as time_models
    from .benchmark import write_json
    from .progress import bar

    if output:
        io.require_absent(output, force)
    with bar("benchmark", "timings") as update:
        folders = [hub.model(m) for m in models]
        rows = time_models(folders, workflow.incident_of(like), batches=batches, n_geant4=n_geant4, seconds=seconds,
                           progress=update)  # fmt: skip
    workflow.print_benchmark(rows)
    if output:
        write_json(rows, output)


def export(model: Positional[Model], /, output: Output, cpp: bool = False, force: bool = False) -> None:
    """Export a model as ONNX, or C++: noise and incident particles in, MeV out; checked against PyTorch by number.

    Args:
        output: ONNX file to write, or folder with --cpp.
        cpp: a one-step student as C++ code and weights, several times faster than ONNX for one shower at a time.
        force: replace what is there.
    """
    from . import hub
    from .export import export as export_onnx
    from .export.cpp import export_cpp
    from .fastsim import FastSim

    parity = (export_cpp if cpp else export_onnx)(FastSim.load(hub.model(model)), output, force=force)
    print(f"{output}: layer energies equal PyTorch's to {parity.layer_energy:.1e} over {parity.n} showers")


def show(
    path: Positional[str], /, output: Annotated[Path | None, arg(aliases=["-o"])] = None, force: bool = False
) -> None:
    """Say what a file of showers, a model folder, an ONNX graph, a sample or a detector is; draw a detector.

    Args:
        path: file, folder, shipped name, detector or TOML file that describes one.
        output: picture of a detector to write: side view and readout mesh (.png, .pdf or .svg).
        force: replace an existing file.
    """
    from . import workflow

    workflow.show(path, output, force=force)


def demo(output: Output = Path("demo-report"), train: bool = False, seed: int = 0, threads: int = 0) -> None:
    """Generate showers for the shipped Geant4 test sample, judge and time them: no network, Geant4 or GPU needed.

    Args:
        output: folder for report.html, metrics.json and benchmark.json; replaced if it is an earlier demo's.
        train: train a small model from the shipped sample first (about a quarter of an hour).
        seed: seed of generation and evaluation.
        threads: CPU threads, 0 for OMP_NUM_THREADS or all cores.
    """
    from . import workflow

    _threads(threads)
    workflow.demo(output, train_first=train, seed=seed)


def convert(
    source: Annotated[Positional[str], arg(metavar="IN")],
    target: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    to: Layout | None = None,
    binning: Path | None = None,
    detector: str | None = None,
    force: bool = False,
) -> None:
    """Convert showers between layouts: CaloGAN, CaloChallenge, LHCb, LEMURS and Par04, showerdata, our own.

    Args:
        source: file of showers in any of the layouts, told apart by what is in it, or a shipped sample.
        target: file to write.
        to: layout to write; by default by the suffix: .npz LHCb, .root Par04, .h5 and .hdf5 caloforge.
        binning: XML file of CaloChallenge showers; without it one is written beside OUT.
        detector: name or TOML file: reads point clouds out, and gives showers the mesh their file does not tell.
        force: replace existing files.
    """
    from . import hub
    from .datasets.convert import convert as convert_file

    done = convert_file(hub.sample(source), target, to=to, binning=binning, detector=detector, force=force)
    beside = "".join(f", binning: {path}" for path in done.files[1:])
    print(f"{target}: {done.n} showers, layout {done.layout}{beside}")


def reweight(
    reference: Positional[str],
    candidate: Positional[str],
    /,
    output: Output,
    method: Literal["weights", "rejection"] = "weights",
    level: Literal["high", "low"] = "high",
    cap: float = 20.0,
    seed: int = 0,
    threads: int = 0,
    force: bool = False,
) -> None:
    """Weigh candidate showers with a classifier so that they count like reference (Geant4) showers, or keep some.

    Args:
        reference: file of reference showers that the result will not be judged with, or a shipped sample.
        candidate: file of candidate showers.
        output: HDF5 file to write.
        method: all showers with a dataset "weight", or the showers accepted with a probability in proportion to it.
        level: what the classifiers see, observables (high) or voxels (low).
        cap: largest weight.
        seed: seed of splits, classifiers and rejection.
        threads: CPU threads, 0 for OMP_NUM_THREADS or all cores.
        force: replace an existing file.
    """
    from . import workflow

    _threads(threads)
    print(workflow.reweight(reference, candidate, output, method=method, level=level, cap=cap, seed=seed, force=force))


def amplify(
    samples: Annotated[Positional[list[str]], arg(metavar="toys | TRUTH TRAIN GENERATED")],
    /,
    output: Output,
    repetitions: int = 100,
    network: bool = False,
    observables: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = (),
    quantiles: Annotated[tuple[int, ...], arg(metavar="N ...")] = (5, 10, 20, 50, 100),
    seed: int = 0,
    threads: int = 0,
    force: bool = False,
) -> None:
    """Ask how many showers of the truth a generated sample is worth: statistical amplification, with controls.

    Args:
        samples: "toys" for toys with a known truth, or three files of showers: truth that was not used in training,
            training showers, generated showers.
        output: folder to write: amplification.json and amplification.png.
        repetitions: trainings of each toy.
        network: also train a small generative network on the toys (minutes).
        observables: observables of the showers instead of the usual ones.
        quantiles: numbers of quantiles of each observable.
        seed: seed of toys, trainings and subsets.
        threads: CPU threads of the network, 0 for all cores.
        force: replace the two files in an existing folder.
    """
    from . import hub
    from .datasets import open_showers
    from .evaluate import amplification_result
    from .progress import bar

    amplification_result.require_folder(output, force)
    if samples != ["toys"] and len(samples) != 3:
        raise ValueError(
            f"got {' '.join(samples) or 'no sample'}, expected toys or three files TRUTH TRAIN GENERATED; give these"
        )
    with bar("amplify", "steps") as update:
        if len(samples) == 3:
            from .evaluate.amplification_showers import amplify_showers

            showers = [open_showers(hub.sample(name)) for name in samples]
            result = amplify_showers(
                *showers, observables=observables or None, quantiles=quantiles, seed=seed, progress=update
            )
        else:
            from .evaluate.amplification_toys import DEFAULT, amplify_toys

            if network:
                _threads(threads)
            contestants = (*DEFAULT, "network") if network else DEFAULT
            result = amplify_toys(contestants=contestants, repetitions=repetitions, seed=seed, progress=update)
    result.save(output, force=force)
    print(amplification_result.summary(result))
    print(f"figure: {output / amplification_result.FIGURE_NAME}")


def leaderboard(
    dataset: Annotated[Positional[str | None], arg(metavar="[DATASET]")] = None,
    /,
    output: Annotated[Path | None, arg(aliases=["-o"])] = None,
    score: Literal["auc", "auc_low", "auc_high", "auc_resnet", "fpd", "kpd"] = "auc",
    time: Literal["cpu-1", "cpu-100", "cpu-10000", "gpu-1", "gpu-100", "gpu-10000"] = "cpu-1",
    add: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME:METRICS.JSON[:BENCHMARK.JSON]")] = (),
    force: bool = False,
) -> None:
    """Show quality against time: the published CaloChallenge submissions and the models shipped here.

    Args:
        dataset: ds1-photons, ds1-pions, ds2, ds3, or the sample of a shipped model (calogan-eplus); without it all.
        output: picture (.png, .svg, .pdf) or page (.html) to write.
        score: what stands for quality; auc is the larger one of voxels and observables.
        time: device and batch size of the time per shower.
        add: a model beside them, from what evaluate and benchmark have written; may be repeated.
        force: replace an existing file.
    """
    from .evaluate import leaderboard as board

    if output:
        board.require_writable(output, force)
    table = board.leaderboard(dataset, score=score, time=time, add=add)
    if output:
        table.save(output, force=force)
    table.print()
    if output:
        print(f"picture: {output}")


def tune(
    data: Positional[str],
    /,
    output: Output,
    detector: Annotated[str | None, arg(metavar="NAME")] = None,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Tune the parametric simulator to a detector with a small Geant4 sample of e-, e+ or photons (some minutes).

    Args:
        data: file of 200 showers or more, of which 2,000 are used, or the name of a shipped sample.
        output: card to write (JSON), for ``caloforge simulate --engine parametric --card``.
        detector: name or TOML file; by default the one that the sample says it is of.
        seed: seed of the choice of showers and of the simulations.
        force: replace an existing file.
    """
    from . import workflow

    origin = workflow.tune(data, output, detector=detector, seed=seed, force=force).origin
    before, after = (f"{origin[name]:.2f}" for name in ("misfit_textbook", "misfit_tuned"))
    print(f"{output}: tuned to {origin['n_showers']} showers, misfit {after} (textbook {before}; 1 is perfect)")


VERBS: dict[str, Callable[..., None]] = {
    f.__name__: f for f in (
        simulate, train, generate, evaluate, benchmark, export, show, demo, convert, reweight, amplify, leaderboard,
        merge, tune, distill,
    )
}  # fmt: skip


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code: 0, 2 for errors of the user, 130 when interrupted."""
    try:
        if arguments == ["--version"]:
            from ._version import __version__

            print(f"caloforge {__version__}")
            return 0
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="caloforge", args=arguments, description=_ABOUT)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"caloforge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"caloforge: interrupted; {_kept(arguments)}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return 0


def _kept(arguments: list[str]) -> str:
    """What is left of an interrupted command, and how to go on."""
    verb = arguments[0] if arguments else ""
    if verb in ("simulate", "generate"):
        return "finished chunks, in FILE.parts, are kept: run the same command again to continue"
    if verb == "distill" or (verb == "train" and "--recipe" in " ".join(arguments)):
        return "the last checkpoint, if there was one, is kept: add --resume to continue"
    if verb == "train":
        return "run it again from the start, with --force if the folder is there"
    return "nothing was written: run it again"


_ABOUT = "From Geant4 showers to a trained, judged and exported fast calorimeter simulation."


def _option(key: str, text: str) -> tuple[str, ...]:
    """Words of an option; joined with = where the value looks like an option itself (-5..5mm)."""
    name = "--" + key.replace("_", "-")
    return (f"{name}={text}",) if text.startswith("-") else (name, text)


def _factory(engine: str, detector: str, card: Path | None) -> Callable[[], "Simulator"]:
    from functools import partial

    from .simulate.detectors import find
    from .simulate.engines import make

    find(detector)  # an unknown name is said before any process starts
    return partial(make, engine, detector, card)


def _threads(n: int) -> None:
    import torch

    if n < 0:
        raise ValueError(f"got --threads {n}, expected 0 (all cores) or more; raise it")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n or not os.environ.get("OMP_NUM_THREADS"):  # which torch has read
        torch.set_num_threads(n or cores)
