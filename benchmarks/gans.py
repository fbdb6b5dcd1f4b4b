"""Judge the GANs, as published and improved, on Geant4 and Pythia samples that they never saw; figures and tables.

    python benchmarks/gans.py calogan runs/calogan-paper calogan-eplus-gan calogan-gamma-gan calogan-piplus-gan
    python benchmarks/gans.py lhcb lhcb-wgan-paper lhcb-eminus-gan
    python benchmarks/gans.py jets lagan-paper jets-gan
    python benchmarks/gans.py residuals jets.h5 jets-gan          # only mean images, on jets of a file of your own
    python benchmarks/gans.py speed calogan-eplus-gan ...         # ms per shower and showers/s beside Geant4 or Pythia

Each model is a run folder or a shipped model; its test sample is that of the sample it was trained on. Writes a section
of benchmarks/RESULTS.md and docs/gans-*.png, and the scores onto the cards of shipped models. Generation and evaluation
use seed 0. Values of the papers are quoted in docs/gans.md, not here.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LogNorm, SymLogNorm
from results import put_section
from ship import compact

import caloforge as cf
from caloforge import hub
from caloforge.benchmark import benchmark, machine
from caloforge.evaluate import classifier, evaluate, jets, lhcb, observables
from caloforge.evaluate.distances import Measured
from caloforge.fastsim import FastSim
from caloforge.geometry import Array
from caloforge.showers import Showers

DOCS = Path(__file__).parent.parent / "docs"
REPEATS = 3
KEPT = ("auc_low", "auc_high", "jsd_low", "jsd_high", "response/mean", "response/width", "response/core_width")
BATCHES = (1, 10, 100, 1000, 10_000)
# Figure 4 of 1812.01319: range, bins and the depth [mm] that its panel was made with (docs/log.md).
LEGACY = {
    "legacy_transverse_width": (0, 10, 100, 250.0),
    "legacy_longitudinal_width": (0, 15, 100, 250.0),
    "legacy_delta_x": (-10, 10, 50, 98.0),
    "legacy_transverse_asymmetry": (-1, 1, 50, 130.0),
    "legacy_longitudinal_asymmetry": (-1, 1, 50, 130.0),
}
WINDOWS = {"jet_pt": (250e3, 300e3), "jet_mass": (60e3, 100e3)}


def load(name: str) -> tuple[str, FastSim, Showers]:
    """Short name, model, and the test sample that belongs to its training sample."""
    fast = FastSim.load(hub.model(name))
    return Path(name).name, fast, cf.read(hub.sample(sample_of(fast)))


def sample_of(fast: FastSim) -> str:
    return Path(str(fast.card.training["data"])).stem.replace("-train", "-test")


def cell(value: Measured) -> str:
    return f"{value[0]:.4f} ± {value[1]:.4f}"


def scores(name: str, fast: FastSim, test: Showers, made: Showers, names: tuple[str, ...]) -> dict[str, str]:
    """Scores as text: value ± error (floor ± error); those of a shipped model also go onto its card."""
    report = evaluate(test, made, seed=0, repeats=REPEATS)
    if name in hub.MODEL_NAMES and not Path(name).exists():
        kept = {k: asdict(report.scores[k]) for k in (*KEPT, *names) if k in report.scores}
        sample = {"sample": sample_of(fast), "n_test": len(test), "seed": 0, "repeats": REPEATS}
        compact(fast.with_card(scores=sample | kept)).save(hub.model(name), half=True, helpers=False)
    worst = sorted((k for k in report.scores if k.startswith("separation/")), key=lambda k: -report.scores[k].value)
    out = {}
    for name in (*names, *(k for k in report.scores if k.startswith("occupancy/"))):
        if name in report.scores:
            s = report.scores[name]
            out[name] = f"{cell((s.value, s.error))} ({cell((s.floor, s.floor_error))})"
    s = report.scores[worst[0]]
    return out | {"worst separation": f"{worst[0][11:]} {cell((s.value, s.error))} ({cell((s.floor, s.floor_error))})"}


def table(columns: dict[str, dict[str, str]]) -> list[str]:
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines = [
        "| value (Geant4 or Pythia against itself) | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    return lines + [f"| {row} | " + " | ".join(c.get(row, "") for c in columns.values()) + " |" for row in rows]


def calogan(names: list[str]) -> None:
    """CaloGAN's detector: scores, mean images, shower shapes, one z at many energies, nearest neighbours."""
    kept = ("auc_low", "auc_high", "fpd", "response/mean", "response/core_width", "separation/fraction_2",
            "separation/shower_depth", "separation/lateral_width_1", "separation/occupied_0")  # fmt: skip
    columns, drawn = {}, {}
    for name in names:
        short, fast, test = load(name)
        made = fast.simulate(test.incident, seed=0)
        columns[short] = scores(name, fast, test, made, kept)
        columns[short] |= {f"occupied fraction, layer {k}: model / Geant4": f"{a:.3f} / {b:.3f}" for k, (a, b) in
                           enumerate(zip(occupied(made), occupied(test), strict=True))}  # fmt: skip
        drawn[short] = (fast, test, made)
        print(short, columns[short], flush=True)
    put_section("GANs in CaloGAN's calorimeter", "\n".join(table(columns)), command("calogan", names))
    first = [v for v in drawn.values() if v[1].incident.pdg[0] == -11]
    mean_images(
        first[0][1], {k: v[2] for k, v in drawn.items() if v[1].incident.pdg[0] == -11}, "gans-calogan-mean.png"
    )
    shapes(drawn, "gans-calogan-shapes.png")
    traversal({k: v[0] for k, v in drawn.items()}, "gans-calogan-energy.png")
    neighbours(drawn, "gans-calogan-neighbours.png")


