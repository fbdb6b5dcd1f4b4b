"""Statistical amplification of the toys and of a small VAE, trained from scratch on 1,000 Geant4 showers at a time.

    python benchmarks/amplify.py [folder]      # writes two results to the folder, and a section of RESULTS.md

Truth: the two shipped samples of e+ in the CaloGAN detector together; half of it judges, training showers come from the
other half. Settings of the VAE are those of the demo's recipe with fewer steps; they were found with more showers than
1,000, which is a small leak. About half an hour on one core.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from results import put_section

import caloforge as cf
from caloforge import hub, io
from caloforge.config import load_recipe
from caloforge.evaluate.amplification_result import Amplification, Point
from caloforge.evaluate.amplification_showers import BOOTSTRAP, GENERATED, amplify_trainings
from caloforge.evaluate.amplification_toys import DEFAULT, amplify_toys
from caloforge.evaluate.amplification_truths import TOYS
from caloforge.showers import Showers

N_TRAIN, N_GENERATED, TRAININGS, STEPS = 1000, 20_000, 5, 800
NETWORKS = 20  # trainings of the network on the toys
GUN = cf.Gun(-11, cf.uniform(1e3, 1e5))


def generate(train: Showers, seed: int) -> Showers:
    """A VAE trained on these showers alone, and showers of new particles from it."""
    recipe = load_recipe(hub.DATA / "recipes" / "demo.toml")
    fast = cf.FastSim.create(train.geometry, recipe.model, valid=GUN, preprocess=recipe.preprocess, seed=seed)
    cf.fit(fast, train, replace(recipe.train, steps=STEPS, warmup=100, batch=256, seed=seed))
    return fast.simulate(GUN.sample(N_GENERATED, 1000 + seed), seed=seed)


def number(p: Point) -> str:
    decimals = 1 if p.n_eq < 20 else 0
    return f"{p.n_eq:,.{decimals}f} ± {p.n_eq_error:,.{decimals}f}" if np.isfinite(p.n_eq) else f"> {p.n_eq_limit:,.0f}"


def toy_table(result: Amplification, network: Amplification) -> list[str]:
    lines = ["| toy | boxes | sample | bootstrap | fit | kernels | network |", "|---|---:|---:|---:|---:|---:|---:|"]
    for subject in result.subjects:
        columns = [result.select(subject, name) for name in DEFAULT] + [network.select(subject, "network")]
        for row in zip(*columns, strict=True):
            lines.append(f"| {subject} | {row[0].n_quantiles} | " + " | ".join(number(p) for p in row) + " |")
    return lines


def shower_table(result: Amplification) -> list[str]:
    lines = ["| observable | boxes | VAE | most, by its bias | bootstrap |", "|---|---:|---:|---:|---:|"]
    for subject in result.subjects:
        for p, control in zip(result.select(subject, GENERATED), result.select(subject, BOOTSTRAP), strict=True):
            most = f"{p.n_eq_most:,.0f}" if np.isfinite(p.n_eq_most) else "–"
            at = f"{number(control)} of {control.n_train}"
            lines.append(f"| {subject} | {p.n_boxes} | {number(p)} | {most} | {at} |")
    return lines


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    toys = amplify_toys(repetitions=200)
    network = amplify_toys(TOYS, ("network",), repetitions=NETWORKS)
    both = Amplification("toys", toys.points + network.points, toys.curves + network.curves, toys.settings, toys.notes)
    both.save(folder / "toys", force=True)
    truth = Showers.concat([io.read(hub.sample(f"calogan-eplus-{part}")) for part in ("train", "test")])
    showers = amplify_trainings(truth, generate, n_train=N_TRAIN, repetitions=TRAININGS, quantiles=(10, 20, 50))
    showers.save(folder / "showers", force=True)
    body = [
        "N_eq, the number of points of the truth that a generated sample is worth: 100 training points (500 in five",
        f"dimensions), mean of {toys.settings['repetitions']} repetitions ({NETWORKS} of the network). Formulas and",
        "limits: docs/amplification.md.",
        "",
        *toy_table(toys, network),
        "",
        f"A VAE trained {TRAININGS} times, each on {N_TRAIN:,} new Geant4 showers (e+, 1-100 GeV, CaloGAN detector),",
        f"and asked for {N_GENERATED:,}; judged with {showers.settings['n_truth']:,} others.",
        "",
        *shower_table(showers),
    ]
    put_section("Amplification", "\n".join(body), "python benchmarks/amplify.py")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "amplification"))
