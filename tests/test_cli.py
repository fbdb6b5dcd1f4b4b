"""The command line: what a user does wrong is one sentence, exit code 2, and nothing written."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from caloforge import io
from caloforge.cli import VERBS, run
from caloforge.fastsim import FastSim
from caloforge.models.vae import VAE, VAEConfig
from caloforge.showers import Incident
from caloforge.simulate.gun import Gun, uniform
from caloforge.testing import small_geometry, small_showers

SHOWERS = small_showers(n=80)
RECIPE = """[model]
family = "vae"
n_latent = 2
width = 8
depth = 1
layer_hidden = 8
layer_transforms = 1
[train]
steps = 4
batch = 16
warmup = 1
bf16 = false
log_every = 2
checkpoint_every = 2
"""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Commands set the number of threads."""
    n = torch.get_num_threads()
    yield
    torch.set_num_threads(n)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with showers, a recipe and a model for 1 to 100 GeV."""
    monkeypatch.chdir(tmp_path)
    io.write(SHOWERS, "showers.h5")
    Path("recipe.toml").write_text(RECIPE)
    config = VAEConfig(n_latent=2, width=8, depth=1, layer_hidden=8, layer_transforms=1)
    fast = FastSim.create(small_geometry(), config, valid=Gun(11, uniform(1e3, 1e5)))
    fast.fit_transform(SHOWERS)
    fast.save("model")
    return tmp_path


def contents(folder: Path) -> dict[str, Any]:
    """Every file below the folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def edit(path: str, change: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def set_value(name: str, value: float) -> Callable[[], None]:
    return lambda: edit("showers.h5", lambda file: file[name].__setitem__((0, 0) if name == "energy" else 0, value))


def truncate() -> None:
    content = Path("showers.h5").read_bytes()
    Path("showers.h5").write_bytes(content[: len(content) // 2])


def wrong_shape() -> None:
    def change(file: h5py.File) -> None:
        del file["energy"]
        file["energy"] = np.ones((80, 21), np.float32)

    edit("showers.h5", change)


def tamper() -> None:
    path = Path("model/weights.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_particles() -> None:
    io.write(small_showers(n=5), "model/../far.h5")
    edit("far.h5", lambda file: file["incident/energy"].__setitem__(0, 2e5))


def other_detector() -> None:
    io.write(small_showers(type(small_geometry())("other", small_geometry().layers[:1]), n=80), "other.h5")


def nothing() -> None:
    pass


def earlier_run() -> None:
    Path("run").mkdir()
    Path("run/recipe.toml").write_text(RECIPE)
    Path("run/last.pt").write_text("hours of work")


TRAIN = ["train", "showers.h5", "-o", "run", "--recipe", "recipe.toml"]
EVALUATE = ["evaluate", "showers.h5", "showers.h5", "-o", "report"]
SIMULATE = ["simulate", "calogan", "--engine", "parametric", "-n", "5", "-o", "new.h5", "--energy", "1GeV"]
GENERATE = ["generate", "model", "-o", "new.h5", "-n", "5", "--energy", "2GeV"]


def changed(command: list[str], **options: str) -> list[str]:
    """The command with options replaced or added."""
    command = list(command)
    for name, value in options.items():
        option = f"--{name}"
        if option in command:
            command[command.index(option) + 1] = value
        else:
            command += [option, value]
    return command


CASES: dict[str, tuple[Callable[[], Any], list[str], str]] = {
    "wrong shape to train": (wrong_shape, TRAIN, r"got voxel energies of shape \(80, 21\), expected \(80, 22\)"),
    "wrong shape to evaluate": (wrong_shape, EVALUATE, r"got voxel energies of shape"),
    "truncated to train": (truncate, TRAIN, "expected an HDF5 file; it is truncated or none"),
    "truncated to evaluate": (truncate, EVALUATE, "truncated"),
    "no HDF5": (lambda: Path("showers.h5").write_text("hello"), TRAIN, "expected an HDF5 file"),
    "no file": (nothing, ["train", "no.h5", "-o", "run"], "no such file, check the name"),
    "NaN": (set_value("energy", np.nan), TRAIN, "got NaN or infinite voxel energies in 1 showers"),
    "negative energy": (set_value("energy", -1.0), EVALUATE, "got negative voxel energies"),
    "incident energy 0": (set_value("incident/energy", 0.0), TRAIN, "got incident energy 0 MeV"),
    "digest of a file": (lambda: edit("showers.h5", lambda f: f.attrs.__setitem__("geometry_digest", "0" * 16)), TRAIN,
                         "whose geometry does not match its digest"),
    "other detector": (other_detector, ["evaluate", "showers.h5", "other.h5", "-o", "report"],
                       "got candidate showers with geometry 'other'.*use files of the same detector"),
    "unknown key": (lambda: Path("recipe.toml").write_text("[train]\nsteep = 3"), TRAIN,
                    r"got unknown key 'steep' in \[train\] of recipe.toml, expected only steps, batch"),
    "no recipe": (nothing, changed(TRAIN, recipe="no.toml"), r"got recipe no\.toml, expected a TOML file"),
    "recipe that is a folder": (nothing, changed(TRAIN, recipe="model"), "recipe"),
    "no steps": (nothing, changed(TRAIN, steps="0"), "expected steps, batch"),
    "mirror of displaced particles": (
        lambda: (Path("recipe.toml").write_text(RECIPE + "mirror = true\n"),
                 edit("showers.h5", lambda f: f["incident/x"].__setitem__(0, 5.0))),
        TRAIN, "got train.mirror with inclined or displaced particles"),
    "nothing to resume": (nothing, [*TRAIN, "--resume"], "got --resume, expected a run with run/last.pt"),
    "existing run": (lambda: Path("run").mkdir(), TRAIN, "got output run, which exists"),
    "a folder that is no run": (nothing, ["train", "showers.h5", "-o", "model", "--force"],
                                "got output model, a folder that is no run"),
    "existing report": (lambda: Path("report").mkdir(), EVALUATE, "got output report, which exists"),
    "existing file to simulate": (lambda: Path("new.h5").touch(), SIMULATE, "got output new.h5, which exists"),
    "existing file to generate": (lambda: Path("new.h5").touch(), GENERATE, "got output new.h5, which exists"),
    "existing graph": (lambda: Path("a.onnx").touch(), ["export", "model", "-o", "a.onnx"], "got output a.onnx, which"),
    "existing timings": (lambda: Path("a.json").touch(), ["benchmark", "model", "-o", "a.json", "--like", "showers.h5"],
                         "got output a.json, which exists"),
    "no folder for the output": (nothing, ["generate", "model", "-o", "no/new.h5", "-n", "5", "--energy", "2GeV"],
                                 "expected an existing folder"),
    "energy without unit": (nothing, changed(SIMULATE, energy="5"), "got energy '5' with no unit"),
    "energy below 0": (nothing, [*SIMULATE[:-2], "--energy=-5GeV"], "give positive energies in rising order"),
    "energy of 0": (nothing, changed(GENERATE, energy="0GeV"), "give positive energies"),
    "unknown detector": (nothing, ["simulate", "atlas", *SIMULATE[2:]], "got detector 'atlas', expected one of"),
    "unknown particle": (nothing, changed(SIMULATE, particle="elektron"), "got particle 'elektron', expected a name"),
    "no showers": (nothing, [*SIMULATE[:4], "-n", "0", "-o", "new.h5"], "got n=0 showers"),
    "energy outside the card": (nothing, changed(GENERATE, energy="200GeV"), "the range this model was made for"),
    "particles outside the card": (other_particles, ["generate", "model", "-o", "new.h5", "--like", "far.h5"],
                                   r"got incident energy 200000 MeV, expected 1000\.\.100000 MeV"),
    "both particles and energy": (nothing, [*GENERATE, "--like", "showers.h5"], "expected one of them"),
    "number missing": (nothing, ["generate", "model", "-o", "new.h5", "--energy", "2GeV"], "add -n N"),
    "fewer than one": (nothing, ["generate", "model", "-o", "new.h5", "--energy", "2GeV", "-n", "0"], "got -n 0"),
    "tampered weights to generate": (tamper, GENERATE, "that differ from their card"),
    "tampered weights to export": (tamper, ["export", "model", "-o", "a.onnx"], "that differ from their card"),
    "no model": (nothing, ["generate", "none", *GENERATE[2:]], "expected a model folder with card.json"),
    "no card in the graph": (nothing, ["show", "no.onnx"], "no.onnx"),
    "nothing to show": (nothing, ["show", "atlas"], "no such file, check the name"),
    "training showers as reference": (nothing, [*EVALUATE, "--training", "showers.h5"],
                                      "got 80 showers that are both reference and training"),
    "a candidate twice": (other_particles, ["evaluate", "showers.h5", "far.h5", "far.h5", "-o", "report"],
                          "got candidate far.h5 twice"),
    "too few showers for the default": (earlier_run, ["train", "showers.h5", "-o", "run", "--force"],
                                        "got 80 showers, expected at least 500 for the default"),
    "a teacher that cannot teach": (earlier_run, ["distill", "model", "showers.h5", "-o", "run", "--force"],
                                    "got a teacher of family vae"),
    "a run in place of its showers": (nothing, ["train", "showers.h5", "-o", "showers.h5", *TRAIN[4:], "--force"],
                                      "got output showers.h5"),
    "a run in place of its teacher": (
        earlier_run, ["distill", "model", "showers.h5", "-o", "model", "--force"], "what this run is made from"),
    "a folder in place of a file": (lambda: Path("new.h5").mkdir(), [*SIMULATE, "--force"],
                                    "got output new.h5, a folder, expected the name of a file"),
    "a particle that cannot be simulated": (nothing, changed(SIMULATE, particle="pi+"),
                                            "got particle 211, expected e-"),
    "a folder of somebody's model": (lambda: Path("mine/model").mkdir(parents=True), ["demo", "-o", "mine"],
                                     "got output mine, which is no earlier demo report"),
    "no training showers": (lambda: io.write(small_showers()[:0], "none.h5"), ["train", "none.h5", *TRAIN[2:]],
                            "got none.h5 without showers"),
    "threads below 0": (nothing, [*TRAIN, "--threads", "-1"], "got --threads -1"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_sentence_and_write_nothing(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, command, message = CASES[case]
    prepare()
    before = contents(here)
    code = run(command)
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert err.startswith("caloforge: got ")
    assert err.count("\n") == 1
    assert out == ""
    assert re.search(message, err), err
    assert contents(here) == before


def test_unknown_options_and_verbs_end_with_code_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(here)
    for command in ([], ["fly"], [*TRAIN, "--speed", "3"], ["train"], ["simulate", "calogan", "-n", "many", "-o", "a"]):
        assert run(command) == 2
    assert capsys.readouterr().err
    assert contents(here) == before


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_explains_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in VERBS) if not verb else f"caloforge {verb}" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from caloforge import __version__

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"caloforge {__version__}\n"


def test_the_installed_command_and_the_module_agree(here: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "caloforge", "show", "no.h5"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("caloforge: got no.h5, expected")


def test_a_run_folder_is_complete_and_a_resumed_one_is_equal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TRAIN) == 0
    assert capsys.readouterr().out == "run: trained model\n"
    assert {p.name for p in Path("run").iterdir()} == {
        "card.json", "weights.safetensors", "recipe.toml", "log.jsonl", "last.pt",
    }  # fmt: skip
    card = json.loads(Path("run/card.json").read_text())
    assert card["training"]["data"] == "showers.h5"
    assert len(card["training"]["data_sha256"]) == 64
    weights = Path("run/weights.safetensors").read_bytes()
    assert run([*TRAIN, "--resume"]) == 0  # nothing is left to do
    assert Path("run/weights.safetensors").read_bytes() == weights
    assert run([*TRAIN, "--force", "--seed", "1"]) == 0
    assert Path("run/weights.safetensors").read_bytes() != weights
    assert "seed = 1" in Path("run/recipe.toml").read_text()


def test_a_run_of_another_recipe_is_not_resumed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TRAIN) == 0
    before = contents(here)
    assert run([*changed(TRAIN, seed="5"), "--resume"]) == 2
    assert "got another recipe to resume than run/recipe.toml (train.seed = 5 instead of 0)" in capsys.readouterr().err
    Path("recipe.toml").write_text(RECIPE.replace("width = 8", "width = 16").replace("warmup = 1", "warmup = 2"))
    assert run([*changed(TRAIN, seed="5"), "--resume"]) == 2
    message = "model.width = 16 instead of 8, train.warmup = 2 instead of 1, train.seed = 5 instead of 0"
    assert f"({message}), expected the same" in capsys.readouterr().err
    Path("recipe.toml").write_text('[model]\nfamily = "flow_matching"\n')
    assert run([*TRAIN, "--resume"]) == 2
    assert "(model.family = flow_matching instead of vae, " in capsys.readouterr().err
    Path("recipe.toml").write_text(RECIPE)
    assert contents(here) == before


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, loss = [], VAE._shape_loss

    def broken(self: VAE, x: torch.Tensor, c: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        taken.append(self.training)
        return loss(self, x, c, generator) * (float("nan") if sum(taken) > 3 else 1)

    monkeypatch.setattr(VAE, "_shape_loss", broken)
    assert run(TRAIN) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("caloforge: got a loss of nan for objective 'shape' at step 3, expected a finite number; ")
    assert {p.name for p in Path("run").iterdir()} == {"recipe.toml", "log.jsonl", "last.pt"}
    assert torch.load("run/last.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(VAE, "_shape_loss", loss)
    assert run([*TRAIN, "--resume"]) == 0


def test_a_gpu_or_processes_that_do_not_fit_are_said_before_anything_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("gpu.toml").write_text(RECIPE + 'device = "cuda"\n')
    before = contents(here)
    assert run(changed(TRAIN, recipe="gpu.toml")) == 2
    assert "caloforge: got train.device = 'cuda' where PyTorch finds no GPU" in capsys.readouterr().err
    for name, value in (("TORCHELASTIC_RUN_ID", "run"), ("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert run(TRAIN) == 2
    assert "caloforge: got 2 processes for train.parts = 1" in capsys.readouterr().err
    assert contents(here) == before


def test_generate_takes_particles_of_a_file_or_draws_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "model", "-o", "a.h5", "--like", "showers.h5", "-n", "7", "--seed", "3"]) == 0
    assert run(["generate", "model", "-o", "b.h5", "--energy", "2..5GeV", "-n", "9"]) == 0
    assert capsys.readouterr().out == "a.h5: 7 showers\nb.h5: 9 showers\n"
    like, drawn = io.read("a.h5"), io.read("b.h5")
    np.testing.assert_array_equal(like.incident.energy, SHOWERS.incident.energy[:7])
    fast = FastSim.load("model")
    np.testing.assert_array_equal(like.energy, fast.simulate(SHOWERS.incident[:7], seed=3).energy)
    assert 2e3 <= drawn.incident.energy.min() < drawn.incident.energy.max() <= 5e3
    assert like.provenance["seed"] == 3
    assert run(["generate", "model", "-o", "a.h5", "--like", "showers.h5", "--force"]) == 0
    assert len(io.read("a.h5")) == 80


def test_the_recorded_command_makes_the_same_file(here: Path) -> None:
    for k, command in enumerate((["--like", "showers.h5", "-n", "7"], ["--energy", "2..5GeV", "-n", "9", "--spectrum",
                                                                      "log-uniform"])):  # fmt: skip
        first, second = f"a{k}.h5", f"b{k}.h5"
        assert run(["generate", "model", "-o", first, *command, "--seed", "3"]) == 0
        recorded = io.read(first).provenance["command"].split()
        assert run([*recorded[1:], "-o", second]) == 0
        np.testing.assert_array_equal(io.read(first).energy, io.read(second).energy)


def test_show_says_what_a_thing_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for thing, words in (
        ("showers.h5", ("showers", "small, 2 polar layers: 4x3 + 2x5", "E_tot/E")),
        ("model", ("vae", "small, 2 polar layers", "valid")),
        ("calogan", ("G4_Pb", "3 cartesian layers: 3x96 + 12x12 + 12x6")),
    ):
        assert run(["show", thing]) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words), out


def test_an_interrupt_says_how_to_continue(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from caloforge import train

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_step", interrupted)
    assert run(TRAIN) == 130
    assert "add --resume" in capsys.readouterr().err
    assert not Path("run").exists()  # there was no checkpoint yet


def test_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from caloforge.cli import _threads

    _threads(1)
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _threads(0)
    assert torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    if hasattr(os, "sched_getaffinity"):
        _threads(0)
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))


def test_particles_of_another_layout_are_taken_too(here: Path) -> None:
    from caloforge.datasets import calogan
    from caloforge.showers import Showers
    from caloforge.simulate.detectors import calogan_geometry
    from caloforge.workflow import incident_of

    geometry = calogan_geometry()
    incident = Incident([2e3, 3e3], pdg=-11)
    calogan.write(Showers(geometry, incident, np.ones((2, 504))), "calogan.hdf5")
    np.testing.assert_array_equal(incident_of("calogan.hdf5").energy, incident.energy)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["calogan", "--energy", "0.5..2MeV"], "expected 1 MeV..10 TeV"),
        (["calogan", "--energy", "1..20TeV"], "expected 1 MeV..10 TeV"),
        (["calogan", "--particle", "tau-"], "got particle 15, expected one that FTFP_BERT transports"),
        (["calogan", "--x", "0..600mm"], "expected them on the front face of calogan"),
        (["lhcb", "--theta", "100deg"], "outside 0..90 degrees"),
        (["nowhere.toml"], "no such file"),
        (["nowhere"], "got detector 'nowhere', expected one of calogan"),
    ],
)
def test_what_geant4_cannot_simulate_is_said_before_anything_is_written(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", *options, "-n", "5", "-o", str(tmp_path / "a.h5")]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_generate_makes_the_kind_of_particle_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "jets-gan", "--energy", "250..300GeV", "-n", "3"]
    for name, options, pdg in (("a", [], 21), ("b", ["--particle", "24"], 24)):
        assert run([*common, *options, "-o", str(tmp_path / f"{name}.h5")]) == 0
        assert set(io.read(tmp_path / f"{name}.h5").incident.pdg) == {pdg}
    assert run([*common, "--particle", "e-", "-o", str(tmp_path / "c.h5")]) == 2
    assert "got particles with PDG [11], expected [21, 24]" in capsys.readouterr().err