def occupied(showers: Showers) -> list[float]:
    return [float((showers.image(k) > 0).mean()) for k in range(showers.geometry.n_layers)]


def mean_images(test: Showers, made: dict[str, Showers], file: str) -> None:
    """Mean image of each layer: truth, models, differences."""
    n = test.geometry.n_layers
    columns = [("truth", test), *made.items()]
    fig, axes = plt.subplots(n, 2 * len(columns) - 1, figsize=(4.2 * len(columns), 2.6 * n), squeeze=False)
    for layer in range(n):
        truth = test.image(layer).mean(0) / 1e3
        norm = LogNorm(max(truth[truth > 0].min(), 1e-6 * truth.max()), truth.max())
        for k, (name, showers) in enumerate(columns):
            mean = showers.image(layer).mean(0) / 1e3
            mesh = axes[layer, k].imshow(mean.T + 1e-12, norm=norm, origin="lower", aspect="auto")
            axes[layer, k].set_title(f"{name}, layer {layer} [GeV]", fontsize=8)
            fig.colorbar(mesh, ax=axes[layer, k])
            if k:
                ax = axes[layer, len(columns) + k - 1]
                most = np.abs(mean - truth).max()
                mesh = ax.imshow((mean - truth).T, norm=SymLogNorm(1e-3 * most, vmin=-most, vmax=most), cmap="RdBu_r",
                                 origin="lower", aspect="auto")  # fmt: skip
                ax.set_title(f"{name} - truth", fontsize=8)
                fig.colorbar(mesh, ax=ax)
    save(fig, file)


def shapes(drawn: dict[str, Any], file: str) -> None:
    """Eight shower shapes of each model beside its Geant4."""
    names = ("response", "fraction_0", "fraction_2", "shower_depth", "shower_depth_width", "occupied_0", "occupied_1",
             "lateral_width_1", "e_ratio_0")  # fmt: skip
    fig, axes = plt.subplots(len(drawn), len(names), figsize=(2.3 * len(names), 2.1 * len(drawn)), squeeze=False)
    for row, (model, (_, test, made)) in zip(axes, drawn.items(), strict=True):
        values = [observables.observables(s) for s in (test, made)]
        for ax, name in zip(row, names, strict=True):
            low, high = np.quantile(np.concatenate([v[name] for v in values]), [0.005, 0.995])
            edges = np.linspace(low, high + 1e-9, 41)
            ax.hist(values[0][name], edges, density=True, color="0.8", label="Geant4")
            ax.hist(values[1][name], edges, density=True, histtype="step", color="C3", label="model")
            ax.set_title(f"{model}\n{name}", fontsize=7)
            ax.tick_params(labelsize=6)
            ax.set_yticks([])
    axes[0, 0].legend(fontsize=6)
    save(fig, file)


def traversal(models: dict[str, FastSim], file: str) -> None:
    """Layer energies of one and the same z while the requested energy rises: eight z per model."""
    fig, axes = plt.subplots(1, len(models), figsize=(3.4 * len(models), 3), squeeze=False)
    energy = torch.linspace(1e3, 1e5, 60)
    for ax, (name, fast) in zip(axes[0], models.items(), strict=True):
        z = fast.noise(8, 7)
        for k in range(8):
            with torch.inference_mode():
                zero = torch.zeros_like(energy)
                out = fast(z[k].expand(60, -1), energy, zero, zero, zero, zero).sum(1)
            ax.plot(energy / 1e3, out / 1e3, lw=1)
        ax.plot([1, 100], [1, 100], "k:", lw=1)
        ax.set(title=name, xlabel="requested energy [GeV]", ylabel="deposited energy [GeV]")
    save(fig, file)


def neighbours(drawn: dict[str, Any], file: str) -> None:
    """Five generated showers (their first layer) above their nearest Geant4 shower, by Euclidean distance."""
    fig, axes = plt.subplots(2 * len(drawn), 5, figsize=(13, 2.1 * len(drawn)), squeeze=False)
    for row, (name, (_, test, made)) in enumerate(drawn.items()):
        layer = 1 if test.geometry.n_layers > 1 else 0
        near = [int(((test.energy - made.energy[k]) ** 2).sum(1).argmin()) for k in range(5)]
        for k in range(5):
            for line, (who, picture) in enumerate(
                ((name, made.image(layer)[k]), ("nearest", test.image(layer)[near[k]]))
            ):
                ax = axes[2 * row + line, k]
                ax.imshow(np.log10(picture.T + 1e-2), origin="lower", aspect="auto")
                ax.set_title(who, fontsize=7)
                ax.set_xticks([])
                ax.set_yticks([])
    save(fig, file)


def legacy(showers: Showers) -> dict[str, Array]:
    """The observables of figure 4, each with the depth that its panel was made with."""
    found = {z: lhcb.legacy_observables(showers, z_m=z) for z in sorted({v[3] for v in LEGACY.values()})}
    return {name: found[v[3]][name] for name, v in LEGACY.items()}


def separation(a: Array, b: Array, low: float, high: float, n_bins: int) -> float:
    """1/2 sum (p - q)^2/(p + q) in equal bins."""
    p, q = (np.histogram(v[np.isfinite(v)], n_bins, (low, high))[0] / np.isfinite(v).sum() for v in (a, b))
    return 0.5 * float(((p - q) ** 2 / np.where(p + q > 0, p + q, 1)).sum())


def lhcb_cells(names: list[str]) -> None:
    """LHCb's cells: the five panels of figure 4, sparsity curve, scores."""
    columns: dict[str, dict[str, str]] = {}
    drawn, rng = {}, np.random.default_rng(0)
    for name in names:
        short, fast, test = load(name)
        # Three generated showers per particle: the noise of the candidate counts less.
        made = Showers.concat([fast.simulate(test.incident, seed=k) for k in range(3)])
        truth, found = legacy(test), legacy(made)
        train = legacy(cf.read(hub.sample(str(fast.card.training["data"]))))
        column = {}
        for key, (low, high, bins, _) in LEGACY.items():
            value = separation(truth[key], found[key], low, high, bins)
            again = [rng.integers(0, len(test), len(test)) for _ in range(20)]
            error = np.std([separation(truth[key][i], found[key], low, high, bins) for i in again])
            floor = separation(truth[key], train[key], low, high, bins)
            column[f"separation, {key}"] = f"{cell((value, float(error)))} ({floor:.4f})"
            width = [np.nanstd(v[key]) for v in (truth, found)]
            column[f"width of {key}, model / Geant4"] = f"{width[1] / width[0]:.3f}"
        kept = ("auc_low", "auc_high", "fpd", "response/mean")
        column |= scores(name, fast, test, fast.simulate(test.incident, seed=0), kept)
        columns[short] = column
        drawn[short] = (truth, found, test, made)
        print(short, column, flush=True)
    note = (
        "\n\nThe number in brackets behind a separation of figure 4 is that of the Geant4 test against the Geant4 "
        "training sample, behind other values that of two halves of the test sample."
    )
    put_section("GANs in LHCb's calorimeter", "\n".join(table(columns)) + note, command("lhcb", names))
    fig, axes = plt.subplots(1, 6, figsize=(19, 3))
    for ax, (key, (low, high, bins, _)) in zip(axes, LEGACY.items(), strict=False):
        first = next(iter(drawn.values()))
        ax.hist(first[0][key], bins, range=(low, high), density=True, color="0.8", label="Geant4")
        for k, (name, values) in enumerate(drawn.items()):
            ax.hist(
                values[1][key], bins, range=(low, high), density=True, histtype="step", color=f"C{k + 1}", label=name
            )
        ax.set_title(key.removeprefix("legacy_"), fontsize=9)
        ax.set_yticks([])
    threshold = np.geomspace(0.1, 1e3, 25)
    for k, (name, values) in enumerate([("Geant4", first), *drawn.items()]):
        curve = lhcb.sparsity_curve(values[2] if k == 0 else values[3], threshold)
        axes[5].plot(threshold, curve.mean, color="k" if k == 0 else f"C{k}", label=name)
    axes[5].set(xscale="log", xlabel="threshold [MeV]", title="occupied fraction")
    axes[5].legend(fontsize=7)
    save(fig, "gans-lhcb.png")
    mean_images(first[2], {k: v[3] for k, v in drawn.items()}, "gans-lhcb-mean.png")


def jet_images(names: list[str]) -> None:
    """Jet images: mean images, windows, mass, pT, tau_21, and the classes that a network of Pythia finds in them."""
    columns: dict[str, dict[str, str]] = {}
    drawn: dict[str, Any] = {}
    for name in names:
        short, fast, test = load(name)
        made = fast.simulate(test.incident, seed=0)
        values = [jets.observables(s) for s in (test, made)]
        accuracy = class_accuracy(cf.read(hub.sample(str(fast.card.training["data"]))), test, made)
        column = {"class accuracy of a network trained on Pythia: on the model (on Pythia)": accuracy}
        column["largest residual of the mean image [GeV], W / QCD (test sample alone)"] = residuals(fast, test)
        for key, (low, high) in WINDOWS.items():
            out = [100 * float(np.mean((v[key] < low) | (v[key] > high))) for v in values]
            column[f"outside the window of {key} [%]"] = f"{out[1]:.1f} ({out[0]:.1f})"
        kept = ("auc_low", "auc_high", "fpd", "separation/jet_pt", "separation/jet_mass", "separation/tau_21")
        column |= scores(name, fast, test, made, kept)
        columns[short] = column
        drawn[short] = (test, made, values)
        print(short, column, flush=True)
    put_section("GANs of jet images", "\n".join(table(columns)), command("jets", names))
    jet_shapes(drawn, "gans-jets.png")
    mean_images(next(iter(drawn.values()))[0], {k: v[1] for k, v in drawn.items()}, "gans-jets-mean.png")


def jet_shapes(drawn: dict[str, Any], file: str) -> None:
    """Mass, pT and subjettiness of W (above) and QCD jets."""
    first = next(iter(drawn.values()))
    units = {"jet_mass": (1e3, "jet mass [GeV]"), "jet_pt": (1e3, "jet pT [GeV]"), "tau_21": (1.0, "tau_21"),
             "tau_1": (1.0, "tau_1")}  # fmt: skip
    fig, axes = plt.subplots(2, 4, figsize=(15, 6))
    for row, kind in zip(axes, (24, 21), strict=True):
        for ax, (key, (unit, label)) in zip(row, units.items(), strict=True):
            chosen = first[2][0][key][first[0].incident.pdg == kind]
            edges = np.linspace(*np.quantile(first[2][0][key], [0.0, 1.0]), 51) / unit
            ax.hist(chosen / unit, edges, density=True, color="0.8", label="Pythia")
            for k, (name, (_, made, values)) in enumerate(drawn.items()):
                ax.hist(values[1][key][made.incident.pdg == kind] / unit, edges, density=True, histtype="step",
                        color=f"C{k + 1}", label=name)  # fmt: skip
            ax.set_title("W" if kind == 24 else "QCD", fontsize=9)
            ax.set_xlabel(label, fontsize=8)
            ax.tick_params(labelsize=7)
            ax.set_yticks([])
    axes[0, 0].legend(fontsize=7)
    fig.tight_layout()
    save(fig, file)


def of(showers: Showers, pdg: int) -> Array:
    return np.asarray(showers.incident.pdg == pdg)


def residuals(fast: FastSim, test: Showers) -> str:
    """Largest difference of the mean images for W / QCD [GeV], of four times as many jets as the test sample has.

    In brackets what the test sample's statistics make of no difference: itself against draws from it (bootstrap).
    """
    made = fast.simulate(test.incident[np.tile(np.arange(len(test)), 4)], seed=0)
    rng = np.random.default_rng(0)
    largest, expected = [], []
    for pdg in (24, 21):
        truth, model = (s.image(0)[of(s, pdg)] / 1e3 for s in (test, made))
        mean = truth.mean(0)
        largest.append(np.abs(model.mean(0) - mean).max())
        draws = [truth[rng.integers(len(truth), size=len(truth))].mean(0) for _ in range(20)]
        expected.append(np.mean([np.abs(draw - mean).max() for draw in draws]))
    return f"{largest[0]:.2f} / {largest[1]:.2f} ({expected[0]:.2f} / {expected[1]:.2f})"


def mean_residuals(names: list[str]) -> None:
    """Print the residuals of models on the jets of a file, which comes first."""
    test = cf.read(names[0])
    for name in names[1:]:
        print(f"{name}, {len(test)} jets: {residuals(FastSim.load(hub.model(name)), test)}", flush=True)


def class_accuracy(train: Showers, test: Showers, made: Showers) -> str:
    """Share of jets whose class a network finds that was trained on Pythia's images, for W and QCD."""
    parts = [np.log1p(s.energy / 100.0).astype(np.float32) for s in (train, test, made)]
    labels = [(s.incident.pdg == 24).astype(np.float32) for s in (train, test, made)]
    cut = round(0.8 * len(train))
    config = classifier.ClassifierConfig(epochs=12)
    scaled = classifier.scaler(parts[0][:cut], whiten=False)
    logits = classifier._fit(
        (scaled(parts[0][:cut]), labels[0][:cut]), (scaled(parts[0][cut:]), labels[0][cut:]), config, None, 0
    )
    out = []
    for x, y in zip(parts[1:], labels[1:], strict=True):
        right = (logits(scaled(x)) > 0) == (y > 0.5)
        out.append(f"W {100 * right[y > 0.5].mean():.1f} %, QCD {100 * right[y < 0.5].mean():.1f} %")
    return f"{out[1]} ({out[0]})"


def speed(names: list[str]) -> None:
    """ms per shower with ONNX Runtime, and how many times faster than Geant4 or Pythia on the same core."""
    lines = ["| model | parameters | truth [ms] | " + " | ".join(f"batch {n}" for n in BATCHES) + " |"]
    lines.append("|---|" + "---:|" * (len(BATCHES) + 2))
    for name in names:
        short, fast, test = load(name)
        rows = benchmark([hub.model(name)], test.incident, engines=("onnxruntime",), batches=BATCHES, n_geant4=20)
        n = sum(
            p.numel() for k, p in fast.generator.named_parameters() if k.split(".")[0] not in fast.generator.helpers
        )
        cells = [f"{r.ms_per_shower:.3f} ms, {1e3 / r.ms_per_shower:,.0f}/s, x {r.speedup:,.0f}" for r in rows]
        lines.append(f"| {short} | {n:,} | {rows[0].geant4_ms_per_shower:.0f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    head = f"One thread of {machine()['processor']}; truth is Geant4, or Pythia 8 for jets (half W, half QCD).\n\n"
    put_section("GANs: speed", head + "\n".join(lines), command("speed", names))


def save(fig: Any, file: str) -> None:
    fig.tight_layout()
    fig.savefig(DOCS / file, dpi=90)
    plt.close(fig)


def command(what: str, names: list[str]) -> str:
    return f"python benchmarks/gans.py {what} {' '.join(names)}"


if __name__ == "__main__":
    parts = {"calogan": calogan, "lhcb": lhcb_cells, "jets": jet_images, "residuals": mean_residuals,
             "speed": speed}  # fmt: skip
    if len(sys.argv) < 3 or sys.argv[1] not in parts:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    parts[sys.argv[1]](sys.argv[2:])
